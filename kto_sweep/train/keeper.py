"""When a trial's checkpoint is written, and what happens when it cannot be."""

from collections.abc import Callable
from pathlib import Path

from kto_sweep.train.checkpoint import Checkpoint, save_checkpoint

SECONDS = 60.0
"""Training that a crash may cost."""

SHARE = 50.0
"""A checkpoint waits this many times what the last one took: at most 2 % of a disk's time goes into them."""

Clock = Callable[[], float]


class Keeper:
    """Writes one trial's checkpoints to `path`."""

    def __init__(self, path: Path, note: Callable[[str], None], clock: Clock) -> None:
        self._path = path
        self._note = note
        self._clock = clock
        self._last = clock()
        self._cost = 0.0
        self._failing = False

    def is_due(self, *, early: bool) -> bool:
        """Whether it is time for one; `early`: after an evaluation, which would be a pity to lose."""
        return self._clock() - self._last >= max(0.0 if early else SECONDS, SHARE * self._cost)

    def keep(self, checkpoint: Checkpoint, sync_rows: Callable[[], None]) -> None:
        """Write one. When that fails the trial goes on, with a warning: there may be room again later."""
        began = self._clock()
        try:
            sync_rows()  # first: a checkpoint without its rows is of no use
            save_checkpoint(self._path, checkpoint)
        except OSError as error:
            if not self._failing:
                self._note(f"WARNING: step {checkpoint.state.step}: no checkpoint written: {error.strerror}")
            self._failing = True
        else:
            self._failing = False
            self._note(f"step {checkpoint.state.step}: checkpoint written")
        self._last = self._clock()
        self._cost = self._last - began
