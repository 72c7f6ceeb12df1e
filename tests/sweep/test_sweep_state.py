"""The state of a sweep, what ended it, what can be done with it, and what to type next."""

from dataclasses import replace

import pytest

from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.sweep_state import Action, EndKind, ShownState, read_sweep_status
from kto_sweep.sweep.view import SweepView, TrialRecord

NOW = 1_000_000.0
SPACE = parse_space({"lr": {"values": [1, 2, 3]}})[0]
HOME = "0123456789abcdef"


def trial(number, state="finished", age=300.0, *, loss=None, device=f"{HOME} cpu", cause=None):
    summary = {"_step": 9} | ({} if loss is None else {"loss": loss})
    summary |= {} if cause is None else {"failure/cause": cause}
    return TrialRecord(
        f"run{number}", "", state, {"lr": number}, summary, 60.0, heartbeat=NOW - age, device=device
    )


def view(*trials, state="RUNNING", **more):
    ref = SweepRef("local", "kto-sweep", "s")
    return replace(
        SweepView(ref, "", "s", state, "grid", "loss", "minimize", SPACE, 3, trials, now=NOW), **more
    )


def status(*trials, **more):
    return read_sweep_status(view(*trials, **more))


DONE = (trial(1), trial(2), trial(3))
TRAINS = trial(2, "running", 5)
SILENT = trial(2, "running", 200)
REQUEUED = trial(2, "preempted")
KILLED = trial(2, "killed")
CRASH = trial(2, "failed", cause="worker crash")

ALL = "pause resume stop cancel"
CASES = [
    (view(state="PENDING"), "pending", None, "agent", "pause resume"),
    (view(trial(1), TRAINS), "running", None, "compare", "resume"),
    (view(trial(1, age=3)), "running", None, "agent", "resume"),  # between two trials, or ended
    (view(updated=NOW - 3), "running", None, "agent", "resume"),  # before the first trial
    (view(updated=NOW - 60), "interrupted", None, "agent", "resume"),
    (view(trial(1, age=3), REQUEUED), "interrupted", None, "agent", "resume"),
    (view(trial(1), SILENT), "interrupted", None, "agent", "resume"),
    (view(trial(1), CRASH), "interrupted", None, "resume", ""),
    (view(trial(1), trial(2, "crashed")), "interrupted", None, "agent", ""),
    (view(trial(1), trial(2, "crashed", device="other cpu")), "interrupted", None, "resume", ""),
    (view(trial(1), TRAINS, state="PAUSED"), "paused", None, "resume", ""),
    (view(trial(1), TRAINS, state="FINISHED"), "stopping", "stop", "compare", "pause stop"),
    (view(trial(1), state="FINISHED"), "stopped", "stop", "compare", "pause stop cancel"),
    (view(trial(1), REQUEUED, state="FINISHED"), "stopped", "stop", "resume", "pause stop"),
    (view(trial(1), SILENT, state="FINISHED"), "stopped", "stop", "agent", "pause stop"),
    (view(*DONE, state="FINISHED"), "finished", "all trials", "compare", ALL),
    (view(*DONE), "finished", "all trials", "compare", ALL),
    (view(*DONE, state="PENDING"), "finished", "all trials", "compare", ALL),
    (
        view(trial(1), trial(3), CRASH, state="FINISHED"),
        "finished",
        "all trials",
        "resume",
        "pause stop cancel",
    ),
    (
        view(trial(1), expected=1, state="FINISHED"),
        "finished",
        "run_cap",
        "compare",
        ALL,
    ),
    (view(trial(1), TRAINS, state="CANCELED"), "canceling", "cancel", "compare", "pause stop"),
    (
        view(trial(1), trial(2, "killed"), state="CANCELED"),
        "canceled",
        "cancel",
        "compare",
        "pause stop cancel",
    ),
]


@pytest.mark.parametrize(("sweep", "state", "end", "command", "refused"), CASES)
def test_state_end_next_command_and_actions(sweep, state, end, command, refused):
    facts = read_sweep_status(sweep).facts(HOME)
    assert facts["shown_state"] == state
    assert (facts["ended_by"] or {}).get("kind") == end
    assert facts["next"] == f"kto-sweep {command} s"
    assert " ".join(name for name, reason in facts["actions"].items() if reason) == refused


def test_each_refusal_names_another_command_that_is_allowed():
    for sweep, *_ in CASES:
        now = read_sweep_status(sweep)
        for action in Action:
            if refused := now.refusal(action):
                command = refused.hint.removeprefix("kto-sweep ").removesuffix(" s")
                assert command in {"agent", "compare"} or not now.refusal(Action(command))


def test_the_end_names_the_run_that_reached_the_target():
    """Run 3 was below the target, and is above it now."""
    last = trial(3, loss=0.6)
    last = replace(last, summary={**last.summary, "objective/best": 0.38})
    now = status(trial(1, loss=0.39), trial(2, loss=0.7), last, state="FINISHED", target=0.4, expected=9)
    assert (now.state, now.end.kind) == (ShownState.FINISHED, EndKind.TARGET)
    assert (now.end.run_id, now.end.value) == ("run3", 0.38)
    assert now.end.text == "run run3 reached the target: loss 0.38 <= 0.4"
    assert now.next_command(HOME) == "kto-sweep compare s"


def test_a_target_can_be_a_maximum():
    options = {"state": "FINISHED", "goal": "maximize", "expected": 9}
    assert status(trial(1, loss=0.8), target=0.7, **options).end.value == 0.8
    assert status(trial(1, loss=0.8), target=0.9, **options).end.kind is EndKind.STOP


def test_the_last_trials_of_a_sweep_that_reached_its_target_still_run():
    now = status(trial(1, loss=0.3), TRAINS, state="FINISHED", target=0.4)
    assert (now.state, now.end.run_id) == (ShownState.STOPPING, "run1")
    assert now.refusal(Action.CANCEL) is None


def test_every_state_has_a_meaning():
    assert all(state.meaning for state in ShownState)
