"""Trials trained together on one base model: they join, step, and leave, each as if it were alone.

    queue --> slots of the engine --> one optimizer step of all --> rows, checkpoints --> outcomes

An error in one trial ends that trial only. What happens when memory runs out: see memory.py.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kto_sweep.data.dataset import TrainingData
from kto_sweep.models.architecture import Architecture, Recompute
from kto_sweep.plan.gpus import Gpu, present_gpu
from kto_sweep.plan.timing import TimingModel
from kto_sweep.plan.together import count_together
from kto_sweep.plan.workload import workload_of
from kto_sweep.throughput import Rate, Throughput, read_rates
from kto_sweep.train.base_model import LoadedBase, check_token_ids
from kto_sweep.train.context import WorkerContext
from kto_sweep.train.device import DeviceTime, gpu_memory, is_broken, out_of_memory, read_memory, this_gpu
from kto_sweep.train.packed.compatibility import packed_decoder
from kto_sweep.train.packed.engine import UNSPLIT, Engine
from kto_sweep.train.packed.microbatch import MicrobatchLimit
from kto_sweep.train.packed.step_result import StepResult
from kto_sweep.train.reference_rows import ReferenceLogProbs
from kto_sweep.train.trial.checkpoint import Clock, fingerprint_rows
from kto_sweep.train.trial.request import StopRequestedError, TrainResult, TrialRequest
from kto_sweep.train.trial.training import SharedInputs, TrialTraining, sharing_key
from kto_sweep.train.worker.active_trials import ActiveTrials, TrialOutcome
from kto_sweep.train.worker.admission_queue import AdmissionQueue, PendingTrial
from kto_sweep.train.worker.concurrency import MEMORY_SHARE, Concurrency, ConcurrencyTuner
from kto_sweep.train.worker.memory import MemoryManager
from kto_sweep.trial import Trial


@dataclass(frozen=True)
class LaunchedStep:
    """A step that the device computes, with the trials that take it by slot."""

    result: StepResult
    trainings: Mapping[int, TrialTraining]
    done: DeviceTime


class Admission:
    """Moves trials from the queue into slots, and ends those that were told to stop."""

    def __init__(
        self,
        queue: AdmissionQueue,
        fits: Callable[[PendingTrial], bool],
        active: ActiveTrials,
        memory: MemoryManager,
        reference: ReferenceLogProbs,
        inputs: SharedInputs,
        clock: Clock,
        log_in_flight: Callable[[], None],
    ) -> None:
        """`fits`: which trials share the model and data; `log_in_flight`: see CoTrainer."""
        self._queue = queue
        self._fits = fits
        self._active = active
        self._memory = memory
        self._reference = reference
        self._inputs = inputs
        self._clock = clock
        self._log_in_flight = log_in_flight

    def end_stopped(self) -> list[TrialOutcome]:
        """End the trials that were told to stop; outcomes of those that never had files."""
        outcomes = []
        for pending in self._queue.take_stopped():
            if pending.training is not None:
                self._stop(pending.training)
            else:
                outcomes.append(TrialOutcome(pending.request.run_id, TrainResult({}, 0, stopped=True)))
        stopped = [training for training in self._active if training.request.should_stop()]
        if stopped:
            self._log_in_flight()  # their checkpoints must have the row of every step
        for training in stopped:
            if training.slot is not None:  # its last row may have ended it
                self._stop(training)
        return outcomes

    def _stop(self, training: TrialTraining) -> None:
        with self._active.isolate(training):
            self._active.end(training, training.stop(self._active.engine))

    def admit(self) -> list[TrialOutcome]:
        """Move pending trials that fit into slots, as memory allows; outcomes of those that cannot start."""
        outcomes = []
        if not len(self._active) and not self._queue.detached():
            self._memory.reset()
        while self._memory.has_room and (pending := self._queue.next(self._fits)) is not None:
            # Preparing a trial may take minutes: the previous step must not wait for its row.
            self._log_in_flight()
            try:
                training = pending.training or TrialTraining(pending.request, self._inputs, self._clock)
            except Exception as error:
                outcomes.append(TrialOutcome(pending.request.run_id, error))
            else:
                self._attach(training)
        return outcomes

    def _attach(self, training: TrialTraining) -> None:
        engine = self._active.engine
        with self._active.isolate(training):
            if training.finished:
                self._active.end(training, training.finish_again())
                return
            try:
                self._reference.fill(
                    training.trial, training.request.reference_progress, training.report.note
                )
                slot = self._active.free_slot(self._queue.count(self._fits))
                engine.join(slot, training.trial, training.state)
            except StopRequestedError:
                self._active.end(training, training.stop(engine))
                return
            except torch.OutOfMemoryError:
                if not len(self._active):
                    raise  # it does not fit alone
                self._memory.requeue(training)
                return
            self._active.attach(training, slot)
            if engine.done(slot):  # its checkpoint is of the last step
                self._active.end(training, training.finish(engine))


class CoTrainer:
    """Trains the trials in `queue` that share the model and data of `trial`.

    With `overlap` (default on CUDA) rows are logged one step late, so that the host works while the device
    does. `tuner` finds out how many trials are worth training at once; `throughput` measures every step.

    Raises NotPackableError for a model or rows that only TRL's trainer can train.
    """

    def __init__(
        self,
        base: LoadedBase,
        data: TrainingData,
        trial: Trial,
        queue: AdmissionQueue,
        *,
        cache: Path,
        limit: MicrobatchLimit = UNSPLIT,
        overlap: bool | None = None,
        clock: Clock = time.monotonic,
        tuner: ConcurrencyTuner | None = None,
        throughput: Throughput | None = None,
    ) -> None:
        self.queue = queue
        self._sharing_key = sharing_key(trial)
        self._clock = clock
        self._decoder = packed_decoder(base.model)
        self._device = self._decoder.device
        try:
            reference = ReferenceLogProbs(self._decoder, base, data, cache)
        except Exception:
            self._decoder.release()
            raise
        rows, held_out = reference.train, reference.held_out
        rows_hash = fingerprint_rows(rows.rows, held_out.rows)
        inputs = SharedInputs(base, data, reference.model.fingerprint, rows_hash)
        self._engine = Engine(self._decoder, rows, held_out, limit=limit)
        self._active = ActiveTrials(self._engine)
        self._tuner = tuner or ConcurrencyTuner()
        # Whole layers are computed again only when memory runs out: that costs more than fewer trials do.
        self._tuner.levels = [level for level in self._decoder.recompute_levels if level < Recompute.LAYER]
        self._memory = MemoryManager(self._active, queue, self._decoder, self._tuner)
        self._admission = Admission(
            queue, self._fits, self._active, self._memory, reference, inputs, clock, self._log_in_flight
        )
        self._throughput = throughput
        self._overlap = self._device.type == "cuda" if overlap is None else overlap
        self._in_flight: LaunchedStep | None = None
        """The step that is launched and not logged."""
        self._step_started = DeviceTime(self._device, clock)
        """When the device could start the step that is logged next."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)  # the previous base model's peak does not count
        self._tuner.empty = read_memory(self._device).used

    @property
    def concurrency(self) -> Concurrency:
        """The number of trials that are worth training at once."""
        return self._tuner.concurrency

    @property
    def busy(self) -> bool:
        """Whether `step` has work: active trials, files to write, or trials in the queue that fit."""
        return bool(len(self._active) or self._active.ending or self.queue.has_next(self._fits))

    @property
    def active(self) -> list[TrialTraining]:
        """The trials in slots, in the order in which they joined."""
        return list(self._active)

    def fits(self, trial: Trial) -> bool:
        """Whether `trial` can be trained beside the active ones."""
        return not trial.full_finetune and sharing_key(trial) == self._sharing_key

    def _fits(self, pending: PendingTrial) -> bool:
        return self.fits(pending.request.trial)

    def step(self) -> list[TrialOutcome]:
        """Admit trials, take one optimizer step of all, log the previous one; the trials that ended.

        Raises errors that no single trial caused: the process should exit.
        """
        outcomes = self._admission.end_stopped() + self._admission.admit()
        if self._memory.has_idle_slots():
            self._log_in_flight()
            self._active.remove_empty_slots()
        if self._memory.follow(self.concurrency) and self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        launched = self._launch()
        self._log_in_flight()  # the previous step, while the device computes this one
        self._in_flight = launched
        # Evaluations, checkpoints and ends need the weights of exactly this step: no overlap then.
        if launched is not None and (not self._overlap or self._is_due(launched)):
            self._log_in_flight()
            self._after_step()
        waits_for_files = not len(self._active) and not self.queue.has_next(self._fits)
        return outcomes + self._active.written(wait_for_one=waits_for_files)

    def close(self) -> None:
        """Restore the base model; unfinished trials continue from their last checkpoints later."""
        for training in self.queue.detached():
            training.close()
        self._active.close()
        self._engine.close()

    def _launch(self) -> LaunchedStep | None:
        """Launch a step on the device; None when no trial is left to take one."""
        if self._in_flight is None:
            self._step_started = DeviceTime(self._device, self._clock)
        while len(self._active):
            limit = self._engine.limit
            try:
                result = self._engine.step()
            except torch.OutOfMemoryError as error:
                problem = str(error)  # not the error itself: its traceback holds the step's tensors
            except Exception as error:
                if is_broken(error) or len(self._active) > 1:
                    raise
                self._log_in_flight()
                for training in self._active:
                    self._active.end(training, error)
                break
            else:
                if self._engine.limit != limit:
                    self._tuner.on_out_of_memory(len(self._active))
                    self._memory.note(f"micro-batches of at most {self._engine.limit.tokens} tokens")
                trainings = {
                    training.slot: training for training in self._active if training.slot is not None
                }
                for training in trainings.values():
                    training.launched += 1
                return LaunchedStep(result, trainings, DeviceTime(self._device, self._clock))
            self._log_in_flight()
            if len(self._active) and not self._memory.relieve():
                self._active.end(self.active[0], out_of_memory(problem))
        return None

    def _is_due(self, launched: LaunchedStep) -> bool:
        return any(training.is_due(training.launched) for training in launched.trainings.values())

    def _log_in_flight(self) -> None:
        """Log the rows of the step in flight, with evaluations where they are due."""
        launched, self._in_flight = self._in_flight, None
        if launched is None:
            return
        metrics = launched.result.read()
        seconds = launched.done.seconds_since(self._step_started)
        self._step_started = launched.done
        memory = gpu_memory(self._device)
        self._measure(launched, seconds)
        still_active = [
            (training, metrics[slot])
            for slot, training in launched.trainings.items()
            if training.slot == slot
        ]
        # Evaluated trials come last: if an evaluation needs memory, the other trials can be detached.
        for training, step in sorted(still_active, key=lambda pair: pair[0].evaluates(pair[1].info.step)):
            row = {**step.values, "tokens_per_second": step.info.tokens / seconds, **memory}
            with self._active.isolate(training):
                if training.evaluates(step.info.step):
                    row |= self._evaluate(training)
                training.log(step.info.step, row, self._engine)

    def _measure(self, launched: LaunchedStep, seconds: float) -> None:
        """Give the step's throughput to the tuner, and tell the trials about its decision."""
        before = self.concurrency
        trials = len(launched.trainings)
        tokens = sum(info.tokens for info in launched.result.info.values())
        self._tuner.add_step(trials, tokens, seconds, lambda: read_memory(self._device))
        if self._throughput is not None:
            self._throughput.add_step(trials, tokens, seconds)
        if self.concurrency != before and self.concurrency.reason:
            for training in launched.trainings.values():
                training.report.note(self.concurrency.reason)

    def _evaluate(self, training: TrialTraining) -> dict[str, float]:
        """A trial's `eval/*` metrics."""
        while True:
            try:
                return training.evaluation(self._engine)
            except torch.OutOfMemoryError as error:
                problem = str(error)
            if not self._memory.relieve(evaluating=training):
                raise out_of_memory(problem)

    def _after_step(self) -> None:
        """End finished trials, and write checkpoints that are due."""
        for training in self._active:
            with self._active.isolate(training):
                assert training.slot is not None
                if self._engine.done(training.slot):
                    self._active.end(training, training.finish(self._engine))
                else:
                    training.checkpoint_if_due(self._engine)


def create_cotrainer(
    context: WorkerContext,
    request: TrialRequest,
    queue: AdmissionQueue,
    tuner: ConcurrencyTuner | None = None,
    announce: Callable[[Concurrency], None] = lambda _: None,
) -> CoTrainer:
    """A co-trainer with the model and data of a trial. Raises as CoTrainer and WorkerContext do.

    `announce` gets the number of trials to start with before the reference pass, so that they come meanwhile.
    """
    trial = request.trial
    base = context.base(trial, request.load_progress)
    data = context.data(trial, request.tokenise_progress)
    check_token_ids(base, data)
    gpu = this_gpu() if context.device.type == "cuda" else None
    config = base.model.config.to_dict()
    root, device = context.home.root, gpu[0] if gpu else "cpu"
    if tuner is not None and not tuner.has_measured:
        known = present_gpu(*gpu) if gpu else None
        planned = plan_concurrency(trial, config, data, known, device, read_rates(root), context.device)
        if planned > tuner.concurrency.slots:
            tuner.concurrency = Concurrency(
                planned, f"starting with up to {planned} trials at once, as planned"
            )
            announce(tuner.concurrency)
    throughput = Throughput.of(root, device, config, base.quantization)
    return CoTrainer(
        base, data, trial, queue, cache=context.home.cache / "reference", tuner=tuner, throughput=throughput
    )


def plan_concurrency(
    trial: Trial,
    config: Mapping[str, Any],
    data: TrainingData,
    gpu: Gpu | None,
    name: str,
    rates: Sequence[Rate],
    device: torch.device,
) -> int:
    """The number of trials like this one to start with: 1 if nothing is known of their speed.

    `config`: the model's. `gpu`: None on a CPU, whose speed is known from measured `rates` alone. `name`: the
    device's, as in the rates.
    """
    try:
        model = Architecture.from_config(config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return 1
    timing = TimingModel.of(model, trial.effective_quantization, gpu, name, rates)
    if not timing.known:
        return 1
    usable = MEMORY_SHARE * read_memory(device).limit
    if device.type == "cpu":
        usable /= 2  # numbers of 32 bits, where the plan counts 16
    return max(1, count_together(trial, model, workload_of(data, exact=True), timing, usable))
