"""Everything that can be known of a sweep file and its data before anything runs: errors and warnings.

file --spec--> findings, uses --spec_kto--> combinations --data.lint--> rows --> steps, batches, evaluations
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from kto_sweep.data.files import find_data
from kto_sweep.data.lint import LintReport, lint
from kto_sweep.data.lint_findings import NEAR, Level
from kto_sweep.data.lint_rows import measure_characters, read_data
from kto_sweep.data.split import total_steps
from kto_sweep.errors import DataError, Problem, SpecError
from kto_sweep.metrics import DEFAULT_METRIC
from kto_sweep.search.options import BLOCK
from kto_sweep.sweep_file.kto_checks import find_errors, find_warnings, values
from kto_sweep.sweep_file.parameters import Use
from kto_sweep.sweep_file.spec import ExaminedSpec, SweepSpec, bands, examine_spec, first_band
from kto_sweep.sweep_file.yaml_source import Finding
from kto_sweep.trial import PARAMETERS, Trial

_WEIGHTS = ("rho", "desirable_weight", "undesirable_weight")


@dataclass(frozen=True)
class Validation:
    """What was found, each with its place."""

    path: Path
    errors: tuple[Problem, ...]
    """No trial, or not every one, can be trained so."""
    warnings: tuple[Problem, ...]
    """Allowed, and probably not meant."""
    spec: SweepSpec | None
    """The sweep, when it could be registered as far as the file alone tells."""

    def checked(self) -> SweepSpec:
        """The sweep. Raises SpecError with every error."""
        if self.errors or self.spec is None:
            raise SpecError(str(self.path), self.errors)
        return self.spec


def validate(path: Path) -> Validation:
    """Every static problem of a sweep file and of the local data files that it names.

    Raises UsageError when there is no such file, or it is no text.
    """
    examined = examine_spec(path)
    metric = examined.spec.metric_name if examined.spec else DEFAULT_METRIC
    errors = [*examined.findings, *find_errors(examined.uses, metric)]
    warnings = list(find_warnings(examined.uses, metric))
    for use in examined.uses.get("dataset", ()):
        for is_error, finding in _data_findings(examined, use):
            (errors if is_error else warnings).append(finding)
    notices = examined.spec.notices if examined.spec else ()
    told = [Problem(str(path), notice) for notice in notices]
    return Validation(
        path, tuple(examined.problems(errors)), (*told, *examined.problems(warnings)), examined.spec
    )


def _data_findings(examined: ExaminedSpec, use: Use) -> Iterator[tuple[bool, Finding]]:
    """What the rows of one data file make of the sweep: whether it is an error, and what it is."""
    name = str(use.value)
    try:
        if find_data(name) is None:
            return  # a hub id, or a file that is not there: told already
        read = read_data(name)
    except DataError as error:
        yield True, Finding(use.place, error.message, hint=error.hint)
        return
    fractions = _numbers(examined, "eval_fraction")
    measured = measure_characters(read.loaded.examples)
    report = lint(read, measured, max_length=None, eval_fraction=max(fractions))
    weighed = any(name in examined.uses for name in _WEIGHTS)
    for found in report.findings:
        if found.level is Level.NOTE or (found.code == "imbalance" and weighed):
            continue
        lines = f" (line {found.lines[0]}{', ...' if len(found.lines) > 1 else ''})" if found.lines else ""
        what = f"{name}: {found.what}{lines}"
        yield found.level is Level.ERROR, Finding(use.place, what, hint=found.hint)
    if report.split is not None:
        yield from _weights(examined, use, report)
        rows = report.split.train.desirable + report.split.train.undesirable
        yield from _steps(examined, name, rows)


def _weights(examined: ExaminedSpec, use: Use, report: LintReport) -> Iterator[tuple[bool, Finding]]:
    """Explicit weights that make one label outweigh the other."""
    given = [values(examined.uses, name) for name in ("desirable_weight", "undesirable_weight")]
    if not any(given) or any(len(each) > 1 for each in given) or report.balance is None:
        return
    desirable, undesirable = (float(str(each[0])) if each and each[0] else 1.0 for each in given)
    ratio = report.balance.ratio * desirable / undesirable
    if not 1 / NEAR < ratio < NEAR * NEAR:
        why = "The weights and the counts of the two labels together; KTO's authors use 1 to 4/3."
        what = f"desirable rows weigh {ratio:.2g} times as much as undesirable ones"
        name = "desirable_weight" if given[0] else "undesirable_weight"
        place = examined.uses[name][0].place if name in examined.uses else use.place
        yield False, Finding(place, what, why, "rho: 1 in place of both")


def _steps(examined: ExaminedSpec, data: str, rows: int) -> Iterator[tuple[bool, Finding]]:
    """Batches larger than the data, evaluations that never come."""
    for use in examined.uses.get("batch_size", ()):
        if isinstance(use.value, int | float) and use.value > rows:
            why = f"{data} leaves {rows:,} rows to train on: no step would have as many."
            yield True, Finding(use.place, f"a batch of {use.value:g}", why, f"at most {rows}")
    limits = [v for v in values(examined.uses, "max_steps") if isinstance(v, int)]
    most: list[int | None] = [*limits] or [None]
    taken = [
        total_steps(rows, int(batch), epochs, limit)
        for batch, epochs, limit in product(
            _numbers(examined, "batch_size"), _numbers(examined, "epochs"), most
        )
    ]
    every = [v for v in values(examined.uses, "eval_steps") if isinstance(v, int)]
    if every and min(every) > max(taken):
        what = f"eval_steps {min(every)}, and a trial takes {max(taken)} steps"
        yield (
            False,
            Finding(
                examined.uses["eval_steps"][0].place,
                what,
                "It would be evaluated after its last step alone.",
                f"eval_steps: {max(1, max(taken) // 4)}, or remove it",
            ),
        )
    yield from _early_end(examined, max(taken), min(every, default=None))


def _early_end(examined: ExaminedSpec, steps: int, every: int | None) -> Iterator[tuple[bool, Finding]]:
    if examined.spec is None or not bands(examined.spec.config):
        return
    metric = examined.spec.metric_name
    first = first_band(bands(examined.spec.config))
    if not metric.startswith("eval/"):
        logged, every = steps, None
    elif every is None:
        return  # told by the file alone
    else:
        logged = -(-steps // every)
    if first > logged:
        what = f"trials are compared from value {first} of {metric} on, and log {logged}"
        often = max(1, steps // (2 * first))
        hint = f"eval_steps: {often}, or a smaller min_iter" if every else "a smaller min_iter"
        place = ("early_terminate",) if examined.spec.config.get("early_terminate") else (BLOCK, "asha")
        yield False, Finding(place, what, "It would end none.", hint)


def _numbers(examined: ExaminedSpec, name: str) -> list[float]:
    """The values that a parameter may have, its default included when the file does not give it."""
    found = [float(v) for v in values(examined.uses, name) if isinstance(v, int | float)]
    default = getattr(Trial, name, None) or PARAMETERS[name].default
    return found or [float(str(default))]
