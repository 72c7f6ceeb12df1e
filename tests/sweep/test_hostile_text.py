"""Names, parameters and logs of others in the terminal and in CSV files."""

import csv
import io
import math
from dataclasses import replace

import pytest
from sweep_views import sweep_view, trial

from kto_sweep.agent.progress import ProgressDisplay
from kto_sweep.cli import output
from kto_sweep.cli.compare_text import print_comparison
from kto_sweep.cli.status import _say_failures
from kto_sweep.compare.as_data import csv_rows
from kto_sweep.compare.comparison import Comparison, compare
from kto_sweep.sweep.sweep_state import read_sweep_status
from kto_sweep.terminal import LineConsole

HOSTILE = "\x1b]0;title\x07\x9b2J\r\x08\u202egone"
SHOWN = r"\x1b]0;title\x07\x9b2J\r\x08\u202egone"


@pytest.fixture
def comparison() -> Comparison:
    """A sweep with hostile texts wherever a user or a process may put one."""
    first = trial(1, 0.5, learning_rate="=cmd()", lora_r=-8, beta=f"a{HOSTILE}")
    failed = trial(2, None, "failed", learning_rate="@sum", lora_r=8, beta="+1")
    cause = {"failure/cause": f"crash{HOSTILE}", "failure/message": f"log: {HOSTILE}"}
    failed = replace(failed, name=f"-name{HOSTILE}", summary={**failed.summary, **cause})
    third = trial(3, math.nan, learning_rate="\t=x", lora_r=8.5, beta=None)
    space = {"learning_rate": {"values": [1.0, 2.0]}}
    return compare(sweep_view(space, first, failed, third))


def is_harmless(text: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in text)


def test_no_control_character_reaches_the_terminal(
    comparison: Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    print_comparison(comparison, comparison.trials, ("beta",), {}, comparison.view.url)
    _say_failures(read_sweep_status(comparison.view))
    output.print_error(HOSTILE, HOSTILE, as_json=False)
    output.print_error(HOSTILE, HOSTILE, as_json=True)
    output.print_json({HOSTILE: HOSTILE})
    shown = capsys.readouterr()
    assert is_harmless(shown.out + shown.err)
    assert shown.out.count(SHOWN) >= 2
    assert f"Error: {SHOWN}\nHint: {SHOWN}\n" in shown.err


def test_no_control_character_of_a_trial_reaches_the_agents_terminal() -> None:
    screen = io.StringIO()
    console = LineConsole(file=screen, width=200, highlight=False)
    with ProgressDisplay(console, ("beta",), "loss", None) as display:
        display.started("a", HOSTILE, {"beta": HOSTILE}, HOSTILE)
        display.preparing("a", HOSTILE, 0, 3)
        display.failed("a", HOSTILE, f"[red]{HOSTILE}[/red]")
    assert is_harmless(screen.getvalue())
    assert screen.getvalue().count(SHOWN) >= 5
    assert f"[red]{SHOWN}[/red]" in screen.getvalue()


def test_texts_of_a_csv_file_are_no_formulas_and_numbers_stay_numbers(comparison: Comparison) -> None:
    stream = io.StringIO()
    rows = csv_rows(comparison, ("learning_rate", "lora_r", "beta"))
    csv.writer(stream).writerows(rows)
    assert is_harmless(stream.getvalue().replace("\r\n", "\n").replace("\t", ""))
    by_run = {row["run_id"]: row for row in csv.DictReader(io.StringIO(stream.getvalue(), newline=""))}
    ids = [item.trial.run_id for item in comparison.trials]
    rates = {by_run[run_id]["learning_rate"] for run_id in ids}
    assert rates == {"'=cmd()", "'@sum", "'\t=x"}
    assert {by_run[run_id]["lora_r"] for run_id in ids} == {"-8", "8", "8.5"}
    assert {by_run[run_id]["beta"] for run_id in ids} == {f"a{SHOWN}", "'+1", ""}
    (name,) = (row["name"] for row in by_run.values() if row["name"].startswith("'"))
    assert name == f"'-name{SHOWN}"
