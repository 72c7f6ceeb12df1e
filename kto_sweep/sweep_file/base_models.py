"""Checks of a sweep's base models, with every length, set of layers and precision in the sweep."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from kto_sweep.errors import Problem
from kto_sweep.models.model_checks import check_model
from kto_sweep.models.presets import PRESETS
from kto_sweep.sweep_file.parameters import GivenValue
from kto_sweep.trial import Trial, check_value

_DEFAULTS: Mapping[str, Any] = {
    "max_length": Trial.max_length,
    "lora_targets": Trial.lora_targets,
    "full_finetune": Trial.full_finetune,
    "quantization": "none",
}
"""By the parameter of check_model."""


def find_model_problems(values: Mapping[str, Sequence[GivenValue]]) -> Iterator[Problem]:
    """The problems of each model, each at the place of the value that it is about."""
    said: set[Problem] = set()
    for given in (*values.get("model", ()), *values.get("model_size", ())):
        if check_value(given.path[-1], given.value)[1] is not None:
            continue  # said where values are checked
        for settings in product(*(_valid(values, name, given) for name in _DEFAULTS)):
            places = {name: place for name, (place, _) in zip(_DEFAULTS, settings, strict=True)}
            chosen = {name: value for name, (_, value) in zip(_DEFAULTS, settings, strict=True)}
            for problem in check_model(_name(given), None, **chosen):
                located = replace(problem, path=places.get(problem.path[0], given.place))
                if located not in said:
                    said.add(located)
                    yield located


def _name(given: GivenValue) -> str:
    preset = PRESETS.get(str(given.value)) if given.path[-1] == "model_size" else None
    return preset.model if preset is not None else str(given.value)


def _valid(
    values: Mapping[str, Sequence[GivenValue]], name: str, model: GivenValue
) -> list[tuple[tuple[str, ...], Any]]:
    """The places and valid values of a parameter; its default at the place of the model if it is not set."""
    checked = [(given.place, check_value(name, given.value)) for given in values.get(name, ())]
    valid = [(place, value) for place, (value, problem) in checked if problem is None and value is not None]
    return valid or [(model.place, _DEFAULTS[name])]
