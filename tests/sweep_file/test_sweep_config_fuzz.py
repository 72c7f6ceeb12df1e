"""No YAML file causes a traceback."""

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kto_sweep.errors import SweepFileError
from kto_sweep.server.sweep_rules import read_rules
from kto_sweep.sweep_file.sweep_config import load_sweep_config

HEAD = "method: grid\nparameters:\n  model_size: {value: tiny}\n  dataset: {value: data.jsonl}\n"


WORDS = st.sampled_from(
    [
        "grid",
        "bayes",
        "hyperband",
        "eval/auc",
        "minimize",
        "tiny",
        "kto",
        "5e-7",
        "x",
        "",
        "8",
        "uniform",
        "4bit",
        "log_uniform",
        "log_normal",
        "${args}",
        "${program}",
        "--beta=0.5",
        "--lora_r",
        "lora_targets=[",
        "{",
        "a/b",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | WORDS
NAMES = """
    method parameters metric name goal value values min max distribution q mu probabilities beta lora r
    dataset model_size batch_size early_terminate type min_iter max_iter s eta run_cap learning_rate _x 1
    replicates asha objectives warm_start alerts seed command program project entity controller job x-base
"""
KEYS = st.sampled_from(NAMES.split()) | st.integers(0, 2) | st.booleans() | st.none()
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)
SECTIONS = st.dictionaries(KEYS, TREES, max_size=3)
BLOCKS = TREES | st.fixed_dictionaries(
    {},
    optional={
        "alerts": TREES,
        "replicates": TREES,
        "asha": st.fixed_dictionaries(
            {}, optional=dict.fromkeys(["min_iter", "max_iter", "s", "eta"], TREES)
        ),
        "objectives": st.lists(st.fixed_dictionaries({"name": TREES}, optional={"goal": TREES}) | TREES),
        "warm_start": TREES,
    },
)


@given(tree=SECTIONS, parameters=SECTIONS, block=BLOCKS)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_yaml_file_causes_a_traceback(tmp_path: Path, tree: Any, parameters: Any, block: Any) -> None:
    valid = yaml.safe_load(HEAD)
    whole = {**valid, **tree, "parameters": {**valid["parameters"], **parameters}, "kto_sweep": block}
    text = yaml.safe_dump(whole)
    file = tmp_path / "sweep.yaml"
    file.write_text(text, encoding="utf-8")
    assert all(isinstance(problem, str) for problem in read_rules(text).problems)
    try:
        sweep = load_sweep_config(file, dataset_check=False)
    except SweepFileError as error:
        wheres = [problem.where for problem in error.problems]
    else:
        wheres = []
        assert json.loads(json.dumps(sweep.config)) == sweep.config
    assert all(where.startswith(f"{file}:") for where in wheres)
