"""kto-sweep lint: a report on a data set before training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from kto_sweep.cli.output import console, json_option, print_json, say

if TYPE_CHECKING:
    from kto_sweep.data.examples import DataSource
    from kto_sweep.data.lint import LintReport
    from kto_sweep.data.lint_findings import LintFinding


@click.command()
@click.argument("data", nargs=-1, required=True)
@click.option("--model", help="Count tokens with this model's tokenizer: hub id, folder, .gguf, tiny.")
@click.option("--max-length", type=int, help="Tokens of prompt and completion, as in a sweep. Default: 2048.")
@click.option("--eval-fraction", type=float, help="Share of the prompts held out. Default: 0.1.")
@click.option("--eval-dataset", "held_out", multiple=True, help="Held-out rows of their own.")
@click.option(
    "--show",
    type=click.IntRange(min=1),
    metavar="N",
    help="Print the first N rows as the model gets them (with --model).",
)
@json_option
def lint(
    data: tuple[str, ...],
    model: str | None,
    max_length: int | None,
    eval_fraction: float | None,
    held_out: tuple[str, ...],
    show: int | None,
    as_json: bool,
) -> int:
    """Check DATA, files or hub ids: what training would reject, label balance, lengths and split.

    Without --model, lengths are in characters and max_length is not checked. Loads only the tokenizer, never
    the model. Exit code 1: training would reject the data.

    \b
    kto-sweep lint rows.jsonl
    kto-sweep lint rows.jsonl --model Qwen/Qwen2.5-7B-Instruct --show 3
    kto-sweep lint a.jsonl b.parquet --eval-dataset test.jsonl --json
    """
    from dataclasses import asdict

    from kto_sweep.cli.lint_text import print_report
    from kto_sweep.errors import Severity, UsageError
    from kto_sweep.trial import Trial

    length = Trial.max_length if max_length is None else max_length
    fraction = Trial.eval_fraction if eval_fraction is None else eval_fraction
    _check("max_length", length)
    _check("eval_fraction", fraction)
    if model is None:
        if show is not None:
            raise UsageError("--show decodes the tokens of a model", hint="add --model NAME")
        if max_length is not None:
            say(f"max_length {max_length} is not checked: counting tokens needs --model", as_json=as_json)
    report = _report(data, model, length, fraction, held_out, shown=show or 0, progress=not as_json)
    if as_json:
        findings = [_as_object(finding, report) for finding in report.findings]
        levels = {f"{level}s": report.count(level) for level in Severity}
        about = {key: value for key, value in asdict(report).items() if key != "places"}
        print_json({"model": model, **levels, **about, "findings": findings})
    else:
        print_report(console(), report, data, model)
    return 1 if report.count(Severity.ERROR) else 0


def _report(
    data: tuple[str, ...],
    model: str | None,
    max_length: int,
    eval_fraction: float,
    held_out: tuple[str, ...],
    *,
    shown: int,
    progress: bool,
) -> "LintReport":
    from kto_sweep.cli.output import counting
    from kto_sweep.data.lint import lint as check
    from kto_sweep.data.load import load_characters, load_tokens
    from kto_sweep.data.shown_rows import RowInspector
    from kto_sweep.errors import UsageError
    from kto_sweep.home import Home
    from kto_sweep.models.model_checks import check_model, held_max_length, stop_tokens
    from kto_sweep.models.tokenizer import load_tokenizer
    from kto_sweep.trial import check_value

    source = data if len(data) > 1 else data[0]
    other = (held_out if len(held_out) > 1 else held_out[0]) if held_out else None
    if model is None:
        with _reading(source, other), counting("examples", show=progress) as count:
            characters = load_characters(source, progress=count, keep_broken=True)
            held = None if other is None else load_characters(other, progress=count)
        return check(characters, max_length=None, eval_fraction=eval_fraction, held_out=held)
    if (problem := check_value("model", model)[1]) is not None:
        raise UsageError(f"--model: {problem.what}", hint="check the path")
    tokenizer = load_tokenizer(model)
    cache = Home.from_environment().cache
    with _reading(source, other), counting("tokenised examples", show=progress) as count:
        rows = load_tokens(source, tokenizer, cache=cache, progress=count, keep_broken=True)
        evaluated = None if other is None else load_tokens(other, tokenizer, cache=cache, progress=count)
    stops = RowInspector(tokenizer, stop_tokens(model, tokenizer))
    problems = check_model(model, tokenizer, max_length=max_length)
    max_length = held_max_length(model, max_length)
    return check(
        rows,
        about_model=problems,
        max_length=max_length,
        eval_fraction=eval_fraction,
        stops=stops,
        held_out=evaluated,
        shown=stops.show(rows.table, max_length, rows.notes.places, shown),
    )


@contextmanager
def _reading(*sources: "DataSource | None") -> Iterator[None]:
    """Read the sources in this block: what training would reject has exit code 1, unlike a wrong name."""
    from kto_sweep.data.sources import find_parts
    from kto_sweep.errors import DataError, KtoSweepError

    for source in filter(None, sources):
        find_parts(source)
    try:
        yield
    except DataError as error:
        raise KtoSweepError(error.message, hint=error.hint) from error


def _as_object(finding: "LintFinding", report: "LintReport") -> dict[str, Any]:
    places = report.places
    several = len(places.files) > 1
    groups = [[places.name(line) if several else line for line in group] for group in finding.groups]
    return {
        "level": finding.severity,
        "code": finding.code,
        "count": finding.count,
        "what": finding.what,
        "hint": finding.hint,
        "groups": groups,
        "lines": [line for group in groups for line in group],
    }


def _check(name: str, value: float) -> None:
    """Raise UsageError for a value that is invalid for a trial."""
    from kto_sweep.errors import UsageError
    from kto_sweep.trial import check_value

    _, problem = check_value(name, value)
    if problem is not None:
        option = f"--{name.replace('_', '-')}"
        raise UsageError(f"{option}: {problem.what}\n  {problem.why}", hint=problem.hint)
