"""Checks, on the model itself and before training, that the packed trainer can train it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kto_sweep.errors import UsageError
from kto_sweep.models.model_checks import ALL_LINEAR
from kto_sweep.train.lora_targets import find_targets
from kto_sweep.train.packed.decoder import Decoder, freeze
from kto_sweep.train.packed.kernels import is_fp8
from kto_sweep.train.packed.pack import Ids, Item, PairedRow, PairedRows, pack, pack_onto

_LAYER_TYPES = {"full_attention", "sliding_attention"}

_ROPE_BY_LENGTH = {"dynamic", "longrope"}
"""Position encodings whose frequencies depend on the longest sequence of a forward."""

_FORWARD_ERRORS = (LookupError, RuntimeError, TypeError, ValueError)
"""What a model's code may raise when it gets `packing` and no mask; NotImplementedError is a RuntimeError."""


class NotPackableError(UsageError):
    """A model that the packed trainer cannot train."""

    def __init__(self, model: PreTrainedModel, reason: str, *, instead: str = "") -> None:
        super().__init__(
            f"{type(model).__name__} cannot be trained packed: {reason}",
            hint=f"{instead}train it with the trl trainer",
        )


def packed_decoder(model: PreTrainedModel) -> Decoder:
    """`model`, frozen, as a Decoder, after checking that packing changes none of its log-probs.

    Raises NotPackableError; the model then has its original attention and forwards.
    """
    _check_structure(model)
    rows = _probe_rows(model)
    freeze(model)  # first, since dropout would make any two passes differ
    # Before Decoder, which replaces the attention and forwards that are the truth here.
    expected = _row_by_row_log_probs(model, rows)
    decoder = Decoder(model)
    try:
        packed, windows = _packed_log_probs(decoder, rows)
    except _FORWARD_ERRORS as error:
        decoder.release()
        # A RuntimeError too, but a GPU without room says nothing about the model.
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise NotPackableError(model, str(error)) from error
    problem = _disagreement(model, expected, packed) or _missing_window(model, windows)
    if problem:
        decoder.release()
        raise NotPackableError(model, problem)
    return decoder


def check_lengths(model: PreTrainedModel, rows: PairedRows) -> None:
    """Check that no row's position encoding depends on the rows that it is packed with. Lengths in tokens.

    Raises NotPackableError when a row is so long that the model's frequencies change for all of a forward.
    """
    config: Any = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    longest = rows.longest
    # One set of parameters, or one per layer type (Gemma 3): both forms are searched.
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if parameters.get("rope_type") in _ROPE_BY_LENGTH:
            most = parameters.get("original_max_position_embeddings") or config.max_position_embeddings
            if longest > most:
                raise NotPackableError(
                    model,
                    f"its position encoding changes beyond {most} tokens, and a row has {longest}",
                    instead=f"use max_length: {most}, or ",
                )


def _check_structure(model: PreTrainedModel) -> None:
    """Raises NotPackableError for what a forward would not show, or would show as an obscure error."""
    # Such a model ignores the registry: it would run its own attention across the sequences of a row.
    if not model._supports_attention_backend:
        raise NotPackableError(model, "its attention cannot be replaced")
    # Convolutions and recurrences mix neighbouring tokens without attention, so also those of two sequences.
    others = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - _LAYER_TYPES
    if others:
        raise NotPackableError(model, f"it has layers of type {', '.join(sorted(others))}")
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if model.base_model is model or head is None:
        raise NotPackableError(model, "it has no separate decoder and output layer")
    if not find_targets(model, ALL_LINEAR):
        raise NotPackableError(model, "it has no nn.Linear layers, which packed adapters are for")
    # A pack's tensors are all on one device, and so are the adapters' buffers.
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        raise NotPackableError(model, f"it is on {len(devices)} devices")


def _probe_rows(model: PreTrainedModel) -> list[PairedRow]:
    """Three rows of random tokens, each with a mismatched completion; two prompts begin alike.

    Small, since every model pays for the check, yet they use all of packing: several sequences in a row, a
    shared beginning, and mismatched completions that continue a prompt.
    """
    rng = np.random.default_rng(0)
    vocabulary = model.config.get_text_config().vocab_size

    def tokens(n: int) -> Ids:
        return rng.integers(0, vocabulary, n)

    beginning = tokens(9)  # long enough that sharing it pays (pack.MIN_SAVING), so that keys are gathered
    return [
        PairedRow(np.concatenate([beginning, tokens(2)]), tokens(6), tokens(4), True),
        PairedRow(tokens(5), tokens(3), tokens(7), False),
        PairedRow(np.concatenate([beginning, tokens(4)]), tokens(2), tokens(3), True),
    ]


@torch.no_grad()
def _row_by_row_log_probs(model: PreTrainedModel, rows: list[PairedRow]) -> Tensor:
    """Log-probs of matched and mismatched completions by the model's own forward: float64 (rows, 2), nats."""
    attention = model.config._attn_implementation
    # The model's plain code: other implementations may leave out a soft cap or a sink without an error.
    model.set_attn_implementation("eager")
    sums = []
    for row in rows:
        for completion in (row.completion, row.mismatched):
            ids = torch.from_numpy(np.concatenate([row.prompt, completion])).to(model.device)
            # The token at t predicts that at t + 1: from the prompt's last token to the one before the end.
            logits = model(input_ids=ids[None], use_cache=False).logits[0, len(row.prompt) - 1 : -1]
            by_token = logits.float().log_softmax(-1).gather(1, ids[len(row.prompt) :, None])
            sums.append(by_token.double().sum())
    model.set_attn_implementation(attention)
    return torch.stack(sums).view(len(rows), 2)


@torch.no_grad()
def _packed_log_probs(decoder: Decoder, rows: list[PairedRow]) -> tuple[Tensor, set[int | None]]:
    """The same log-probs packed, float64 (rows, 2), and the sliding windows that layers passed, in tokens."""
    # Both layouts of training: prompts in full, then completions on the keys and values that those kept.
    items = [Item(row, example=at) for at, row in enumerate(rows)]
    matched = pack(items, 1, decoder.device, keep=True)
    first = decoder.log_probs(matched, len(rows))
    mismatched = pack_onto(matched, items, items, 1, decoder.device)
    second = decoder.log_probs(mismatched, len(rows))
    return torch.stack([first, second], dim=1), matched.attention.windows


def _disagreement(model: PreTrainedModel, expected: Tensor, packed: Tensor) -> str:
    """How far the log-probs, (rows, 2) each, are apart; empty when they agree."""
    # Nats over a handful of tokens. Half precision rounds differently in each kernel; a mask or head that is
    # wrong is wrong by far more, once a model is trained.
    relative, absolute = (0.0, 2e-3) if model.dtype == torch.float32 else (0.02, 0.2)
    if any(is_fp8(module) for module in model.modules()):
        # Where two kernels round differently in 16 bits, a product's input may fall on the other side of a
        # step of E4M3, which is 16 times as coarse as one of bf16.
        relative, absolute = 0.05, 0.5
    if torch.allclose(packed, expected, rtol=relative, atol=absolute):
        return ""
    return f"its log-probs change when rows are packed (by up to {(packed - expected).abs().max():.3g} nats)"


def _missing_window(model: PreTrainedModel, windows: set[int | None]) -> str:
    """What is wrong when a model with a sliding window does not pass it to the attention; empty otherwise."""
    # Windows span thousands of tokens and probes a few: their log-probs are right without the window.
    config: Any = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None)
    slides = "sliding_attention" in layer_types if layer_types else getattr(config, "sliding_window", None)
    if slides and windows == {None}:
        return "its sliding window does not reach the attention"
    return ""
