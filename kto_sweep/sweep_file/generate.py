"""A sweep file from a few flags and the data: commented YAML, with a reason and its source beside each range.

flags --parse_flag----> fixed values, lists, ranges --+
data  --inspect_data--> DataSummary ------------------+--> complete_settings --to_yaml--> a sweep file
"""

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kto_sweep.data.lint import balance
from kto_sweep.data.lint_findings import MIN_HELD_OUT
from kto_sweep.data.lint_lengths import percentiles
from kto_sweep.data.load import load_characters, load_tokens
from kto_sweep.data.tokenise import CHARACTERS_PER_TOKEN
from kto_sweep.errors import DataError, UsageError
from kto_sweep.models.presets import PRESETS
from kto_sweep.models.tokenizer import find_tokenizer
from kto_sweep.parameter_types import Real, Sources, WholeNumber
from kto_sweep.sweep_file.generate_reasons import (
    GRID_BATCHES,
    REASONS,
    SEARCH_BATCHES,
    SEARCH_BETA,
    SEARCH_RANKS,
    grid_rates,
    search_rates,
)
from kto_sweep.sweep_file.yaml_source import read_yaml
from kto_sweep.text import listed, number_from_text, show, show_number
from kto_sweep.trial import PARAMETERS, check_value

WIDTH = 108
RUN_CAP = 30
ESTIMATE_MARGIN = 1.15
"""Factor on max_length when tokens are estimated from characters."""
LOG_FACTOR = 10
"""A range whose ends differ by at least this factor is searched on a log scale."""


@dataclass(frozen=True)
class Fixed:
    """One value."""

    value: object


@dataclass(frozen=True)
class Listed:
    """Several values."""

    values: tuple[object, ...]


@dataclass(frozen=True)
class Range:
    """All values between two ends."""

    low: float
    high: float


Setting = Fixed | Listed | Range


@dataclass(frozen=True)
class DataSummary:
    """Counts and lengths of a data file, which determine some parameters."""

    rows: int
    desirable: int
    undesirable: int
    p99: int
    """99th percentile of a row's tokens."""
    longest: int
    """Tokens of the longest row."""
    exact: bool
    """Tokens were counted with the model's tokenizer."""


def parse_flag(name: str, text: str, method: str) -> Setting:
    """A flag's value: `5e-7,1e-7` is a list, `5e-7..1e-4` a range, anything else one value.

    Raises UsageError, naming the flag, for an invalid value and for a range in a grid.
    """
    flag = f"--{name.replace('_', '-')} {text}"
    rule = PARAMETERS[name]
    ends = text.split("..")
    numbers = [number_from_text(end) for end in ends]
    if len(ends) == 2 and None not in numbers:
        if not isinstance(rule.type, WholeNumber | Real):
            raise UsageError(
                f"{flag}: {name} cannot have a range", hint=f"a list: {listed(['a', 'b'])[1:-1]}"
            )
        low, high = (_checked(name, flag, end) for end in ends)
        assert isinstance(low, int | float)
        assert isinstance(high, int | float)
        if not low < high:
            raise UsageError(f"{flag}: the range's ends are in the wrong order", hint=f"{ends[1]}..{ends[0]}")
        if method == "grid":
            middle = math.sqrt(low * high) if low > 0 else (low + high) / 2
            middle = round(middle) if isinstance(rule.type, WholeNumber) else float(f"{middle:.2g}")
            hint = ",".join(show(end) for end in (low, middle, high))
            raise UsageError(
                f"{flag}: a grid needs a list of values, not a range", hint=f"{hint}; or method bayes"
            )
        return Range(low, high)
    if name == "lora_targets":  # a list is one value
        return Fixed(_checked(name, flag, "all-linear" if text == "all-linear" else text.split(",")))
    if isinstance(rule.type, Sources):
        return Fixed(_checked(name, flag, [part.strip() for part in text.split(",")]))
    values = [_checked(name, flag, part.strip()) for part in text.split(",")]
    return Fixed(values[0]) if len(values) == 1 else Listed(tuple(values))


def _checked(name: str, flag: str, value: object) -> object:
    if value == "null" and PARAMETERS[name].optional:
        return None
    parsed, problem = check_value(name, value)
    if problem is not None:
        raise UsageError(f"{flag}: {problem.what}\n  {problem.why}", hint=problem.hint)
    return parsed


def inspect_data(source: Sequence[str], model: str | None) -> DataSummary:
    """The summary of some sources of data, in tokens of `model` if its tokenizer is on this machine.

    Raises DataError for data that cannot be trained on.
    """
    tokenizer = find_tokenizer(model) if model is not None else None
    data = load_characters(source) if tokenizer is None else load_tokens(source, tokenizer)
    table = data.table
    lengths = percentiles(table.prompt_lengths + table.completion_lengths)
    desirable, undesirable = table.counts
    if lengths is None or not desirable or not undesirable:
        what = "no usable row" if lengths is None else "its rows have one label only"
        raise DataError(f"{data.path}: {what}", hint=f"for details: kto-sweep lint {source[0]}")
    scale = 1.0 if tokenizer is not None else 1 / CHARACTERS_PER_TOKEN
    return DataSummary(
        rows=desirable + undesirable,
        desirable=desirable,
        undesirable=undesirable,
        p99=math.ceil(lengths.p99 * scale),
        longest=math.ceil(lengths.max * scale),
        exact=tokenizer is not None,
    )


def complete_settings(
    method: str, given: Mapping[str, Setting], summary: DataSummary
) -> tuple[dict[str, Setting], dict[str, str]]:
    """All parameters of the file in order, and the reasons for those set from the data.

    If no given parameter is searched, the method's default parameters are.
    """
    settings = dict(given)
    size = settings.get("model_size")
    one_size = str(size.value) if isinstance(size, Fixed) else None
    if not any(isinstance(setting, Listed | Range) for setting in given.values()):
        for name, setting in _default_search(method, one_size, summary).items():
            settings.setdefault(name, setting)
    reasons: dict[str, str] = {}
    from_data = _from_data(summary, reasons)
    if {"desirable_weight", "undesirable_weight"} & settings.keys():
        from_data.pop("rho", None)
    if "eval_dataset" in settings:
        from_data.pop("eval_fraction")
    for name, setting in from_data.items():
        if name not in settings:
            settings[name] = setting
        else:
            reasons.pop(name, None)
    searched = [name for name, setting in settings.items() if not isinstance(setting, Fixed)]
    order = [*searched, *("model_size", "model", "dataset", *PARAMETERS)]
    ordered = dict.fromkeys(name for name in order if name in settings)
    return {name: settings[name] for name in ordered}, reasons


def _default_search(method: str, size: str | None, summary: DataSummary) -> dict[str, Setting]:
    fitting = [batch for batch in SEARCH_BATCHES if batch * 8 <= summary.rows] or [4]
    if method == "grid":
        batches = [batch for batch in GRID_BATCHES if batch in fitting] or fitting
        return {"learning_rate": Listed(grid_rates(size)), "batch_size": _fixed_or_listed(batches)}
    return {
        "learning_rate": Range(*search_rates(size)),
        "batch_size": _fixed_or_listed(fitting),
        "beta": Range(*SEARCH_BETA),
        "lora_r": Listed(SEARCH_RANKS),
    }


def _fixed_or_listed(values: Sequence[object]) -> Setting:
    return Fixed(values[0]) if len(values) == 1 else Listed(tuple(values))


def _from_data(summary: DataSummary, reasons: dict[str, str]) -> dict[str, Setting]:
    """max_length, eval_fraction and, for unbalanced labels, rho."""
    length = max(64, math.ceil(summary.p99 * (1 if summary.exact else ESTIMATE_MARGIN) / 64) * 64)
    estimated = "" if summary.exact else ", estimated from characters"
    reasons["max_length"] = (
        f"99 of 100 rows have at most {summary.p99:,} tokens, the longest {summary.longest:,}{estimated}."
    )
    fewest = min(summary.desirable, summary.undesirable)
    fraction = min(0.3, max(0.1, math.ceil(20 * MIN_HELD_OUT / fewest) / 20))
    reasons["eval_fraction"] = (
        f"Of {summary.rows:,} rows; eval/auc needs at least {MIN_HELD_OUT} held-out rows of each label."
    )
    settings: dict[str, Setting] = {"max_length": Fixed(length), "eval_fraction": Fixed(fraction)}
    weighed = balance(summary.desirable, summary.undesirable)
    if weighed is not None and weighed.rho != weighed.ratio:
        settings["rho"] = Fixed(weighed.rho)
        reasons["rho"] = (
            f"{summary.desirable:,} desirable and {summary.undesirable:,} undesirable rows: "
            "1 gives both labels the same weight."
        )
    return settings


def to_yaml(
    method: str, settings: Mapping[str, Setting], reasons: Mapping[str, str], summary: DataSummary, file: str
) -> str:
    """The file's text."""
    lines = [*_head(method, settings, summary, file), "", "program: agent.py", f"method: {method}"]
    if method != "grid":
        lines.append(f"run_cap: {RUN_CAP}  # without it, a {method} sweep runs until you stop it")
    lines += [
        "metric:",
        "  name: eval/common_loss  # fixed beta and rho: comparable across betas; diverging trials lose",
        "  goal: minimize",
    ]
    if method != "grid":
        lines += [
            "early_terminate:",
            "  type: hyperband",
            "  min_iter: 1  # trials are compared after evaluations 1, 2 and 4; each has 4",
            "  eta: 2  # the better half continues",
        ]
    lines += ["", "parameters:"]
    for name, setting in settings.items():
        searched = not isinstance(setting, Fixed)
        comment = (
            [reasons[name]]
            if name in reasons
            else [str(REASONS[name])]
            if searched and name in REASONS
            else []
        )
        if searched and not comment:
            comment = [f"{PARAMETERS[name].doc}."]
        lines += [f"  # {line}" for text in comment for line in textwrap.wrap(text, WIDTH - 4)]
        lines.append(f"  {name}:")
        lines += [f"    {line}" for line in _body(name, setting)]
    return "\n".join(lines) + "\n"


def _head(method: str, settings: Mapping[str, Setting], summary: DataSummary, file: str) -> Iterable[str]:
    searched = [name for name, setting in settings.items() if not isinstance(setting, Fixed)]
    cells = math.prod(len(s.values) for s in settings.values() if isinstance(s, Listed))
    trials = f"{cells} trials, every combination once" if method == "grid" else f"at most {RUN_CAP} trials"
    yield f"# Searches: {', '.join(searched) or 'nothing'}: {trials}."
    labels = f"{summary.desirable:,} desirable and {summary.undesirable:,} undesirable"
    yield f"# Data:     {summary.rows:,} rows, {labels}."
    yield f"# Costs:    kto-sweep plan {file} --gpu h200    (or rtx3090, 24GB, ...)"
    yield f"# Start:    kto-sweep create {file}"
    yield "#           kto-sweep agent"
    yield f"#           (with W&B's tools: wandb sweep {file}, then the wandb agent command it prints)"


def _body(name: str, setting: Setting) -> list[str]:
    if isinstance(setting, Fixed):
        return [f"value: {_yaml(setting.value)}"]
    if isinstance(setting, Listed):
        return [f"values: [{', '.join(map(_yaml, setting.values))}]"]
    ends = [f"min: {_yaml(setting.low)}", f"max: {_yaml(setting.high)}"]
    if isinstance(PARAMETERS[name].type, WholeNumber):
        return ends
    if setting.low > 0 and setting.high >= LOG_FACTOR * setting.low:
        return ["distribution: log_uniform_values  # every factor of ten is equally likely", *ends]
    return ["distribution: uniform", *ends]


def _yaml(value: object) -> str:
    """A value as YAML 1.1 reads it back."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, float):
        return show_number(int(value) if value.is_integer() and value < 1e6 else value)
    if isinstance(value, int):
        return str(value)
    text = str(value)
    source = read_yaml(text)[0] if re.fullmatch(r"[\w./-]+", text) else None
    plain = source is not None and source.data == text
    return text if plain else "'" + text.replace("'", "''") + "'"


def preset_settings(name: str) -> dict[str, Setting]:
    """The settings of `--preset`: model size and quantization."""
    kind, _, size = name.partition("-")
    quantization = "4bit" if kind == "qlora" else PRESETS[size].quantization
    return {"model_size": Fixed(size), "quantization": Fixed(quantization)}
