"""What the co-trainer gives up when memory runs out, and takes back when it is empty.

micro-batches are split (by the engine) --> empty slots --> the MLP, then layers are recomputed --> the last
trial waits

None of it changes a trial's numbers.
"""

from kto_sweep.models.architecture import Recompute
from kto_sweep.train.packed.decoder import Decoder
from kto_sweep.train.trial.training import TrialTraining
from kto_sweep.train.worker.active_trials import ActiveTrials
from kto_sweep.train.worker.admission_queue import AdmissionQueue
from kto_sweep.train.worker.concurrency import RECOMPUTED, Concurrency, ConcurrencyTuner

EMPTY_SLOT_STEPS = 20
"""Steps that an empty slot waits for the next trial before its memory is freed."""


class MemoryManager:
    """Makes the active trials fit."""

    def __init__(
        self,
        active: ActiveTrials,
        queue: AdmissionQueue,
        decoder: Decoder,
        tuner: ConcurrencyTuner,
    ) -> None:
        self._active = active
        self._queue = queue
        self._decoder = decoder
        self._tuner = tuner
        self._limit = active.engine.limit
        """The engine's limit while memory has not run out."""
        self._recompute = self._wanted = tuner.concurrency.recompute
        decoder.set_recompute(self._recompute)
        self._max_trials: int | None = None
        """Trials that fit at once; None: as many as came did."""
        self._steps_with_empty_slots = 0

    @property
    def has_room(self) -> bool:
        """Whether one more trial may fit."""
        return self._max_trials is None or len(self._active) < self._max_trials

    def relieve(self, evaluating: TrialTraining | None = None) -> bool:
        """Reduce the memory of the next steps; False when nothing is left to give up.

        `evaluating`: the trial whose evaluation ran out of memory. Recomputing layers does not help there.
        """
        self._tuner.on_out_of_memory(len(self._active))
        if self._active.has_empty_slots:
            self._active.remove_empty_slots()
            return True
        more = [level for level in self._decoder.recompute_levels if level > self._recompute]
        if evaluating is None and more:
            self._set_recompute(more[0])
            # The engine has come down to single examples. With less memory per token more fit again.
            self._active.engine.limit = self._limit
            self.note(RECOMPUTED[more[0]])
            return True
        # A trial whose last step is not logged yet cannot leave: its checkpoint would lack that row.
        detachable = [
            training
            for training in self._active
            if training is not evaluating and training.steps == training.launched
        ]
        if len(self._active) == 1 or not detachable:
            return False
        last = detachable[-1]
        with self._active.isolate(last):
            self._active.detach(last)
            self.requeue(last)
        self._active.remove_empty_slots()
        self._active.engine.limit = self._limit
        return True

    def requeue(self, training: TrialTraining) -> None:
        """Let a trial that does not fit wait until another one ends."""
        self._max_trials = len(self._active)
        self._tuner.on_out_of_memory(self._max_trials)
        self._queue.put_back(training)
        training.report.note("out of memory: the trial waits until another one ends, then continues")

    def reset(self) -> None:
        """Start over for the next trials, which may be smaller."""
        self._active.engine.limit = self._limit
        self._max_trials = None
        self._set_recompute(self._wanted)

    def follow(self, concurrency: Concurrency) -> bool:
        """Recompute what the measured choice says, once its number of trials or fewer are active.

        True if that has changed: the peak so far then says nothing about the next steps.
        """
        if concurrency.recompute is self._wanted or len(self._active) > concurrency.slots:
            return False
        self._wanted = concurrency.recompute
        self._set_recompute(self._wanted)
        return True

    def has_idle_slots(self) -> bool:
        """Whether slots have been empty for EMPTY_SLOT_STEPS steps; call it once per step."""
        idle = self._active.has_empty_slots and len(self._active) > 0
        self._steps_with_empty_slots = self._steps_with_empty_slots + 1 if idle else 0
        return self._steps_with_empty_slots > EMPTY_SLOT_STEPS

    def note(self, text: str) -> None:
        """Tell all active trials what out of memory led to."""
        for training in self._active:
            training.report.note(
                f"step {training.launched + 1}: out of memory: {text}; results do not change"
            )

    def _set_recompute(self, level: Recompute) -> None:
        if level is not self._recompute:
            self._recompute = level
            self._decoder.set_recompute(level)
