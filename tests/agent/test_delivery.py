"""Runs whose stream wandb silently abandoned: the check asks the server what it has."""

import json
from dataclasses import replace
from functools import partial
from typing import NoReturn

import pytest
from agent_harness import wait

from kto_sweep.agent import run_agent as module
from kto_sweep.agent.connectivity import Connectivity
from kto_sweep.agent.delivery import ATTEMPTS, PAUSE_SECONDS, check_delivery
from kto_sweep.agent.progress import EndReport
from kto_sweep.agent.state import AgentOutcome, AgentState, AgentStats, Settings
from kto_sweep.errors import WORK_LEFT, ServerError
from kto_sweep.home import Home
from kto_sweep.run_record import RunRecord, home_id, read_record
from kto_sweep.search.space import Space
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.sync import find_unsynced
from kto_sweep.sweep.view import SweepView, TrialRecord
from kto_sweep.wandb_client.connection import Target

REF = SweepRef("local", "kto-sweep", "ab12cd34")


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    home.server.mkdir(parents=True)
    home.database.touch()
    return home


def ended(home: Home, run_id: str, steps: int = 10, agent: str = "me") -> None:
    folder = home.runs / run_id
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(1, steps + 1)))
    RunRecord(
        REF.entity, REF.project, REF.id, True, "", ended=True, sent=True, agent=agent, home=home_id(home)
    ).write(folder)


def on_server(home: Home, run_id: str, state: str, step: int | None, owner: str = "") -> TrialRecord:
    summary = {} if step is None else {"_step": step}
    return TrialRecord(run_id, run_id, state, {}, summary, None, device=f"{owner or home_id(home)} gpu 0")


def sweep(*trials: TrialRecord) -> SweepView:
    return SweepView(REF, "", "", "RUNNING", "grid", "loss", "minimize", Space(()), None, trials)


@pytest.mark.parametrize(
    ("state", "step"), [("running", 2), ("running", 10), ("crashed", 10), ("finished", 9), ("failed", None)]
)
def test_an_ended_run_that_is_incomplete_on_the_server_is_unsent(home, state, step):
    ended(home, "run1")
    waits: list[float] = []
    view = sweep(on_server(home, "run1", state, step))
    assert check_delivery(home, "me", lambda: view, ATTEMPTS, waits.append) == (view, ["run1"])
    assert len(waits) == ATTEMPTS - 1
    record = read_record(home.runs / "run1")
    assert record is not None
    assert (record.ended, record.sent) == (True, False)
    assert [unsent.run_id for unsent in find_unsynced(home, None)] == ["run1"]


def test_complete_runs_and_runs_that_another_box_continues_are_not_reported(home):
    for run_id in ("finished", "put-back", "elsewhere"):
        ended(home, run_id)
    ended(home, "anothers", agent="another")
    view = sweep(
        on_server(home, "finished", "finished", 10),
        on_server(home, "put-back", "preempting", 10),
        on_server(home, "elsewhere", "running", 3, owner="0123456789abcdef"),
        on_server(home, "anothers", "running", 3),
        on_server(home, "not-of-this-box", "running", 3, owner="0123456789abcdef"),
    )
    assert check_delivery(home, "me", lambda: view, ATTEMPTS, pytest.fail) == (view, [])
    assert not find_unsynced(home, None)


def test_a_server_may_take_a_moment_to_store_data(home):
    ended(home, "run1")
    late = on_server(home, "run1", "running", 9)
    views = [sweep(late), sweep(replace(late, state="finished", summary={"_step": 10}))]
    last = views[-1]
    assert check_delivery(home, "me", lambda: views.pop(0), ATTEMPTS, lambda seconds: None) == (last, [])


def test_a_named_run_is_checked_on_its_server_whatever_its_record_says(home):
    ended(home, "run1")
    assert [unsent.run_id for unsent in find_unsynced(home, "run1")] == ["run1"]


def test_a_server_that_exits_with_the_sweep_is_asked_again(home):
    view = sweep()
    answers = [None, None, view]

    def read() -> SweepView:
        if (answer := answers.pop(0)) is None:
            raise ServerError("nobody there", hint="later")
        return answer

    waits: list[float] = []
    assert check_delivery(home, "me", read, 3, waits.append) == (view, [])
    assert waits == [PAUSE_SECONDS] * 2
    answers += [None, None]
    assert check_delivery(home, "me", read, 2, waits.append) is None
    assert check_delivery(home, "me", read, 0, pytest.fail) is None


@pytest.mark.parametrize("answers", [True, False])
def test_the_final_read_of_the_sweep_happens_while_connectivity_runs(home, monkeypatch, capsys, answers):
    did: list[str] = []

    class Probe(Connectivity):
        def run(self) -> None:
            did.append("probing")

        def end(self) -> None:
            did.append("probed")

    def supervise(state: AgentState, executor: object) -> AgentState:
        wait(lambda: "probing" in did)
        return AgentState({}, {}, Settings(), stats=AgentStats(1, 1), outcome=AgentOutcome.DONE)

    def read(*args: object) -> SweepView:
        did.append("read")
        if len(did) > 1 and not answers:
            raise ServerError("nobody there", hint="later")
        return sweep()

    class Leaving(EndReport):
        def exit_at_once(self, code: int) -> NoReturn:
            self.print(code)
            raise SystemExit(code)

    target = Target("http://127.0.0.1:9", "http://127.0.0.1:9", local=True)
    for name, stand_in in {
        "find_sweep": lambda home, name, *, local: (target, REF),
        "connect": lambda target: None, "read_sweep": read, "Connectivity": Probe, "supervise": supervise,
        "ATTEMPTS": 1,
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, stand_in)
    report = Leaving(as_json=True)
    call = partial(module.run_agent, home, None, count=None, gpus=None, cpu=True, local=True, report=report)
    if answers:
        report.print(call())
    else:
        with pytest.raises(SystemExit, match=str(WORK_LEFT)):
            call()
    output = capsys.readouterr()
    assert ("the sweep's status is unknown" in output.err) is not answers
    ended = json.loads(output.out)
    assert (ended["sweep"], ended["finished"]) == (str(REF), 1)
    assert ended["state"] == ("interrupted" if answers else None)
    assert "exit_code" in ended
    assert did == ["read", "probing", "read", "probed"]
