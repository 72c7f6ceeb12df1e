"""A sweep copied from one server to another."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine
from untrained_trials import SWEEP, run_trials

from kto_sweep.errors import UsageError
from kto_sweep.local_server.start import ensure_server
from kto_sweep.sweep.ref import SweepRef, save_sweep_record
from kto_sweep.sweep.server_choice import find_remote

RUNS = """[{
    "id": run.id, "state": run.state, "config": {k: v for k, v in run.config.items() if k[0] != "_"},
    "summary": {k: v for k, v in dict(run.summary_metrics).items() if k[0] != "_"},
    "rows": [{k: v for k, v in row.items() if k != "_runtime"} for row in run.scan_history()],
    "name": run.name, "tags": run.tags, "notes": run.notes,
    "sweep": [run.sweep.state, run.sweep.config["parameters"]],
} for run in api.runs("local/kto-sweep", order="+created_at")]"""
OUTCOMES = {"0.002 1": "diverged", "0.001 2": "stopped"}
NOTES = """
wandb_run = api.run(f"local/kto-sweep/{run_id}")
if outcomes.get(f"{rate:g} {config['batch_size']}") == "stopped":
    wandb_run.stop()
wandb_run.notes, wandb_run.tags = f"of {rate}", ["kept"]
wandb_run.update()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Machine]:
    (tmp_path / "other").mkdir()
    other = Machine(tmp_path / "other")
    yield other
    other.close()


def test_a_pushed_sweep_is_the_same_there_and_is_sent_once(machine: Machine, other: Machine) -> None:
    address = ensure_server(other.home)
    there = {"WANDB_API_KEY": address.key}
    # Offline: the embedded server, with or without a key.
    sweep = machine.create_sweep(SWEEP, WANDB_MODE="offline", **there)["id"]
    run_trials(machine, sweep, 3, OUTCOMES, NOTES)
    run_trials(machine, sweep, 1)
    run_ids = [run["id"] for run in machine.api(RUNS)]
    # An interrupted push: only the first rows of the second run arrive.
    cut = machine.python("-c", CUT, sweep, address.url, run_ids[1], code=1, **there)
    assert "cut off" in cut

    pushed = machine.json("push", sweep, "--to", address.url, **there)
    assert (pushed["present"], pushed["sent"], pushed["unfinished"]) == (run_ids[:1], run_ids[1:], [])
    here = machine.api(RUNS)
    assert [run["state"] for run in here] == ["finished", "failed", "killed", "finished"]
    assert [len(run["rows"]) for run in here] == [3, 3, 3, 3]
    assert here[0]["tags"] == ["kept"]
    assert here == other.api(RUNS)
    assert other.api("[run.sweep.id for run in api.runs('local/kto-sweep')]") == [pushed["id"]] * 4

    again = machine.json("push", sweep, "--to", address.url, **there)
    assert (again["id"], again["present"], again["sent"]) == (pushed["id"], run_ids, [])
    assert here == other.api(RUNS)


CUT = """
import sys
from kto_sweep.sweep import push
from kto_sweep.cli import run

real = push.wandb.Run.log

def log(self, *args, **kwargs):
    if self.id == sys.argv[3] and kwargs["step"] == 3:
        sys.exit("cut off")
    return real(self, *args, **kwargs)

push.wandb.Run.log = log
sys.exit(run(["push", sys.argv[1], "--to", sys.argv[2]]))
"""


@pytest.mark.parametrize("url", ["wandb.ai", "ftp://wandb.ai", ""])
def test_an_invalid_url_is_rejected(url: str) -> None:
    with pytest.raises(UsageError, match="is not the URL of a server"):
        find_remote(url)


def test_a_push_without_a_key_or_to_its_own_server_is_rejected(machine: Machine) -> None:
    assert "no key for W&B at http://127.0.0.1:9" in machine.run("push", "--to", "http://127.0.0.1:9", code=2)
    here = ensure_server(machine.home)
    save_sweep_record(machine.home, SweepRef("local", "kto", "s"), local=True, base_url=here.url)
    output = machine.run("push", "--to", here.url, code=2, WANDB_API_KEY=here.key)
    assert "is the embedded server, which already has the sweep" in output


LOG_FILES = """
import pathlib, sys
import wandb

with wandb.init(entity="local", project="kto-sweep", id=sys.argv[1], resume="must") as run:
    if sys.argv[2] == "logs":
        for text in ("first", "second"):
            about = {"description": "ours", "metadata": {"step": len(text)}}
            artifact = wandb.Artifact("weights", type="model", **about)
            pathlib.Path("w.bin").write_text(text)
            artifact.add_file("w.bin", name="deep/w.bin")
            artifact.add_reference("https://example.com/far", name="far", checksum=False)
            run.log_artifact(artifact, aliases=["best"], tags=["kept"])
        run.log({"answers": wandb.Table(columns=["prompt"], data=[["hello"]])}, step=9)
        pathlib.Path("notes.txt").write_text("mine")
        run.save("notes.txt", policy="now")
    else:
        run.use_artifact("weights:v0")
"""
FILES = """[{
    "logged": sorted([a.name, a.type, a.description, a.metadata, sorted(a.aliases), a.tags, a.digest,
                sorted(a.manifest.entries)] for a in run.logged_artifacts()),
    "used": [a.name for a in run.used_artifacts()],
    "table": run.summary_metrics.get("answers", {}).get("path"),
    "files": sorted(f.name for f in run.files() if f.name[0] == "m" or f.name == "notes.txt"),
} for run in api.runs("local/kto-sweep", order="+created_at")]"""


@pytest.mark.slow  # test_artifacts_sdk.py has the server's side
def test_artifacts_tables_and_files_are_pushed_once(machine: Machine, other: Machine) -> None:
    address = ensure_server(other.home)
    sweep = machine.create_sweep(SWEEP)["id"]
    run_trials(machine, sweep, 2)
    first, second = (run["id"] for run in machine.api(RUNS))
    for run, does in (first, "logs"), (second, "uses"):
        machine.python("-c", LOG_FILES, run, does, **machine.server_environment())
    there = {"WANDB_API_KEY": address.key}
    said = machine.run("push", sweep, "--to", address.url, **there)
    assert "  artifact weights:v0: 5 bytes" in said
    assert "  used artifact weights:v0: 5 bytes" in said
    here, copied = machine.api(FILES), other.api(FILES)
    names = [f"run-{first}-answers:v0", "weights:v0", "weights:v1"]
    assert [name for name, *_ in here[0]["logged"]] == names
    assert here == copied
    assert here[1]["used"] == ["weights:v0"]
    assert copied[0]["table"] in copied[0]["files"]
    assert "notes.txt" in copied[0]["files"]
    entry = "api.artifact('local/kto-sweep/weights:best').get_entry('deep/w.bin')"
    assert other.api(f"open({entry}.download({str(other.folder)!r})).read()") == "second"
    assert machine.json("push", sweep, "--to", address.url, **there)["sent"] == []
    assert other.api(FILES) == copied
