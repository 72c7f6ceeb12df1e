"""Peak GPU memory of trials trained together, computed from sizes alone.

    weights            frozen, 16 bit; or quantised, with embedding, output layer and norms in 16 bit
    adapters           per slot and parameter: float32 weight, gradient and two moments, a 16-bit copy
    activations        what autograd saves per token for the backward (see `activation_bytes_per_token`)
    working            the largest extra need of the output layer, the mismatched pass or the backward

The terms follow fused.py, lora.py, optim.py and head.py of train/packed/; benchmarks/memory.py compares them
with the engine on a GPU. Memory is that of tensors (torch.cuda.max_memory_allocated).
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

from kto_sweep.models.architecture import Architecture, Recompute
from kto_sweep.models.presets import IN_FP8

GIB = 2**30
TOKEN_MULTIPLE = 128
"""On a GPU, the tokens of a forward are padded to a multiple of this (train/packed/pack.py)."""
LOGITS_CHUNK = 2**28
"""Bytes of one chunk of 16-bit logits: half of head.py's bound, which counts them as float32."""
WORKSPACE_BYTES = 64 * 2**20
"""Workspaces of matmul libraries."""
OPTIMIZER_BLOCK = 256
"""Parameters of a layer's adapters are padded to a multiple of this (train/packed/optim.py)."""
SCORING_TOKENS = 32768
"""Tokens of one forward of the reference pass and of evaluations (train/packed/engine.py)."""
ALLOCATOR_OVERHEAD = 1.02
"""Saved tensors take more than their bytes, because the allocator does not split off less than a MiB."""

_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
BYTES_PER_WEIGHT = {"none": 2.0, "8bit": 1.0, "4bit": _NF4, "fp8": 1.0, "4bit-fp8": _NF4}
"""4bit is NF4 with an 8-bit constant per 64 weights, and a float32 one per 256 of those constants
(QLoRA, arXiv 2305.14314, section 3)."""


@dataclass(frozen=True)
class StepLoad:
    """The tokens of one optimizer step, all slots together."""

    tokens: int
    """Tokens of the matched pass: prompts and completions."""
    targets: int
    """Completion tokens whose log-probability is computed."""
    mismatched: int
    """Tokens of the mismatched completions."""

    def __add__(self, other: "StepLoad") -> "StepLoad":
        return StepLoad(
            self.tokens + other.tokens, self.targets + other.targets, self.mismatched + other.mismatched
        )


@dataclass(frozen=True)
class AdapterShape:
    """The adapters of all slots."""

    slots: int
    rank: int
    """The largest rank of any slot."""
    targets: str | Collection[str] = "all-linear"
    eight_bit: bool = False
    """AdamW moments of one byte each (adamw_8bit)."""
    dropout: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak, by use."""

    weights: float
    adapters: float
    activations: float
    working: float

    @property
    def total(self) -> float:
        """The sum of all uses, in bytes."""
        return self.weights + self.adapters + self.activations + self.working

    @property
    def gib(self) -> float:
        """The sum of all uses, in GiB."""
        return self.total / GIB


def weight_bytes(model: Architecture, quantization: str) -> float:
    """Bytes of the frozen base model."""
    return model.linear_weights * BYTES_PER_WEIGHT[quantization] + 2 * model.other_weights


def adapter_parameters(model: Architecture, rank: int, targets: str | Collection[str]) -> int:
    """Adapter parameters of one slot, with the padding of the optimizer's blocks."""
    rank = math.ceil(rank / 8) * 8
    sizes = [model.linear[name] for name in _adapted(model, targets)]
    one_layer = sum(_padded_to_block(rank * n_in) + _padded_to_block(rank * n_out) for n_in, n_out in sizes)
    return model.layers * one_layer


def adapter_file_bytes(model: Architecture, rank: int, targets: str | Collection[str]) -> int:
    """Bytes of a saved adapter: float32, without padding."""
    sizes = [model.linear[name] for name in _adapted(model, targets)]
    return 4 * model.layers * rank * sum(n_in + n_out for n_in, n_out in sizes)


def activation_bytes_per_token(
    model: Architecture,
    quantization: str,
    shape: AdapterShape,
    recompute: Recompute = Recompute.NOTHING,
) -> int:
    """Bytes that are kept per token in one layer, for the backward."""
    h, i = model.hidden, model.intermediate * model.active_experts
    fused = _uses_fused_layers(model, quantization, shape)
    if fused and recompute is Recompute.LAYER:
        return 2 * h  # the layer's input
    adapted = _adapted(model, shape.targets)
    residuals = 2 * h if model.fused else 4 * h  # before both norms; unfused ones keep them in float32
    attention = 2 * model.queries + 2 * model.keys  # q, k, v and the output
    if fused:
        heads = model.queries + model.keys if model.head_norms else 0  # q and k before their norms
        inputs, mlp = heads, 0 if recompute is Recompute.MLP else 2 * i  # gate and up
    else:
        inputs = 2 * h  # outputs of the norms, for the gradients of the adapters' A
        mlp = 3 * i + (i if "down_proj" in adapted else 0)
    low = math.ceil(shape.rank / 8) * 8 * len(adapted)
    saved = 2 * (residuals + inputs + attention + mlp + low) + 4 * model.heads + 8
    return saved if fused or recompute is not Recompute.LAYER else 2 * h


def peak_memory(
    model: Architecture,
    quantization: str,
    shape: AdapterShape,
    load: StepLoad,
    *,
    recompute: Recompute = Recompute.NOTHING,
) -> MemoryEstimate:
    """Peak memory of an optimizer step whose forward holds all of `load`."""
    h, i = model.hidden, model.intermediate * model.active_experts
    tokens = math.ceil(load.tokens / TOKEN_MULTIPLE) * TOKEN_MULTIPLE
    mismatched = math.ceil(load.mismatched / TOKEN_MULTIPLE) * TOKEN_MULTIPLE
    fused = _uses_fused_layers(model, quantization, shape)
    kept, everything = (
        activation_bytes_per_token(model, quantization, shape, level) * tokens * ALLOCATOR_OVERHEAD
        for level in (recompute, Recompute.NOTHING)
    )
    activations = model.layers * kept
    # For the mismatched pass; other levels keep the keys and values anyway.
    shared = 4 * model.keys * model.layers * tokens if recompute is Recompute.LAYER else 0
    parameters = adapter_parameters(model, shape.rank, shape.targets) * shape.slots
    # 16 bit; or in FP8 the weights, unpacked if they are in 4 bit, and a transposed copy in the backward.
    dequantized = 2 * _largest_product(model, fused) if quantization != "none" else 0
    in_fp8 = 2 * i * tokens if quantization in IN_FP8 else 0  # the gradients of gate and up
    phases = {
        "output layer": shared + _logits_bytes(model, load.targets) + 2 * h * (tokens + 2 * load.targets),
        "mismatched": shared
        + 2 * h * load.targets
        + max(
            _mlp_forward_bytes(model, mismatched) + dequantized,
            _logits_bytes(model, mismatched) + 4 * h * mismatched,
        ),
        # What the largest layer's backward allocates, with what it computes again. The fused one writes the
        # gradients of gate and up to their place.
        "backward": 2 * ((i if fused else 4 * i) + 4 * h) * tokens + dequantized + in_fp8 + everything - kept,
        "update": (24 if shape.eight_bit else 8) * parameters - activations,
    }
    return MemoryEstimate(
        weights=weight_bytes(model, quantization),
        adapters=(12 if shape.eight_bit else 18) * parameters,
        activations=activations,
        working=WORKSPACE_BYTES + max(phases.values()),
    )


def scoring_peak(model: Architecture, quantization: str, shape: AdapterShape, tokens: int) -> MemoryEstimate:
    """Peak memory of the reference pass or an evaluation over rows with `tokens` in total."""
    tokens = min(tokens, SCORING_TOKENS)
    h = model.hidden
    parameters = adapter_parameters(model, shape.rank, shape.targets) * shape.slots
    return MemoryEstimate(
        weights=weight_bytes(model, quantization),
        adapters=(12 if shape.eight_bit else 18) * parameters,
        activations=4 * model.keys * model.layers * tokens,
        working=WORKSPACE_BYTES
        + max(_mlp_forward_bytes(model, tokens), _logits_bytes(model, tokens) + 4 * h * tokens),
    )


def _logits_bytes(model: Architecture, targets: int) -> float:
    """Bytes of two chunks of logits, as one is freed after the next exists, or of one with its gradients."""
    chunk = min(LOGITS_CHUNK, 2 * model.vocabulary * targets)
    if not model.plain_head or not model.fused:
        return 7 * chunk  # 16 bit once, float32 three times
    return chunk + min(LOGITS_CHUNK, max(0, 2 * model.vocabulary * targets - chunk))


def _mlp_forward_bytes(model: Architecture, tokens: int) -> float:
    """Peak bytes of one layer's forward without autograd."""
    return 2 * (3 * model.intermediate * model.active_experts + 4 * model.hidden) * tokens


def _uses_fused_layers(model: Architecture, quantization: str, shape: AdapterShape) -> bool:
    """Whether train/packed/fused.py computes the layers: not those in 8 bit, and not with dropout."""
    return model.fused and quantization != "8bit" and not shape.dropout


def _largest_product(model: Architecture, fused: bool) -> int:
    """Weights of the largest product; fused layers multiply those with one input together."""
    sizes = [features_in * features_out for features_in, features_out in model.linear.values()]
    gated = [model.linear[name] for name in ("gate_proj", "up_proj") if name in model.linear]
    return max(*sizes, sum(a * b for a, b in gated)) if fused else max(sizes)


def _adapted(model: Architecture, targets: str | Collection[str]) -> set[str]:
    if targets == "all-linear":
        return set(model.linear)
    names = {targets} if isinstance(targets, str) else {name.rpartition(".")[2] for name in targets}
    return names & set(model.linear)


def _padded_to_block(size: int) -> int:
    return math.ceil(size / OPTIMIZER_BLOCK) * OPTIMIZER_BLOCK
