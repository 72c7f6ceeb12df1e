"""One trial: every hyper-parameter of a training run, checked.

The fields of `Trial` are the only table of parameters; `PARAMETERS` is the same table by name.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from kto_sweep.errors import Problem, TrialConfigError
from kto_sweep.models.presets import PRESETS, Quantization
from kto_sweep.parameter_types import (
    Choice,
    Flag,
    ModelName,
    ParameterDefinition,
    ParameterType,
    Real,
    Sources,
    Targets,
    WholeNumber,
)
from kto_sweep.text import nearest

Path = tuple[str, ...]

RECORD = "record"
"""Key of a run's configuration with what the run was trained with (see provenance.py). No parameter."""

EVALUATIONS = 4
"""Evaluations per trial by default, without eval_steps; the last is after its last step."""


def _parameter(
    value_type: ParameterType, doc: str, default: Any = dataclasses.MISSING, *, noun: str = ""
) -> Any:
    """A field of Trial with its definition."""
    return dataclasses.field(default=default, metadata={"type": value_type, "doc": doc, "noun": noun})


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One set of hyper-parameters."""

    model: str | None = _parameter(ModelName(), "Base model (hub id, local folder or .gguf file)", None)
    model_size: str | None = _parameter(
        Choice(tuple(PRESETS)), "Base model by size, in place of model", None, noun="a model size"
    )
    dataset: str | tuple[str, ...] = _parameter(Sources(), "Training data (a file, a folder or a hub id)")
    eval_dataset: str | tuple[str, ...] | None = _parameter(
        Sources(), "Held-out rows of your own, in place of eval_fraction", None
    )
    learning_rate: float = _parameter(Real(0, 1, with_high=True), "Peak learning rate", 5e-6)
    batch_size: int = _parameter(WholeNumber(1), "Examples per optimizer step", 8)
    beta: float = _parameter(Real(0), "Strength of the pull toward the reference model", 0.1)
    rho: float | None = _parameter(
        Real(0), "Weight of all desirable examples over that of all undesirable ones", None
    )
    desirable_weight: float | None = _parameter(
        Real(0), "lambda_D, weight of a desirable example (null: 1)", None
    )
    undesirable_weight: float | None = _parameter(
        Real(0), "lambda_U, weight of an undesirable example (null: 1)", None
    )
    loss_type: Literal["kto", "apo_zero_unpaired"] = _parameter(
        Choice(("kto", "apo_zero_unpaired")), "Loss function", "kto"
    )
    epochs: float = _parameter(Real(0), "Passes over the training data", 1.0, noun="a number of epochs")
    max_steps: int | None = _parameter(
        WholeNumber(1), "Optimizer steps, in place of epochs", None, noun="a number of steps"
    )
    max_length: int = _parameter(WholeNumber(16), "Longest prompt and completion together, in tokens", 2048)
    warmup_ratio: float = _parameter(
        Real(0, 1, with_low=True), "Share of the steps in which the learning rate rises", 0.1
    )
    lr_scheduler: Literal["cosine", "linear", "constant"] = _parameter(
        Choice(("cosine", "linear", "constant")), "How the learning rate falls after warm-up", "cosine"
    )
    weight_decay: float = _parameter(Real(0, with_low=True), "AdamW's decoupled weight decay", 0.0)
    max_grad_norm: float = _parameter(
        Real(0, with_low=True), "Norm to which a larger gradient is scaled down (0: never)", 1.0
    )
    optimizer: Literal["adamw", "adamw_8bit"] = _parameter(
        Choice(("adamw", "adamw_8bit")), "Optimizer", "adamw"
    )
    seed: int = _parameter(
        WholeNumber(0, 2**32 - 1), "Seed of every random generator (order of rows, adapters, dropout)", 42
    )
    lora_r: int = _parameter(WholeNumber(1), "Rank of the adapters", 16, noun="a LoRA rank")
    lora_alpha: float | None = _parameter(
        Real(0), "Scale of the adapters times their rank (null: twice the rank)", None, noun="a LoRA alpha"
    )
    lora_dropout: float = _parameter(
        Real(0, 1, with_low=True), "Dropout before the adapters", 0.0, noun="a LoRA dropout"
    )
    lora_targets: str | tuple[str, ...] = _parameter(
        Targets(), "Layers with adapters", "all-linear", noun="a set of LoRA targets"
    )
    quantization: Literal["none", "4bit", "8bit", "fp8", "4bit-fp8"] | None = _parameter(
        Choice(("none", "4bit", "8bit", "fp8", "4bit-fp8")),
        "Precision of the base weights, and with fp8 of their products (null: the preset's)",
        None,
    )
    eval_fraction: float = _parameter(Real(0, 1), "Share of the prompts held out for evaluation", 0.1)
    eval_steps: int | None = _parameter(
        WholeNumber(1),
        "Optimizer steps between evaluations (null: four in all)",
        None,
        noun="a number of steps",
    )
    full_finetune: bool = _parameter(
        Flag(), "Train all weights and no adapters", default=False, noun="a choice"
    )

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> "Trial":
        """The trial of a run's configuration; numbers may be text, parameters may be nested.

        Ignores what `trial_config` leaves out.
        Raises TrialConfigError with every problem.
        """
        values: dict[str, object] = {}
        problems: list[Problem] = []
        for path, value in leaves(config):
            name = parameter_name(path)
            if name is None:
                problems.append(unknown_parameter(path))
            elif name in values:
                problems.append(Problem(path, f"{name} is set twice", hint="keep one of the two"))
            else:
                values[name], problem = check_value(name, value)
                if problem is not None:
                    problems.append(dataclasses.replace(problem, path=path))
        problems += combination_problems({name: (value,) for name, value in values.items()})
        if problems:
            raise TrialConfigError("the trial's configuration", problems)
        return cls(**values)  # type: ignore[arg-type]

    def to_config(self) -> dict[str, Any]:
        """Every parameter that has a value, as plain JSON; `from_config` reads it back."""
        config = dataclasses.asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in config.items()
            if value is not None
        }

    @property
    def base_model(self) -> str:
        """Hub id, folder or file of the base model; `tiny` for the generated toy model."""
        return self.model if self.model is not None else PRESETS[self.model_size or ""].model

    @property
    def effective_quantization(self) -> Quantization:
        """Precision of the base weights: quantization, or the preset's; none if all weights are trained."""
        if self.quantization is not None:
            return self.quantization
        if self.model_size is None or self.full_finetune:
            return "none"
        return PRESETS[self.model_size].quantization

    @property
    def effective_lora_alpha(self) -> float:
        """LoRA's alpha: lora_alpha, or twice the rank."""
        return 2.0 * self.lora_r if self.lora_alpha is None else self.lora_alpha

    def weights(self, n_desirable: int, n_undesirable: int) -> tuple[float, float]:
        """(lambda_D, lambda_U) for a training set with these counts of the two labels.

        With rho, rho = lambda_D n_D / (lambda_U n_U) (KTO, arXiv 2402.01306, section 4), and the smaller
        weight is 1. Without rho, the explicit weights, by default 1. (1, 1) if a label is missing.
        """
        if self.rho is None:
            return self.desirable_weight or 1.0, self.undesirable_weight or 1.0
        if n_desirable == 0 or n_undesirable == 0:
            return 1.0, 1.0
        ratio = self.rho * n_undesirable / n_desirable
        return (ratio, 1.0) if ratio >= 1 else (1.0, 1.0 / ratio)

    def eval_every(self, total_steps: int) -> int:
        """Optimizer steps between evaluations; the last step is always evaluated too."""
        return self.eval_steps or math.ceil(total_steps / EVALUATIONS)


def _definition(field: "dataclasses.Field[Any]") -> ParameterDefinition:
    required = field.default is dataclasses.MISSING
    words = field.name.replace("_", " ")
    return ParameterDefinition(
        name=field.name,
        type=field.metadata["type"],
        default=None if required else field.default,
        optional=not required and field.default is None,
        doc=field.metadata["doc"],
        noun=field.metadata["noun"] or f"{'an' if words[0] in 'aeiou' else 'a'} {words}",
    )


PARAMETERS: Mapping[str, ParameterDefinition] = {
    field.name: _definition(field) for field in dataclasses.fields(Trial)
}

DATA_PARAMETERS = tuple(name for name, rule in PARAMETERS.items() if isinstance(rule.type, Sources))
"""The parameters that name data: dataset and eval_dataset."""

_OTHER_NAMES = {
    "lr": "learning_rate",
    "rank": "lora_r",
    "lora_rank": "lora_r",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "max_seq_length": "max_length",
    "model_name": "model",
    "model_name_or_path": "model",
    "dataset_name": "dataset",
    "dataset_file": "dataset",
    "datasets": "dataset",
    "train_file": "dataset",
    "validation_file": "eval_dataset",
    "eval_file": "eval_dataset",
    "test_dataset": "eval_dataset",
    "local_file": "dataset",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation": "batch_size",
    "gradient_accumulation_steps": "batch_size",
    "lr_scheduler_type": "lr_scheduler",
    "optim": "optimizer",
    "target_modules": "lora_targets",
    "load_in_4bit": "quantization",
}
"""Names of the parameters in other KTO scripts, for hints only."""


def is_setting(key: str) -> bool:
    """Whether a key at the top of a run's configuration is a trial's, and not W&B's or this project's own."""
    return key != RECORD and not key.startswith("_")


def unwrapped(entry: Any) -> Any:
    """The value of an entry of a run's configuration as W&B stores it."""
    return entry["value"] if isinstance(entry, dict) and "value" in entry else entry


def plain_config(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration as W&B stores it, without `_wandb`, the record and the `value` wrappers."""
    # Other names that begin with _ stay: they may be parameters of the sweep, which its search compares.
    return {name: unwrapped(entry) for name, entry in stored.items() if name not in ("_wandb", RECORD)}


def trial_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration without its `record` and the keys that begin with _."""
    return {key: value for key, value in config.items() if is_setting(key)}


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with all parameters that it does not name, at the top; null ones are left out.

    What it names stays where and as it is: a sweep's search compares it with the sweep's own values.
    Unchanged if it cannot be trained.
    """
    try:
        parameters = Trial.from_config(config).to_config()
    except TrialConfigError:
        return dict(config)
    named = {parameter_name(path) for path, _ in leaves(config)}
    full = dict(config)
    for name, value in parameters.items():
        if name not in named:
            group = config.get(name)  # a group may have a parameter's name: optimizer.weight_decay
            full[name] = {**group, name: value} if isinstance(group, Mapping) else value
    return full


def leaves(config: Mapping[str, object], path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Every (path, value) of a nested configuration, except what `trial_config` leaves out."""
    for key, value in config.items():
        if str(key).startswith("_") or not (path or is_setting(str(key))):
            continue
        here = (*path, str(key))
        if isinstance(value, Mapping):
            yield from leaves(value, here)
        else:
            yield here, value


_PLAIN_TYPES = frozenset({str, int, float, bool, type(None), list, tuple})


def settings_key(config: Mapping[str, object], names: frozenset[str]) -> object:
    """A hashable key: equal for configurations that name the same parameters, and give these equal values.

    In a large sweep few keys differ, so what depends only on these parameters can be computed once per key.
    """
    if _PLAIN_TYPES.issuperset(map(type, config.values())):
        keys = tuple(config)
        return keys, tuple([repr(config[key]) for key in _keys_of(keys, names)])
    paths, values = [], []
    for path, value in leaves(config):
        paths.append(path)
        if parameter_name(path) in names:
            values.append(repr(value))
    return tuple(paths), tuple(values)


@lru_cache(maxsize=4096)
def _keys_of(keys: tuple[str, ...], names: frozenset[str]) -> tuple[str, ...]:
    """Of the keys of a configuration without groups those of the parameters in `names`."""
    return tuple(key for key in keys if is_setting(key) and parameter_name((key,)) in names)


@lru_cache(maxsize=4096)
def parameter_name(path: Path) -> str | None:
    """The parameter that a nested name refers to, such as beta for training.beta; None if there is none."""
    return next((name for name in (path[-1], "_".join(path[-2:])) if name in PARAMETERS), None)


def unknown_parameter(path: Path) -> Problem:
    """The problem of an unknown parameter, with the nearest known one as the hint."""
    near = _OTHER_NAMES.get(path[-1]) or nearest(path[-1], PARAMETERS) or nearest("_".join(path), PARAMETERS)
    hint = near or f"the parameters are {', '.join(PARAMETERS)}"
    return Problem(path, f"{path[-1]} is not a parameter of a trial", hint=hint)


def check_value(name: str, value: object) -> tuple[object, Problem | None]:
    """A parameter's value as a trial holds it, and the problem with it, if any; its path is the name.

    Text that means a number (5e-7), true or false is converted.
    """
    return PARAMETERS[name].parse(value)


def combination_problems(possible: Mapping[str, Collection[object]]) -> list[Problem]:
    """Problems of parameters in combination; `possible` has the values of each parameter that is set."""
    names = {name for name, values in possible.items() if any(value is not None for value in values)}
    problems = []
    if "dataset" not in names:
        problems.append(
            Problem(("dataset",), "no dataset", "A trial needs data.", "dataset: a file or a hub id")
        )
    if not names & {"model", "model_size"}:
        sizes = ", ".join(PRESETS)
        problems.append(
            Problem(
                ("model_size",), "no base model", "A trial needs a base model.", f"one of {sizes}; or model"
            )
        )
    if {"model", "model_size"} <= names:
        what = "set together with model"
        problems.append(Problem(("model_size",), what, "Both name the base model.", "remove one of the two"))
    weights = sorted(names & {"desirable_weight", "undesirable_weight"})
    if "rho" in names and weights:
        why = "rho sets both weights from the counts of the two labels."
        problems.append(
            Problem(("rho",), f"set together with {' and '.join(weights)}", why, "remove rho or the weights")
        )
    quantised = [value for value in possible.get("quantization", ()) if value not in (None, "none")]
    if True in possible.get("full_finetune", ()) and quantised:
        why = "Quantised weights cannot be trained."
        problems.append(
            Problem(("full_finetune",), f"true with quantization {quantised[0]}", why, "quantization: none")
        )
    return problems


def lookup(config: Mapping[str, Any], dotted: str) -> Any:
    """The value of a nested parameter such as `lora.r`; None if it is not set."""
    if "." not in dotted:
        return config.get(dotted)
    value: Any = config
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value
