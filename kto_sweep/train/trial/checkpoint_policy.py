"""When a trial's checkpoint is written, and what happens when it cannot be."""

from collections.abc import Callable
from pathlib import Path

from kto_sweep.train.trial.checkpoint import Checkpoint, save_checkpoint

INTERVAL = 60.0
"""Seconds of training that a crash may lose."""

COST_FACTOR = 50.0
"""A checkpoint waits this many times as long as the last one took: writing takes at most 2 % of the time."""

Clock = Callable[[], float]


class CheckpointPolicy:
    """Decides when to write one trial's checkpoints to `path`, and writes them."""

    def __init__(self, path: Path, note: Callable[[str], None], clock: Clock) -> None:
        self._path = path
        self._note = note
        self._clock = clock
        self._last = clock()
        self._cost = 0.0
        """Seconds that the last one took."""
        self._failing = False

    def is_due(self, *, after_evaluation: bool) -> bool:
        """Whether to write one now; earlier after an evaluation, which takes long to repeat."""
        interval = 0.0 if after_evaluation else INTERVAL
        return self._clock() - self._last >= max(interval, COST_FACTOR * self._cost)

    def write(self, checkpoint: Checkpoint, sync_rows: Callable[[], None]) -> None:
        """Write one. On an OSError the trial continues with a warning: a full disk may have space later."""
        began = self._clock()
        try:
            sync_rows()  # first: a checkpoint without its rows is not usable
            save_checkpoint(self._path, checkpoint)
        except OSError as error:
            if not self._failing:  # once per failure, not once per attempt
                self._note(f"WARNING: step {checkpoint.state.step}: no checkpoint written: {error.strerror}")
            self._failing = True
        else:
            self._failing = False
            self._note(f"step {checkpoint.state.step}: checkpoint written")
        # Also after a failure: a full disk is tried again at the same interval, not at every step.
        self._last = self._clock()
        self._cost = self._last - began
