"""What a single run trains: flags over a file or an earlier run, over its preset."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kto_sweep.errors import UsageError
from kto_sweep.models.presets import PRESETS
from kto_sweep.trial import Trial, leaves, parameter_name

EXCLUSIVE = (
    ("model", "model_size"),
    ("epochs", "max_steps"),
    ("rho", "desirable_weight"),
    ("rho", "undesirable_weight"),
)
"""Parameters that say the same in two ways: one that is typed replaces the other of a file or a run."""
WHOLE_DATA = 1e-6
"""The eval_fraction with which only a row or so of each label is held out."""


def read_config(file: Path) -> dict[str, Any]:
    """The parameters in a YAML file, in groups or not.

    Raises UsageError when it is no such file.
    """
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}", hint="check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{file}: not a YAML file: {error}", hint="learning_rate: 5e-7, one a line"
        ) from error
    if not isinstance(found, Mapping):
        raise UsageError(f"{file}: it holds no parameters", hint="learning_rate: 5e-7, one a line")
    if "parameters" in found:
        raise UsageError(
            f"{file} is a sweep file: it has parameters to search",
            hint=f"kto-sweep create {file}   (a run's file has one value each: learning_rate: 5e-7)",
        )
    return dict(found)


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without its groups; names that mean nothing stay as they are, for the check."""
    return {parameter_name(path) or ".".join(path): value for path, value in leaves(config)}


def over(base: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what was typed, and without what that replaces."""
    merged = dict(base)
    for pair in EXCLUSIVE:
        for name, other in (pair, pair[::-1]):
            if name in typed and other not in typed:
                merged.pop(other, None)
    return {**merged, **typed}


def with_preset(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its preset's rank and length where it has none."""
    preset = PRESETS.get(str(config.get("model_size")))
    if preset is None:
        return dict(config)
    return {"lora_r": preset.lora_r, "max_length": preset.max_length, **config}


def run_name(trial: Trial) -> str:
    """A name that says what was trained: `7b-lr5e-07-bs8-beta0.1-support_replies`."""
    model = trial.model_size or Path(trial.base_model).name
    rate = re.sub(r"\.?0*e", "e", f"{trial.learning_rate:.2e}")
    name = f"{model}-lr{rate}-bs{trial.batch_size}-beta{trial.beta:g}-{Path(trial.dataset).stem}"
    return re.sub(r"[^\w.\-]", "-", name)[:120]


def difference(old: Trial, new: Trial) -> str:
    """How `new` differs from `old`, in a few words; empty when it does not."""
    before, after = old.to_config(), new.to_config()
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name} {after.get(name)} (was {before.get(name)})" for name in names)
