"""Sweep files: the registered configuration, every problem with its line, and notices."""

import json
from pathlib import Path

import pytest
import yaml

from kto_sweep.errors import SweepFileError, UsageError
from kto_sweep.sweep_file.sweep_config import SweepConfig, load_sweep_config
from kto_sweep.trial import Trial

HEAD = "method: grid\nparameters:\n  model_size: {value: tiny}\n  dataset: {value: data.jsonl}\n"


def load(folder: Path, text: str) -> SweepConfig:
    file = folder / "sweep.yaml"
    file.write_text(text, encoding="utf-8")
    return load_sweep_config(file, dataset_check=False)


def problems_of(folder: Path, text: str) -> list[str]:
    """Each problem without the folder: `3 parameters.x: what is wrong ...`."""
    with pytest.raises(SweepFileError) as caught:
        load(folder, text)
    return [str(problem).removeprefix(f"{folder}/sweep.yaml:") for problem in caught.value.problems]


FIVE_MISTAKES = """\
# Five mistakes.
method: gird
metric:
  name: eval/comon_loss
parameters:
  model_size: {value: tiny}
  dataset:
    value: data.jsonl
  learning_rat:
    values: [5e-7, 1e-7]
  batch_size:
    values:
      - 8
      - 0
  beta: {min: 0.5, max: 0.02}
"""


def test_five_mistakes_are_five_problems_in_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text(FIVE_MISTAKES, encoding="utf-8")
    with pytest.raises(SweepFileError) as caught:
        load_sweep_config(Path("sweep.yaml"), dataset_check=False)
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        "sweep.yaml: 5 problems\n"
        "sweep.yaml:2 method: gird is not a method\n"
        "  The method sets how trials are chosen.\n"
        "  Hint: grid\n"
        "sweep.yaml:4 metric.name: eval/comon_loss is not a metric that trials log\n"
        "  The search would wait for a value that is never logged.\n"
        "  Hint: eval/common_loss\n"
        "sweep.yaml:9 parameters.learning_rat: learning_rat is not a parameter of a trial\n"
        "  Hint: learning_rate\n"
        "sweep.yaml:14 parameters.batch_size.values: 0 is not a batch size\n"
        "  Examples per optimizer step: a whole number of at least 1.\n"
        "  Hint: the default is 8\n"
        "sweep.yaml:15 parameters.beta.min: min 0.5 is not below max 0.02\n"
        "  Hint: min: 0.02, max: 0.5"
    )


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    sweep = load(tmp_path, HEAD + "  beta: {values: [0.1, 0.3]}\n")
    assert sweep.config["metric"] == {"name": "eval/common_loss", "goal": "minimize"}
    assert sweep.config["program"] == "agent.py"
    assert (sweep.metric_name, sweep.goal, sweep.method) == ("eval/common_loss", "minimize", "grid")
    assert (sweep.project, sweep.name, sweep.notices, sweep.expected_trials) == (None, None, (), 2)


def test_settings_of_the_file_are_kept(tmp_path: Path) -> None:
    sweep = load(
        tmp_path,
        "name: first\nproject: kto\nentity: me\nprogram: mine.py\ndescription: why\n"
        "metric: {name: eval/auc, goal: maximize, target: 0.9}\nrun_cap: 1\n" + HEAD,
    )
    assert (sweep.name, sweep.project, sweep.config["entity"]) == ("first", "kto", "me")
    assert sweep.config["program"] == "mine.py"
    assert sweep.config["metric"] == {"name": "eval/auc", "goal": "maximize", "target": 0.9}


def test_text_numbers_are_registered_as_numbers_with_one_notice(tmp_path: Path) -> None:
    sweep = load(
        tmp_path,
        "run_cap: '20'\nearly_terminate: {type: hyperband, min_iter: '2', eta: 2e0}\n"
        + HEAD
        + "  learning_rate: {values: [5e-7, 2.5e-7, 1e-7]}\n"
        '  batch_size: {value: "8"}\n'
        '  full_finetune: {value: "false"}\n'
        "  lora: {parameters: {alpha: {values: [16, '3.2E1']}}}\n",
    )
    assert sweep.config["parameters"]["learning_rate"] == {"values": [5e-7, 2.5e-7, 1e-7]}
    assert sweep.config["parameters"]["batch_size"] == {"value": 8}
    assert sweep.config["parameters"]["full_finetune"] == {"value": False}
    assert sweep.config["parameters"]["lora"]["parameters"]["alpha"] == {"values": [16, 32.0]}
    assert (sweep.config["run_cap"], sweep.config["early_terminate"]["eta"]) == (20, 2.0)
    assert sweep.notices[0] == (
        "learning_rate: YAML 1.1 reads 5e-7, 1e-7 as text; registered as a number "
        "(write 5.0e-7, 1.0e-7 to silence this)"
    )
    assert [notice.split(":")[0] for notice in sweep.notices] == [
        "learning_rate",
        "batch_size",
        "full_finetune",
        "lora.alpha",
    ]


def test_the_suggested_spelling_silences_the_notice(tmp_path: Path) -> None:
    assert load(tmp_path, HEAD + "  learning_rate: {values: [5.0e-7, 1.0e-7]}\n").notices == ()


def test_text_ranges_are_registered_as_numbers(tmp_path: Path) -> None:
    sweep = load(
        tmp_path,
        HEAD.replace("grid", "random")
        + "  learning_rate: {distribution: log_uniform_values, min: 5e-7, max: 1e-4}\n",
    )
    entry = sweep.config["parameters"]["learning_rate"]
    assert entry == {"distribution": "log_uniform_values", "min": 5e-7, "max": 1e-4}


def test_the_configuration_survives_the_yaml_that_wandb_sends(tmp_path: Path) -> None:
    config = load(tmp_path, HEAD + "  learning_rate: {values: [5e-7, 2.5e-7, 1e-7]}\n").config
    assert yaml.safe_load(yaml.dump(config)) == config
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("method: grid\n", 6),
        ("method: grid\nrun_cap: 4\n", 4),
        ("method: grid\nrun_cap: 40\n", 6),
        ("method: random\n", None),
        ("method: random\nrun_cap: 9\n", 9),
        ("method: bayes\nrun_cap: 9\n", 9),
    ],
)
def test_expected_trials(tmp_path: Path, text: str, expected: int | None) -> None:
    body = "  beta: {values: [0.1, 0.2, 0.1, 0.3]}\n  batch_size: {min: 7, max: 8}\n"
    assert load(tmp_path, HEAD.replace("method: grid\n", text) + body).expected_trials == expected


@pytest.mark.parametrize("group", ["record", "_mine"])
def test_a_group_that_trials_ignore_is_an_error(tmp_path: Path, group: str) -> None:
    text = HEAD + f"  {group}: {{parameters: {{beta: {{value: 0.5}}}}}}\n"
    (problem,) = problems_of(tmp_path, text)
    assert f"a group named {group}" in problem
    assert "rename the group" in problem
    inner = HEAD + "  lora: {parameters: {record: {parameters: {lora_r: {value: 4}}}}}\n"
    assert Trial.from_config(load(tmp_path, inner).space.config({})).lora_r == 4


def test_groups_and_tied_values(tmp_path: Path) -> None:
    sweep = load(
        tmp_path,
        HEAD + "  lora:\n    values: [{r: 8, alpha: 16}, {r: 16, alpha: 64}]\n"
        "  training:\n    parameters:\n      beta: {values: [0.1, 0.2]}\n",
    )
    assert sweep.expected_trials == 4
    config = sweep.space.config({("lora",): {"r": 16, "alpha": 64}, ("training", "beta"): 0.2})
    trial = Trial.from_config(config)
    assert (trial.lora_r, trial.lora_alpha, trial.beta) == (16, 64.0, 0.2)


@pytest.mark.parametrize(
    ("top", "problem"),
    [
        ("metod: grid", "1 metod: metod is not a key of a sweep\n  Hint: method"),
        ("run_cap: 0", "1 run_cap: 0 is not a number of trials"),
        ("run_cap: 2.5", "1 run_cap: 2.5 is not a number of trials"),
        ("project: 7", '1 project: 7 is not a project\n  It must be text.\n  Hint: project: "7"'),
        (
            "project: team/kto",
            "1 project: team/kto is not the name of a project\n"
            "  W&B allows 1 to 128 characters, and none of / \\ # ? % :\n"
            "  Hint: project kto, entity team",
        ),
        ("project: 'kto: v2'", "1 project: kto: v2 is not the name of a project"),
        ("entity: my/team", "1 entity: my/team is not the name of a user or team"),
        ("controller: locl", "1 controller: locl is not a controller\n  Hint: controller: {type: local}"),
        ("command: python", "1 command: python is not a list"),
        ("metrics: [{name: eval/auc}]", "1 metrics: several metrics"),
        ("metric: eval/auc", "1 metric: eval/auc is not a metric\n  Hint: metric: {name: eval/auc}"),
        ("metric: {goal: minimize}", "1 metric: no name"),
        ("metric: {name: common_loss}", "1 metric.name: common_loss is not a metric"),
        ("metric: {name: [a]}", "1 metric.name: "),
        ("metric: {name: failure/cause}", "1 metric.name: failure/cause cannot be the metric"),
        ("metric: {name: eval/auc}", "1 metric: no goal"),
        (
            "metric: {name: eval/auc, goal: maximise}",
            "1 metric.goal: maximise is not a goal\n  Hint: maximize",
        ),
        (
            "metric: {name: eval/loss, goal: minimize, targt: 1}",
            "1 metric.targt: targt is not a key of metric",
        ),
        ("metric: {name: eval/loss, target: low}", "1 metric.target: low is not a number"),
        ("metric: {name: eval/loss, impute: mean}", "1 metric.impute: mean is not a way"),
        ("early_terminate: hyperband", "1 early_terminate: hyperband is not a group of keys"),
        ("early_terminate: {min_iter: 1}", "1 early_terminate: no type"),
        ("early_terminate: {type: median, min_iter: 1}", "1 early_terminate.type: median is not a type"),
        ("early_terminate: {type: hyperband}", "1 early_terminate: neither min_iter nor max_iter"),
        ("early_terminate: {type: hyperband, max_iter: 9}", "1 early_terminate: max_iter without s"),
        ("early_terminate: {type: hyperband, min_iter: 0}", "1 early_terminate.min_iter: 0 is not a whole"),
        (
            "early_terminate: {type: hyperband, min_iter: 1, eta: 1}",
            "1 early_terminate.eta: 1 is not a number",
        ),
        ("early_terminate: {type: hyperband, min_iter: 1, strict: 1}", "1 early_terminate.strict: 1 is not"),
        ("early_terminate: {type: hyperband, min_itr: 1, max_iter: 8, s: 2}", "1 early_terminate.min_itr: "),
    ],
)
def test_invalid_settings(tmp_path: Path, top: str, problem: str) -> None:
    (problems,) = problems_of(tmp_path, f"{top}\n{HEAD}")
    assert problems.startswith(problem)


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        ("", "1: no method"),
        ("method: custom\n", "1 method: custom is not supported"),
        ("method: Bayes\n", "1 method: Bayes is not a method"),
        ("method: [grid]\n", "1 method: "),
    ],
)
def test_invalid_methods(tmp_path: Path, method: str, problem: str) -> None:
    (problems,) = problems_of(tmp_path, HEAD.replace("method: grid\n", method))
    assert problems.startswith(problem)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("lr: {value: 1.0e-5}", "5 parameters.lr: lr is not a parameter of a trial\n  Hint: learning_rate"),
        (
            "learning_rate: 1.0e-5",
            "5 parameters.learning_rate: 1.0e-05 without value or values\n  Hint: value: 1.0e-05",
        ),
        ("learning_rate: {value: fast}", "5 parameters.learning_rate.value: fast is not a learning rate"),
        (
            "learning_rate: {values: [0.1, 2.0]}",
            "5 parameters.learning_rate.values: 2.0 is not a learning rate",
        ),
        ("learning_rate: {values: []}", "5 parameters.learning_rate.values: [] is not a list of values"),
        ("lora: {parameters: {rr: {value: 8}}}", "5 parameters.lora.parameters.rr: rr is not a parameter"),
        ("lora: {values: [{r: 8}, {r: 0}]}", "5 parameters.lora.values: 0 is not a LoRA rank"),
        ("lora: {value: {rnk: 8}}", "5 parameters.lora: rnk is not a parameter"),
        (
            "beta: {distribution: uniform, min: 0.1, max: 1.0}",
            "5 parameters.beta.distribution: a grid cannot use uniform\n"
            "  method grid tries every value, and uniform has infinitely many.\n"
            "  Hint: values: [0.1, 0.55, 1.0], or method: random",
        ),
        ("beta: {min: 0.1, max: 1.0}", "5 parameters.beta.min: a grid cannot use uniform"),
        (
            "beta: {values: [0.1, 0.2], probabilities: [0.5, 0.5]}",
            "5 parameters.beta.probabilities: probabilities with method grid",
        ),
        (
            "max_length: {distribution: q_uniform, min: 0, max: 99, q: 33}",
            "5 parameters.max_length.min: 0 is not",
        ),
        (
            "rho: {value: 1.2}\n  desirable_weight: {value: 2.0}",
            "5 parameters.rho: set together with desirable_weight",
        ),
        ("model: {value: a/b}", "3 parameters.model_size: set together with model"),
        (
            "lora_r: {value: 8}\n  lora: {parameters: {r: {value: 8}}}",
            "6 parameters.lora.parameters.r: lora_r is set",
        ),
        (
            "full_finetune: {values: [true, false]}\n  quantization: {value: 4bit}",
            "5 parameters.full_finetune: true with quantization 4bit",
        ),
    ],
)
def test_invalid_parameters(tmp_path: Path, entry: str, problem: str) -> None:
    (problems,) = problems_of(tmp_path, f"{HEAD}  {entry}\n")
    assert problems.startswith(problem)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (
            "learning_rate: {distribution: log_uniform_values, min: 1.0e-6, max: 10}",
            "5 parameters.learning_rate.max: 10.0 is not a learning rate",
        ),
        (
            "learning_rate: {distribution: normal, mu: 1.0e-5, sigma: 1.0e-5}",
            "5 parameters.learning_rate.distribution: -2.09e-05 is not a learning rate",
        ),
        (
            "batch_size: {min: 4.0, max: 32.0}",
            "5 parameters.batch_size.min: uniform gives fractions\n"
            "  Examples per optimizer step: a whole number of at least 1.\n"
            "  Hint: min: 4 and max: 32 without distribution",
        ),
        (
            "batch_size: {distribution: log_uniform_values, min: 4, max: 32}",
            "5 parameters.batch_size.distribution: log_uniform_values gives fractions\n"
            "  Examples per optimizer step: a whole number of at least 1.\n"
            "  Hint: distribution: q_log_uniform_values and q: 1",
        ),
        (
            "optimizer: {min: 0.1, max: 0.9}",
            "5 parameters.optimizer.min: uniform gives numbers",
        ),
        (
            "beta: {values: [0.1, 0.2], probabilities: [0.5, 0.5]}",
            "5 parameters.beta.probabilities: probabilities with method bayes",
        ),
    ],
)
def test_impossible_ranges(tmp_path: Path, entry: str, problem: str) -> None:
    (problems,) = problems_of(tmp_path, f"{HEAD.replace('grid', 'bayes')}  {entry}\n")
    assert problems.startswith(problem)


def test_a_grid_excludes_an_end_of_q_uniform_that_does_not_fit(tmp_path: Path) -> None:
    body = "  eval_fraction: {distribution: q_uniform, min: 0.1, max: 1.0, q: 0.1}\n"
    assert load(tmp_path, HEAD + body).expected_trials == 9
    (problem,) = problems_of(tmp_path, HEAD.replace("grid", "random") + body)
    assert "1.0 is not an eval fraction" in problem


def test_whole_number_ranges_with_a_step_are_fine(tmp_path: Path) -> None:
    body = "  batch_size: {distribution: q_log_uniform_values, min: 4, max: 64, q: 4}\n"
    assert load(tmp_path, HEAD.replace("grid", "random") + body).expected_trials is None


def test_missing_data_and_model_are_reported_unless_misspelt(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, "method: grid\nparameters:\n  beta: {value: 0.1}\n")
    assert [problem.splitlines()[0] for problem in problems] == [
        "2 parameters: no dataset",
        "2 parameters: no base model",
    ]
    problems = problems_of(tmp_path, HEAD.replace("dataset", "datset"))
    assert [problem.splitlines()[0] for problem in problems] == [
        "4 parameters.datset: datset is not a parameter of a trial"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1: the file is empty"),
        ("# only a comment\n", "1: the file is empty"),
        ("just words\n", "1: not a sweep"),
        ("- method: grid\n", "1: not a sweep"),
        ("method: grid\n", "1 parameters: no parameters"),
        ("method: grid\nparameters:\n", "2 parameters: no parameters"),
        ("method: grid\nparameters: [beta]\n", "2 parameters: "),
        ("method: grid\nparameters: {a: {values: [1, 2}}\n", "2: column 31: not YAML"),
        ("method: grid\nparameters:\n\tbeta: 1\n", "3: column 1: not YAML"),
        (
            HEAD + "  beta: {value: 0.1}\n  beta: {value: 0.2}\n",
            "6 parameters.beta: beta is set here and in line 5",
        ),
        (HEAD + "  beta: !secret 3\n", "5: column 9: not YAML"),
        (HEAD + "---\n" + HEAD, "5: column 1: not YAML"),
    ],
)
def test_files_that_are_not_sweeps(tmp_path: Path, text: str, problem: str) -> None:
    (problems,) = problems_of(tmp_path, text)
    assert problems.startswith(problem)


def test_notices_about_settings_that_are_probably_not_intended(tmp_path: Path) -> None:
    sweep = load(
        tmp_path,
        "metric: {name: eval/margins, goal: minimize}\n"
        "early_terminate: {type: hyperband, max_iter: 81, s: 2}\n"
        + HEAD.replace("grid", "bayes")
        + "  learning_rate: {distribution: log_uniform, min: -14, max: -9}\n",
    )
    notices = "\n".join(sweep.notices)
    for part in (
        "diverging trials win",
        "better when higher",
        "runs until you stop it",
        "from evaluation 9 on",
        "log_uniform_values",
    ):
        assert part in notices
    assert len(sweep.notices) == 5


def test_a_file_that_is_not_text_is_one_message(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_bytes(b"method: \xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        load_sweep_config(file)
    file.write_bytes(b"method: \x00")
    with pytest.raises(SweepFileError, match="not YAML"):
        load_sweep_config(file)


ANCHORS = """\
x-rates: &rates
  values: [1.0e-4, 1.0e-3]
common: &common
  dataset: {value: data.jsonl}
  beta: {value: 0.3}
method: grid
parameters:
  <<: *common
  model_size: {value: tiny}
  learning_rate: *rates
  beta: {values: [0.1, 0.2]}
"""


def test_top_level_keys_that_only_hold_anchors_are_not_registered(tmp_path: Path) -> None:
    config = load(tmp_path, ANCHORS).config
    assert set(config) == {"method", "metric", "parameters", "program"}
    assert config["parameters"] == {
        "dataset": {"value": "data.jsonl"},
        "model_size": {"value": "tiny"},
        "learning_rate": {"values": [1e-4, 1e-3]},
        "beta": {"values": [0.1, 0.2]},
    }
    assert set(load(tmp_path, "x-note: {a: 1}\n" + HEAD).config) == set(config)


@pytest.mark.parametrize(
    ("top", "problem"),
    [
        ("rates: {values: [1, 2]}", "1 rates: rates is not a key of a sweep"),
        ("rates: &rates {values: [*one, *one]}", "1: column 25: not YAML"),
        ("rates: {a: &one 1, b: *one}", "1 rates: rates is not a key of a sweep"),
        (
            "metirc: &metric {name: eval/auc, goal: maximize}\nmetric: *metric",
            "1 metirc: metirc is not a key of a sweep\n  Hint: metric",
        ),
    ],
)
def test_other_unknown_top_level_keys_are_errors(tmp_path: Path, top: str, problem: str) -> None:
    (shown,) = problems_of(tmp_path, f"{top}\n{HEAD}")
    assert shown.startswith(problem)


@pytest.mark.parametrize(
    ("entry", "registered", "notice"),
    [
        (
            "learning_rate: {values: [1e-4, 0.0001]}",
            {"values": [1e-4]},
            "learning_rate: 1e-4 = 0.0001 is listed 2 times and counts once",
        ),
        (
            "batch_size: {values: ['8', 4, 8, 8.0]}",
            {"values": [8, 4]},
            "batch_size: 8 = 8.0 is listed 3 times and counts once",
        ),
        (
            "full_finetune: {values: [true, 'true', false]}",
            {"values": [True, False]},
            "full_finetune: true is listed 2 times and counts once",
        ),
        (
            "lora: {values: [{r: 8}, {r: '8'}]}",
            {"values": [{"r": 8}]},
            'lora: {"r": 8} = {"r": "8"} is listed 2 times and counts once',
        ),
    ],
)
def test_a_value_listed_twice_counts_once(
    tmp_path: Path, entry: str, registered: dict[str, object], notice: str
) -> None:
    sweep = load(tmp_path, f"{HEAD}  {entry}\n")
    assert sweep.config["parameters"][entry.partition(":")[0]] == registered
    assert sweep.notices[-1] == notice
    assert sweep.expected_trials == sweep.space.grid_size() == len(registered["values"])  # type: ignore[arg-type]
    assert [len(p.distribution.extremes()) for p in sweep.space.searched] in ([], [sweep.expected_trials])


def test_equal_values_add_their_probabilities(tmp_path: Path) -> None:
    body = "  beta: {values: [0.1, 0.2, '0.1'], probabilities: [0.25, 0.25, 0.5]}\n"
    sweep = load(tmp_path, HEAD.replace("grid", "random") + body)
    assert sweep.config["parameters"]["beta"] == {"values": [0.1, 0.2], "probabilities": [0.75, 0.25]}


@pytest.mark.parametrize(
    ("top", "notice"),
    [
        ("job: me/kto/job:latest", "job: only W&B Launch reads it"),
        ("image_uri: me/kto:1", "image_uri: only W&B Launch reads it"),
        ("scheduler: {engine: wandb}", "scheduler: no trial starts until `wandb sweep-scheduler SWEEP`"),
        ("controller: {type: local}", "controller: with type: local, W&B starts no trial until"),
    ],
)
def test_settings_that_need_another_program_are_named(tmp_path: Path, top: str, notice: str) -> None:
    sweep = load(tmp_path, f"{top}\n{HEAD}")
    assert [text[: len(notice)] for text in sweep.notices] == [notice]
    assert sweep.config[top.partition(":")[0]] == yaml.safe_load(top)[top.partition(":")[0]]


def test_the_settings_of_wandbs_documentation_are_registered_as_they_are(tmp_path: Path) -> None:
    top = {
        "name": "sweep demo",
        "description": "from W&B's documentation",
        "entity": "my-team",
        "project": "my-kto",
        "run_cap": 3,
        "early_terminate": {"type": "hyperband", "s": 2, "eta": 3, "max_iter": 27},
        "controller": {"type": "cloud"},
        "apiVersion": "1",
        "kind": "sweep",
        "command": ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"],
    }
    body = (
        "  optimizer: {distribution: constant, value: adamw}\n  lora: {parameters: {r: {values: [8, 16]}}}\n"
    )
    sweep = load(tmp_path, yaml.safe_dump(top) + HEAD + body)
    assert {key: sweep.config[key] for key in top} == top
    assert sweep.config["parameters"]["optimizer"] == {"distribution": "constant", "value": "adamw"}
    assert sweep.expected_trials == 2
