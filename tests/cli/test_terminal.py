"""Output on a terminal of 80 columns."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.text import Text

from kto_sweep.terminal import LineConsole, wrap_words

SENTENCE = "Warning: a sentence of many words that does not fit into a narrow terminal"


@pytest.mark.parametrize(
    ("text", "wrapped"),
    [
        (SENTENCE, "Warning: a sentence of many words\n  that does not fit into a narrow\n  terminal"),
        ("  two words\n  " + "x" * 50, "  two words\n  " + "x" * 50),
        (
            "    four spaces, then a sentence that is long",
            "    four spaces, then a sentence\n      that is long",
        ),
        ("see https://wandb.example.com/a-path/that-is/long now", None),
        ("Next: kto-sweep plan my.yaml --gpu rtx3090", "Next: kto-sweep plan my.yaml --gpu rtx3090"),
        ("Or: export WANDB_BASE_URL=a WANDB_API_KEY=b", "Or: export WANDB_BASE_URL=a WANDB_API_KEY=b"),
        (
            "the pip that they made is a word of this sentence",
            "the pip that they made is a word of this sentence",
        ),
    ],
)
def test_lines_are_wrapped_at_spaces_and_commands_are_not(text: str, wrapped: str | None) -> None:
    expected = wrapped or "see\n  https://wandb.example.com/a-path/that-is/long\n  now"
    assert wrap_words(text, 34) == expected


@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_wraps_on_terminals_only(terminal: bool) -> None:
    out = io.StringIO()
    console = LineConsole(file=out, force_terminal=terminal, width=34, highlight=False, color_system=None)
    console.print(SENTENCE)
    console.print(Text(SENTENCE), soft_wrap=True)
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert "".join(f"{line} " for line in lines).split() == SENTENCE.split() * 2
    assert len(lines) == (6 if terminal else 2)


def test_no_word_of_a_command_is_broken_at_80_columns(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(
        "method: grid\nparameters:\n  model_size: {value: tiny}\n  batch_size: {value: 2}\n"
        "  dataset: {value: examples/support_replies.jsonl}\n"
    )
    ours, theirs = pty.openpty()
    environ = {**os.environ, "COLUMNS": "80", "LINES": "50", "TERM": "xterm", "NO_COLOR": "1"}
    for command in (("validate", "my.yaml"), ("plan", "my.yaml", "--gpu", "24GB")):
        done = subprocess.Popen(
            [sys.executable, "-m", "kto_sweep", *command],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env=environ,
        )  # fmt: skip
        assert done.wait() == 0
        text = re.sub(r"\x1b\[[0-9;]*m", "", os.read(ours, 1 << 16).decode())
        lines = [line.rstrip() for line in text.splitlines()]
        assert len(lines) > 3
        assert max(len(line) for line in lines if "kto-sweep " not in line) <= 80
