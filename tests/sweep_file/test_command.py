"""The command of a sweep: what it fixes, under W&B's own agent and here, and what cannot be honoured."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from kto_sweep.errors import SweepFileError, TrialConfigError
from kto_sweep.sweep_file.command import ARGS_MACROS, DEFAULT, is_flag, read_command, with_flags
from kto_sweep.sweep_file.sweep_config import SweepConfig, load_sweep_config

CONFIG: dict[str, Any] = {
    "model_size": "tiny",
    "dataset": "rows.jsonl",
    "learning_rate": 0.001,
    "lora": {"r": 8, "dropout": 0.0},
    "lora_targets": ["q_proj", "v_proj"],
    "full_finetune": False,
    "rho": None,
    "_alerts": "kl_raw > 10; loss > 2",
}


def wandbs_words(command: Sequence[str], config: dict[str, Any], folder: Path) -> list[str]:
    """The arguments of the program that `wandb agent` starts, by its own functions."""
    made = create_sweep_command_args({"args": {name: {"value": value} for name, value in config.items()}})
    file = folder / "config.json"
    file.write_text(made["args_json"][0])
    made |= {
        "args_json_file": [str(file)],
        "program": ["agent.py"],
        "interpreter": ["python"],
        "env": ["env"],
    }
    words: list[str] = []
    for word in create_sweep_command(list(command)):
        words += (made.get(word[2:-1]) or []) if word.startswith("${") and word.endswith("}") else [word]
    return words[words.index("agent.py") + 1 :]


@pytest.mark.parametrize("macro", ARGS_MACROS)
def test_every_form_of_the_arguments_leaves_the_configuration_as_it_is(macro: str, tmp_path: Path) -> None:
    command = ["${env}", "${interpreter}", "${program}", macro]
    assert with_flags(CONFIG, wandbs_words(command, CONFIG, tmp_path)) == CONFIG
    assert with_flags(CONFIG, read_command({"command": command}).expand(CONFIG)) == CONFIG


@pytest.mark.parametrize("macro", ARGS_MACROS)
def test_flags_are_added_in_both_agents_alike_and_the_later_one_wins(macro: str, tmp_path: Path) -> None:
    flags = ["--beta=0.5", "--learning_rate", "0.01", macro, "--lora.r", "4", "lora_targets=[q_proj]"]
    command = ["${env}", "python3", "${program}", *flags]
    expected = CONFIG | {"beta": 0.5, "lora": {"dropout": 0.0}, "lora_r": 4, "lora_targets": ["q_proj"]}
    assert with_flags(CONFIG, wandbs_words(command, CONFIG, tmp_path)) == expected
    assert with_flags(CONFIG, read_command({"command": command}).expand(CONFIG)) == expected


def test_environment_variables_are_those_of_the_agent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEED_OF_BOX", "7")
    command = ["python", "${program}", "--seed=${envvar:SEED_OF_BOX}", "${args}"]
    assert with_flags(CONFIG, wandbs_words(command, CONFIG, tmp_path))["seed"] == 7
    assert with_flags(CONFIG, read_command({"command": command}).expand(CONFIG))["seed"] == 7


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--lora-r=4"], "lora_r", 4),
        (["-beta", "5e-1"], "beta", 0.5),
        (["++max_steps=3"], "max_steps", 3),
        (["--full_finetune", "--beta=1"], "full_finetune", True),
        (["--rho=None"], "rho", None),
        (['{"warmup_ratio": 0.2}'], "warmup_ratio", 0.2),
    ],
)
def test_forms_of_a_flag(words: list[str], name: str, value: object) -> None:
    assert with_flags({}, words)[name] == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bta=0.5"], "--bta: bta is not a parameter of a trial\n  Hint: beta"),
        (["--beta=high"], "high is not a beta"),
        (["--lora_r"], "true is not a LoRA rank"),
        (["--lora_targets=" + "[" * 2000], "is not"),
        (["--lora_targets=[" + "9" * 5000], "is not"),
        (["--eval_dataset=[&a [x], &b [*a, *a], &c [*b, *b]]"], "is not"),
        (['{"a":' + "[" * 2000], "sets no parameter"),
        (["train"], "train sets no parameter\n  Hint: write parameters as --name=value"),
    ],
)
def test_a_word_that_cannot_be_honoured_fails_the_trial(words: list[str], message: str) -> None:
    with pytest.raises(TrialConfigError) as caught:
        with_flags(CONFIG, words)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("word", "expected"), [("--beta", True), ("beta=1", True), ("{}", True), ("me/kto/ab12cd34", False)]
)
def test_a_flag_is_no_name_of_a_sweep(word: str, expected: bool) -> None:
    assert is_flag(word) == expected


FILE = "method: grid\nparameters:\n  model_size: {value: tiny}\n  learning_rate: {values: [0.1, 0.2]}\n"


def load(folder: Path, command: Sequence[object], more: str = "") -> SweepConfig:
    file = folder / "sweep.yaml"
    file.write_text(f"command: {json.dumps(command)}\n{more}{FILE}")
    return load_sweep_config(file, dataset_check=False)


def ours(*words: object) -> list[object]:
    return ["${env}", "${interpreter}", "${program}", *words, "${args}"]


def test_fixed_flags_are_registered_as_parameters(tmp_path: Path) -> None:
    command = ours("--beta=0.5", "--lora_r", 4, "--lora-targets=[q_proj]", "dataset=rows.jsonl")
    sweep = load(tmp_path, command)
    assert sweep.config["command"] == command
    assert sweep.config["parameters"] == {
        "model_size": {"value": "tiny"},
        "learning_rate": {"values": [0.1, 0.2]},
        "beta": {"value": 0.5},
        "lora_r": {"value": 4},
        "lora_targets": {"value": ["q_proj"]},
        "dataset": {"value": "rows.jsonl"},
    }
    assert (sweep.expected_trials, sweep.notices) == (2, ())


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (
            ["bash", "run.sh", "${args}"],
            "1 command: runs no Python program\n"
            "  It would run something else than kto-sweep's training.\n"
            f"  Hint: command: [{', '.join(DEFAULT)}]",
        ),
        (ours("--bta=0.5"), "1 command: --bta: bta is not a parameter of a trial\n  Hint: beta"),
        (ours("--beta=-1"), "1 command: -1 is not a beta"),
        (ours("--beta 0.5"), "1 command: --beta 0.5 sets no parameter\n  Hint: write parameters as"),
        (ours("--learning_rate=0.3"), "1 command: learning_rate is set twice\n  parameters sets it too."),
        (ours("${arg}"), "1 command: ${arg} is not a macro of W&B\n  W&B drops it.\n  Hint: ${args}"),
        (ours("--c=${args_json}"), "1 command: ${args_json} inside --c=${args_json}\n  W&B replaces"),
        (ours({"--beta": 0.5}), '1 command: {"--beta": 0.5} is not a word of a command\n  Hint: quote it'),
        (ours(["--beta", 0.5]), '1 command: ["--beta", 0.5] is not a word of a command\n  Hint: one word'),
    ],
)
def test_commands_that_cannot_be_honoured(tmp_path: Path, command: list[object], problem: str) -> None:
    with pytest.raises(SweepFileError) as caught:
        load(tmp_path, [*command, "--dataset=rows.jsonl"] if "${program}" in command else command)
    assert str(caught.value.problems[0]).removeprefix(f"{tmp_path}/sweep.yaml:").startswith(problem)


@pytest.mark.parametrize(
    ("command", "more", "notice"),
    [
        (ours(), "program: my_train.py\n", "program my_train.py: only `wandb agent` runs it"),
        (
            ["python", "-m", "my.training", "${args}"],
            "",
            "program -m my.training: only `wandb agent` runs it",
        ),
        (
            ["${env}", "CUDA_VISIBLE_DEVICES=1", "accelerate", "launch", "${program}", "${args}"],
            "",
            "command: CUDA_VISIBLE_DEVICES=1 accelerate launch has no effect under `kto-sweep agent`",
        ),
        (ours("--seed=${envvar:SEED}"), "", "command: each agent reads SEED from its environment"),
    ],
)
def test_what_an_agent_does_not_take_from_a_command_is_named(
    tmp_path: Path, command: list[object], more: str, notice: str
) -> None:
    (shown,) = load(tmp_path, [*command, "--dataset=rows.jsonl"], more).notices
    assert shown.startswith(notice)


def test_replicates_choose_the_seed_alone(tmp_path: Path) -> None:
    with pytest.raises(SweepFileError, match=r"seed is set twice\n  kto_sweep.replicates sets it too"):
        load(tmp_path, [*ours("--dataset=rows.jsonl"), "--seed=1"], "kto_sweep: {replicates: 3}\n")
