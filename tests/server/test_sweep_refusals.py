"""Sweep configurations that the server refuses to register, as W&B does."""

import json
from typing import Any

import pytest
import yaml
from server_harness import GRID, RANDOM, ServerHarness

from kto_sweep.server.sweep_rules import read_rules

UPSERT = """mutation($id: ID, $config: String!) {
    upsertSweep(input: {id: $id, config: $config}) { sweep { id name } configValidationWarnings } }"""


def config(parameter: Any, **others: Any) -> dict[str, Any]:
    """A random search with one good parameter and the parameter `bad`."""
    return {**RANDOM, "parameters": {**RANDOM["parameters"], "bad": parameter}, **others}


MALFORMED = "invalid hyperparameter configuration: bad"
HYPERBAND = {"type": "hyperband", "min_iter": 2}
REFUSED = {
    "no method": ({"parameters": GRID["parameters"]}, "Sweep config must contain method section"),
    "no parameters": ({"method": "random"}, "Sweep config must contain parameters section"),
    "empty parameters": ({"method": "random", "parameters": {}}, "must be a dict of at least length 1"),
    "list of parameters": ({"method": "random", "parameters": ["lr"]}, "must be a dict of at least length 1"),
    "unknown method": ({**RANDOM, "method": "tpe"}, "Invalid search type tpe, must be one of"),
    "list as method": ({**RANDOM, "method": ["grid"]}, "Invalid search type ['grid'], must be one of"),
    "custom method without a scheduler": ({**RANDOM, "method": "custom"}, "Invalid search type custom"),
    "misspelt key": (config({"values:": [2, 10]}), f"{MALFORMED} (parameters.bad: "),
    "bare value": (config(3), MALFORMED),
    "no key": (config({}), MALFORMED),
    "unknown distribution": (config({"distribution": "unifrom", "min": 0, "max": 1}), MALFORMED),
    "range without an end": (config({"min": 0}), MALFORMED),
    "whole and fraction": (config({"min": 0, "max": 1.5}), MALFORMED),
    "empty values": (config({"values": []}), MALFORMED),
    "values not in a list": (config({"values": 3}), MALFORMED),
    "text as min": (config({"min": "low", "max": 3}), MALFORMED),
    "negative sigma": (config({"distribution": "normal", "mu": 0.0, "sigma": -1.0}), MALFORMED),
    "min above max": (config({"min": 5, "max": 3}), "bad: min 5 is not less than max 3"),
    "min equal to max": (config({"min": 0.5, "max": 0.5}), "bad: min 0.5 is not less than max 0.5"),
    "nested min above max": (
        config({"parameters": {"inner": {"min": 5, "max": 3}}}),
        "bad: min 5 is not less than max 3",
    ),
    "nested misspelt key": (config({"parameters": {"inner": {"valuess": [1]}}}), MALFORMED),
    "too few probabilities": (
        config({"values": [1, 2], "probabilities": [1.0]}),
        "Parameter bad: values [1, 2] and probabilities [1.0] are not the same length",
    ),
    "probabilities of 0.9": (
        config({"values": [1, 2], "probabilities": [0.5, 0.4]}),
        "Parameter bad: Probabilities [0.5, 0.4] do not sum to 1",
    ),
    "grid of a range": (
        {**GRID, "parameters": {"bad": {"min": 0.0, "max": 1.0}}},
        "Parameter bad is a disallowed type with grid search",
    ),
    "grid of too many": (
        {**GRID, "parameters": {"bad": {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 1e-9}}},
        "Grid search cannot visit so many values",
    ),
    "bayes with nothing to search": (
        {**RANDOM, "method": "bayes", "parameters": {"a": {"value": 1}, "b": {"values": [2]}}},
        "Need at least one searchable parameter for bayes search.",
    ),
    "bayes without a metric": (
        {"method": "bayes", "parameters": RANDOM["parameters"]},
        'Bayesian search requires "metric" section',
    ),
    "bayes with a metric without a name": (
        {**RANDOM, "method": "bayes", "metric": {"goal": "minimize"}},
        'Bayesian search requires "metric" section',
    ),
    "early termination as text": (
        {**RANDOM, "early_terminate": "hyperband"},
        'early terminate must be a dict with a "type" section',
    ),
    "early termination without a type": (
        {**RANDOM, "early_terminate": {"min_iter": 2}},
        'early terminate must be a dict with a "type" section',
    ),
    "unknown early termination": (
        {**RANDOM, "early_terminate": {"type": "envelope"}},
        'Invalid early stopping type envelope, must be one of ["hyperband"]',
    ),
    "hyperband without bands": (
        {**RANDOM, "early_terminate": {"type": "hyperband"}},
        "early_terminate needs min_iter, or max_iter with s",
    ),
    "hyperband without a metric": (
        {"method": "random", "parameters": RANDOM["parameters"], "early_terminate": HYPERBAND},
        'early terminate requires "metric" section',
    ),
    "not a mapping": ([1, 2], "the sweep configuration is not a mapping"),
}


@pytest.mark.parametrize(("bad", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_config_registers_nothing(harness: ServerHarness, bad: Any, words: str) -> None:
    status, body = harness.execute(UPSERT, config=yaml.safe_dump(bad))
    assert status == 400
    message = body["errors"][0]["message"]
    assert message.startswith("Invalid sweep config: ")
    assert words in message
    assert harness.query("query { project { totalSweeps } }")["project"] is None


def test_refused_change_leaves_the_sweep_as_it_was(harness: ServerHarness) -> None:
    made = harness.query(UPSERT, config=json.dumps(GRID))["upsertSweep"]["sweep"]
    status, _ = harness.execute(UPSERT, id=made["id"], config=json.dumps({**GRID, "parameters": {}}))
    assert status == 400
    assert json.loads(harness.sweep_field(made["name"], "config")) == GRID


@pytest.mark.parametrize(
    "good",
    [
        {**RANDOM, "parameters": {"a": {"value": 1}}},
        {**GRID, "parameters": {"a": {"value": 1}}},
        {**GRID, "parameters": {"a": {"values": [None, True, "x", [1], {"b": 2}]}}},
        {**RANDOM, "method": "custom", "controller": {"type": "local"}},
        {"method": "custom", "scheduler": {"engine": "optuna", "search_space": {"a": {"min": 0, "max": 1}}}},
        {**RANDOM, "metric": "loss"},
        {**RANDOM, "nonsense": 3, "run_cap": -1},
        {**RANDOM, "early_terminate": None},
        {**RANDOM, "early_terminate": HYPERBAND},
        {**RANDOM, "method": "bayes"},
        {**RANDOM, "method": "bayes", "parameters": {"a": {"values": [1, 2]}, "b": {"value": 3}}},
        {**RANDOM, "parameters": {"o": {"parameters": {"p": {"min": 1, "max": 2}, "q": {"value": None}}}}},
    ],
)
def test_config_that_gives_trials_is_registered(harness: ServerHarness, good: dict[str, Any]) -> None:
    assert read_rules(yaml.safe_dump(good)).refusal is None
    assert harness.sweep_field(harness.sweep(good)) == "PENDING"
