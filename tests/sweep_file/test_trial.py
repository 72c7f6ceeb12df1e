"""A trial's configuration: defaults, text numbers, groups, invalid values, and the weights of rho."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kto_sweep.errors import TrialConfigError
from kto_sweep.metrics import DEFAULT_METRIC, METRICS, goal_of
from kto_sweep.models.presets import PRESETS
from kto_sweep.trial import PARAMETERS, Trial, check_value, trial_config, with_defaults

NEEDED = {"dataset": "data.jsonl", "model_size": "tiny"}


def trial(**config: object) -> Trial:
    return Trial.from_config({**NEEDED, **config})


def problems_of(config: dict[str, Any]) -> list[str]:
    with pytest.raises(TrialConfigError) as caught:
        Trial.from_config(config)
    return [str(problem) for problem in caught.value.problems]


def test_defaults_are_those_of_the_kto_literature() -> None:
    made = trial()
    assert (made.learning_rate, made.beta, made.lora_r, made.effective_lora_alpha) == (5e-6, 0.1, 16, 32.0)
    assert made.weights(10, 90) == (1.0, 1.0)
    assert made.loss_type == "kto"


def test_a_run_s_record_and_hidden_keys_are_not_the_trial_s() -> None:
    config = {
        **NEEDED,
        "lora": {"r": 4},
        "_device": "gpu 0",
        "record": {"data": {"beta": 3}, "model": {"x": 1}},
    }
    assert trial_config(config) == {**NEEDED, "lora": {"r": 4}}
    assert Trial.from_config(config) == trial(lora_r=4)


def test_defaults_are_added_under_names_that_a_configuration_lacks() -> None:
    config = {**NEEDED, "learning_rate": "5e-7", "lora": {"r": 4}, "optimizer": {"weight_decay": 0.1}}
    full = with_defaults(config)
    assert full | config == full | {"optimizer": {"weight_decay": 0.1}}
    assert full["optimizer"] == {"weight_decay": 0.1, "optimizer": "adamw"}
    assert (full["beta"], full["seed"], full["batch_size"]) == (0.1, 42, 8)
    assert not {"lora_r", "weight_decay", "eval_steps", "model"} & full.keys()
    assert Trial.from_config(full) == Trial.from_config(config)
    assert with_defaults(full) == full
    assert config["optimizer"] == {"weight_decay": 0.1}


def test_a_configuration_that_cannot_be_trained_gets_no_defaults() -> None:
    assert with_defaults({"lr": 0.1}) == {"lr": 0.1}


@given(st.sets(st.sampled_from(sorted(PARAMETERS.keys() - {"model", "dataset", "model_size"}))))
def test_any_configuration_means_the_same_with_defaults(names: set[str]) -> None:
    config = {**NEEDED, **{name: PARAMETERS[name].default for name in names}}
    assert Trial.from_config(with_defaults(config)) == Trial.from_config(config)


def test_every_default_passes_its_own_rule() -> None:
    for rule in PARAMETERS.values():
        if rule.name != "dataset":
            assert rule.parse(rule.default) == (rule.default, None)
        assert rule.doc
        assert not rule.doc.endswith(".")


def test_text_that_means_a_number_or_a_flag_is_converted() -> None:
    made = trial(learning_rate="5e-7", batch_size="8", full_finetune="true", max_steps="10")
    assert made.learning_rate == 5e-7
    assert (made.batch_size, type(made.batch_size)) == (8, int)
    assert made.full_finetune is True
    assert made.max_steps == 10


def test_whole_floats_are_whole_numbers_and_ints_are_floats() -> None:
    made = trial(batch_size=16.0, epochs=2, seed=0)
    assert (made.batch_size, type(made.batch_size)) == (16, int)
    assert (made.epochs, type(made.epochs)) == (2.0, float)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0),
        ("learning_rate", 1.1),
        ("learning_rate", "fast"),
        ("learning_rate", True),
        ("learning_rate", None),
        ("learning_rate", float("nan")),
        ("learning_rate", [1e-5]),
        ("batch_size", 0),
        ("batch_size", 8.5),
        ("batch_size", True),
        ("beta", 0),
        ("rho", -1),
        ("desirable_weight", 0),
        ("loss_type", "dpo"),
        ("epochs", float("inf")),
        ("max_steps", 0),
        ("max_length", 1),
        ("warmup_ratio", 1),
        ("lr_scheduler", None),
        ("weight_decay", -0.1),
        ("optimizer", "sgd"),
        ("seed", 2**32),
        ("lora_dropout", 1.0),
        ("lora_targets", []),
        ("lora_targets", "q_proj"),
        ("lora_targets", ["q_proj", 3]),
        ("quantization", 4),
        ("eval_fraction", 0),
        ("eval_fraction", 1),
        ("full_finetune", "yes"),
        ("full_finetune", 1),
        ("dataset", ""),
        ("dataset", 7),
        ("dataset", []),
        ("dataset", ["rows.jsonl", ""]),
        ("dataset", {"path": "rows.jsonl"}),
        ("eval_dataset", False),
        ("model_size", "7B"),
        ("model", "~no-such-user/model"),
        ("model", "a" * 256),
        ("model", "./\0"),
    ],
)
def test_a_value_that_does_not_fit_is_rejected(name: str, value: object) -> None:
    _, problem = check_value(name, value)
    assert problem is not None
    assert problem.where == name
    assert problem.why


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 1), ("max_grad_norm", 0), ("lora_alpha", None), ("seed", 2**32 - 1)]
)
def test_the_ends_fit(name: str, value: object) -> None:
    assert check_value(name, value)[1] is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "batch_size",
            0,
            "batch_size: 0 is not a batch size\n"
            "  Examples per optimizer step: a whole number of at least 1.\n"
            "  Hint: the default is 8",
        ),
        (
            "learning_rate",
            "fast",
            "learning_rate: fast is not a learning rate\n"
            "  Peak learning rate: a number above 0 and at most 1.\n"
            "  Hint: the default is 5.0e-06",
        ),
        (
            "model_size",
            "7B",
            "model_size: 7B is not a model size\n"
            "  Base model by size, in place of model: one of tiny, 135m, 360m, 0.5b, 1.5b, 3b, 7b, 8b, "
            "13b, 14b, 20b.\n"
            "  Hint: 7b",
        ),
        (
            "lora_targets",
            "q_proj",
            "lora_targets: q_proj is not a set of LoRA targets\n"
            "  Layers with adapters: all-linear, or a list of layer names.\n"
            "  Hint: [q_proj]",
        ),
        (
            "quantization",
            yaml.safe_load("no"),
            "quantization: false is not a quantization\n"
            "  Precision of the base weights, and with fp8 of their products (null: the preset's): "
            "one of none, 4bit, 8bit, fp8, 4bit-fp8.\n"
            "  Hint: none",
        ),
    ],
)
def test_messages(name: str, value: object, message: str) -> None:
    assert str(check_value(name, value)[1]) == message


def test_all_problems_are_reported_at_once() -> None:
    problems = problems_of({"learning_rat": 1e-5, "batch_size": 0, "training": {"beta": -1}})
    assert [problem.splitlines()[0] for problem in problems] == [
        "learning_rat: learning_rat is not a parameter of a trial",
        "batch_size: 0 is not a batch size",
        "training.beta: -1 is not a beta",
        "dataset: no dataset",
        "model_size: no base model",
    ]
    assert "Hint: learning_rate" in problems[0]
    assert "tiny" in problems[4]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lr", "learning_rate"),
        ("bacth_size", "batch_size"),
        ("max_seq_length", "max_length"),
        ("xyz", "model, "),
    ],
)
def test_an_unknown_name_suggests_the_nearest_known_one(name: str, hint: str) -> None:
    (problem,) = problems_of({**NEEDED, name: 1})
    assert hint in problem


def test_groups_hold_plain_or_prefixed_names() -> None:
    made = Trial.from_config(
        {
            "data": {"dataset": "d.jsonl"},
            "model": {"size": "3b"},
            "lora": {"r": 8, "alpha": "12", "lora_dropout": 0.1},
            "training": {"optimizer": "adamw_8bit", "schedule": {"learning_rate": "1e-6"}},
            "_wandb": {"t": {"1": [2]}},
            "_step": 3,
        }
    )
    assert (made.lora_r, made.effective_lora_alpha, made.lora_dropout) == (8, 12.0, 0.1)
    assert (made.model_size, made.optimizer, made.learning_rate) == ("3b", "adamw_8bit", 1e-6)


def test_a_parameter_given_twice_is_a_problem() -> None:
    (problem,) = problems_of({**NEEDED, "lora_r": 8, "lora": {"r": 16}})
    assert problem.startswith("lora.r: lora_r is set twice")


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"model": "a/b"}, "model_size: set together with model"),
        ({"rho": 1.2, "desirable_weight": 1.0}, "rho: set together with desirable_weight"),
        ({"full_finetune": True, "quantization": "4bit"}, "full_finetune: true with quantization 4bit"),
    ],
)
def test_parameters_that_contradict_each_other(config: dict[str, object], where: str) -> None:
    (problem,) = problems_of({**NEEDED, **config})
    assert problem.startswith(where)


def test_null_means_not_given_where_there_is_no_default() -> None:
    assert trial(rho=None, desirable_weight=2.0, model=None).weights(1, 1) == (2.0, 1.0)


@given(
    rho=st.floats(0.1, 10),
    n_desirable=st.integers(1, 10_000),
    n_undesirable=st.integers(1, 10_000),
)
def test_rho_balances_the_labels_with_no_weight_below_one(
    rho: float, n_desirable: int, n_undesirable: int
) -> None:
    desirable, undesirable = trial(rho=rho).weights(n_desirable, n_undesirable)
    assert min(desirable, undesirable) == 1.0
    assert desirable * n_desirable / (undesirable * n_undesirable) == pytest.approx(rho)


def test_rho_with_one_label_only_leaves_the_weights_at_one() -> None:
    assert trial(rho=1.3).weights(0, 5) == (1.0, 1.0)


def test_base_model_and_quantization_come_from_the_preset_unless_set() -> None:
    assert trial().base_model == "tiny"
    seven = trial(model_size="7b")
    assert (seven.base_model, seven.effective_quantization) == ("Qwen/Qwen2.5-7B-Instruct", "4bit")
    assert trial(model_size="7b", quantization="none").effective_quantization == "none"
    assert trial(model_size="7b", full_finetune=True).effective_quantization == "none"
    own = Trial.from_config({"dataset": "d", "model": "./my-model"})
    assert (own.base_model, own.effective_quantization) == ("./my-model", "none")


def test_four_evaluations_by_default() -> None:
    assert trial().eval_every(100) == 25
    assert trial().eval_every(10) == 3
    assert trial().eval_every(1) == 1
    assert trial(eval_steps=7).eval_every(100) == 7


def test_to_config_is_json_and_round_trips() -> None:
    made = trial(lora_targets=["q_proj", "v_proj"], rho=1.2, learning_rate="5e-7", dataset=["a", "b"])
    config = json.loads(json.dumps(made.to_config()))
    assert Trial.from_config(config) == made
    assert hash(made) == hash(Trial.from_config(config))
    assert config["lora_targets"] == ["q_proj", "v_proj"]
    assert (made.dataset, config["dataset"]) == (("a", "b"), ["a", "b"])
    assert "max_steps" not in config


def test_a_list_of_one_source_is_that_source() -> None:
    assert trial(dataset=["a.jsonl"]) == trial(dataset="a.jsonl")


@given(
    learning_rate=st.floats(1e-9, 1.0),
    batch_size=st.integers(1, 512),
    beta=st.floats(1e-3, 10),
    weights=st.none() | st.floats(0.1, 10),
    lora_r=st.integers(1, 256),
    flag=st.booleans(),
)
def test_any_trial_survives_yaml(
    learning_rate: float, batch_size: int, beta: float, weights: float | None, lora_r: int, flag: bool
) -> None:
    made = trial(
        learning_rate=learning_rate,
        batch_size=batch_size,
        beta=beta,
        desirable_weight=weights,
        lora_r=lora_r,
        full_finetune=flag,
    )
    assert Trial.from_config(yaml.safe_load(yaml.safe_dump(made.to_config()))) == made


def test_presets_and_metrics_are_keyed_by_their_names() -> None:
    assert all(preset.name == name for name, preset in PRESETS.items())
    assert all(metric.name == name for name, metric in METRICS.items())
    assert DEFAULT_METRIC in METRICS
    assert (goal_of(DEFAULT_METRIC), goal_of("eval/auc"), goal_of("nonsense")) == (
        "minimize",
        "maximize",
        "minimize",
    )
