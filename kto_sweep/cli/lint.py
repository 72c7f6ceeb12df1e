"""kto-sweep lint: a report on a data file before training."""

from typing import TYPE_CHECKING, Any

import click

from kto_sweep.cli.output import console, json_option, print_json, say

if TYPE_CHECKING:
    from kto_sweep.data.lint_findings import LintFinding


@click.command()
@click.argument("data")
@click.option("--model", help="Count tokens with this model's tokenizer: hub id, folder, .gguf, tiny.")
@click.option("--max-length", type=int, help="Tokens of prompt and completion, as in a sweep. Default: 2048.")
@click.option("--eval-fraction", type=float, help="Share of the prompts held out. Default: 0.1.")
@json_option
def lint(
    data: str, model: str | None, max_length: int | None, eval_fraction: float | None, as_json: bool
) -> int:
    """Check DATA, a file or hub id: what training would reject, label balance, lengths and split.

    Without --model, lengths are in characters and max_length is not checked. Loads only the tokenizer, never
    the model. Exit code 1: training would reject the data.

    \b
    kto-sweep lint rows.jsonl
    kto-sweep lint rows.jsonl --model Qwen/Qwen2.5-7B-Instruct --max-length 1024
    kto-sweep lint rows.jsonl --json
    """
    from dataclasses import asdict

    from kto_sweep.cli.lint_text import print_report
    from kto_sweep.data.lint import lint as check
    from kto_sweep.data.lint_rows import measure_characters, measure_tokens, read_data
    from kto_sweep.errors import Severity
    from kto_sweep.models.tokenizer import load_tokenizer
    from kto_sweep.trial import Trial

    length = Trial.max_length if max_length is None else max_length
    fraction = Trial.eval_fraction if eval_fraction is None else eval_fraction
    _check("max_length", length)
    _check("eval_fraction", fraction)
    read = read_data(data)
    if model is None:
        if max_length is not None:
            say(f"max_length {max_length} is not checked: counting tokens needs --model", as_json=as_json)
        report = check(
            read, measure_characters(read.loaded.examples), max_length=None, eval_fraction=fraction
        )
    else:
        measured = measure_tokens(read.loaded.examples, load_tokenizer(model), length)
        report = check(read, measured, max_length=length, eval_fraction=fraction)
    if as_json:
        findings = [_as_object(finding) for finding in report.findings]
        levels = {f"{level}s": report.count(level) for level in Severity}
        print_json({"model": model, **levels, **asdict(report), "findings": findings})
    else:
        print_report(console(), report, data, model)
    return 1 if report.count(Severity.ERROR) else 0


def _as_object(finding: "LintFinding") -> dict[str, Any]:
    return {
        "level": finding.severity,
        "code": finding.code,
        "count": finding.count,
        "what": finding.what,
        "hint": finding.hint,
        "groups": finding.groups,
        "lines": finding.lines,
    }


def _check(name: str, value: float) -> None:
    """Raise UsageError for a value that is invalid for a trial."""
    from kto_sweep.errors import UsageError
    from kto_sweep.trial import check_value

    _, problem = check_value(name, value)
    if problem is not None:
        option = f"--{name.replace('_', '-')}"
        raise UsageError(f"{option}: {problem.what}\n  {problem.why}", hint=problem.hint)
