"""`replicates` in the `kto_sweep:` block: each configuration with several seeds."""

from pathlib import Path

import pytest

from kto_sweep.search.replicates import FIRST_SEED
from kto_sweep.sweep_file.kto_sweep_block import without_block
from kto_sweep.sweep_file.sweep_config import check_sweep_text
from kto_sweep.trial import Trial

GRID = """
method: {method}
run_cap: 20
parameters:
  learning_rate: {{values: [1e-6, 1e-5]}}
  model_size: {{value: tiny}}
  dataset: {{value: rows.jsonl}}
{seed}
kto_sweep: {{replicates: {count}}}
"""


def checked(count, *, method="grid", seed=""):
    return check_sweep_text(GRID.format(method=method, count=count, seed=seed), Path("s.yaml"))


@pytest.mark.parametrize(
    ("seed", "seeds"),
    [("", [42, 43, 44]), ("  seed: {value: 7}", [7, 8, 9]), ("  seed: {value: '7'}", [7, 8, 9])],
)
def test_seeds_multiply_the_cells_and_the_block_is_not_registered(seed, seeds):
    sweep = checked(3, seed=seed).sweep
    assert sweep.config["parameters"]["seed"] == {"values": seeds}
    assert sweep.expected_trials == 6
    assert "kto_sweep" not in sweep.config


@pytest.mark.parametrize("count", ["1", "many", "2.5", "true", "101"])
def test_invalid_numbers_of_seeds_are_rejected(count):
    (problem,) = checked(count).problems
    assert problem.path == ("kto_sweep", "replicates")
    assert problem.hint == "replicates: 3"


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_replicates_of_other_methods_are_registered_only_with_the_embedded_server(method):
    sweep = checked(3, method=method).sweep
    assert sweep.config["kto_sweep"] == {"replicates": 3}
    assert "seed" not in sweep.config["parameters"]
    notice = "run_cap counts runs: 20 runs are 6 configurations with 3 seeds, plus 2 runs of another"
    assert notice in sweep.notices
    config, notes = without_block(sweep.config)
    assert config == {key: value for key, value in sweep.config.items() if key != "kto_sweep"}
    assert notes == ("replicates needs the embedded server; on W&B each configuration is trained once",)


def test_the_first_seed_is_the_default_seed_of_a_trial():
    assert Trial.seed == FIRST_SEED


def test_replicates_with_a_searched_seed_are_rejected():
    (problem,) = checked(3, seed="  seed: {values: [1, 2]}").problems
    assert "seed: {value: 42}" in problem.hint
