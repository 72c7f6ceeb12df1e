"""An agent that chooses the number of concurrent trials automatically."""

import pytest
from machine import Machine

LONG_AND_SHORT = """
method: grid
parameters:
  max_steps: {values: [60, 3]}
  learning_rate: {values: [1.0e-3]}
  model_size: {value: tiny}
  dataset: {value: examples/support_replies.jsonl}
  batch_size: {value: 4}
  eval_steps: {value: 60}
  max_length: {value: 128}
"""


@pytest.mark.slow
def test_it_starts_with_one_trial_and_adds_slots_as_it_measures(machine: Machine) -> None:
    machine.create_sweep(LONG_AND_SHORT)
    said = machine.run("agent")
    # The best number depends on the box; a second slot is always tried.
    measured = said.index("cpu: trying 2 trials at once")
    assert said.index("trial 1 of 2") < measured < said.index("trial 2 of 2") < said.index("trial 1 finished")
    assert machine.json("status")["finished"] == 2
    notes = [log.read_text() for log in machine.home.runs.glob("*/console.log")]
    assert sum("trying 2 trials at once" in text for text in notes) == 1
