"""Generates docs/reference.md and docs/data.md from the tables in the code: `make reference`."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from kto_sweep.cli import COMMANDS, cli
from kto_sweep.data import labels
from kto_sweep.data.row_forms import ROW_FORMS
from kto_sweep.data.sources import SOURCE_FORMS
from kto_sweep.env_vars import OTHER_WANDB, VARIABLES
from kto_sweep.errors import EXIT_CODES, FailureCause
from kto_sweep.metrics import METRICS
from kto_sweep.models.presets import PRESETS
from kto_sweep.sweep.sweep_state import ShownState
from kto_sweep.sweep.trial_state import TrialState
from kto_sweep.sweep_file.kto_sweep_block import BLOCK, KEYS
from kto_sweep.text import show
from kto_sweep.trial import PARAMETERS

FOLDER = Path(__file__).parent
WIDTH = 100
"""Columns of the commands' help."""


def reference() -> str:
    """The whole page, in Markdown."""
    return "\n".join(_page()) + "\n"


def data() -> str:
    """The page about data, in Markdown."""
    return "\n".join(_data_page()) + "\n"


PAGES = {"reference.md": reference, "data.md": data}
"""The generated pages."""


def _data_page() -> Iterator[str]:
    yield "# Data"
    yield ""
    yield "Generated from the code by `make reference`; do not edit."
    yield ""
    yield "KTO trains on answers with a label: desirable or undesirable. Your rows as the model gets them:"
    yield ""
    yield "```bash"
    yield "kto-sweep lint rows.jsonl --model Qwen/Qwen2.5-7B-Instruct --show 3"
    yield "```"
    yield from _section("Sources", "What `dataset` and `eval_dataset` may name.")
    sources = ((form.kind, f"`{_as_yaml(form.example)}`", form.meaning) for form in SOURCE_FORMS)
    yield from _table(("source", "example", "meaning"), sources)
    yield ""
    yield "`eval_dataset` holds out rows of your own; without it, `eval_fraction` of the prompts is held"
    yield "out. The split depends on the text of the prompts alone, so trials of all models are judged on the"
    yield "same rows."
    yield from ("", "## Rows", "", "What a row may look like. `lint` names every form that it understood.")
    for form in ROW_FORMS:
        yield ""
        yield f"### {form.name[0].upper()}{form.name[1:]}"
        yield ""
        yield form.meaning
        yield ""
        yield "```json"
        yield json.dumps(form.row)
        yield "```"
    yield from _section("Labels")
    yield f"In the column `{labels.LABELS[0]}`, or `{labels.LABELS[1]}`."
    yield ""
    words = ("desirable", labels.DESIRABLE), ("undesirable", labels.UNDESIRABLE)
    yield from _table(
        ("meaning", "values"), ((name, ", ".join(f"`{word}`" for word in sorted(of))) for name, of in words)
    )
    yield from _section("What is not trained")
    yield "- Images, video and audio: a row that has them is skipped, and `lint` says so."
    yield "- Other columns, and keys of a turn that the model's chat template does not read: `lint` lists"
    yield "  each once, with its number of rows."
    yield "- Turns after the last assistant turn, and answers with `weight: 0` or `train: false`."
    yield "- What is beyond `max_length`: the start of the prompt first, then the end of the completion."


def _as_yaml(names: str | tuple[str, ...]) -> str:
    return names if isinstance(names, str) else f"[{', '.join(names)}]"


def _page() -> Iterator[str]:
    yield "# Reference"
    yield ""
    yield "Generated from the code by `make reference`; do not edit."
    yield ""
    parts = ("Commands", "Parameters of a trial", "Block of a sweep file", "Model sizes", "Metrics")
    for part in (*parts, "States", "Causes of failure", "Exit codes", "Environment variables"):
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
    yield from _states()
    yield from _causes()
    yield from _section("Exit codes")
    yield from _table(("code", "meaning"), ((str(code), meaning) for code, meaning in EXIT_CODES.items()))
    yield from _section(
        "Environment variables",
        "The `WANDB_...`, `HF_...` and `KTO_SWEEP_...` variables of this table are also read from a `.env` "
        "file in the working directory, without `${...}`; the shell's come first. Not read from there: "
        "`WANDB_IDENTITY_TOKEN_FILE` and, if the shell has a key, `WANDB_BASE_URL`. Commands say which "
        "variables they took and which they ignored.",
    )
    yield from _table(("variable", "meaning"), ((f"`{name}`", text) for name, text in VARIABLES.items()))
    yield ""
    yield "These variables of W&B keep their effect, too; any other `WANDB_...` is ignored with a notice, as"
    yield "it could name another run, sweep, folder or service than the sweep's."
    yield ""
    yield ", ".join(f"`{name}`" for name in sorted(OTHER_WANDB))


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


def _states() -> Iterator[str]:
    yield from _section(
        "States",
        "Of a sweep, in `status`, on its page and in `shown_state` of `--json`. `state` of `--json` is W&B's "
        "own, which `wandb sweep` reads and sets.",
    )
    yield from _table(("sweep", "meaning"), ((state, state.meaning) for state in ShownState))
    yield from ("", "Of a trial. W&B's own state of its run is in `wandb.Api`.", "")
    yield from _table(("trial", "meaning"), ((state, state.meaning) for state in TrialState))


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
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
        print(f"Written: {FOLDER / name}")
