"""The worker's main loop: trains the trials in the queue until the supervisor is gone.

channel --> queue --> co-trainer (many at once) | TRL's trainer (one alone) --> channel
"""

import contextlib
import gc
from collections.abc import Callable
from pathlib import Path

from kto_sweep.home import Home
from kto_sweep.protocol import Done, SetConcurrency
from kto_sweep.provenance import Provenance
from kto_sweep.train.context import WorkerContext
from kto_sweep.train.device import is_broken, is_out_of_memory, out_of_memory
from kto_sweep.train.packed.compatibility import NotPackableError
from kto_sweep.train.trial.request import Report, StopRequestedError, TrainResult, TrialRequest
from kto_sweep.train.trial.training import sharing_key
from kto_sweep.train.trl.launcher import train_in_ranks
from kto_sweep.train.worker.admission_queue import AdmissionQueue
from kto_sweep.train.worker.channel import Channel, failure
from kto_sweep.train.worker.concurrency import Concurrency, ConcurrencyTuner
from kto_sweep.train.worker.cotrainer import CoTrainer, create_cotrainer
from kto_sweep.trial import Trial


class WorkerLoop:
    """Trains the trials in `queue`, and sends their outcomes through `channel`."""

    def __init__(self, home: Home, channel: Channel, queue: AdmissionQueue, devices: int = 1) -> None:
        """`devices` per trial; with several each trial is trained alone, in one process per device."""
        self._home = home
        self._channel = channel
        self._queue = queue
        self._devices = devices
        self._context = WorkerContext(home)
        self._cotrainer: CoTrainer | None = None
        self._tuners: dict[object, ConcurrencyTuner] = {}
        """By what trials that are trained together share."""
        self._concurrency = Concurrency(1, "")
        """As last sent to the supervisor."""

    def run(self) -> None:
        """Work until the supervisor is gone and every trial is saved.

        Raises errors that no single trial caused.
        """
        while True:
            if self._cotrainer is not None and self._cotrainer.busy:
                self._step(self._cotrainer)
            elif (pending := self._queue.first()) is not None:
                self._switch_to(pending.request)
            elif self._channel.closed:
                break
            else:
                self._queue.wait()
        self._close_cotrainer()

    def _step(self, cotrainer: CoTrainer) -> None:
        for outcome in cotrainer.step():
            self._send_outcome(outcome.run_id, outcome.result)
        self._announce(cotrainer.concurrency)

    def _announce(self, concurrency: Concurrency) -> None:
        if concurrency != self._concurrency:
            self._concurrency = concurrency
            self._channel.send(SetConcurrency(concurrency.slots, concurrency.reason))

    def _switch_to(self, request: TrialRequest) -> None:
        """Train a trial that needs another model, other data, or the device for itself."""
        self._close_cotrainer()
        if request.should_stop():
            self._send_outcome(request.run_id, TrainResult({}, 0, stopped=True))
            return
        trial = request.trial
        if trial.full_finetune or self._devices > 1:
            self._train_alone(request)
            return
        # New trials start with as many at once as the supervisor has slots for now.
        tuner = self._tuners.setdefault(sharing_key(trial), ConcurrencyTuner(self._concurrency.slots))
        try:
            self._load(request)
            self._cotrainer = create_cotrainer(self._context, request, self._queue, tuner, self._announce)
        except StopRequestedError:
            self._send_outcome(request.run_id, TrainResult({}, 0, stopped=True))
        except NotPackableError as reason:
            request.report.note(f"{reason.message}; TRL's trainer trains it instead")
            self._train_alone(request)
        except Exception as error:
            self._fail(request, error)
        else:
            self._queue.put_first(request)

    def _load(self, request: TrialRequest) -> None:
        """Load the trial's model. No trial is training, so nothing is lost if the process exits."""
        with self._channel.exit_when_closed():
            self._context.base(request.trial, request.load_progress)

    def _train_alone(self, request: TrialRequest) -> None:
        try:
            if self._devices > 1:
                result = train_in_ranks(request, self._home, self._devices)
            else:
                self._load(request)
                result = _train_with_trl(self._context, request)
        except StopRequestedError:
            self._send_outcome(request.run_id, TrainResult({}, 0, stopped=True))
        except Exception as error:
            self._fail(request, error)
        else:
            self._send_outcome(request.run_id, result)

    def _fail(self, request: TrialRequest, error: Exception) -> None:
        if is_broken(error):
            raise error
        self._send_outcome(request.run_id, out_of_memory(str(error)) if is_out_of_memory(error) else error)

    def _close_cotrainer(self) -> None:
        if self._cotrainer is not None:
            self._cotrainer.close()
            self._cotrainer = None
            gc.collect()  # the next model may need all the memory

    def _send_outcome(self, run_id: str, result: TrainResult | Exception) -> None:
        if isinstance(result, Exception):
            self._channel.send(failure(run_id, result))
        else:
            self._channel.send(Done(run_id, dict(result.summary), result.steps, result.stopped))


def train_trial(
    context: WorkerContext,
    trial: Trial,
    folder: Path,
    report: Report,
    should_stop: Callable[[], bool],
    provenance: Provenance | None = None,
) -> TrainResult:
    """Train one trial in this process, from its first step or its checkpoint to its end.

    Its adapters (or the model, after full fine-tuning) are then in `folder`. `provenance`: what is known
    before the model is loaded.
    Raises UsageError and DataError for an impossible trial or data, TrialFailure when training fails.
    """
    known = provenance or Provenance()
    request = TrialRequest("", trial, folder, report, should_stop, provenance=known)
    if trial.full_finetune:
        return _train_with_trl(context, request)
    queue = AdmissionQueue()
    queue.put(request)
    try:
        cotrainer = create_cotrainer(context, request, queue)
    except NotPackableError as reason:
        report.note(f"{reason.message}; TRL's trainer trains it instead")
        return _train_with_trl(context, request)
    with contextlib.closing(cotrainer):
        while True:
            for outcome in cotrainer.step():
                if isinstance(outcome.result, Exception):
                    raise outcome.result
                return outcome.result


def _train_with_trl(context: WorkerContext, request: TrialRequest) -> TrainResult:
    from kto_sweep.train.trl.trainer import train_with_trl  # takes seconds to import, and few trials need it

    return train_with_trl(context, request)
