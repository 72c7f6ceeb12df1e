"""A sweep's plan: memory and time of each cell, time and disk of the whole sweep.

A trial fits if one example with recomputed layers fits, because the trainer splits batches and recomputes
layers automatically. It fits comfortably if a whole step fits without either.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from kto_sweep.errors import Problem, Severity, TrialConfigError
from kto_sweep.home import Home
from kto_sweep.models.architecture import Architecture, Recompute, find_architecture
from kto_sweep.plan.cells import SAMPLE_TRIALS, PlanCell, corner_cells, grid_cells, is_grid, sample_trials
from kto_sweep.plan.gpus import Gpu, require_fp8
from kto_sweep.plan.memory import (
    GIB,
    AdapterShape,
    StepLoad,
    adapter_file_bytes,
    peak_memory,
    scoring_peak,
)
from kto_sweep.plan.timing import (
    START_SECONDS,
    TimeEstimate,
    TimingModel,
    adapter_shape,
    estimate_trial_time,
)
from kto_sweep.plan.together import MAX_TOGETHER, count_together
from kto_sweep.plan.trial_model import require_trainable
from kto_sweep.plan.workload import Workload, WorkloadCache
from kto_sweep.sweep_file.sweep_config import SweepConfig, band_settings
from kto_sweep.text import counted, duration
from kto_sweep.throughput import Rate, read_rates
from kto_sweep.trial import Trial

MAX_SIMULATED = 2_000
"""Of more trials of a grid the time is estimated from so many, with each cell's share."""
LOG_BYTES_PER_STEP = 2500
LOG_BYTES = 2**20
"""Per trial, in addition to its steps: console, configuration, W&B's own files."""
MIN_MAX_LENGTH = 128
"""The smallest suggested max_length."""


@dataclass(frozen=True)
class CellEstimate:
    """Memory, time and disk of one cell."""

    cell: PlanCell
    steps: int
    """Optimizer steps of each of its trials."""
    trainer: str
    """packed or trl; for trl, memory is rough and time unknown."""
    peak_gib: float | None
    """Peak of one trial alone; None: the model's sizes are unknown."""
    least_gib: float | None
    """The same with recomputed layers, one example at a time."""
    fits: bool | None
    """None: unknown."""
    comfortable: bool | None
    together: int
    """The number of trials like this one that fit comfortably together; 0: unknown, or none."""
    largest_batch: int | None
    """The largest batch that fits comfortably, if batch_size does not."""
    remedy: str
    """A change that makes the cell fit, if it does not."""
    time: TimeEstimate | None
    """Time of one trial alone on the GPU; None: unknown."""
    disk_bytes: int
    """Disk space that one of its trials needs."""


@dataclass(frozen=True)
class Plan:
    """Memory, time and disk of a sweep."""

    gpu: Gpu | None
    cells: tuple[CellEstimate, ...]
    trials: int | None
    """Number of trials; None: the sweep runs until a user stops it."""
    together: int
    """The largest number of trials on the GPU at once, over all base models; 1 if unknown."""
    serial: TimeEstimate | None
    """Time of the whole sweep on one GPU, one trial at a time; None: unknown or unlimited."""
    makespan: TimeEstimate | None
    """The same with as many trials at once as fit comfortably."""
    disk_bytes: int | None
    """Disk space of all trials."""
    exact_tokens: bool
    """Whether tokens were counted with the models' own tokenizers."""
    notes: tuple[Problem, ...] = ()
    """What to know about the models, and about the estimates."""

    @property
    def impossible(self) -> list[CellEstimate]:
        """Cells that cannot run on this GPU."""
        return [estimate for estimate in self.cells if estimate.fits is False]

    @property
    def misfits(self) -> str:
        """How much of the sweep does not fit: `2 of 8 trials`; empty if all fits."""
        if not self.impossible:
            return ""
        counts = [estimate.cell.count for estimate in self.impossible]
        if all(counts) and self.trials is not None:  # of at most MAX_CELLS cells, each stands for several
            return f"{min(sum(counts), self.trials):,} of {counted(self.trials, 'trial')}"
        return f"{len(counts)} of the {counted(len(self.cells), 'corner')} of the search space"

    def summary(self) -> str:
        """One line for people."""
        parts = ["unlimited trials" if self.trials is None else counted(self.trials, "trial")]
        peaks = [estimate.peak_gib for estimate in self.cells if estimate.peak_gib is not None]
        if peaks:
            low, high = f"{min(peaks):.1f}", f"{max(peaks):.1f}"
            parts.append(f"{low if low == high else f'{low} to {high}'} GiB each")
        if self.gpu is not None and peaks:
            fit = f"{self.misfits} cannot fit" if self.misfits else "all fit"
            parts.append(f"{fit} in {self.gpu.usable_gib:.1f} GiB ({self.gpu.name})")
        if self.serial is not None and self.makespan is not None:
            time = f"{duration(self.serial.seconds)} one at a time"
            if self.together > 1:
                time += f", {duration(self.makespan.seconds)} with up to {self.together} together"
            parts.append(f"{time} (within a factor of {self.serial.factor:g}; {self.serial.source})")
        if self.disk_bytes is not None:
            gigabytes = self.disk_bytes / 1e9
            disk = f"{gigabytes:.1f} GB" if gigabytes >= 0.1 else f"{1e3 * gigabytes:.0f} MB"
            parts.append(f"{disk} of disk")
        line = "; ".join(parts)
        return line if self.exact_tokens else f"{line}; tokens estimated from characters"


@dataclass(frozen=True)
class _TrialInputs:
    """Shared inputs of the estimates of all trials with the same model and rows."""

    model: Architecture | None
    workload: Workload
    timing: TimingModel | None


class Planner:
    """Plans sweeps for one GPU."""

    def __init__(
        self, gpu: Gpu | None, device: str = "", rates: Sequence[Rate] = (), *, exact: bool = True
    ) -> None:
        """`device` is the name of this machine's device in `rates`; empty: rates are ignored.

        `exact` False: tokens are estimated from characters, without loading a tokenizer.
        """
        self._gpu = gpu
        self._device = device
        self._rates = rates
        self._workloads = WorkloadCache(exact=exact)
        self._models: dict[str, Architecture | None] = {}

    def plan(self, sweep: SweepConfig) -> Plan:
        """The plan of a checked sweep file.

        Raises DataError for data that cannot be trained on, UsageError for a path without a model, or a model
        that cannot be trained.
        """
        listed = is_grid(sweep.space, sweep.method)
        cells = grid_cells(sweep.space) if listed else corner_cells(sweep.space)
        for cell in cells:
            require_fp8(self._gpu, cell.trial.effective_quantization)
        estimates = tuple(self.estimate_cell(cell) for cell in cells)
        total = sweep.expected_trials
        if listed:
            trials = _in_proportion(cells, min(total or MAX_SIMULATED, MAX_SIMULATED))
        else:
            trials = sample_trials(sweep.space, min(total or SAMPLE_TRIALS, SAMPLE_TRIALS))
        concurrency: dict[object, int] = {}
        for estimate in estimates:
            if estimate.together:
                base_model = _base_model(estimate.cell.trial)
                limit = concurrency.get(base_model, MAX_TOGETHER)
                concurrency[base_model] = min(limit, estimate.together)
        scale = (total or 0) / len(trials) if trials else 0.0
        ends = total is not None and bool(trials)
        disk = sum(self._disk_bytes(trials)) if ends else 0
        return Plan(
            gpu=self._gpu,
            cells=estimates,
            trials=total,
            together=min(max(concurrency.values(), default=1), total or MAX_TOGETHER),
            serial=self._makespan(trials, {}, scale) if ends else None,
            makespan=self._makespan(trials, concurrency, scale) if ends else None,
            disk_bytes=round(disk * scale) if ends else None,
            exact_tokens=all(self._inputs_of(trial).workload.exact for trial in set(trials)),
            notes=(*self._notes(estimates), *_time_notes(sweep)),
        )

    def estimate_cell(self, cell: PlanCell) -> CellEstimate:
        """The estimate of one cell."""
        trial = cell.trial
        inputs = self._inputs_of(trial)
        model, workload, steps = inputs.model, inputs.workload, inputs.workload.steps(trial)
        alone = adapter_shape(trial, 1)
        if model is None:
            return CellEstimate(cell, steps, "packed", None, None, None, None, 0, None, "", None, 0)
        trainer = "trl" if trial.full_finetune or model.experts > 1 else "packed"
        peak_load = workload.peak_load(trial)
        whole, least = self._peak_gib(trial, model, workload, peak_load)
        fits = comfortable = largest = None
        together, remedy = 0, ""
        if self._gpu is not None:
            fits, comfortable = least <= self._gpu.usable_gib, whole <= self._gpu.usable_gib
            if trainer == "packed":
                together = count_together(trial, model, workload, inputs.timing, self._gpu.usable_gib)
            together = max(together, int(fits))  # a trial that fits only when split can still run
            if fits and not comfortable:
                largest = self._largest_batch(trial, model, workload)
            remedy = "" if fits else self._remedy_for(trial, model, workload)
        if trainer == "packed":
            limit = self._gpu.usable_gib if self._gpu else math.inf
            whole = max(whole, min(self._scoring_gib(trial, model, workload), limit))
        time = None
        if inputs.timing is not None and trainer == "packed":
            time = estimate_trial_time(trial, workload, inputs.timing)
        file = adapter_file_bytes(model, alone.rank, alone.targets)
        saved = 4 * model.weights if trial.full_finetune else 2 * file  # the last and the best adapters
        disk = saved + LOG_BYTES + LOG_BYTES_PER_STEP * steps
        return CellEstimate(
            cell, steps, trainer, whole, least, fits, comfortable, together, largest, remedy, time, disk
        )

    def remaining_time(self, trial: Trial, done_steps: int, together: int) -> tuple[int, TimeEstimate | None]:
        """The trial's steps, and its time after `done_steps` with `together` trials like it on the GPU.

        The time is None when unknown. Raises like `plan`.
        """
        inputs = self._inputs_of(trial)
        steps = inputs.workload.steps(trial)
        packed = inputs.model is not None and inputs.model.experts <= 1 and not trial.full_finetune
        if inputs.timing is None or not packed:
            return steps, None
        done = min(done_steps, steps)
        time = estimate_trial_time(trial, inputs.workload, inputs.timing, together=together, done_steps=done)
        return steps, time

    def _disk_bytes(self, trials: Iterable[Trial]) -> Iterator[int]:
        """Of each trial; those of a cell are one object."""
        known: dict[int, int] = {}
        for trial in trials:
            if id(trial) not in known:
                known[id(trial)] = self.estimate_cell(PlanCell(trial, 1, {})).disk_bytes
            yield known[id(trial)]

    def _inputs_of(self, trial: Trial) -> _TrialInputs:
        name = trial.base_model
        if name not in self._models:
            self._models[name] = find_architecture(name)
        model = self._models[name]
        timing = None
        if model is not None:
            timing = TimingModel.of(model, trial.effective_quantization, self._gpu, self._device, self._rates)
        workload = self._workloads.workload(trial)
        return _TrialInputs(model, workload, timing if timing and timing.known else None)

    # Memory.

    def _peak_gib(
        self, trial: Trial, model: Architecture, workload: Workload, load: StepLoad
    ) -> tuple[float, float]:
        """Peak GiB of a whole step, and of one example at a time with recomputed layers."""
        quantization, alone = trial.effective_quantization, adapter_shape(trial, 1)
        if trial.full_finetune:
            longest = workload.longest_row
            return _full_finetune_gib(trial, model, load), _full_finetune_gib(trial, model, longest)
        whole = peak_memory(model, quantization, alone, load)
        least = peak_memory(model, quantization, alone, workload.longest_row, recompute=Recompute.LAYER)
        return whole.gib, least.gib

    def _scoring_gib(self, trial: Trial, model: Architecture, workload: Workload) -> float:
        """Peak GiB of the reference pass; with less memory, the trainer splits it."""
        rows = workload.train.load(slice(None))
        tokens = rows.tokens + rows.mismatched
        return scoring_peak(model, trial.effective_quantization, adapter_shape(trial, 1), tokens).gib

    def _largest_batch(self, trial: Trial, model: Architecture, workload: Workload) -> int | None:
        assert self._gpu is not None
        for batch in range(trial.batch_size - 1, 0, -1):
            smaller = workload.peak_load(replace(trial, batch_size=batch))
            if self._peak_gib(trial, model, workload, smaller)[0] <= self._gpu.usable_gib:
                return batch
        return None

    def _remedy_for(self, trial: Trial, model: Architecture, workload: Workload) -> str:
        """The smallest change that makes the trial fit."""
        assert self._gpu is not None
        if trial.full_finetune:
            lora = replace(trial, full_finetune=False)
            least = self._peak_gib(lora, model, workload, workload.longest_row)[1]
            fits = least <= self._gpu.usable_gib
            return f"full_finetune: false ({least:.1f} GiB)" if fits else "a smaller model"
        quantised = replace(trial, quantization="4bit")
        if trial.effective_quantization != "4bit" and _is_trainable(quantised):
            least = self._peak_gib(quantised, model, workload, workload.longest_row)[1]
            if least <= self._gpu.usable_gib:
                return f"quantization: 4bit ({least:.1f} GiB)"
        length = trial.max_length // 2
        while length >= MIN_MAX_LENGTH:
            shorter = replace(trial, max_length=length)
            rows = self._workloads.workload(shorter)
            least = self._peak_gib(shorter, model, rows, rows.longest_row)[1]
            if least <= self._gpu.usable_gib:
                return f"max_length: {length} ({least:.1f} GiB)"
            length //= 2
        return "a smaller model, or a GPU with more memory"

    # Time.

    def _makespan(
        self, trials: Sequence[Trial], concurrency: Mapping[object, int], scale: float
    ) -> TimeEstimate | None:
        """Time of all trials on one GPU, one group with the same model and rows after another, times `scale`.

        `concurrency`: trials trained at once, by `_base_model`; default 1. None if a trial's time is unknown.
        """
        groups: dict[tuple[object, ...], list[Trial]] = {}
        for trial in trials:
            rows = (trial.dataset, trial.eval_dataset, trial.max_length, trial.eval_fraction)
            groups.setdefault((_base_model(trial), trial.full_finetune, *rows), []).append(trial)
        loaded: set[object] = set()
        seconds, factor, source = START_SECONDS, 1.0, ""
        for members in groups.values():
            inputs, base_model = self._inputs_of(members[0]), _base_model(members[0])
            if inputs.timing is None or members[0].full_finetune:
                return None
            if base_model not in loaded:
                seconds += inputs.timing.loading()
                loaded.add(base_model)
            all_rows = inputs.workload.train.load(slice(None))
            seconds += inputs.timing.scoring(all_rows, adapter_shape(members[0], 1))
            spent = _concurrent_time(members, concurrency.get(base_model, 1), inputs.workload, inputs.timing)
            seconds += spent.seconds * scale
            if spent.factor > factor:
                factor, source = spent.factor, spent.source
        return TimeEstimate(seconds, factor, source)

    def _notes(self, estimates: Iterable[CellEstimate]) -> Iterable[Problem]:
        yield from dict.fromkeys(
            problem for estimate in estimates for problem in require_trainable(estimate.cell.trial)
        )
        unknown = {estimate.cell.trial.base_model for estimate in estimates if estimate.peak_gib is None}
        for name in sorted(unknown):
            yield _note(name, "its architecture is unknown, so memory and time are not estimated")
        if any(estimate.trainer == "trl" for estimate in estimates):
            what = "memory is a rough estimate, time is not estimated"
            yield _note("trials that use TRL's trainer", what)


def _in_proportion(cells: Sequence[PlanCell], limit: int) -> list[Trial]:
    """The trials of these cells in their order; of more than `limit`, the first so many or fewer of each."""
    every = max(1, math.ceil(sum(cell.count for cell in cells) / MAX_SIMULATED))
    trials = (cell.trial for cell in cells for _ in range(max(1, round(cell.count / every))))
    return list(islice(trials, limit))


def _note(about: str, what: str) -> Problem:
    return Problem((about,), what, severity=Severity.NOTE)


def _time_notes(sweep: SweepConfig) -> Iterable[Problem]:
    if band_settings(sweep.config):
        yield _note("time", "an upper bound: trials that are stopped early or stay paused take less")


def _is_trainable(trial: Trial) -> bool:
    """Whether its model can be trained so: weights that are published quantized cannot be loaded in 4 bit."""
    try:
        require_trainable(trial)
    except TrialConfigError:
        return False
    return not trial.base_model.endswith(".gguf")


def _base_model(trial: Trial) -> object:
    """The base model and its quantization: trials that share both train together."""
    return trial.base_model, trial.effective_quantization


def _concurrent_time(
    trials: Sequence[Trial], together: int, workload: Workload, timing: TimingModel
) -> TimeEstimate:
    """Time until the last trial ends, if the next trial starts whenever one ends."""
    queue = deque(trials)
    running: list[tuple[Trial, int]] = []
    seconds, worst = 0.0, TimeEstimate(0.0, 1.0, "")
    while queue or running:
        while queue and len(running) < together:
            trial = queue.popleft()
            running.append((trial, workload.steps(trial)))
        shape = replace(
            adapter_shape(running[0][0], len(running)), rank=max(trial.lora_r for trial, _ in running)
        )
        load = sum((workload.mean_load(trial) for trial, _ in running), StepLoad(0, 0, 0))
        step = timing.step(load, shape)
        assert step is not None
        worst = max(worst, step, key=lambda estimate: estimate.factor)
        fewest = min(left for _, left in running)
        seconds += fewest * step.seconds
        ended = [trial for trial, left in running if left == fewest]
        seconds += sum(_evaluation_seconds(trial, workload, timing) for trial in ended)
        running = [(trial, left - fewest) for trial, left in running if left > fewest]
    return replace(worst, seconds=seconds)


def _evaluation_seconds(trial: Trial, workload: Workload, timing: TimingModel) -> float:
    if not len(workload.held_out):
        return 0.0
    total = workload.steps(trial)
    times = -(-total // trial.eval_every(total))
    return times * timing.scoring(workload.held_out.load(slice(None)), adapter_shape(trial, 1))


def _full_finetune_gib(trial: Trial, model: Architecture, load: StepLoad) -> float:
    """A rough estimate: float32 weights, gradients and moments, plus a recomputed step in 16 bit."""
    states = 10 if trial.optimizer == "adamw_8bit" else 16
    step = peak_memory(model, "none", AdapterShape(0, 8), load, recompute=Recompute.LAYER)
    return (states * model.weights + 2 * (step.activations + step.working)) / GIB


CPU = "cpu"
"""Device name in measured rates of a machine without a GPU."""


def planner_for(gpu: Gpu | None, home: Home, *, this_box: bool, exact: bool = True) -> Planner:
    """A planner for `gpu`.

    `this_box`: use the rates measured on this machine. `exact`: count tokens with the models' tokenizers.
    """
    device = (gpu.name if gpu else CPU) if this_box else ""
    return Planner(gpu, device, read_rates(home.root) if device else [], exact=exact)
