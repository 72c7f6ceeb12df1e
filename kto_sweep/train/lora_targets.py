"""Which layers of a model get adapters."""

from collections.abc import Callable, Collection
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kto_sweep.errors import UsageError
from kto_sweep.models.model_checks import ALL_LINEAR, forbidden_targets, matches

Targets = str | tuple[str, ...]
"""`all-linear`, or last parts of layer names: ("q_proj", "v_proj")."""


def text_decoder(model: PreTrainedModel) -> nn.Module:
    """The part of `model` that is trained, without its output layer.

    In a vision-language model this is the language model: text does not reach the other layers.
    """
    decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    return decoder


def is_linear(module: nn.Module) -> bool:
    """Whether PEFT has adapters for this kind of layer: nn.Linear, GPT-2's Conv1D, GPTQ's and AWQ's."""
    return isinstance(module, nn.Linear | Conv1D) or hasattr(module, "qweight")


def find_targets(
    model: PreTrainedModel,
    targets: Targets,
    *,
    accepts: Callable[[nn.Module], bool] = lambda module: isinstance(module, nn.Linear),
) -> dict[str, Any]:
    """The layers of the text decoder that `targets` names, by full name; never the output layer.

    `accepts`: the kinds of layers that the trainer can adapt.
    Raises UsageError for a name that no such layer has.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    inside = set(text_decoder(model).modules())
    forbidden = forbidden_targets(str(model.config.get_text_config().model_type))
    linear = {
        name: module
        for name, module in model.named_modules()
        if accepts(module) and module in inside and module is not head and _last_part(name) not in forbidden
    }
    if targets == ALL_LINEAR:
        return linear
    wanted = (targets,) if isinstance(targets, str) else targets
    # Models have hundreds of layers with a few last names: those are what people write.
    known = sorted(set(map(_last_part, linear)))
    for target in wanted:
        if not any(matches(name, target) for name in linear):
            raise UsageError(
                f"lora_targets: no linear layer of {type(model).__name__} is named {target!r}",
                hint=f"use all-linear, or some of {', '.join(known)}",
            )
    return {name: layer for name, layer in linear.items() if any(matches(name, target) for target in wanted)}


def shortest_names(model: PreTrainedModel, layers: Collection[str]) -> tuple[str, ...]:
    """Names that PEFT resolves to exactly these layers: their last parts if no other layer ends so."""
    last_parts = set(map(_last_part, layers))
    modules: Any = model.named_modules()
    if {name for name, _ in modules if _last_part(name) in last_parts} == set(layers):
        return tuple(sorted(last_parts))
    return tuple(layers)


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]
