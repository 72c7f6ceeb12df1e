"""Whether the packed trainer can train a model: asked of the model itself, before any time is spent."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kto_sweep.errors import UsageError
from kto_sweep.train.attention import NAME
from kto_sweep.train.decoder import Decoder
from kto_sweep.train.pack import Item, PairedRow, pack, pack_onto

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_EAGER = "eager"


class NotPackableError(UsageError):
    """A model that the packed trainer cannot train."""

    def __init__(self, model: PreTrainedModel, reason: str) -> None:
        super().__init__(
            f"{type(model).__name__} cannot be trained packed: {reason}", hint="train it with the trl trainer"
        )


def packed_decoder(model: PreTrainedModel) -> Decoder:
    """`model` as a Decoder, after checking that packing changes none of its log-probs.

    Raises NotPackableError, with the model as it was.
    """
    _check_structure(model)
    before = model.config._attn_implementation
    rows = _probe_rows(model)
    expected = _one_by_one(model, rows)
    try:
        decoder = Decoder(model)
        found, windows = _packed(decoder, rows)
    except torch.OutOfMemoryError:
        raise
    except (
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # whatever its code does without a mask
        model.set_attn_implementation(_EAGER if before == NAME else before)
        raise NotPackableError(model, str(error)) from error
    problem = _disagreement(model, expected, found) or _missing_window(model, windows)
    if problem:
        model.set_attn_implementation(_EAGER if before == NAME else before)
        raise NotPackableError(model, problem)
    return decoder


def _check_structure(model: PreTrainedModel) -> None:
    if not model._supports_attention_backend:
        raise NotPackableError(model, "its attention cannot be replaced")
    others = set(getattr(model.config, "layer_types", None) or ()) - _LAYER_TYPES
    if others:
        raise NotPackableError(model, f"it has layers of type {', '.join(sorted(others))}")
    if model.base_model is model or model.get_output_embeddings() is None:
        raise NotPackableError(model, "it has no decoder and output layer of its own")
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        raise NotPackableError(model, f"it lies on {len(devices)} devices")


def _probe_rows(model: PreTrainedModel) -> list[PairedRow]:
    """Two rows of random tokens, each with a mismatched completion."""
    rng = np.random.default_rng(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return [
        PairedRow(*(rng.integers(0, vocabulary, n) for n in lengths), desirable=True)
        for lengths in ((11, 6, 4), (5, 3, 7))
    ]


@torch.no_grad()
def _one_by_one(model: PreTrainedModel, rows: list[PairedRow]) -> Tensor:
    """(rows, 2) log-probs of matched and mismatched completions by the model's own forward, row by row."""
    training = model.training
    model.eval()
    model.set_attn_implementation(_EAGER)
    sums = []
    for row in rows:
        for completion in (row.completion, row.mismatched):
            ids = torch.from_numpy(np.concatenate([row.prompt, completion])).to(model.device)
            logits = model(input_ids=ids[None], use_cache=False).logits[0, len(row.prompt) - 1 : -1]
            by_token = logits.float().log_softmax(-1).gather(1, ids[len(row.prompt) :, None])
            sums.append(by_token.double().sum())
    model.train(training)
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
    # Half precision rounds differently in each kernel; a wrong mask or head is wrong by far more than 10 %.
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    if torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
        return ""
    return f"its log-probs change when rows are packed (by up to {(found - expected).abs().max():.3g} nats)"


def _missing_window(model: PreTrainedModel, windows: set[int | None]) -> str:
    """A probe is too short to feel a sliding window, so look whether the attention was told of it."""
    config: Any = model.config
    layer_types = getattr(config, "layer_types", None)
    slides = "sliding_attention" in layer_types if layer_types else getattr(config, "sliding_window", None)
    if slides and windows == {None}:
        return "its sliding window does not reach the attention"
    return ""
