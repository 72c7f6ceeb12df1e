"""Finds every problem of a sweep file and its data without running anything: errors and warnings.

file --sweep_config--> problems, values --combination_checks--> combinations
data --data.lint-----> rows -----------------------------------> weights, batches, evaluations
base models --models.model_checks--> what they are, their length, tokens and layers
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from kto_sweep.data.dataset import DataSet
from kto_sweep.data.examples import describe_bad
from kto_sweep.data.lint import LintReport, lint
from kto_sweep.data.lint_findings import MAX_LABEL_RATIO
from kto_sweep.data.load import load_characters
from kto_sweep.data.sources import find_local, find_parts, require_apart
from kto_sweep.data.split import total_steps
from kto_sweep.errors import DataError, Problem, Severity, SweepFileError
from kto_sweep.metrics import DEFAULT_METRIC
from kto_sweep.parameter_types import describe_sources, source_names
from kto_sweep.search.options import BLOCK
from kto_sweep.sweep_file.base_models import find_model_problems
from kto_sweep.sweep_file.combination_checks import find_errors, find_warnings, valid_values
from kto_sweep.sweep_file.parameters import GivenValue
from kto_sweep.sweep_file.sweep_config import (
    CheckedSweepFile,
    SweepConfig,
    band_settings,
    check_sweep_file,
    first_band,
)
from kto_sweep.trial import PARAMETERS, Trial, check_value

LARGE_GRID_TRIALS = 100_000
"""A larger grid is for the embedded server."""
_WEIGHTS = ("rho", "desirable_weight", "undesirable_weight")


@dataclass(frozen=True)
class Validation:
    """The problems of a sweep file and its data, each with its place."""

    path: Path
    errors: tuple[Problem, ...]
    """Some or all trials cannot be trained."""
    warnings: tuple[Problem, ...]
    """Allowed, but probably not intended."""
    sweep: SweepConfig | None
    """None if the file itself has errors."""

    def checked(self) -> SweepConfig:
        """The sweep. Raises SweepFileError with every error."""
        if self.errors or self.sweep is None:
            raise SweepFileError(str(self.path), self.errors)
        return self.sweep


def validate(path: Path) -> Validation:
    """Every static problem of a sweep file and of the local data files that it names.

    Raises UsageError if there is no such file or it is not text.
    """
    checked = check_sweep_file(path)
    metric = checked.sweep.metric_name if checked.sweep else DEFAULT_METRIC
    problems = [
        *checked.problems,
        *find_errors(checked.values, metric),
        *find_warnings(checked.values, metric),
    ]
    problems += [*find_model_problems(checked.values), *_size_warnings(checked.sweep)]
    for name, find in (("dataset", _data_problems), ("eval_dataset", _held_out_problems)):
        for given in checked.values.get(name, ()):
            try:
                data = _read_local(given)
            except DataError as error:
                problems.append(Problem(given.place, error.message, hint=error.hint))
            else:
                problems += find(checked, given, data) if data is not None else ()
    notices = [
        Problem((), notice, severity=Severity.WARNING, file=str(path))
        for notice in (checked.sweep.notices if checked.sweep else ())
    ]
    located = [*notices, *checked.located(problems)]
    return Validation(
        path,
        tuple(problem for problem in located if problem.severity is Severity.ERROR),
        tuple(problem for problem in located if problem.severity is not Severity.ERROR),
        checked.sweep,
    )


def _size_warnings(sweep: SweepConfig | None) -> Iterator[Problem]:
    size = sweep.space.grid_size() if sweep is not None and sweep.method == "grid" else None
    if size is not None and size > LARGE_GRID_TRIALS:
        yield Problem(
            ("parameters",),
            f"a grid of {size:,} trials",
            "W&B lists every trial of a grid before the first one starts; the embedded server does not.",
            "kto-sweep create FILE --local, list fewer values, or method: random with run_cap",
            severity=Severity.WARNING,
        )


def _data_problems(checked: CheckedSweepFile, dataset: GivenValue, data: DataSet) -> Iterator[Problem]:
    """Problems of one trial's data, alone and combined with the sweep's parameters."""
    name = describe_sources(dataset.value)
    evaluated = valid_values(checked.values, "eval_dataset")
    held_out_here = not evaluated or None in evaluated
    fraction = max(_numbers(checked, "eval_fraction")) if held_out_here else 0.0
    report = lint(data, max_length=None, eval_fraction=fraction)
    weighed = any(weight in checked.values for weight in _WEIGHTS)
    for finding in report.findings:
        if finding.severity is Severity.NOTE or (finding.code == "imbalance" and weighed):
            continue
        lines = finding.lines
        first = report.places.name(lines[0]) if lines else ""
        where = f" (line {first}{', ...' if len(lines) > 1 else ''})" if lines else ""
        what = f"{name}: {finding.what}{where}"
        yield Problem(dataset.place, what, hint=finding.hint, severity=finding.severity)
    if report.split is not None:
        yield from _check_weights(checked, dataset, report)
        rows = report.split.train.desirable + report.split.train.undesirable
        yield from _check_steps(checked, name, rows)


def _held_out_problems(checked: CheckedSweepFile, dataset: GivenValue, data: DataSet) -> Iterator[Problem]:
    """Held-out rows that cannot be used, or are trained on."""
    for trained_on in checked.values.get("dataset", ()):
        yield from _check_apart(trained_on, dataset)
    desirable, undesirable = data.table.counts
    name = describe_sources(dataset.value)
    if data.notes.bad or not len(data.table):
        what = f"{name}: {describe_bad(data.notes.bad, data.notes.places) or 'it has no rows'}"
        severity = Severity.WARNING if len(data.table) else Severity.ERROR
        yield Problem(dataset.place, what, hint=f"for details: kto-sweep lint {name}", severity=severity)
    if (desirable > 0) != (undesirable > 0):
        what = f"{name}: all rows have label {'true' if desirable else 'false'}"
        why = "eval/auc and eval/margins compare the two labels, and stay empty."
        yield Problem(dataset.place, what, why, "add rows of the other label", Severity.WARNING)


def _read_local(dataset: GivenValue) -> DataSet | None:
    """The rows; None if some are on the hub, or missing, which check_sweep_file reports. Raises DataError."""
    names = _local_names(dataset)
    return load_characters(names) if names else None


def _local_names(dataset: GivenValue) -> tuple[str, ...]:
    """The files and folders of a value; none if some are not on this box. Raises DataError."""
    value, problem = check_value("dataset", dataset.value)
    names = () if problem else source_names(value)
    return names if all(map(find_local, names)) else ()


def _check_apart(trained_on: GivenValue, held_out: GivenValue) -> Iterator[Problem]:
    """Rows that are both trained on and held out."""
    try:
        names = _local_names(trained_on)
        find_parts(names)
    except DataError:  # reported where it is
        return
    try:
        require_apart(names, _local_names(held_out))
    except DataError as error:
        yield Problem(held_out.place, error.message, "Held-out rows must not be trained on.", error.hint)


def _check_weights(checked: CheckedSweepFile, dataset: GivenValue, report: LintReport) -> Iterator[Problem]:
    """Explicit weights with which one label outweighs the other."""
    weights = [valid_values(checked.values, name) for name in ("desirable_weight", "undesirable_weight")]
    if not any(weights) or any(len(values) > 1 for values in weights) or report.balance is None:
        return
    desirable, undesirable = (float(str(values[0])) if values and values[0] else 1.0 for values in weights)
    ratio = report.balance.ratio * desirable / undesirable
    if not 1 / MAX_LABEL_RATIO < ratio < MAX_LABEL_RATIO * MAX_LABEL_RATIO:
        why = "This is weight times number of rows; KTO's authors recommend 1 to 4/3."
        what = f"desirable rows weigh {ratio:.2g} times as much as undesirable ones"
        name = "desirable_weight" if weights[0] else "undesirable_weight"
        place = checked.values[name][0].place if name in checked.values else dataset.place
        yield Problem(place, what, why, "rho: 1 instead of both", Severity.WARNING)


def _check_steps(checked: CheckedSweepFile, data: str, rows: int) -> Iterator[Problem]:
    """Batches larger than the data, and evaluations after the last step."""
    for batch in checked.values.get("batch_size", ()):
        if isinstance(batch.value, int | float) and batch.value > rows:
            why = f"{data} has {rows:,} training rows, fewer than one batch."
            yield Problem(batch.place, f"a batch of {batch.value:g}", why, f"at most {rows}")
    limits = [value for value in valid_values(checked.values, "max_steps") if isinstance(value, int)]
    max_steps: list[int | None] = [*limits] or [None]
    steps = [
        total_steps(rows, int(batch), epochs, limit)
        for batch, epochs, limit in product(
            _numbers(checked, "batch_size"), _numbers(checked, "epochs"), max_steps
        )
    ]
    every = [value for value in valid_values(checked.values, "eval_steps") if isinstance(value, int)]
    if every and min(every) > max(steps):
        yield Problem(
            checked.values["eval_steps"][0].place,
            f"eval_steps {min(every)}, but a trial has {max(steps)} steps",
            "Trials would be evaluated only after their last step.",
            f"eval_steps: {max(1, max(steps) // 4)}, or remove it",
            Severity.WARNING,
        )
    yield from _check_early_stopping(checked, max(steps), min(every, default=None))


def _check_early_stopping(checked: CheckedSweepFile, steps: int, every: int | None) -> Iterator[Problem]:
    """Bands that no trial reaches, because it logs fewer values of the metric."""
    if checked.sweep is None or not band_settings(checked.sweep.config):
        return
    metric = checked.sweep.metric_name
    first = first_band(band_settings(checked.sweep.config))
    if not metric.startswith("eval/"):
        logged, every = steps, None
    elif every is None:
        return  # reported by SweepConfig.notices
    else:
        logged = -(-steps // every)
    if first > logged:
        what = f"trials are compared from value {first} of {metric} on, but log {logged}"
        often = max(1, steps // (2 * first))
        hint = f"eval_steps: {often}, or a smaller min_iter" if every else "a smaller min_iter"
        place = ("early_terminate",) if checked.sweep.config.get("early_terminate") else (BLOCK, "asha")
        yield Problem(place, what, "No trial would be stopped.", hint, Severity.WARNING)


def _numbers(checked: CheckedSweepFile, name: str) -> list[float]:
    """A parameter's values; its default when the file does not set it."""
    numbers = [float(value) for value in valid_values(checked.values, name) if isinstance(value, int | float)]
    default = getattr(Trial, name, None) or PARAMETERS[name].default
    return numbers or [float(str(default))]
