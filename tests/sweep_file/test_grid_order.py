"""The order of a grid on W&B, and the note that `create` prints about it."""

import pytest

from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep.create import grid_order_note

RATES = {"values": [1.0e-6, 5.0e-6]}
SIZES = {"values": ["0.5b", "7b"]}


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"learning_rate": RATES, "model_size": SIZES}, "model_size"),
        ({"learning_rate": RATES, "max_length": {"values": [512, 1024]}}, "max_length"),
        ({"learning_rate": RATES, "model_size": {"value": "7b"}}, None),
        ({"model_size": SIZES, "seed": {"values": [1, 2]}}, None),
        ({"learning_rate": RATES, "base": {"parameters": {"model_size": SIZES}}}, None),
    ],
)
def test_a_grid_order_that_changes_the_model_often_gets_a_note(
    parameters: dict[str, object], name: str | None
) -> None:
    space, _ = parse_space(parameters)
    assert space is not None
    note = grid_order_note(space)
    assert (f"Here {name} changes early" in note) if name else note == ""
