"""Checks of valid values in combination: parameters that contradict each other or have no effect.

Errors are combinations that no trial can be trained with; warnings are allowed but probably not intended.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from kto_sweep.data.lint_findings import MAX_LABEL_RATIO
from kto_sweep.errors import Problem, Severity
from kto_sweep.metrics import METRICS
from kto_sweep.models.presets import PRESETS
from kto_sweep.sweep_file.parameters import GivenValue
from kto_sweep.text import listed, nearest, show
from kto_sweep.trial import check_value

Values = Mapping[str, Sequence[GivenValue]]
"""For each parameter that a file sets, its listed values or the ends of its range."""

MIN_BATCH_FOR_KL = 4
"""Examples per step below which the mean over mismatched pairs is mostly noise."""

_ADAPTERS = ("lora_r", "lora_alpha", "lora_dropout", "lora_targets")
_PRESET_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of every preset except 20b."""


def valid_values(values: Values, name: str) -> list[object]:
    """A parameter's values as a trial holds them, without the invalid ones."""
    checked = (check_value(name, given.value) for given in values.get(name, ()))
    return [value for value, problem in checked if problem is None]


def find_errors(values: Values, metric: str) -> Iterator[Problem]:
    """Combinations that fail when a trial starts, or leave the search without its metric."""
    losses = valid_values(values, "loss_type")
    if metric in ("kl", "kl_raw") and "apo_zero_unpaired" in losses:
        why = "That loss has no KL term, so its trials log no kl while training."
        what = f"the metric is {metric}, and loss_type is apo_zero_unpaired"
        yield Problem(_place(values, "loss_type", "apo_zero_unpaired"), what, why, f"metric: eval/{metric}")
    for given in values.get("model", ()):
        stored = ("4bit", "8bit", "4bit-fp8")
        quantised = [value for value in valid_values(values, "quantization") if value in stored]
        if str(given.value).endswith(".gguf") and quantised:
            why = "A .gguf file is converted to 16 bit when it is loaded."
            hint = "quantization: none, or the same model as a folder or hub id"
            yield Problem(given.place, f"{given.value} with quantization {quantised[0]}", why, hint)
    yield from _check_targets(values)


def _check_targets(values: Values) -> Iterator[Problem]:
    if "model" in values or not set(valid_values(values, "model_size")) <= set(PRESETS) - {"20b"}:
        return
    for given in values.get("lora_targets", ()):
        names = check_value("lora_targets", given.value)[0]
        if isinstance(names, tuple):
            for name in names:
                if name.rpartition(".")[2] not in _PRESET_LAYERS:
                    hint = nearest(name, _PRESET_LAYERS) or f"all-linear, or some of {listed(_PRESET_LAYERS)}"
                    yield Problem(given.place, f"these models have no linear layer named {name}", hint=hint)


def find_warnings(values: Values, metric: str) -> Iterator[Problem]:
    """Warnings about settings with no effect or a surprising one."""
    for problem in (*_without_effect(values), *_unexpected_effects(values, metric)):
        yield replace(problem, severity=Severity.WARNING)


def _unexpected_effects(values: Values, metric: str) -> Iterator[Problem]:
    smallest = min(
        (v for v in valid_values(values, "batch_size") if isinstance(v, int)), default=MIN_BATCH_FOR_KL
    )
    if smallest < MIN_BATCH_FOR_KL and set(valid_values(values, "loss_type")) <= {"kto"}:
        why = "Each step estimates KL(policy, reference) from its own batch; here that is mostly noise."
        hint = "batch_size: 8 or more, or loss_type: apo_zero_unpaired, which has no KL term"
        yield Problem(_place(values, "batch_size", smallest), f"a batch of {smallest}", why, hint)
    rho = [value for value in valid_values(values, "rho") if isinstance(value, float)]
    if rho and (min(rho) > MAX_LABEL_RATIO or max(rho) < 1):
        shown = show(rho[0]) if len(rho) == 1 else f"{show(min(rho))} to {show(max(rho))}"
        why = "rho weighs all desirable rows against all undesirable ones; KTO's authors recommend 1 to 4/3."
        yield Problem(_place(values, "rho"), f"rho {shown} is outside 1 to 4/3", why, "rho: 1")
    yield from _different_eval_rows(values, metric)
    logged = METRICS.get(metric)
    if logged is not None and not metric.startswith("eval/") and not logged.caution and logged.goal:
        why = "It is measured on training batches or on the machine, not on held-out rows."
        yield Problem(("metric",), f"the metric is {metric}", why, "name: eval/common_loss")


def _different_eval_rows(values: Values, metric: str) -> Iterator[Problem]:
    """A searched parameter that gives the trials other held-out rows, or cuts the same ones elsewhere."""
    if not metric.startswith("eval/"):
        return
    fixed_rows = "eval_dataset" in values
    for name in ("eval_dataset", "dataset", "eval_fraction", "max_length"):
        searched = len({show(given.value) for given in values.get(name, ())}) > 1
        if not searched or (fixed_rows and name in ("dataset", "eval_fraction")):
            continue
        where = f"{metric} ranks only trials that were judged on the same held-out rows"
        if name == "max_length":
            what = "max_length is searched, and cuts longer rows"
            why = f"{where}: if a held-out row is cut, each max_length gets its own ranking."
            hint = "max_length: one value, if held-out rows are longer"
        else:
            what = f"{name} is searched, so trials are judged on different rows"
            why = f"{where}: each {name} gets its own ranking, and a search compares them all the same."
            hint = (
                "eval_dataset: FILE, whose rows judge all trials" if name != "eval_dataset" else "one value"
            )
        yield Problem(_place(values, name), what, why, hint)


def _without_effect(values: Values) -> Iterator[Problem]:
    tuning = valid_values(values, "full_finetune")
    if tuning and all(tuning):
        for name in _ADAPTERS:
            if name in values:
                why = "Full fine-tuning has no adapters."
                yield Problem(_place(values, name), f"{name} has no effect", why, f"remove {name}")
    if any(value is not None for value in valid_values(values, "max_steps")) and "epochs" in values:
        yield Problem(
            _place(values, "epochs"),
            "epochs has no effect",
            "max_steps replaces it.",
            "remove one of the two",
        )
    evaluated = valid_values(values, "eval_dataset")
    if evaluated and all(evaluated) and "eval_fraction" in values:
        why = "eval_dataset has the held-out rows; all of dataset is trained on."
        yield Problem(
            _place(values, "eval_fraction"), "eval_fraction has no effect", why, "remove one of the two"
        )
    dropout = [value for value in valid_values(values, "lora_dropout") if value]
    if dropout and not (tuning and all(tuning)):
        why = "Dropout saves more activations for the backward pass, also of trials trained together with it."
        yield Problem(
            _place(values, "lora_dropout", dropout[0]),
            f"lora_dropout {show(dropout[0])} makes every step slower and increases its memory",
            why,
            "lora_dropout: 0, unless trials overfit",
        )


def _place(values: Values, name: str, value: object = None) -> tuple[str, ...]:
    """The place of a parameter, or of its value `value` if the file has it."""
    for given in values.get(name, ()):
        if value is not None and check_value(name, given.value)[0] == value:
            return given.place
    return next((given.place for given in values.get(name, ())), ("parameters",))
