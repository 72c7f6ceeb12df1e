"""The parameters of a single run: flags override a file or an earlier run, which override the preset."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kto_sweep.data.readers import format_suffix
from kto_sweep.errors import ProblemsError, UsageError
from kto_sweep.models.presets import PRESETS
from kto_sweep.parameter_types import source_names
from kto_sweep.sweep_file.yaml_source import read_yaml
from kto_sweep.trial import Trial, leaves, parameter_name

EXCLUSIVE = (
    ("model", "model_size"),
    ("epochs", "max_steps"),
    ("rho", "desirable_weight"),
    ("rho", "undesirable_weight"),
    ("eval_dataset", "eval_fraction"),
)
"""Pairs that set the same thing: a flag for one removes the other if it comes from a file or earlier run."""
ONE_PER_LINE = "one parameter per line: learning_rate: 5e-7"
MIN_EVAL_FRACTION = 1e-6
"""An eval_fraction that holds out only about one row of each label."""


def read_config(file: Path) -> dict[str, Any]:
    """The parameters in a YAML file, nested or flat.

    Raises UsageError if it is not a YAML mapping, or is a sweep file.
    """
    try:
        source, problems = read_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}", hint="check the path") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8: {error}", hint=ONE_PER_LINE) from error
    if source is None:
        raise ProblemsError(
            str(file),
            [replace(problem, file=str(file), hint=problem.hint or ONE_PER_LINE) for problem in problems],
        )
    config = source.data
    if not isinstance(config, Mapping):
        raise UsageError(f"{file}: no parameters", hint=ONE_PER_LINE)
    if "parameters" in config:
        raise UsageError(
            f"{file} is a sweep file: it has parameters to search",
            hint=f"kto-sweep create {file}   (a run's file has single values: learning_rate: 5e-7)",
        )
    return dict(config)


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without nesting; unknown names stay dotted, and the check reports them."""
    return {parameter_name(path) or ".".join(path): value for path, value in leaves(config)}


def override(base: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """`base` updated by `flags`, without parameters that a flag excludes."""
    merged = dict(base)
    for pair in EXCLUSIVE:
        for name, other in (pair, pair[::-1]):
            if name in flags and other not in flags:
                merged.pop(other, None)
    return {**merged, **flags}


def with_preset(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the preset's lora_r and max_length, unless it sets them."""
    preset = PRESETS.get(str(config.get("model_size")))
    if preset is None:
        return dict(config)
    return {"lora_r": preset.lora_r, "max_length": preset.max_length, **config}


def run_name(trial: Trial) -> str:
    """A name from the main parameters: `7b-lr5e-07-bs8-beta0.1-support_replies`."""
    model = trial.model_size or Path(trial.base_model).name
    rate = re.sub(r"\.?0*e", "e", f"{trial.learning_rate:.2e}")
    name = f"{model}-lr{rate}-bs{trial.batch_size}-beta{trial.beta:g}-{_data_name(trial)}"
    return re.sub(r"[^\w.\-]", "-", name)[:120]


def _data_name(trial: Trial) -> str:
    """The name of its first file without suffixes, and how many others there are."""
    first, *others = source_names(trial.dataset)
    suffix = format_suffix(first)
    stem = Path(first).name.partition(suffix)[0] if suffix else Path(first).name
    return f"{stem}-and-{len(others)}" if others else stem


def describe_changes(old: Trial, new: Trial) -> str:
    """The parameters in which `new` differs from `old`, as `beta 0.3 (was 0.1)`; empty if equal."""
    before, after = old.to_config(), new.to_config()
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name} {after.get(name)} (was {before.get(name)})" for name in names)
