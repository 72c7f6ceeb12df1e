"""What is wrong with a sweep although each value in it is right: parameters that undo each other.

Errors are combinations that no trial can be trained with; warnings are allowed and probably not meant.
"""

from collections.abc import Iterator, Mapping, Sequence

from kto_sweep.data.lint_findings import NEAR
from kto_sweep.metrics import METRICS
from kto_sweep.models.presets import PRESETS
from kto_sweep.sweep_file.parameters import Use
from kto_sweep.sweep_file.yaml_source import Finding
from kto_sweep.text import listed, nearest, show
from kto_sweep.trial import check_value

Uses = Mapping[str, Sequence[Use]]

FEWEST_FOR_KL = 4
"""Examples from which the mean over mismatched pairs is more than noise."""

_ADAPTERS = ("lora_r", "lora_alpha", "lora_dropout", "lora_targets")
_OF_PRESETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of every preset that has them by name."""


def values(uses: Uses, name: str) -> list[object]:
    """The values known beforehand of a parameter, as a trial holds them; those that cannot be left out."""
    checked = (check_value(name, use.value) for use in uses.get(name, ()))
    return [value for value, problem in checked if problem is None]


def find_errors(uses: Uses, metric: str) -> Iterator[Finding]:
    """Combinations that fail when a trial starts, or leave the search without its metric."""
    losses = values(uses, "loss_type")
    if metric in ("kl", "kl_raw") and "apo_zero_unpaired" in losses:
        why = "That loss has no KL term: its trials log no kl while they train."
        what = f"the metric is {metric}, and loss_type is apo_zero_unpaired"
        yield Finding(_place(uses, "loss_type", "apo_zero_unpaired"), what, why, f"metric: eval/{metric}")
    for use in uses.get("model", ()):
        quantised = [value for value in values(uses, "quantization") if value in ("4bit", "8bit")]
        if str(use.value).endswith(".gguf") and quantised:
            why = "A .gguf file is unpacked to 16 bit when it is loaded."
            hint = "quantization: none, or the same model as a folder or hub id"
            yield Finding(use.place, f"{use.value} with quantization {quantised[0]}", why, hint)
    yield from _check_targets(uses)


def _check_targets(uses: Uses) -> Iterator[Finding]:
    if "model" in uses or not set(values(uses, "model_size")) <= set(PRESETS) - {"20b"}:
        return
    for use in uses.get("lora_targets", ()):
        names = check_value("lora_targets", use.value)[0]
        if isinstance(names, tuple):
            for name in names:
                if name.rpartition(".")[2] not in _OF_PRESETS:
                    hint = nearest(name, _OF_PRESETS) or f"all-linear, or some of {listed(_OF_PRESETS)}"
                    yield Finding(use.place, f"no linear layer of these models is named {name}", hint=hint)


def find_warnings(uses: Uses, metric: str) -> Iterator[Finding]:
    """Settings that have no effect, or another one than a person expects."""
    yield from _without_effect(uses)
    smallest = min((v for v in values(uses, "batch_size") if isinstance(v, int)), default=FEWEST_FOR_KL)
    if smallest < FEWEST_FOR_KL and set(values(uses, "loss_type")) <= {"kto"}:
        why = "Each step estimates KL(policy, reference) from its own batch: of so few it is mostly noise."
        hint = "batch_size: 8 or more, or loss_type: apo_zero_unpaired, which needs no estimate"
        yield Finding(_place(uses, "batch_size", smallest), f"a batch of {smallest}", why, hint)
    rho = [value for value in values(uses, "rho") if isinstance(value, float)]
    if rho and (min(rho) > NEAR or max(rho) < 1):
        told = show(rho[0]) if len(rho) == 1 else f"{show(min(rho))} to {show(max(rho))}"
        why = "rho weighs all desirable rows against all undesirable ones; KTO's authors use 1 to 4/3."
        yield Finding(_place(uses, "rho"), f"rho {told} is outside of 1 to 4/3", why, "rho: 1")
    logged = METRICS.get(metric)
    if logged is not None and not metric.startswith("eval/") and not logged.caution and logged.goal:
        why = "It is measured on the batch that a trial trains on, or on the box, not on held-out rows."
        yield Finding(("metric",), f"the sweep is judged by {metric}", why, "name: eval/common_loss")


def _without_effect(uses: Uses) -> Iterator[Finding]:
    tuning = values(uses, "full_finetune")
    if tuning and all(tuning):
        for name in _ADAPTERS:
            if name in uses:
                why = "A full fine-tuning has no adapters."
                yield Finding(_place(uses, name), f"{name} has no effect", why, f"remove {name}")
    if any(value is not None for value in values(uses, "max_steps")) and "epochs" in uses:
        yield Finding(
            _place(uses, "epochs"),
            "epochs has no effect",
            "max_steps counts instead.",
            "remove one of the two",
        )
    dropout = [value for value in values(uses, "lora_dropout") if value]
    if dropout and not (tuning and all(tuning)):
        why = "A trial with dropout in its adapters keeps more for the backward, and so do those beside it."
        yield Finding(
            _place(uses, "lora_dropout", dropout[0]),
            f"lora_dropout {show(dropout[0])} makes every step slower and larger",
            why,
            "lora_dropout: 0, unless a trial memorises its rows",
        )


def _place(uses: Uses, name: str, value: object = None) -> tuple[str, ...]:
    """Where a parameter stands; where `value` stands, if the file gives it."""
    for use in uses.get(name, ()):
        if value is not None and check_value(name, use.value)[0] == value:
            return use.place
    return next((use.place for use in uses.get(name, ())), ("parameters",))
