"""Runs that ended while their server was gone are sent later."""

import pytest
from machine import Machine
from untrained_trials import SWEEP, run_trials

from kto_sweep.errors import ServerError
from kto_sweep.local_server.start import ensure_server
from kto_sweep.run_record import RunRecord, read_record
from kto_sweep.sweep import sync
from kto_sweep.wandb_client.connection import Target

RUNS = """{run.id: [
    run.state,
    run.sweep.id,
    run.summary_metrics["objective/best"],
    run.summary_metrics.get("failure/cause"),
    [row["_step"] for row in run.scan_history()],
] for run in api.runs("local/kto-sweep")}"""
CHECKPOINT = """
(folder / "checkpoint").mkdir()
(folder / "checkpoint" / "last.safetensors").touch()
"""
GONE = """
from kto_sweep.local_server.start import stop_server
run.metrics(4, {"loss": 0.5, "eval/common_loss": rate / 4})
stop_server(home)
"""


@pytest.mark.parametrize("kept", [None, 7, -40])
def test_what_ended_without_its_server_is_sent_when_it_is_back(machine: Machine, kept: int | None) -> None:
    """Also where the file of the first attempt was cut off: its server has heard what it had to say."""
    sweep = machine.create_sweep(SWEEP)["id"]
    run_trials(machine, sweep, 2)
    ((put_back, *_),) = run_trials(machine, sweep, 1, {"0.001 2": "put back"}, CHECKPOINT)
    # It goes on from its checkpoint, in its run, and loses the server before its end.
    assert [run_id for run_id, *_ in run_trials(machine, sweep, 1, between=GONE)] == [put_back]
    record = read_record(machine.home.runs / put_back)
    assert record is not None
    assert (record.ended, record.sent) == (True, False)
    first = min((machine.home.runs / put_back / "wandb").glob("run-*/*.wandb"))
    first.write_bytes(first.read_bytes()[:kept])

    assert machine.json("sync") == {"sent": [f"local/kto-sweep/{put_back}"], "failed": {}}
    runs = machine.api(RUNS)
    assert runs[put_back] == ["finished", sweep, 0.001 / 4, None, [1, 2, 3, 4]]
    assert machine.json("status")["finished"] == 3
    assert "Nothing to send" in machine.run("sync")
    assert "was there already" in machine.run("sync", put_back)
    assert machine.api(RUNS) == runs
    assert "this box has no run 'nosuch'" in machine.run("sync", "nosuch", code=2)


def test_a_server_that_is_still_gone_is_told(machine: Machine) -> None:
    folder = machine.home.runs / "ab12cd34"
    folder.mkdir(parents=True)
    RunRecord("me", "kto", "s", local=False, base_url="http://127.0.0.1:9", ended=True).write(folder)
    told = machine.run("sync", code=1, WANDB_API_KEY="local-" + "0" * 40)
    assert "run me/kto/ab12cd34: no answer from W&B at http://127.0.0.1:9" in told


def test_each_server_gets_its_own_key(machine: Machine) -> None:
    """And one after another can be talked to."""
    address = ensure_server(machine.home)
    for run_id, local, base_url in (("run1", True, ""), ("run2", False, address.url)):
        folder = machine.home.runs / run_id
        folder.mkdir(parents=True)
        RunRecord("local", "kto", "s", local=local, base_url=base_url, ended=True).write(folder)
    told = machine.run("sync", code=1)
    assert "run local/kto/run1: wandb could not send it" in told
    assert f"run local/kto/run2: there is no key for W&B at {address.url}" in told
    told = machine.run("sync", code=1, WANDB_API_KEY=address.key)
    assert told.count("wandb could not send it") == 2


def test_a_server_that_goes_away_meanwhile_is_the_trouble_of_its_runs_alone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [("run1", "https://one"), ("run2", "https://one"), ("run3", "https://two")]
    runs = []
    for run_id, base_url in places:
        (machine.home.runs / run_id).mkdir(parents=True)
        record = RunRecord("me", "kto", "s", local=False, base_url=base_url, ended=True)
        runs.append(sync.Unsent(run_id, machine.home.runs / run_id, record))

    def read_run(api: str, ref: object, run_id: str) -> tuple[str, dict[str, str], dict[str, int]]:
        if run_id == "run2":
            raise ServerError("no answer", hint="later")
        return "finished", {}, {"_step": 0}

    monkeypatch.setattr(sync, "find_remote", lambda base_url: Target(base_url, base_url, local=False))
    monkeypatch.setattr(sync, "connect", lambda target: target)
    monkeypatch.setattr(sync, "read_run", read_run)
    told = [(outcome.run_id, outcome.trouble) for outcome in sync.send(machine.home, runs)]
    assert told == [("run1", ""), ("run2", "no answer"), ("run3", "")]
