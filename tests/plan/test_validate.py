"""Static problems of a sweep and its data, other than invalid single values."""

import json
from pathlib import Path

import pytest
from small_models import save, small_model, small_tokenizer

from kto_sweep.cli import run
from kto_sweep.sweep_file.validate import Validation, validate

GRID = "method: grid\nparameters:\n  model_size: {value: tiny}\n  dataset: {value: rows.jsonl}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with 480 rows of both labels."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path, [at % 2 == 0 for at in range(480)])
    return tmp_path


def write_rows(folder: Path, labels: list[bool]) -> None:
    rows = [
        {"prompt": f"question {at // 2}", "completion": "an answer", "label": label}
        for at, label in enumerate(labels)
    ]
    for at, row in enumerate(rows):
        row["completion"] = f"answer {at}"
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


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


def test_margins_as_the_metric_get_a_warning_with_the_reason(folder: Path) -> None:
    (warning,) = check(folder, GRID + "metric: {name: rewards/margins, goal: maximize}\n").warnings
    assert "diverging trials win" in warning.what
    assert "eval/common_loss" in warning.what


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
    [note] = validation.warnings
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
