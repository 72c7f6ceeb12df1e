"""How long trials take: from rates measured on this box, else from a GPU's data sheet.

A step waits for its kernels or for the host that launches them, whichever takes longer:

    kernels = FLOP / (0.71 x data sheet's FLOP/s) + 25 x bytes kept for the backward / (bandwidth)
    host    = 3 ms a layer
    step    = max(kernels, host) + 30 ms

The four constants are fitted to the steps that benchmarks/RESULTS.md gives for an H200 (0.5B to 7B, 1 to 16
trials together), all within 20 %; elsewhere a factor of two is a fair guess.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from kto_sweep.models.architecture import Architecture
from kto_sweep.plan.gpus import Gpu
from kto_sweep.plan.memory import Load, Stack, kept_per_token, weight_bytes
from kto_sweep.plan.workload import Workload
from kto_sweep.rates import Rate
from kto_sweep.trial import Trial

MATMUL_SHARE = 0.71
TRAFFIC = 25
HOST_SECONDS_PER_LAYER = 0.003
STEP_SECONDS = 0.03
SCORING_TRAFFIC = TRAFFIC / 3

START_SECONDS = 20.0
"""A worker's start: imports, CUDA, the first kernels."""
LOAD_BYTES_PER_SECOND = 1e9
"""Base weights from a disk."""

EXACT, NEAR, SHEET = 1.15, 1.4, 2.0
"""Uncertainty factors: measured so, measured with another load, from the data sheet."""


@dataclass(frozen=True)
class Estimate:
    """A time, and how far to trust it."""

    seconds: float
    factor: float
    """The truth lies between seconds / factor and seconds * factor, most likely."""
    source: str
    """measured on this box, or data sheet."""

    @property
    def at_most(self) -> float:
        """Seconds that it most likely does not take longer than."""
        return self.seconds * self.factor


@dataclass(frozen=True)
class Clockwork:
    """What steps of one model, held in one way, take on one device."""

    model: Architecture
    quantization: str
    gpu: Gpu | None
    """None: only measured rates can tell."""
    rates: tuple[Rate, ...] = ()
    """All of this device, model and quantization."""

    @classmethod
    def of(
        cls, model: Architecture, quantization: str, gpu: Gpu | None, device: str, rates: Iterable[Rate]
    ) -> "Clockwork":
        """With those of `rates` that belong to it; `device` as the rates name it."""
        wanted = (device, model.key, quantization)
        found = tuple(rate for rate in rates if (rate.device, rate.model, rate.quantization) == wanted)
        return cls(model, quantization, gpu, found)

    @property
    def known(self) -> bool:
        """Whether it can tell a time at all."""
        return bool(self.rates) or (self.gpu is not None and self.gpu.tflops is not None)

    def step(self, load: Load, stack: Stack) -> Estimate | None:
        """An optimizer step of all slots of `stack`, which feeds `load`; None when nothing is known."""
        modelled = self._modelled_step(load, stack)
        nearest = min(
            self.rates,
            key=lambda rate: (abs(rate.trials - stack.slots), abs(rate.tokens - load.tokens)),
            default=None,
        )
        if nearest is None:
            return None if modelled is None else Estimate(modelled, SHEET, "data sheet")
        ratio = load.tokens / max(1.0, nearest.tokens)
        if modelled is not None:
            there = self._modelled_step(_scaled(load, 1 / ratio), _with_slots(stack, nearest.trials))
            ratio = modelled / there if there else ratio
        elif ratio < 1:
            ratio = max(ratio, 0.5)  # smaller steps wait for the host
        near = nearest.trials == stack.slots and 0.8 < load.tokens / max(1.0, nearest.tokens) < 1.25
        return Estimate(nearest.seconds * ratio, EXACT if near else NEAR, "measured on this box")

    def scoring(self, load: Load, stack: Stack) -> float:
        """Seconds of the log-probs of rows without a backward; 0 when nothing is known."""
        if self.gpu is None or self.gpu.tflops is None or self.gpu.gb_per_s is None:
            step = self.step(load, stack)
            return 0.0 if step is None else step.seconds / 2
        tokens = load.tokens + load.mismatched
        flop = 2 * self.model.used_weights * tokens + 2 * self._head * (load.targets + load.mismatched)
        kept = kept_per_token(self.model, self.quantization, stack) * self.model.layers * tokens
        return flop / (MATMUL_SHARE * self.gpu.tflops * 1e12) + SCORING_TRAFFIC * kept / (
            self.gpu.gb_per_s * 1e9
        )

    def loading(self) -> float:
        """Seconds until a worker has the model."""
        return weight_bytes(self.model, "none") / LOAD_BYTES_PER_SECOND

    @property
    def _head(self) -> int:
        return self.model.vocabulary * self.model.hidden

    def _modelled_step(self, load: Load, stack: Stack) -> float | None:
        gpu, model = self.gpu, self.model
        if gpu is None or gpu.tflops is None or gpu.gb_per_s is None:
            return None
        # Forward and the gradient of the inputs; mismatched completions forward. No gradient of weights.
        body = 2 * model.used_weights * (2 * load.tokens + load.mismatched)
        flop = body + 2 * self._head * (2 * load.targets + load.mismatched)
        kept = kept_per_token(model, self.quantization, stack) * model.layers * load.tokens
        moved: float = TRAFFIC * kept
        if self.quantization != "none":  # each product unpacks its matrix: written once, read once
            moved += 3 * 4.5 * model.linear_weights
        kernels = flop / (MATMUL_SHARE * gpu.tflops * 1e12) + moved / (gpu.gb_per_s * 1e9)
        return max(kernels, HOST_SECONDS_PER_LAYER * model.layers) + STEP_SECONDS


def estimate(
    trial: Trial, work: Workload, clock: Clockwork, *, together: int = 1, done_steps: int = 0
) -> Estimate | None:
    """Seconds that `trial` takes from its first step (or step `done_steps`) to its end; None: not known.

    `together`: trials on the GPU at once, taken as alike. Starting a worker, loading the model and the
    reference pass are not in it.
    """
    stack = adapters(trial, together)
    load = _scaled(work.mean_load(trial), together)
    step = clock.step(load, stack)
    if step is None:
        return None
    total = work.steps(trial)
    evaluations = -(-total // trial.eval_every(total)) - done_steps // trial.eval_every(total)
    held_out = work.held_out.load(slice(None)) if len(work.held_out) else Load(0, 0, 0)
    evaluating = evaluations * clock.scoring(held_out, stack) * together
    return Estimate((total - done_steps) * step.seconds + evaluating, step.factor, step.source)


def adapters(trial: Trial, slots: int) -> Stack:
    """The adapters of `slots` trials like this one."""
    return Stack(
        slots=slots,
        rank=trial.lora_r,
        targets=trial.lora_targets,
        eight_bit=trial.optimizer == "adamw_8bit",
        dropout=trial.lora_dropout > 0,
    )


def _scaled(load: Load, factor: float) -> Load:
    return Load(*(round(n * factor) for n in (load.tokens, load.targets, load.mismatched)))


def _with_slots(stack: Stack, slots: int) -> Stack:
    return Stack(slots, stack.rank, stack.targets, stack.eight_bit, stack.dropout)
