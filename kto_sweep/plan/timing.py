"""Time of steps and trials: from rates measured on this machine, else from a GPU's data sheet.

A step takes as long as its kernels or as the host that launches them, whichever takes longer:

    kernels = FLOP / (0.71 x data sheet's FLOP/s) + 25 x bytes saved for the backward / bandwidth
    host    = 3 ms a layer
    step    = max(kernels, host) + 30 ms

The four constants are fitted to the steps that benchmarks/RESULTS.md gives for an H200 (0.5B to 7B, 1 to 16
trials together), all within 20 %; on other GPUs expect a factor of two.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from kto_sweep.models.architecture import Architecture
from kto_sweep.models.presets import IN_FP8
from kto_sweep.plan.gpus import Gpu
from kto_sweep.plan.memory import AdapterShape, StepLoad, activation_bytes_per_token, weight_bytes
from kto_sweep.plan.workload import Workload
from kto_sweep.throughput import Rate
from kto_sweep.trial import Trial

MATMUL_EFFICIENCY = 0.71
FP8_GAIN = 1.6
"""Rate of products in FP8 over that in 16 bit, with the cast of activations and gradients."""
TRAFFIC_PER_SAVED_BYTE = 25
HOST_SECONDS_PER_LAYER = 0.003
STEP_OVERHEAD_SECONDS = 0.03
SCORING_TRAFFIC_PER_SAVED_BYTE = TRAFFIC_PER_SAVED_BYTE / 3

START_SECONDS = 20.0
"""Start of a worker: imports, CUDA, the first kernels."""
LOAD_BYTES_PER_SECOND = 1e9
"""Reading base weights from disk."""

MEASURED, MEASURED_OTHER_LOAD, DATA_SHEET = 1.15, 1.4, 2.0
"""Uncertainty factors: measured at this load, measured at another one, from the data sheet."""


@dataclass(frozen=True)
class TimeEstimate:
    """A time and its uncertainty."""

    seconds: float
    factor: float
    """The real time is most likely between seconds / factor and seconds * factor."""
    source: str
    """measured on this box, or data sheet."""

    @property
    def at_most(self) -> float:
        """Seconds that the real time most likely does not exceed."""
        return self.seconds * self.factor


@dataclass(frozen=True)
class TimingModel:
    """Step times of one model and quantization on one device."""

    model: Architecture
    quantization: str
    gpu: Gpu | None
    """None: times come from measured rates only."""
    rates: tuple[Rate, ...] = ()
    """All rates of this device, model and quantization."""

    @classmethod
    def of(
        cls, model: Architecture, quantization: str, gpu: Gpu | None, device: str, rates: Iterable[Rate]
    ) -> "TimingModel":
        """The timing model with the matching `rates`; `device` is its name in the rates."""
        key = (device, model.key, quantization)
        matching = tuple(rate for rate in rates if (rate.device, rate.model, rate.quantization) == key)
        return cls(model, quantization, gpu, matching)

    @property
    def known(self) -> bool:
        """Whether it can estimate times."""
        return bool(self.rates) or (self.gpu is not None and self.gpu.tflops is not None)

    def step(self, load: StepLoad, shape: AdapterShape) -> TimeEstimate | None:
        """Time of an optimizer step over `load`, all slots of `shape` together; None when unknown."""
        from_sheet = self._data_sheet_step(load, shape)
        nearest = min(
            self.rates,
            key=lambda rate: (abs(rate.trials - shape.slots), abs(rate.tokens - load.tokens)),
            default=None,
        )
        if nearest is None:
            return None if from_sheet is None else TimeEstimate(from_sheet, DATA_SHEET, "data sheet")
        ratio = load.tokens / max(1.0, nearest.tokens)
        if from_sheet is not None:
            measured_shape = replace(shape, slots=nearest.trials)
            measured_from_sheet = self._data_sheet_step(_scaled(load, 1 / ratio), measured_shape)
            ratio = from_sheet / measured_from_sheet if measured_from_sheet else ratio
        elif ratio < 1:
            ratio = max(ratio, 0.5)  # small steps are limited by the host
        same_load = nearest.trials == shape.slots and 0.8 < load.tokens / max(1.0, nearest.tokens) < 1.25
        factor = MEASURED if same_load else MEASURED_OTHER_LOAD
        return TimeEstimate(nearest.seconds * ratio, factor, "measured on this box")

    def scoring(self, load: StepLoad, shape: AdapterShape) -> float:
        """Seconds to compute the rows' log-probs without a backward; 0 if unknown."""
        if self.gpu is None or self.gpu.tflops is None or self.gpu.gb_per_s is None:
            step = self.step(load, shape)
            return 0.0 if step is None else step.seconds / 2
        tokens = load.tokens + load.mismatched
        flop = 2 * self.model.used_weights * tokens + 2 * self._head * (load.targets + load.mismatched)
        saved = activation_bytes_per_token(self.model, self.quantization, shape) * self.model.layers * tokens
        return flop / (
            MATMUL_EFFICIENCY * self.gpu.tflops * 1e12
        ) + SCORING_TRAFFIC_PER_SAVED_BYTE * saved / (self.gpu.gb_per_s * 1e9)

    def loading(self) -> float:
        """Seconds to load the base weights."""
        return weight_bytes(self.model, "none") / LOAD_BYTES_PER_SECOND

    @property
    def _head(self) -> int:
        return self.model.vocabulary * self.model.hidden

    def _data_sheet_step(self, load: StepLoad, shape: AdapterShape) -> float | None:
        gpu, model = self.gpu, self.model
        if gpu is None or gpu.tflops is None or gpu.gb_per_s is None:
            return None
        # Forward and input gradients of the matched pass, forward of the mismatched one; weights are frozen.
        body: float = 2 * model.used_weights * (2 * load.tokens + load.mismatched)
        if self.quantization in IN_FP8:
            body /= FP8_GAIN
        flop = body + 2 * self._head * (2 * load.targets + load.mismatched)
        saved = activation_bytes_per_token(model, self.quantization, shape) * model.layers * load.tokens
        traffic: float = TRAFFIC_PER_SAVED_BYTE * saved
        if self.quantization not in ("none", "fp8"):
            # Each product dequantizes its matrix: written once, read once.
            traffic += 3 * 4.5 * model.linear_weights
        kernels = flop / (MATMUL_EFFICIENCY * gpu.tflops * 1e12) + traffic / (gpu.gb_per_s * 1e9)
        return max(kernels, HOST_SECONDS_PER_LAYER * model.layers) + STEP_OVERHEAD_SECONDS


def estimate_trial_time(
    trial: Trial, workload: Workload, timing: TimingModel, *, together: int = 1, done_steps: int = 0
) -> TimeEstimate | None:
    """Time of `trial` from step `done_steps` to its end; None: unknown.

    `together`: the number of trials like it on the GPU. The time excludes starting the worker, loading the
    model and the reference pass.
    """
    shape = adapter_shape(trial, together)
    load = _scaled(workload.mean_load(trial), together)
    step = timing.step(load, shape)
    if step is None:
        return None
    total = workload.steps(trial)
    evaluations = -(-total // trial.eval_every(total)) - done_steps // trial.eval_every(total)
    held_out = workload.held_out.load(slice(None)) if len(workload.held_out) else StepLoad(0, 0, 0)
    evaluating = evaluations * timing.scoring(held_out, shape) * together
    return TimeEstimate((total - done_steps) * step.seconds + evaluating, step.factor, step.source)


def adapter_shape(trial: Trial, slots: int) -> AdapterShape:
    """The adapters of `slots` trials like `trial`."""
    return AdapterShape(
        slots=slots,
        rank=trial.lora_r,
        targets=trial.lora_targets,
        eight_bit=trial.optimizer == "adamw_8bit",
        dropout=trial.lora_dropout > 0,
    )


def _scaled(load: StepLoad, factor: float) -> StepLoad:
    return StepLoad(*(round(n * factor) for n in (load.tokens, load.targets, load.mismatched)))
