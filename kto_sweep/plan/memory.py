"""GPU memory of co-trained trials, from sizes alone: what the packed engine holds at its fullest moment.

    weights            frozen, 16 bit, or quantised with embedding, output layer and norms in 16 bit
    adapters           per slot and parameter: float32 weight, gradient and two moments, a 16-bit copy
    kept               what autograd keeps of each token until the backward (see `kept_per_token`)
    working            the largest of what the output layer, the mismatched pass and the backward hold besides

The terms follow train/fused.py, lora.py, optim.py and head.py; benchmarks/memory.py compares them with the
engine on a GPU. Memory is what tensors take (torch.cuda.max_memory_allocated).
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

from kto_sweep.models.architecture import Architecture

GIB = 2**30
ROUNDING = 128
"""Tokens of a forward on a GPU are a multiple of this (train/pack.py)."""
LOGITS_CHUNK = 2**28
"""Bytes of 16-bit logits of one chunk: half of head.py's bound, which counts them as float32."""
LIBRARIES = 64 * 2**20
"""Workspaces of matmul libraries."""
BLOCK = 256
"""Parameters of a layer's adapters are filled up to a multiple of this (train/optim.py)."""
SCORING_TOKENS = 32768
"""Of one forward of the reference pass and of evaluations (train/engine.py)."""
SLACK = 1.02
"""Kept tensors take more than their bytes: the allocator does not split off less than a MiB."""

QUANTISED_BYTES = {"none": 2.0, "8bit": 1.0, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Per weight of a matrix. 4 bit: NF4 with 8-bit constants for 64 weights each, and theirs for 256 of those
(QLoRA, arXiv 2305.14314, section 3)."""


@dataclass(frozen=True)
class Load:
    """What one optimizer step of all slots feeds."""

    tokens: int
    """Matched: prompts and completions."""
    targets: int
    """Completion tokens asked for."""
    mismatched: int
    """Tokens of the mismatched completions."""

    def __add__(self, other: "Load") -> "Load":
        return Load(
            self.tokens + other.tokens, self.targets + other.targets, self.mismatched + other.mismatched
        )


@dataclass(frozen=True)
class Stack:
    """The adapters of all slots."""

    slots: int
    rank: int
    """The largest of any slot."""
    targets: str | Collection[str] = "all-linear"
    eight_bit: bool = False
    """Moments in one byte each (adamw_8bit)."""
    dropout: bool = False


@dataclass(frozen=True)
class Footprint:
    """Bytes at the fullest moment."""

    weights: float
    adapters: float
    kept: float
    working: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.adapters + self.kept + self.working

    @property
    def gib(self) -> float:
        """All of it, in GiB."""
        return self.total / GIB


def weight_bytes(model: Architecture, quantization: str) -> float:
    """Of the frozen base model."""
    return model.linear_weights * QUANTISED_BYTES[quantization] + 2 * model.other_weights


def adapter_parameters(model: Architecture, rank: int, targets: str | Collection[str]) -> int:
    """Of one slot, with the filling that the optimizer's blocks need."""
    rank = math.ceil(rank / 8) * 8
    sizes = [model.linear[name] for name in _adapted(model, targets)]
    one_layer = sum(_blocks(rank * n_in) + _blocks(rank * n_out) for n_in, n_out in sizes)
    return model.layers * one_layer


def adapter_file_bytes(model: Architecture, rank: int, targets: str | Collection[str]) -> int:
    """Of a saved adapter: float32, without filling."""
    sizes = [model.linear[name] for name in _adapted(model, targets)]
    return 4 * model.layers * rank * sum(n_in + n_out for n_in, n_out in sizes)


def kept_per_token(model: Architecture, quantization: str, stack: Stack) -> int:
    """Bytes that one layer keeps of one token for the backward."""
    h, i = model.hidden, model.intermediate * model.active_experts
    adapted = _adapted(model, stack.targets)
    parts = _fused(model, quantization) and not stack.dropout
    norms = 2 * h if model.fused else 4 * h  # the residual stream; unfused norms keep it in float32
    inputs = 2 * h  # what the norms give, for the gradients of the adapters' A
    attention = 2 * model.queries + 2 * model.keys  # q, k, v and the result
    if parts and {"gate_proj", "up_proj", "down_proj"} <= adapted:
        mlp = 2 * i  # gate and up; the rest is computed again
    else:
        mlp = 3 * i + (i if "down_proj" in adapted else 0)
    low = math.ceil(stack.rank / 8) * 8 * len(adapted)
    return 2 * (norms + inputs + attention + mlp + low) + 4 * model.heads + 8


def peak(
    model: Architecture,
    quantization: str,
    stack: Stack,
    load: Load,
    *,
    recompute: bool = False,
) -> Footprint:
    """The fullest moment of an optimizer step whose forward holds all of `load`.

    `recompute`: each layer keeps its input alone, and is run again in the backward.
    """
    h, i = model.hidden, model.intermediate * model.active_experts
    tokens = math.ceil(load.tokens / ROUNDING) * ROUNDING
    mismatched = math.ceil(load.mismatched / ROUNDING) * ROUNDING
    one_layer = kept_per_token(model, quantization, stack) * tokens * SLACK
    kept = model.layers * (2 * h * tokens if recompute else one_layer)
    shared = 4 * model.keys * model.layers * tokens if recompute else 0  # for the mismatched pass
    parameters = adapter_parameters(model, stack.rank, stack.targets) * stack.slots
    unpacked = 2 * max(a * b for a, b in model.linear.values()) if quantization != "none" else 0
    moments = {
        "output layer": shared + _head(model, load.targets) + 2 * h * (tokens + 2 * load.targets),
        "mismatched": shared
        + 2 * h * load.targets
        + max(
            _mlp_forward(model, mismatched) + unpacked,
            _head(model, mismatched) + 4 * h * mismatched,
        ),
        "backward": 2 * (4 * i + 4 * h) * tokens + unpacked + (one_layer if recompute else 0),
        "update": (24 if stack.eight_bit else 8) * parameters - kept,
    }
    return Footprint(
        weights=weight_bytes(model, quantization),
        adapters=(12 if stack.eight_bit else 18) * parameters,
        kept=kept,
        working=LIBRARIES + max(moments.values()),
    )


def scoring_peak(model: Architecture, quantization: str, stack: Stack, tokens: int) -> Footprint:
    """The fullest moment of the reference pass or an evaluation over rows of `tokens` in all."""
    tokens = min(tokens, SCORING_TOKENS)
    h = model.hidden
    parameters = adapter_parameters(model, stack.rank, stack.targets) * stack.slots
    return Footprint(
        weights=weight_bytes(model, quantization),
        adapters=(12 if stack.eight_bit else 18) * parameters,
        kept=4 * model.keys * model.layers * tokens,
        working=LIBRARIES + max(_mlp_forward(model, tokens), _head(model, tokens) + 4 * h * tokens),
    )


def _head(model: Architecture, targets: int) -> float:
    """Logits of two chunks, as one is let go after the next is there; or all that autograd needs of one."""
    chunk = min(LOGITS_CHUNK, 2 * model.vocabulary * targets)
    if not model.plain_head or not model.fused:
        return 7 * chunk  # 16 bit once, float32 three times
    return chunk + min(LOGITS_CHUNK, max(0, 2 * model.vocabulary * targets - chunk))


def _mlp_forward(model: Architecture, tokens: int) -> float:
    """What a layer holds without a backward, at its widest."""
    return 2 * (3 * model.intermediate * model.active_experts + 4 * model.hidden) * tokens


def _fused(model: Architecture, quantization: str) -> bool:
    """8-bit layers round their inputs: they keep their own forward."""
    return model.fused and quantization != "8bit"


def _adapted(model: Architecture, targets: str | Collection[str]) -> set[str]:
    if targets == "all-linear":
        return set(model.linear)
    wanted = {targets} if isinstance(targets, str) else {name.rpartition(".")[2] for name in targets}
    return wanted & set(model.linear)


def _blocks(size: int) -> int:
    return math.ceil(size / BLOCK) * BLOCK
