"""Runs that ended while their server was unreachable are sent later."""

import shutil

import pytest
from machine import Machine
from untrained_trials import SWEEP, run_trials

from kto_sweep.errors import ServerError
from kto_sweep.local_server.start import ensure_server, stop_server
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
REQUEUED = {"0.001 1": "requeued", "0.001 2": "requeued"}
"""Whichever of them is first."""
GONE = """
from kto_sweep.local_server.start import stop_server
run.metrics(4, {"loss": 0.5, "eval/common_loss": rate / 4})
stop_server(home)
"""


def run_that_lost_its_server(machine: Machine, sweep: str) -> str:
    """A run of two attempts: requeued with a checkpoint, then continued until its server was gone."""
    ((requeued, *_),) = run_trials(machine, sweep, 1, REQUEUED, CHECKPOINT)
    assert [run_id for run_id, *_ in run_trials(machine, sweep, 1, between=GONE)] == [requeued]
    record = read_record(machine.home.runs / requeued)
    assert record is not None
    assert (record.ended, record.sent) == (True, False)
    return requeued


@pytest.mark.slow  # test_offline.py syncs after a kill
def test_a_truncated_file_of_an_earlier_attempt_is_not_needed(machine: Machine) -> None:
    """The server has that part already."""
    sweep = machine.create_sweep(SWEEP)["id"]
    run_id = run_that_lost_its_server(machine, sweep)
    first = min((machine.home.runs / run_id / "wandb").glob("run-*/*.wandb"))
    first.write_bytes(first.read_bytes()[:-40])
    assert machine.json("sync") == {"sent": [f"local/kto-sweep/{run_id}"], "failed": {}, "offline": []}
    assert machine.api(RUNS)[run_id] == ["finished", sweep, 0.001 / 4, None, [1, 2, 3, 4]]
    assert "Nothing to send" in machine.run("sync")


@pytest.mark.slow  # test_offline.py syncs runs without a server
def test_a_run_that_ended_without_its_server_is_sent_later(machine: Machine) -> None:
    sweep = machine.create_sweep(SWEEP)["id"]
    run_trials(machine, sweep, 2)
    requeued = run_that_lost_its_server(machine, sweep)
    assert machine.json("sync") == {"sent": [f"local/kto-sweep/{requeued}"], "failed": {}, "offline": []}
    runs = machine.api(RUNS)
    assert runs[requeued] == ["finished", sweep, 0.001 / 4, None, [1, 2, 3, 4]]
    assert machine.json("status")["finished"] == 3
    assert "Nothing to send" in machine.run("sync")
    assert "already synced" in machine.run("sync", requeued)
    assert machine.api(RUNS) == runs
    assert "this box has no run 'nosuch'" in machine.run("sync", "nosuch", code=2)


def test_runs_that_were_moved_without_their_server_are_sent_to_the_new_one(machine: Machine) -> None:
    sweep = machine.create_sweep(SWEEP)["id"]
    ((run_id, *_), *_) = run_trials(machine, sweep, 1)
    assert "Nothing to send" in machine.run("sync")
    stop_server(machine.home)
    shutil.rmtree(machine.home.server)
    assert f"run local/kto-sweep/{run_id}: sent" in machine.run("sync")
    state, *_, steps = machine.api(RUNS.replace("run.sweep.id", "run.id"))[run_id]
    assert (state, steps) == ("finished", [1, 2, 3])


def test_a_server_that_is_still_unreachable_is_reported(machine: Machine) -> None:
    folder = machine.home.runs / "ab12cd34"
    folder.mkdir(parents=True)
    RunRecord("me", "kto", "s", local=False, base_url="http://127.0.0.1:9", ended=True).write(folder)
    output = machine.run("sync", code=1, WANDB_API_KEY="local-" + "0" * 40)
    assert "run me/kto/ab12cd34: could not reach W&B at http://127.0.0.1:9" in output


def test_each_server_gets_its_own_key(machine: Machine) -> None:
    """Two servers can be used one after another."""
    address = ensure_server(machine.home)
    for run_id, local, base_url in (("run1", True, ""), ("run2", False, address.url)):
        folder = machine.home.runs / run_id
        folder.mkdir(parents=True)
        RunRecord("local", "kto", "s", local=local, base_url=base_url, ended=True).write(folder)
    output = machine.run("sync", code=1)
    assert "run local/kto/run1: wandb sync failed" in output
    assert f"run local/kto/run2: no key for W&B at {address.url}" in output
    output = machine.run("sync", code=1, WANDB_API_KEY=address.key)
    assert output.count("wandb sync failed") == 2


def test_a_rejected_key_names_where_it_comes_from(machine: Machine) -> None:
    server = machine.server_environment()
    bad = "local-" + "0" * 40
    status, file = ("status", "local/kto/ab12cd34"), machine.folder / ".env"
    output = machine.run(*status, code=1, **server | {"WANDB_API_KEY": bad})
    assert f"the kto-sweep server at {machine.address.url} rejects the key" in output
    assert "correct or remove WANDB_API_KEY in the environment: the key comes from there" in output
    file.write_text(f"WANDB_API_KEY={bad}\n")
    output = machine.run(*status, code=1, WANDB_BASE_URL=machine.address.url)
    assert f"correct or remove WANDB_API_KEY in {file}: the key comes from there" in output
    file.unlink()
    host = machine.address.url.removeprefix("http://")
    netrc = machine.folder / ".netrc"
    netrc.write_text(f"machine {host}\n  login user\n  password {bad}\n")
    netrc.chmod(0o600)
    output = machine.run(*status, code=1, WANDB_BASE_URL=machine.address.url)
    assert f"Hint: wandb login --host {machine.address.url} --relogin" in output


def test_a_server_that_fails_during_sync_is_an_error_of_its_own_runs_only(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [("run1", "https://one"), ("run2", "https://one"), ("run3", "https://two")]
    runs = []
    for run_id, base_url in places:
        (machine.home.runs / run_id).mkdir(parents=True)
        record = RunRecord("me", "kto", "s", local=False, base_url=base_url, ended=True)
        runs.append(sync.UnsyncedRun(run_id, machine.home.runs / run_id, record))

    def read_run(api: str, ref: object, run_id: str) -> tuple[str, dict[str, str], dict[str, int]]:
        if run_id == "run2":
            raise ServerError("no answer", hint="later")
        return "finished", {}, {"_step": 0}

    monkeypatch.setattr(sync, "find_remote", lambda base_url: Target(base_url, base_url, local=False))
    monkeypatch.setattr(sync, "connect", lambda target: target)
    monkeypatch.setattr(sync, "read_run", read_run)
    output = [(result.run_id, result.error) for result in sync.sync_runs(machine.home, runs)]
    assert output == [("run1", ""), ("run2", "no answer"), ("run3", "")]
