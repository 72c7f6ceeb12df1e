"""Whether the packed trainer can train a model: asked of the model itself, before any time is spent."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kto_sweep.errors import UsageError
from kto_sweep.train.packed.decoder import Decoder, freeze
from kto_sweep.train.packed.pack import Ids, Item, PairedRow, pack, pack_onto

_LAYER_TYPES = {"full_attention", "sliding_attention"}

_ROPE_BY_LENGTH = {"dynamic", "longrope"}
"""Position encodings whose frequencies depend on the longest sequence of a forward."""

_CONFUSED = (LookupError, RuntimeError, TypeError, ValueError)
"""What a model's code may raise when it gets `packing` and no mask."""


class NotPackableError(UsageError):
    """A model that the packed trainer cannot train."""

    def __init__(self, model: PreTrainedModel, reason: str, *, instead: str = "") -> None:
        super().__init__(
            f"{type(model).__name__} cannot be trained packed: {reason}",
            hint=f"{instead}train it with the trl trainer",
        )


def packed_decoder(model: PreTrainedModel) -> Decoder:
    """`model`, frozen, as a Decoder, after checking that packing changes none of its log-probs.

    Raises NotPackableError.
    """
    _check_structure(model)
    rows = _probe_rows(model)
    freeze(model)
    expected = _one_by_one(model, rows)
    decoder = Decoder(model)
    try:
        found, windows = _packed(decoder, rows)
    except _CONFUSED as error:
        decoder.release()
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise NotPackableError(model, str(error)) from error
    problem = _disagreement(model, expected, found) or _missing_window(model, windows)
    if problem:
        decoder.release()
        raise NotPackableError(model, problem)
    return decoder


def check_lengths(model: PreTrainedModel, rows: Sequence[PairedRow]) -> None:
    """Nothing, when no row's position encoding depends on the other rows that it is packed with.

    Raises NotPackableError when a row is so long that the model's frequencies change for all of a forward.
    """
    config: Any = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    longest = max(
        (len(row.prompt) + max(len(row.completion), len(row.mismatched)) for row in rows), default=0
    )
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
    if not model._supports_attention_backend:
        raise NotPackableError(model, "its attention cannot be replaced")
    others = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - _LAYER_TYPES
    if others:
        raise NotPackableError(model, f"it has layers of type {', '.join(sorted(others))}")
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if model.base_model is model or head is None:
        raise NotPackableError(model, "it has no decoder and output layer of its own")
    if not any(isinstance(layer, nn.Linear) and layer is not head for layer in model.modules()):
        raise NotPackableError(model, "it has no nn.Linear layers, which packed adapters are for")
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        raise NotPackableError(model, f"it lies on {len(devices)} devices")


def _probe_rows(model: PreTrainedModel) -> list[PairedRow]:
    """Three rows of random tokens, each with a mismatched completion; two prompts begin alike."""
    rng = np.random.default_rng(0)
    vocabulary = model.config.get_text_config().vocab_size

    def tokens(n: int) -> Ids:
        return rng.integers(0, vocabulary, n)

    beginning = tokens(9)
    return [
        PairedRow(np.concatenate([beginning, tokens(2)]), tokens(6), tokens(4), True),
        PairedRow(tokens(5), tokens(3), tokens(7), False),
        PairedRow(np.concatenate([beginning, tokens(4)]), tokens(2), tokens(3), True),
    ]


@torch.no_grad()
def _one_by_one(model: PreTrainedModel, rows: list[PairedRow]) -> Tensor:
    """(rows, 2) log-probs of matched and mismatched completions by the model's own forward, row by row."""
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    sums = []
    for row in rows:
        for completion in (row.completion, row.mismatched):
            ids = torch.from_numpy(np.concatenate([row.prompt, completion])).to(model.device)
            logits = model(input_ids=ids[None], use_cache=False).logits[0, len(row.prompt) - 1 : -1]
            by_token = logits.float().log_softmax(-1).gather(1, ids[len(row.prompt) :, None])
            sums.append(by_token.double().sum())
    model.set_attn_implementation(attention)
    return torch.stack(sums).view(len(rows), 2)


@torch.no_grad()
def _packed(decoder: Decoder, rows: list[PairedRow]) -> tuple[Tensor, set[int | None]]:
    """The same (rows, 2) log-probs packed, and the sliding windows that layers asked for."""
    items = [Item(row, example=at) for at, row in enumerate(rows)]
    matched = pack(items, 1, decoder.device, keep=True)
    first = decoder.log_probs(matched, len(rows))
    mismatched = pack_onto(matched, items, items, 1, decoder.device)
    second = decoder.log_probs(mismatched, len(rows))
    return torch.stack([first, second], dim=1), matched.attention.windows


def _disagreement(model: PreTrainedModel, expected: Tensor, found: Tensor) -> str:
    # Nats over a handful of tokens. Half precision rounds differently in each kernel; a mask or head that is
    # wrong is wrong by far more, once a model is trained.
    relative, absolute = (0.0, 2e-3) if model.dtype == torch.float32 else (0.02, 0.2)
    if torch.allclose(found, expected, rtol=relative, atol=absolute):
        return ""
    return f"its log-probs change when rows are packed (by up to {(found - expected).abs().max():.3g} nats)"


def _missing_window(model: PreTrainedModel, windows: set[int | None]) -> str:
    """A probe is too short to feel a sliding window, so look whether the attention was told of it."""
    config: Any = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None)
    slides = "sliding_attention" in layer_types if layer_types else getattr(config, "sliding_window", None)
    if slides and windows == {None}:
        return "its sliding window does not reach the attention"
    return ""
