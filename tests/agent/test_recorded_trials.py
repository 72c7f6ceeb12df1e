"""An agent records the trials that finish, and gives later sweeps the spread between seeds that they show."""

import json
import statistics

import pytest
from machine import Machine

from kto_sweep.compare.confidence import DEGREES, DEVIATION
from kto_sweep.sweep.seed_spread import FILE

SWEEP = """
method: grid
parameters:
  beta: {values: BETAS}
  seed: {values: SEEDS}
  model_size: {value: tiny}
  dataset: {value: rows.jsonl}
  max_steps: {value: 2}
"""


def train(machine: Machine, betas: str, seeds: str) -> list[dict[str, object]]:
    """The summaries of a sweep's trials, after an agent has trained them."""
    name = machine.create_sweep(SWEEP.replace("BETAS", betas).replace("SEEDS", seeds))["id"]
    machine.run("agent", name)
    return [trial["summary"] for trial in machine.json("compare", name)["trials"]]


@pytest.mark.slow
def test_a_sweep_gets_the_spread_between_seeds_of_earlier_ones(fake_machine: Machine) -> None:
    machine = fake_machine
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}", "label": n % 2 == 0} for n in range(200)]
    (machine.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = train(machine, "[0.1]", "[1, 2, 3]")
    assert not any(DEVIATION in summary for summary in first)
    lines = (machine.home.root / FILE).read_text().splitlines()
    assert len(lines) == 3
    (second,) = train(machine, "[0.2]", "[1]")
    deviation = statistics.stdev(float(str(summary["eval/common_loss"])) for summary in first)
    assert (round(float(str(second[DEVIATION])), 9), second[DEGREES]) == (round(deviation, 9), 2)
    # Other rows are another key.
    with (machine.folder / "rows.jsonl").open("a") as file:
        file.write(json.dumps({**rows[0], "prompt": "one more"}) + "\n")
    (third,) = train(machine, "[0.3]", "[1]")
    assert DEVIATION not in third
