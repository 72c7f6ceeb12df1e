"""Static problems of a sweep and its data, other than invalid single values."""

import json
import shutil
from pathlib import Path

import pytest
from small_models import save, small_model, small_tokenizer

from kto_sweep.cli import run
from kto_sweep.errors import Severity
from kto_sweep.home import Home
from kto_sweep.plan.create_check import check_before_create
from kto_sweep.sweep_file.validate import Validation, validate

GRID = "method: grid\nparameters:\n  model_size: {value: tiny}\n  dataset: {value: rows.jsonl}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with 480 rows of both labels."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path, [at % 2 == 0 for at in range(480)])
    return tmp_path


def write_rows(folder: Path, labels: list[bool], name: str = "rows.jsonl") -> None:
    rows = [
        {"prompt": f"question {at // 2}", "completion": "an answer", "label": label}
        for at, label in enumerate(labels)
    ]
    for at, row in enumerate(rows):
        row["completion"] = f"answer {at}"
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def check(folder: Path, text: str) -> Validation:
    file = folder / "sweep.yaml"
    file.write_text(text)
    return validate(Path("sweep.yaml"))


def test_a_valid_sweep_has_no_problems(folder: Path) -> None:
    validation = check(folder, GRID + "  batch_size: {values: [4, 8]}\n")
    assert (validation.errors, validation.warnings) == ((), ())
    assert validation.checked().expected_trials == 2


@pytest.mark.parametrize(
    ("line", "where", "what"),
    [
        ("  batch_size: {values: [8, 500]}", "5 parameters.batch_size.values", "a batch of 500"),
        (
            "  lora_targets: {value: [q_prj]}",
            "5 parameters.lora_targets.value",
            "these models have no linear layer",
        ),
        ("  rho: {value: 0}", "5 parameters.rho.value", "0 is not a rho"),
        (
            "  loss_type: {values: [kto, apo_zero_unpaired]}",
            "5 parameters.loss_type.values",
            "the metric is kl",
        ),
    ],
)
def test_errors(folder: Path, line: str, where: str, what: str) -> None:
    metric = "metric: {name: kl, goal: minimize}\n" if "metric is" in what else ""
    validation = check(folder, GRID + line + "\n" + metric)
    (problem,) = validation.errors
    assert problem.where == f"sweep.yaml:{where}"
    assert problem.what.startswith(what)


@pytest.mark.parametrize(
    ("lines", "what", "hint"),
    [
        ("  batch_size: {value: 2}", "a batch of 2", "batch_size: 8"),
        ("  rho: {value: 3}", "rho 3.0 is outside 1 to 4/3", "rho: 1"),
        ("  desirable_weight: {value: 3}", "desirable rows weigh 3 times", "rho: 1"),
        (
            "  full_finetune: {value: true}\n  lora_dropout: {value: 0.1}",
            "lora_dropout has no effect",
            "remove",
        ),
        ("  lora_dropout: {value: 0.1}", "lora_dropout 0.1 makes every step slower", "lora_dropout: 0"),
        ("  epochs: {value: 2}\n  max_steps: {value: 9}", "epochs has no effect", "remove one"),
        ("  eval_steps: {value: 90}", "eval_steps 90, but a trial has 54 steps", "eval_steps: 13"),
        (
            "  eval_steps: {value: 10}\nearly_terminate: {type: hyperband, min_iter: 9}",
            "trials are compared from value 9 of eval/common_loss on, but log 6",
            "eval_steps: 3",
        ),
        ("metric: {name: rewards/margins, goal: maximize}", "the metric is rewards/margins", ""),
        (
            "metric: {name: tokens_per_second, goal: maximize}",
            "the metric is tokens_per_second",
            "eval/common_loss",
        ),
    ],
)
def test_warnings(folder: Path, lines: str, what: str, hint: str) -> None:
    validation = check(folder, GRID + lines + "\n")
    assert validation.errors == ()
    assert any(what in problem.what and hint in problem.hint for problem in validation.warnings), (
        validation.warnings
    )


def test_several_data_files_are_checked_together(folder: Path) -> None:
    rows = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "good.jsonl").write_text("".join(rows[::2]))
    (folder / "bad.jsonl").write_text("".join(rows[1::2]))
    several = GRID.replace("value: rows.jsonl", "value: [good.jsonl, bad.jsonl]")
    validation = check(folder, several)
    assert (validation.errors, validation.warnings) == ((), ())
    (problem,) = check(folder, several.replace("value: [", "values: [bad.jsonl, [").replace("]", "]]")).errors
    assert problem.where == "sweep.yaml:4 parameters.dataset.values"
    assert problem.what == "bad.jsonl: all 240 usable rows have label false"


@pytest.mark.parametrize(
    ("rows", "eval_fraction", "what"),
    [
        ("", "", "empty.jsonl: it has no rows"),
        ('{"a": 1}\n', "", "empty.jsonl: 1 no messages"),
        ("{\n", "", "empty.jsonl:2: broken JSON"),
    ],
)
def test_held_out_rows_that_cannot_be_used_are_an_error(
    folder: Path, rows: str, eval_fraction: str, what: str
) -> None:
    (folder / "empty.jsonl").write_text(rows)
    (problem,) = check(folder, GRID + "  eval_dataset: {value: empty.jsonl}\n").errors
    assert problem.where == "sweep.yaml:5 parameters.eval_dataset.value"
    assert problem.what.startswith(what)


def test_held_out_rows_must_exist(folder: Path) -> None:
    (problem,) = check(folder, GRID + "  eval_dataset: {value: eval.jsonl}\n").errors
    assert problem.what == "no data file eval.jsonl"


def test_held_out_rows_that_are_also_trained_on(folder: Path) -> None:
    (folder / "eval").mkdir()
    (folder / "eval" / "rows.jsonl").symlink_to(folder / "rows.jsonl")
    (problem,) = check(folder, GRID + "  eval_dataset: {value: eval}\n").errors
    assert problem.where == "sweep.yaml:5 parameters.eval_dataset.value"
    assert problem.what == "eval/rows.jsonl is both in dataset and in eval_dataset"


def test_few_rows_to_train_on_are_enough_with_held_out_rows_of_ones_own(folder: Path) -> None:
    rows = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(rows[:40]))
    (folder / "eval.jsonl").write_text("".join(rows[40:]))
    (warning,) = check(folder, GRID).warnings
    assert "rows are held out: eval metrics are noisy" in warning.what
    assert check(folder, GRID + "  eval_dataset: {value: eval.jsonl}\n").warnings == ()


def test_warnings_about_held_out_rows(folder: Path) -> None:
    rows = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "eval.jsonl").write_text("".join(rows[:8:2]) + "{}\n")
    text = GRID + "  eval_dataset: {value: eval.jsonl}\n  eval_fraction: {value: 0.2}\n"
    validation = check(folder, text)
    assert validation.errors == ()
    assert [problem.what for problem in validation.warnings] == [
        "eval.jsonl: 1 no messages, and no prompt with completion (its columns: none) (line 5)",
        "eval.jsonl: all rows have label true",
        "eval_fraction has no effect",
    ]


def test_margins_as_the_metric_get_a_warning_with_the_reason(folder: Path) -> None:
    (warning,) = check(folder, GRID + "metric: {name: rewards/margins, goal: maximize}\n").warnings
    assert "diverging trials win" in warning.what
    assert "eval/common_loss" in warning.what


SETS = "  dataset: {values: [rows.jsonl, more.jsonl]}"
FOR_ALL = "eval_dataset: FILE, whose rows judge all trials"


@pytest.mark.parametrize(
    ("line", "what", "hint"),
    [
        (SETS, "dataset is searched, so trials are judged on different rows", FOR_ALL),
        ("  eval_fraction: {values: [0.1, 0.3]}", "eval_fraction is searched, so trials", FOR_ALL),
        (
            "  max_length: {values: [64, 128]}",
            "max_length is searched, and cuts longer rows",
            "max_length: one",
        ),
    ],
)
def test_a_search_that_changes_the_held_out_rows_gets_a_warning(
    folder: Path, line: str, what: str, hint: str
) -> None:
    shutil.copy(folder / "rows.jsonl", folder / "more.jsonl")
    base = GRID.replace("  dataset: {value: rows.jsonl}\n", "") if line == SETS else GRID
    (warning,) = check(folder, f"{base}{line}\n").warnings
    assert warning.what.startswith(what)
    assert warning.hint.startswith(hint)
    assert "eval/common_loss ranks only trials that were judged on the same held-out rows" in warning.why
    train_metric = check(folder, f"metric: {{name: loss, goal: minimize}}\n{base}{line}\n").warnings
    assert not any("is searched" in warning.what for warning in train_metric)


def test_held_out_rows_of_ones_own_give_one_ranking(folder: Path) -> None:
    shutil.copy(folder / "rows.jsonl", folder / "more.jsonl")
    write_rows(folder, [at % 2 == 0 for at in range(40)], "held_out.jsonl")
    base = GRID.replace("  dataset: {value: rows.jsonl}\n", "")
    warnings = check(folder, f"{base}{SETS}\n  eval_dataset: {{value: held_out.jsonl}}\n").warnings
    assert not any("is searched" in warning.what for warning in warnings)
    several = f"{base}{SETS}\n  eval_dataset: {{values: [held_out.jsonl, rows.jsonl]}}\n"
    assert any(
        warning.what.startswith("eval_dataset is searched, so trials are judged on different rows")
        for warning in check(folder, several).warnings
    )


def test_a_quantised_gguf_is_an_error(folder: Path) -> None:
    text = GRID.replace("model_size: {value: tiny}", "model: {value: base.gguf}")
    (problem,) = check(folder, text + "  quantization: {value: 4bit}\n").errors
    assert (problem.what, problem.hint[:18]) == ("base.gguf with quantization 4bit", "quantization: none")


def test_problems_of_the_file_and_of_the_data_are_reported_together(folder: Path) -> None:
    write_rows(folder, [True] * 40)
    validation = check(folder, GRID + "  learning_rat: {value: 1}\n  beta: {value: -1}\n")
    assert [problem.where.split()[-1] for problem in validation.errors] == [
        "parameters.dataset.value",
        "parameters.learning_rat",
        "parameters.beta.value",
    ]
    assert validation.errors[0].what == "rows.jsonl: all 40 usable rows have label true"
    assert validation.sweep is None


def test_a_broken_line_of_the_data_is_an_error_with_its_line(folder: Path) -> None:
    with (folder / "rows.jsonl").open("a") as file:
        file.write("{\n")
    (problem,) = check(folder, GRID).errors
    assert problem.where == "sweep.yaml:4 parameters.dataset.value"
    assert problem.what.startswith("rows.jsonl:481: broken JSON")


def test_the_command_exits_2_with_errors_and_0_without(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(folder, GRID + "  batch_size: {value: 500}\n")
    assert run(["validate", "sweep.yaml"]) == 2
    shown = capsys.readouterr().out
    assert shown.startswith("Error: sweep.yaml:5 parameters.batch_size.value: a batch of 500")
    assert shown.endswith("sweep.yaml: 1 error, 0 warnings\n")
    check(folder, GRID)
    assert run(["validate", "sweep.yaml", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert (output["valid"], output["errors"], output["expected_trials"]) == (True, [], 1)
    assert run(["validate", "sweep.yaml"]) == 0
    assert "Next: kto-sweep plan sweep.yaml" in capsys.readouterr().out


LLAMA = """method: grid
parameters:
  model: {values: [llama, ./on-the-gpu-box]}
  dataset: {value: rows.jsonl}
  max_length: {values: [32, 128]}
"""


def test_what_is_known_of_a_base_model_is_said_at_its_place(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(small_model("llama"), folder / "llama")
    validation = check(folder, LLAMA)
    assert not validation.errors
    [note] = [warning for warning in validation.warnings if warning.severity is Severity.NOTE]
    assert note.where == "sweep.yaml:5 parameters.max_length.values"
    assert "128 is more than the model can hold: rows are cut to its 64 positions" in note.what
    assert run(["validate", "sweep.yaml"]) == 0
    assert "Note: sweep.yaml:5 parameters.max_length.values: 128 is more" in capsys.readouterr().out
    (folder / "sweep.yaml").write_text(LLAMA.replace(", ./on-the-gpu-box", ""))
    assert run(["plan", "sweep.yaml"]) == 0
    assert "128 is more than the model can hold" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["validate", "plan", "create"])
def test_a_model_that_cannot_be_trained_is_an_error_before_a_gpu_is_touched(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    tokenizer = small_tokenizer("<|reply|>")
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|assistant|>", "<|reply|>")
    save(small_model("llama"), folder / "llama", tokenizer)
    (folder / "sweep.yaml").write_text(LLAMA + "  lora_targets: {value: [c_attn]}\n")
    assert run([command, "sweep.yaml"]) == 2
    said = "".join(capsys.readouterr())
    assert "sweep.yaml:3 parameters.model.values: llama: its tokenizer has ids up to 400 (<|reply|>)" in said
    assert "sweep.yaml:6 parameters.lora_targets.value: the model has no linear layer named c_attn" in said


def test_a_model_that_the_hub_could_not_be_asked_about_is_named(
    folder: Path, hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = GRID.replace("model_size: {value: tiny}", "model: {values: [org/model, org/absent]}")
    [warning] = check(folder, sweep).warnings
    assert warning.labelled.startswith(
        "Warning: sweep.yaml:3 parameters.model.values: org/absent: not a model that you can access on"
    )
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    validation = check(folder, sweep)
    assert not validation.errors
    assert [warning.what for warning in validation.warnings] == [
        f"could not reach the hub to check org/{name}" for name in ("model", "absent")
    ]
    said: list[str] = []
    check_before_create(Path("sweep.yaml"), Home(folder / "home"), force=False, say=said.append)
    assert said[:2] == [warning.labelled for warning in validation.warnings]
    assert said[0].startswith("Note: sweep.yaml:3 parameters.model.values: could not reach the hub")


def test_create_and_validate_say_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sweep.yaml").write_text(GRID + "  batch_size: {value: 2}\n")
    assert run(["validate", "sweep.yaml"]) == 0
    findings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning: ")]
    assert findings
    said: list[str] = []
    check_before_create(Path("sweep.yaml"), Home(folder / "home"), force=False, say=said.append)
    assert findings == [line for text in said for line in text.splitlines() if line.startswith("Warning: ")]
