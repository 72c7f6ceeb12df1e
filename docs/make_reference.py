"""Generates docs/reference.md from the tables in the code: `make reference`."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from kto_sweep.cli import COMMANDS, cli
from kto_sweep.env_vars import VARIABLES
from kto_sweep.errors import EXIT_CODES, FailureCause
from kto_sweep.metrics import METRICS
from kto_sweep.models.presets import PRESETS
from kto_sweep.sweep_file.kto_sweep_block import BLOCK, KEYS
from kto_sweep.text import show
from kto_sweep.trial import PARAMETERS

PAGE = Path(__file__).with_name("reference.md")
WIDTH = 100
"""Columns of the commands' help."""


def reference() -> str:
    """The whole page, in Markdown."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    yield "# Reference"
    yield ""
    yield "Generated from the code by `make reference`; do not edit."
    yield ""
    parts = ("Commands", "Parameters of a trial", "Block of a sweep file", "Model sizes", "Metrics")
    for part in (*parts, "Causes of failure", "Exit codes", "Environment variables"):
        yield f"- [{part}](#{part.lower().replace(' ', '-')})"
    yield from _commands()
    yield from _parameters()
    yield from _section(
        "Block of a sweep file",
        f"`{BLOCK}:` at the top of a sweep file has the options that W&B has no key for; `kto-sweep create` "
        "stores them with the sweep.",
    )
    yield from _table(("key", "meaning"), ((f"`{name}`", meaning) for name, meaning in KEYS.items()))
    yield from _model_sizes()
    yield from _metrics()
    yield from _causes()
    yield from _section("Exit codes")
    yield from _table(("code", "meaning"), ((str(code), meaning) for code, meaning in EXIT_CODES.items()))
    yield from _section(
        "Environment variables",
        "`WANDB_...` and `HF_...` variables are also read from a `.env` file in the working directory.",
    )
    yield from _table(("variable", "meaning"), ((f"`{name}`", text) for name, text in VARIABLES.items()))


def _commands() -> Iterator[str]:
    yield from _section(
        "Commands",
        "SWEEP is an id, `ENTITY/PROJECT/ID` or the URL of its page. Default: the last sweep used on this "
        "box.",
    )
    top = click.Context(cli, info_name="kto-sweep", terminal_width=WIDTH, **cli.context_settings)
    for name in COMMANDS:
        command = cli.get_command(top, name)
        assert command is not None
        context = click.Context(command, parent=top, info_name=name, terminal_width=WIDTH)
        yield from (f"### kto-sweep {name}", "", "```", command.get_help(context), "```", "")


def _parameters() -> Iterator[str]:
    yield from _section(
        "Parameters of a trial",
        "The keys under `parameters:` in a sweep file. `dataset` and either `model` or `model_size` are "
        "required; null is the same as leaving a key out.",
    )
    rows = []
    for rule in PARAMETERS.values():
        default = "" if rule.default is None else f"`{show(rule.default)}`"
        rows.append((f"`{rule.name}`", default, rule.type.description, rule.doc))
    yield from _table(("parameter", "default", "values", "meaning"), rows)


def _model_sizes() -> Iterator[str]:
    yield from _section(
        "Model sizes", "The values of `model_size`. Weights are in 16 bit unless the table says otherwise."
    )
    rows = (
        (f"`{preset.name}`", preset.model, preset.quantization.replace("none", ""), preset.doc)
        for preset in PRESETS.values()
    )
    yield from _table(("size", "model", "quantization", ""), rows)


def _metrics() -> Iterator[str]:
    yield from _section(
        "Metrics",
        "The metrics that a trial logs; a sweep's `metric:` can be any of them. Healthy values: "
        "[reading the curves](reading-curves.md).",
    )
    rows = []
    for metric in METRICS.values():
        meaning = f"{metric.meaning}. As a goal: {metric.caution}" if metric.caution else metric.meaning
        better = {"minimize": "lower", "maximize": "higher", None: ""}[metric.goal]
        rows.append((f"`{metric.name}`", metric.unit, better, meaning))
    yield from _table(("metric", "unit", "better", "meaning"), rows)


def _causes() -> Iterator[str]:
    yield from _section(
        "Causes of failure",
        "`failure/cause` in a run's summary. Failures that would happen again are not retried.",
    )
    rows = ((cause.value, "yes" if cause.is_retried else "no") for cause in FailureCause)
    yield from _table(("cause", "retried"), rows)


def _section(title: str, text: str = "") -> Iterator[str]:
    yield from ("", f"## {title}", "")
    if text:
        yield from (text, "")


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"Written: {PAGE}")
