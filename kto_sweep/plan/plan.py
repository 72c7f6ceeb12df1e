"""A sweep's plan: whether each cell fits and how long it takes, and time and disk of the whole.

A trial fits when one example with recomputed layers does: the trainer splits and recomputes by itself. It
fits comfortably when a whole step does without either.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kto_sweep.models.architecture import Architecture, find_architecture
from kto_sweep.plan.cells import SAMPLE, Cell, corner_cells, grid_cells, is_grid, sample_trials
from kto_sweep.plan.gpus import Gpu
from kto_sweep.plan.memory import (
    GIB,
    Load,
    Stack,
    adapter_file_bytes,
    peak,
    scoring_peak,
)
from kto_sweep.plan.seconds import START_SECONDS, Clockwork, Estimate, adapters, estimate
from kto_sweep.plan.workload import Measurer, Workload
from kto_sweep.rates import Rate
from kto_sweep.sweep_file.spec import SweepSpec, bands
from kto_sweep.text import counted, duration
from kto_sweep.trial import Trial

MOST_TOGETHER = 16
"""Trials together beyond which measurements show no gain."""
LOG_BYTES_PER_STEP = 2500
LOG_BYTES = 2**20
"""Of one trial, beside its steps: console, configuration, W&B's own files."""
SHORTEST = 128
"""Tokens of max_length below which no remedy goes."""


@dataclass(frozen=True)
class Outlook:
    """What one cell will take."""

    cell: Cell
    steps: int
    """Optimizer steps of each of its trials."""
    trainer: str
    """packed, or trl: then memory and time are rough."""
    peak_gib: float | None
    """At the fullest moment of a trial alone; None: the model's sizes are not known."""
    least_gib: float | None
    """With recomputed layers, one example at a time."""
    fits: bool | None
    """None: not known."""
    comfortable: bool | None
    together: int
    """Trials like this one that fit on the GPU comfortably; 0: not known, or none."""
    largest_batch: int | None
    """The largest comfortable batch, where batch_size is not."""
    remedy: str
    """What would make a cell fit that does not."""
    time: Estimate | None
    """Seconds of one trial alone on the GPU; None: not known."""
    disk_bytes: int
    """What one of its trials leaves."""


@dataclass(frozen=True)
class Plan:
    """What a sweep will take."""

    gpu: Gpu | None
    outlooks: tuple[Outlook, ...]
    trials: int | None
    """In all; None: no end of its own."""
    together: int
    """Most trials on the GPU at once, with the base model that has most room; 1 where nothing is known."""
    serial: Estimate | None
    """Seconds of the whole sweep on one GPU, one trial at a time; None: not known, or no end."""
    makespan: Estimate | None
    """The same with as many at once as fit comfortably."""
    disk_bytes: int | None
    """What all trials leave behind."""
    exact_tokens: bool
    """Rows were measured with the model's own tokenizer."""
    notes: tuple[str, ...] = ()

    @property
    def impossible(self) -> list[Outlook]:
        """Cells that cannot run on this GPU."""
        return [outlook for outlook in self.outlooks if outlook.fits is False]

    def summary(self) -> str:
        """One line for people."""
        parts = ["trials without end" if self.trials is None else counted(self.trials, "trial")]
        known = [outlook.peak_gib for outlook in self.outlooks if outlook.peak_gib is not None]
        if known:
            low, high = f"{min(known):.1f}", f"{max(known):.1f}"
            parts.append(f"{low if low == high else f'{low} to {high}'} GiB each")
        if self.gpu is not None and known:
            wrong = len(self.impossible)
            verdict = f"{counted(wrong, 'cell')} cannot fit" if wrong else "all fit"
            parts.append(f"{verdict} in {self.gpu.room:.1f} GiB ({self.gpu.name})")
        if self.serial is not None and self.makespan is not None:
            time = f"{duration(self.serial.seconds)} one at a time"
            if self.together > 1:
                time += f", {duration(self.makespan.seconds)} with up to {self.together} together"
            parts.append(f"{time} (give or take a factor of {self.serial.factor:g}: {self.serial.source})")
        if self.disk_bytes is not None:
            gigabytes = self.disk_bytes / 1e9
            disk = f"{gigabytes:.1f} GB" if gigabytes >= 0.1 else f"{1e3 * gigabytes:.0f} MB"
            parts.append(f"{disk} of disk")
        line = "; ".join(parts)
        return line if self.exact_tokens else f"{line}; tokens guessed from characters"


@dataclass(frozen=True)
class _Ground:
    """What is known of trials that share model and rows."""

    model: Architecture | None
    work: Workload
    clock: Clockwork | None


class Planner:
    """Plans sweeps for one GPU."""

    def __init__(
        self, gpu: Gpu | None, device: str = "", rates: Sequence[Rate] = (), *, exact: bool = True
    ) -> None:
        """`device` is what `rates` call this box's own device; empty: they do not count.

        `exact` False: tokens are estimated from characters at once, without loading a tokenizer.
        """
        self._gpu = gpu
        self._device = device
        self._rates = rates
        self._measurer = Measurer(exact=exact)
        self._models: dict[str, Architecture | None] = {}

    def plan(self, spec: SweepSpec) -> Plan:
        """The plan of a checked sweep file.

        Raises DataError for data that cannot be trained on, UsageError for a model that is none.
        """
        listed = is_grid(spec.space, spec.method)
        cells = grid_cells(spec.space) if listed else corner_cells(spec.space)
        outlooks = tuple(self.outlook(cell) for cell in cells)
        total = spec.expected_trials
        if listed:
            trials = [cell.trial for cell in cells for _ in range(cell.count)]
        else:
            trials = sample_trials(spec.space, min(total or SAMPLE, SAMPLE))
        trials = trials[: total or len(trials)]
        rooms: dict[object, int] = {}
        for each in outlooks:
            if each.together:
                held = _held(each.cell.trial)
                rooms[held] = min(rooms.get(held, MOST_TOGETHER), each.together)
        scale = (total or 0) / len(trials) if trials else 0.0
        ends = total is not None and bool(trials)
        disk = sum(o.disk_bytes for o in map(self._outlook_of, trials)) if ends else 0
        return Plan(
            gpu=self._gpu,
            outlooks=outlooks,
            trials=total,
            together=min(max(rooms.values(), default=1), total or MOST_TOGETHER),
            serial=self._makespan(trials, {}, scale) if ends else None,
            makespan=self._makespan(trials, rooms, scale) if ends else None,
            disk_bytes=round(disk * scale) if ends else None,
            exact_tokens=all(self._ground(trial).work.exact for trial in trials),
            notes=(*self._notes(outlooks), *_bounds(spec)),
        )

    def outlook(self, cell: Cell) -> Outlook:
        """What one cell will take."""
        trial = cell.trial
        ground = self._ground(trial)
        model, work, steps = ground.model, ground.work, ground.work.steps(trial)
        alone = adapters(trial, 1)
        if model is None:
            return Outlook(cell, steps, "packed", None, None, None, None, 0, None, "", None, 0)
        trainer = "trl" if trial.full_finetune or model.experts > 1 else "packed"
        fullest = work.fullest_load(trial)
        whole, least = self._needs(trial, model, work, fullest)
        fits = comfortable = largest = None
        together, remedy = 0, ""
        if self._gpu is not None:
            fits, comfortable = least <= self._gpu.room, whole <= self._gpu.room
            together = self._together(trial, model, work, fullest) if trainer == "packed" else int(fits)
            together = max(together, int(fits))  # one that is split is one all the same
            largest = None if comfortable or not fits else self._largest_batch(trial, model, work, fullest)
            remedy = "" if fits else self._remedy(trial, model, work)
        if trainer == "packed":
            room = self._gpu.room if self._gpu else math.inf
            whole = max(whole, min(self._scoring(trial, model, work), room))
        time = None if ground.clock is None or trainer == "trl" else estimate(trial, work, ground.clock)
        file = adapter_file_bytes(model, alone.rank, alone.targets)
        left = 4 * model.weights if trial.full_finetune else 2 * file  # the last adapters, and the best
        disk = left + LOG_BYTES + LOG_BYTES_PER_STEP * steps
        return Outlook(
            cell, steps, trainer, whole, least, fits, comfortable, together, largest, remedy, time, disk
        )

    def rest(self, trial: Trial, done_steps: int, together: int) -> tuple[int, Estimate | None]:
        """The trial's steps, and its time from step `done_steps` on with `together` alike on the GPU.

        None: the time is not known. Raises like `plan`.
        """
        ground = self._ground(trial)
        steps = ground.work.steps(trial)
        packed = ground.model is not None and ground.model.experts <= 1 and not trial.full_finetune
        if ground.clock is None or not packed:
            return steps, None
        done = min(done_steps, steps)
        return steps, estimate(trial, ground.work, ground.clock, together=together, done_steps=done)

    def _outlook_of(self, trial: Trial) -> Outlook:
        return self.outlook(Cell(trial, 1, {}))

    def _ground(self, trial: Trial) -> _Ground:
        name = trial.base_model
        if name not in self._models:
            self._models[name] = find_architecture(name)
        model = self._models[name]
        clock = None
        if model is not None:
            clock = Clockwork.of(model, trial.effective_quantization, self._gpu, self._device, self._rates)
        return _Ground(model, self._measurer.workload(trial), clock if clock and clock.known else None)

    # Memory.

    def _needs(self, trial: Trial, model: Architecture, work: Workload, load: Load) -> tuple[float, float]:
        """GiB of a whole step, and of single examples with recomputed layers."""
        quantization, alone = trial.effective_quantization, adapters(trial, 1)
        if trial.full_finetune:
            return _full_finetune_gib(trial, model, load), _full_finetune_gib(trial, model, work.longest_row)
        whole = peak(model, quantization, alone, load)
        return whole.gib, peak(model, quantization, alone, work.longest_row, recompute=True).gib

    def _scoring(self, trial: Trial, model: Architecture, work: Workload) -> float:
        """GiB of the reference pass, which takes less when there is less."""
        rows = work.train.load(slice(None))
        tokens = rows.tokens + rows.mismatched
        return scoring_peak(model, trial.effective_quantization, adapters(trial, 1), tokens).gib

    def _together(self, trial: Trial, model: Architecture, work: Workload, load: Load) -> int:
        """How many trials like this one fit comfortably."""
        assert self._gpu is not None
        count = 0
        while count < MOST_TOGETHER:
            stack = adapters(trial, count + 1)
            all_loads = Load(*(n * stack.slots for n in (load.tokens, load.targets, load.mismatched)))
            if peak(model, trial.effective_quantization, stack, all_loads).gib > self._gpu.room:
                break
            count += 1
        return count

    def _largest_batch(self, trial: Trial, model: Architecture, work: Workload, load: Load) -> int | None:
        assert self._gpu is not None
        for batch in range(trial.batch_size - 1, 0, -1):
            smaller = work.fullest_load(replace(trial, batch_size=batch))
            if self._needs(trial, model, work, smaller)[0] <= self._gpu.room:
                return batch
        return None

    def _remedy(self, trial: Trial, model: Architecture, work: Workload) -> str:
        """The least change that makes it fit."""
        assert self._gpu is not None
        if trial.full_finetune:
            lora = replace(trial, full_finetune=False)
            least = self._needs(lora, model, work, work.longest_row)[1]
            return f"full_finetune: false ({least:.1f} GiB)" if least <= self._gpu.room else "a smaller model"
        if trial.effective_quantization != "4bit" and not trial.base_model.endswith(".gguf"):
            packed = replace(trial, quantization="4bit")
            least = self._needs(packed, model, work, work.longest_row)[1]
            if least <= self._gpu.room:
                return f"quantization: 4bit ({least:.1f} GiB)"
        length = trial.max_length // 2
        while length >= SHORTEST:
            shorter = replace(trial, max_length=length)
            rows = self._measurer.workload(shorter)
            least = self._needs(shorter, model, rows, rows.longest_row)[1]
            if least <= self._gpu.room:
                return f"max_length: {length} ({least:.1f} GiB)"
            length //= 2
        return "a smaller model, or a GPU with more memory"

    # Time.

    def _makespan(
        self, trials: Sequence[Trial], rooms: Mapping[object, int], scale: float
    ) -> Estimate | None:
        """Seconds of all trials on one GPU, those with the same rows one after another, times `scale`.

        `rooms`: how many are trained at once, by `_held`; else one. None when the time of one is not known.
        """
        grounds: dict[tuple[object, ...], list[Trial]] = {}
        for trial in trials:
            rows = (trial.dataset, trial.max_length, trial.eval_fraction)
            grounds.setdefault((_held(trial), trial.full_finetune, *rows), []).append(trial)
        loaded: set[object] = set()
        seconds, factor, source = START_SECONDS, 1.0, ""
        for members in grounds.values():
            ground, held = self._ground(members[0]), _held(members[0])
            if ground.clock is None or members[0].full_finetune:
                return None
            if held not in loaded:
                seconds += ground.clock.loading()
                loaded.add(held)
            whole = ground.work.train.load(slice(None))
            seconds += ground.clock.scoring(whole, adapters(members[0], 1))
            spent = _side_by_side(members, rooms.get(held, 1), ground.work, ground.clock)
            seconds += spent.seconds * scale
            if spent.factor > factor:
                factor, source = spent.factor, spent.source
        return Estimate(seconds, factor, source)

    def _notes(self, outlooks: Iterable[Outlook]) -> Iterable[str]:
        unknown = {o.cell.trial.base_model for o in outlooks if o.peak_gib is None}
        for name in sorted(unknown):
            yield f"{name}: its sizes are not known here, so its memory and time are not planned"
        if any(o.trainer == "trl" for o in outlooks):
            yield "trained with TRL's trainer: memory is a rough guess, and time is not planned"


def _bounds(spec: SweepSpec) -> Iterable[str]:
    if bands(spec.config):
        yield "time is an upper bound: trials that end early or stay paused take less"


def _held(trial: Trial) -> object:
    """The base model and how its weights are held."""
    return trial.base_model, trial.effective_quantization


def _side_by_side(trials: Sequence[Trial], together: int, work: Workload, clock: Clockwork) -> Estimate:
    """Seconds until the last has ended, when the next trial takes the place of one that ends."""
    line = deque(trials)
    running: list[tuple[Trial, int]] = []
    seconds, worst = 0.0, Estimate(0.0, 1.0, "")
    while line or running:
        while line and len(running) < together:
            trial = line.popleft()
            running.append((trial, work.steps(trial)))
        stack = replace(adapters(running[0][0], len(running)), rank=max(trial.lora_r for trial, _ in running))
        load = sum((work.mean_load(trial) for trial, _ in running), Load(0, 0, 0))
        step = clock.step(load, stack)
        assert step is not None
        worst = max(worst, step, key=lambda each: each.factor)
        fewest = min(left for _, left in running)
        seconds += fewest * step.seconds
        ended = [trial for trial, left in running if left == fewest]
        seconds += sum(_evaluating(trial, work, clock) for trial in ended)
        running = [(trial, left - fewest) for trial, left in running if left > fewest]
    return replace(worst, seconds=seconds)


def _evaluating(trial: Trial, work: Workload, clock: Clockwork) -> float:
    if not len(work.held_out):
        return 0.0
    total = work.steps(trial)
    times = -(-total // trial.eval_every(total))
    return times * clock.scoring(work.held_out.load(slice(None)), adapters(trial, 1))


def _full_finetune_gib(trial: Trial, model: Architecture, load: Load) -> float:
    """Float32 weights, gradients and moments, and a recomputed step of 16-bit products; roughly."""
    states = 10 if trial.optimizer == "adamw_8bit" else 16
    step = peak(model, "none", Stack(0, 8), load, recompute=True)
    return (states * model.weights + 2 * (step.kept + step.working)) / GIB
