"""The end of a range at which a value is, and how the range continues beyond it."""

import pytest

from kto_sweep.search import grid
from kto_sweep.search.axes import cube_of
from kto_sweep.search.range_ends import range_end, widened_entry
from kto_sweep.search.space import Parameter, Space
from kto_sweep.search.space_parser import parse_space
from kto_sweep.trial import check_value, parameter_name

LOG = {"distribution": "log_uniform_values"}


def parameter(name: str, entry: dict[str, object]) -> Parameter:
    space, problems = parse_space({name: entry})
    assert space is not None, problems
    return space.parameters[0]


@pytest.mark.parametrize(
    ("name", "entry", "value", "end"),
    [
        ("learning_rate", {"values": [1e-6, 5e-6, 2e-5]}, 2e-5, "high"),
        ("learning_rate", {"values": [2e-5, 1e-6, 5e-6]}, 1e-6, "low"),
        ("learning_rate", {"values": [1e-6, 5e-6, 2e-5]}, 5e-6, ""),
        ("learning_rate", {"values": [1e-6, 5e-6]}, 5e-6, ""),
        ("lora_r", {"values": [1, 2, 4]}, 1, ""),
        ("lora_dropout", {"values": [0, 0.05, 0.1]}, 0, ""),
        ("learning_rate", {"values": [0.1, 0.3, 1.0]}, 1.0, ""),
        ("lora_targets", {"values": ["all-linear", ["q_proj"], ["v_proj"]]}, "all-linear", ""),
        ("batch_size", {"values": [4, 8, None]}, 8, ""),
        ("seed", {"values": [1, 2, 3]}, 3, ""),
        ("lora_r", {"min": 4, "max": 9}, 9, "high"),
        ("lora_r", {"min": 4, "max": 9}, 4, "low"),
        ("lora_r", {"min": 4, "max": 9}, 8, ""),
        ("beta", {"min": 0.1, "max": 0.5}, 0.485, "high"),
        ("beta", {"min": 0.1, "max": 0.5}, 0.11, "low"),
        ("beta", {"min": 0.1, "max": 0.5}, 0.3, ""),
        ("learning_rate", {**LOG, "min": 1e-6, "max": 1e-4}, 9.8e-5, "high"),
        ("learning_rate", {**LOG, "min": 1e-6, "max": 1e-4}, 1.1e-6, "low"),
        ("learning_rate", {**LOG, "min": 1e-6, "max": 1e-4}, 5e-5, ""),
        # A grid's last cell is one step below max.
        ("beta", {"distribution": "q_uniform", "min": 0.1, "max": 0.5, "q": 0.1}, 0.4, "high"),
        ("beta", {"distribution": "q_uniform", "min": 0.2, "max": 0.3, "q": 0.1}, 0.2, "low"),
        ("beta", {"distribution": "log_normal", "mu": -2, "sigma": 1}, 40.0, ""),
        ("lora_dropout", {"distribution": "beta", "a": 2, "b": 5}, 0.99, ""),
        ("configuration", {"values": [{"beta": 0.1}, {"beta": 0.2}, {"beta": 0.3}]}, {"beta": 0.3}, ""),
    ],
)
def test_a_value_is_at_an_end_only_if_the_range_can_continue_there(name, entry, value, end):
    assert range_end(parameter(name, entry), value) == end


@pytest.mark.parametrize(
    ("name", "entry", "end", "wider"),
    [
        ("learning_rate", {"values": [1e-6, 1e-5]}, "high", {"values": [1e-6, 1e-5, 1e-4, 1e-3]}),
        (
            "learning_rate",
            {"values": [1e-6, 5e-6, 2e-5]},
            "low",
            {"values": [5e-8, 2.5e-7, 1e-6, 5e-6, 2e-5]},
        ),
        ("learning_rate", {"values": [1e-6, 3e-6, 1e-5]}, "high", {"values": [1e-6, 3e-6, 1e-5, 3e-5, 1e-4]}),
        ("learning_rate", {"values": [1e-6, 3e-6, 1e-5]}, "low", {"values": [1e-7, 3e-7, 1e-6, 3e-6, 1e-5]}),
        ("beta", {"values": [0.1, 0.2, 0.5, 1]}, "high", {"values": [0.1, 0.2, 0.5, 1, 2.0, 5.0]}),
        ("learning_rate", {"values": [0.01, 0.1, 0.5]}, "high", None),
        ("batch_size", {"values": [4, 8, 16]}, "high", {"values": [4, 8, 16, 32, 64]}),
        ("batch_size", {"values": [4, 8, 16]}, "low", {"values": [1, 2, 4, 8, 16]}),
        ("batch_size", {"values": [4, 6, 8]}, "high", {"values": [4, 6, 8, 10, 12]}),
        ("lora_r", {"values": [2, 4, 8]}, "low", {"values": [1, 2, 4, 8]}),
        ("epochs", {"values": [1, 2, 3]}, "high", {"values": [1, 2, 3, 4, 5]}),
        ("epochs", {"values": [1, 2, 4]}, "low", {"values": [0.25, 0.5, 1, 2, 4]}),
        ("warmup_ratio", {"values": [0, 0.05, 0.1]}, "high", {"values": [0, 0.05, 0.1, 0.15, 0.2]}),
        ("weight_decay", {"values": [0, 0.01, 0.1]}, "high", {"values": [0, 0.01, 0.1, 1.0, 10.0]}),
        ("eval_fraction", {"values": [0.4, 0.6, 0.8]}, "high", None),
        (
            "batch_size",
            {"values": [4, 8], "probabilities": [0.75, 0.25]},
            "high",
            {"values": [4, 8, 16, 32], "probabilities": [0.375, 0.125, 0.25, 0.25]},
        ),
        ("lora_r", {"min": 4, "max": 9}, "high", {"distribution": "int_uniform", "min": 4, "max": 14}),
        ("lora_r", {"min": 4, "max": 9}, "low", {"distribution": "int_uniform", "min": 1, "max": 9}),
        ("lora_r", {"min": 1, "max": 9}, "low", None),
        ("beta", {"min": 0.1, "max": 0.5}, "high", {"distribution": "uniform", "min": 0.1, "max": 0.9}),
        ("beta", {"min": 0.1, "max": 0.5}, "low", {"distribution": "uniform", "min": 0.05, "max": 0.5}),
        (
            "eval_fraction",
            {"min": 0.1, "max": 0.9},
            "high",
            {"distribution": "uniform", "min": 0.1, "max": 0.95},
        ),
        ("lora_dropout", {"min": 0.0, "max": 0.5}, "low", None),
        (
            "learning_rate",
            {**LOG, "min": 1e-6, "max": 1e-4},
            "high",
            {**LOG, "min": 1e-6, "max": 1e-3},
        ),
        ("learning_rate", {**LOG, "min": 2e-5, "max": 6e-5}, "high", {**LOG, "min": 2e-5, "max": 1.8e-4}),
        ("learning_rate", {**LOG, "min": 1e-2, "max": 0.5}, "high", {**LOG, "min": 1e-2, "max": 1}),
        ("beta", {"distribution": "log_uniform", "min": -2, "max": 0}, "high", {**LOG, "max": 7.389}),
        ("beta", {"distribution": "inv_log_uniform", "min": 0, "max": 2}, "high", {**LOG, "max": 7.389}),
        (
            "lora_r",
            {"distribution": "q_log_uniform_values", "min": 4, "max": 64, "q": 4},
            "high",
            {"distribution": "q_log_uniform_values", "min": 4, "max": 640, "q": 4},
        ),
        (
            "beta",
            {"distribution": "q_uniform", "min": 0.3, "max": 0.55, "q": 0.1},
            "low",
            {"distribution": "q_uniform", "min": 0.1, "max": 0.55, "q": 0.1},
        ),
        ("opt.scale", {"min": -1.0, "max": 1.0}, "low", {"distribution": "uniform", "min": -3.0, "max": 1.0}),
    ],
)
def test_a_range_continues_beyond_its_end(name, entry, end, wider):
    result = widened_entry(parameter(name, entry), end)
    if wider is None or "min" in wider or "values" in wider:
        assert result == wider
    else:
        assert result is not None
        assert {key: result[key] for key in wider} == wider


@pytest.mark.parametrize("end", ["low", "high"])
@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("learning_rate", {"values": [1e-6, 5e-6, 2e-5]}),
        ("batch_size", {"min": 4, "max": 6}),
        ("beta", {"distribution": "q_uniform", "min": 0.2, "max": 0.5, "q": 0.1}),
        ("learning_rate", {"distribution": "log_uniform", "min": -13.3, "max": -9.1}),
        ("learning_rate", {"distribution": "inv_log_uniform", "min": 9.1, "max": 13.3}),
        ("lora_r", {"distribution": "q_log_uniform", "min": 2.5, "max": 4.5, "q": 4}),
        ("eval_fraction", {"min": 0.3, "max": 0.8}),
    ],
)
def test_a_wider_range_keeps_every_trial_and_has_valid_ends(name, entry, end):
    """So finished cells are reused by a grid, and earlier trials are observations of a search."""
    old = parameter(name, entry)
    wider = parameter(name, widened_entry(old, end))
    spaces = Space((old,)), Space((wider,))
    if grid.can_list(spaces[0]):
        before, after = ({key for key, _ in grid.cells(space)} for space in spaces)
        assert before < after
    for value in old.distribution.extremes():
        assert cube_of(spaces[1]).point({name: value}) is not None
    ends = wider.distribution.extremes()
    assert all(check_value(parameter_name((name,)), value)[1] is None for value in ends)
    low, high = min(old.distribution.extremes()), max(old.distribution.extremes())
    assert (max(ends) > high) if end == "high" else (min(ends) < low)
