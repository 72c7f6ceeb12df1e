"""kto-sweep lint as users and scripts see it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kto_sweep.cli import run

ROOT = Path(__file__).parents[2]


def row(prompt: str, completion: str, label: object) -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return {"conversations": turns, "label": label}


ROWS = [
    *(row(f"Question {i}?", "Yes, it is. " * (1 + i % 4 + i % 2), i % 2 == 1) for i in range(24)),
    row("Question 3?", "Yes, it is. " * 5, True),
    row("Question 5?", "Yes, it is. " * 3, False),
    {"messages": [{"role": "user", "content": "Anybody?"}], "label": True},
    row("Question 30?", "No. " * 90, "true"),
]

GOLDEN = Path(__file__).with_name("lint_report.txt")


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a data file in the working directory."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(tmp_path)
    return "rows.jsonl"


def plain(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_report_in_a_terminal(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lint", rows]) == 0
    assert plain(capsys.readouterr().out) == GOLDEN.read_text().splitlines()


def test_json_is_one_object_with_all_of_it(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lint", rows, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert (output["path"], output["model"], output["unit"], output["max_length"]) == (
        "rows.jsonl",
        None,
        "characters",
        None,
    )
    assert (output["errors"], output["warnings"], output["notes"]) == (0, 5, 0)
    assert output["counts"]["usable"] == 27
    assert output["balance"]["rho"] == pytest.approx(14 / 13)
    assert output["lengths"]["total"]["max"] == 372
    assert sum(bar["desirable"] + bar["undesirable"] for bar in output["lengths"]["histogram"]) == 27
    assert output["split"]["eval"] == {"desirable": 2, "undesirable": 1}
    lines = {finding["code"]: finding["lines"] for finding in output["findings"]}
    assert lines["left_out"] == [27]
    assert lines["duplicate"] == [4, 25]
    assert lines["contradictory"] == [6, 26]
    assert all(finding["hint"] for finding in output["findings"])


def test_tokens_of_a_model_are_counted_and_max_length_is_checked(
    rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["lint", rows, "--model", "tiny", "--max-length", "64"]) == 0
    text = capsys.readouterr().out
    assert "Lengths in tokens of tiny, before truncation to max_length 64" in text
    assert "1 row with a completion truncated at the end to max_length 64 (line 28)" in text
    generate = "generate grid sweep.yaml --data rows.jsonl --model-size tiny"
    assert f"Next: kto-sweep {generate}\n" in text
    assert run(generate.split()) == 0
    assert "Next: kto-sweep plan sweep.yaml" in capsys.readouterr().out
    Path("sweep.yaml").unlink()
    assert not (Path.cwd() / ".kto-sweep").exists()

    assert run(["lint", rows, "--model", "tiny", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert (output["model"], output["unit"], output["max_length"]) == ("tiny", "tokens", 2048)
    assert "completion_cut" not in {finding["code"] for finding in output["findings"]}


def test_data_that_training_rejects_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "one label.jsonl", *(row(f"q {i}", "a", True) for i in range(9)))
    assert run(["lint", path]) == 1
    text = capsys.readouterr().out
    assert "Error    all 9 usable rows have label true\n         KTO needs both labels" in text
    assert f"Next: fix the errors above, then kto-sweep lint '{path}'" in text
    assert run(["lint", path, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["errors"] == 1


def test_a_file_without_a_usable_row_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lint", write(tmp_path / "rows.jsonl", row("q", "a", "perhaps"))]) == 1
    text = capsys.readouterr().out
    assert "1 row, 0 usable" in text
    assert "no usable row: 1 label 'perhaps' is neither true nor false (line 1)" in text
    assert run(["lint", write(tmp_path / "empty.jsonl")]) == 1
    assert "no usable row: it has no rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["absent.jsonl"], "no such data file"),
        (["empty"], "empty: a folder without data files (it is empty)"),
        (["rows.jsonl", "--model", "./nowhere"], "no such model folder"),
        (["rows.jsonl", "--model", "."], "no tokenizer in this folder"),
        (["rows.jsonl", "--max-length", "8"], "--max-length: 8 is not a max length"),
        (["rows.jsonl", "--eval-fraction", "1"], "--eval-fraction: 1.0 is not an eval fraction"),
    ],
)
def test_data_that_cannot_be_checked_exits_2(
    rows: str, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    Path("empty").mkdir()
    assert run(["lint", *args]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert "\nHint: " in output.err
    assert not output.out
    assert run(["lint", *args, "--json"]) == 2
    assert message in json.loads(capsys.readouterr().err)["error"]


@pytest.mark.parametrize("model", [[], ["--model", "tiny"]])
def test_broken_lines_are_reported_with_all_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: list[str]
) -> None:
    lines = [json.dumps(item) for item in ROWS]
    lines[2], lines[5] = '{"conversations": [', "{'a': 1}"
    lines.append('{"label": NaN}')
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    assert run(["lint", str(tmp_path / "rows.jsonl"), *model]) == 1
    text = capsys.readouterr().out
    assert "29 rows, 25 usable" in text
    assert "Error    broken JSON: Expecting value (line 3)\n         fix or delete line 3; a row is" in text
    assert "Error    broken JSON: Expecting property name enclosed in double quotes (line 6)" in text
    assert "this is a Python object: write rows with json.dumps(row)" in text
    assert "Error    NaN is not JSON; a missing value is null (line 29)" in text
    assert "Warning  1 row skipped" in text
    assert "Held out" not in text
    assert run(["lint", str(tmp_path / "rows.jsonl"), *model, "--json"]) == 1
    output = json.loads(capsys.readouterr().out)
    assert [item["lines"] for item in output["findings"] if item["code"] == "broken"] == [[3], [6], [29]]


@pytest.mark.parametrize("args", [["document.json"], ["rows.jsonl", "--eval-dataset", "document.json"]])
def test_a_document_that_cannot_be_read_exits_1(
    rows: str, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    Path("document.json").write_text("[\n" + json.dumps(ROWS[0]) + ",\n{]\n")
    assert run(["lint", *args]) == 1
    output = capsys.readouterr()
    assert "document.json:3: broken JSON" in output.err
    assert "\nHint: " in output.err
    assert not output.out
    assert run(["lint", *args, "--json"]) == 1
    assert "document.json:3: broken JSON" in json.loads(capsys.readouterr().err)["error"]


def test_max_length_without_a_model_gets_a_note(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lint", rows, "--max-length", "64", "--json"]) == 0
    output = capsys.readouterr()
    assert output.err == "max_length 64 is not checked: counting tokens needs --model\n"
    assert json.loads(output.out)["max_length"] is None


def test_many_reasons_and_copies_stay_readable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("q", "a", f"perhaps {i}") for i in range(30)] + [row("q", "a", True)] * 30
    assert run(["lint", write(tmp_path / "rows.jsonl", *rows)]) == 1
    text = capsys.readouterr().out
    assert text.count("skipped: label") == 8
    assert "22 more findings 'left_out': --json lists all" in text
    assert "29 copies of earlier rows, label included (lines 31 and 32 and 33 and 34 and 35 and ...)" in text


def test_without_a_model_nothing_heavy_is_loaded(rows: str) -> None:
    code = (
        "import sys; from kto_sweep.cli import run; code = run(['lint', 'rows.jsonl']);"
        "heavy = {'torch', 'transformers', 'wandb', 'datasets'} & set(sys.modules);"
        "sys.exit(f'loaded: {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_terminal_without_block_characters_gets_other_characters(rows: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kto_sweep", "lint", "rows.jsonl"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert "(# desirable, - undesirable)" in done.stdout
    assert " 50-99  7 ###################" in done.stdout


def test_the_shipped_example_has_no_error_and_no_bad_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lint", str(ROOT / "examples" / "support_replies.jsonl"), "--json"]) == 0
    codes = {finding["code"] for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert codes <= {"few_held_out", "same_prompt_neighbours"}


def test_rows_are_shown_as_the_model_gets_them(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["lint", rows, "--model", "tiny", "--max-length", "24", "--show", "2"]
    assert run([*arguments, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["shown"]
    assert first == {
        "line": 1,
        "label": False,
        "prompt": "<|user|>\nQuestion 0?<|end|>\n<|assistant|>\n",
        "completion": "Yes, it is. <|end|>\n",
        "prompt_tokens": first["prompt_tokens"],
        "completion_tokens": first["completion_tokens"],
        "cut": None,
        "ends": True,
    }
    assert (second["cut"], second["ends"]) == ("end of completion", False)
    assert second["prompt_tokens"] + second["completion_tokens"] == 24
    assert run(arguments) == 0
    out = capsys.readouterr().out
    assert "Row 1: label false; " in out
    assert "  prompt      <|user|>\\nQuestion 0?<|end|>\\n<|assistant|>\\n\n" in out
    assert run(["lint", rows, "--show", "2"]) == 2
    assert "add --model NAME" in capsys.readouterr().err


def test_several_files_and_held_out_rows_of_their_own(
    rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "more.jsonl", row("Question 40?", "Yes.", True), row("Question 41?", "", False))
    write(tmp_path / "test.jsonl", row("Question 50?", "Yes.", True), row("Question 51?", "No.", False))
    assert run(["lint", rows, "more.jsonl", "--eval-dataset", "test.jsonl", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["path"] == "rows.jsonl, more.jsonl"
    assert output["split"]["eval"] == {"desirable": 1, "undesirable": 1}
    lines = {finding["what"]: finding["lines"] for finding in output["findings"]}
    assert lines["1 row skipped: empty completion"] == ["more.jsonl:2"]
    assert lines["1 copy of an earlier row, label included"] == ["rows.jsonl:4", "rows.jsonl:25"]
