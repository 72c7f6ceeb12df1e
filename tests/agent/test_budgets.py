"""An agent with a short time limit, as a user starts it: it ends in time, and nothing is lost."""

from datetime import datetime, timedelta

from kto_sweep.errors import WORK_LEFT

SWEEP = """
method: grid
parameters:
  max_steps: {values: [3, 100000]}
  model_size: {value: tiny}
  dataset: {value: examples/support_replies.jsonl}
  batch_size: {value: 4}
  max_length: {value: 128}
  eval_steps: {value: 100000}
"""


def test_trials_running_when_time_is_up_are_requeued(fake_machine):
    """No trial has ended on this box yet, so its time is unknown and the long one starts."""
    fake_machine.create_sweep(SWEEP.replace("[3, 100000]", "[100000]"))
    for seconds in (12, 60, 180):  # on a busy machine an agent takes long to get to a trial
        ends = datetime.now().astimezone() + timedelta(seconds=seconds)
        said = fake_machine.run("agent", "--until", ends.isoformat(), code=WORK_LEFT)
        assert "Time is up" in said
        assert "continues where this one ended" in said
        if "requeued" in said:
            break
    status = fake_machine.json("status")
    assert (status["state"], status["finished"], status["failed"]) == ("RUNNING", 0, 0)
    assert (status["shown_state"], status["running"], status["interrupted"]) == ("interrupted", 0, 1)
    assert status["next"] == f"kto-sweep agent {status['id']}"
    fake_machine.run("cancel")
    canceled = fake_machine.json("status")
    assert (canceled["shown_state"], canceled["canceled"], canceled["finished"]) == ("canceled", 1, 0)


def test_a_trial_that_would_take_too_long_is_not_started(fake_machine):
    fake_machine.create_sweep(SWEEP)
    said = fake_machine.run("agent", "--budget", "3m", "--trials-per-gpu", "1", code=WORK_LEFT)
    assert "was not started (" in said
    assert " left, needs " in said
    assert "1 finished. Sweep: 1 of 2 done." in said
    assert fake_machine.json("status")["failed"] == 0


def test_an_invalid_budget_is_rejected(fake_machine):
    fake_machine.run("agent", "--budget", "12", code=2)
    fake_machine.run("agent", "--until", "yesterday", code=2)
