"""What a run's configuration, page and files on its server record, with the real SDK and a real server."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from machine import ROOT, Machine
from short_sweep import SWEEP

from kto_sweep.trial import PARAMETERS

TRAIN = (
    *("train", "--model-size", "tiny", "--local-file", str(ROOT / "examples" / "support_replies.jsonl")),
    *("--max-steps", "2", "--cpu"),
)
RUN = (
    "(lambda r: {{'config': r.config, 'metadata': r.metadata, 'commit': r.commit, 'id': r.id,"
    " 'files': [f.name for f in r.files()]}})(api.runs('local/{}')[0])"
)


@pytest.fixture(scope="module")
def commit(fake_machine: Machine) -> str:
    """The commit of the machine's folder, which is a repository with uncommitted changes."""
    folder = fake_machine.folder
    (folder / "notes.txt").write_text("old\n")
    for arguments in (
        ("init", "--quiet", "--initial-branch=main"),
        ("remote", "add", "origin", "https://me:secret@example.com/kto.git"),
        ("add", "notes.txt"),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "one"),
    ):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    (folder / "notes.txt").write_text("new\n")
    shown = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
    )
    return shown.stdout.strip()


def newest_run(machine: Machine, project: str) -> dict[str, Any]:
    answer: dict[str, Any] = machine.api(RUN.format(project))
    return answer


def test_a_run_records_every_hyperparameter_and_what_it_was_trained_with(fake_machine, commit):
    made = fake_machine.create_sweep(SWEEP)
    fake_machine.run("agent", made["id"], "--count", "1")
    run = newest_run(fake_machine, "kto-sweep")
    config, record = run["config"], run["config"]["record"]
    with_a_value = {
        name for name, rule in PARAMETERS.items() if rule.default is not None or name == "dataset"
    }
    assert with_a_value <= config.keys()
    assert (config["beta"], config["seed"], config["lora_r"], config["batch_size"]) == (0.1, 42, 16, 4)
    assert record["code"] == {
        "commit": commit, "branch": "main", "dirty": True, "remote": "https://example.com/kto.git",
    }  # fmt: skip
    assert record["environment"]["wandb"].startswith("0.")
    assert record["model"] == {"name": "tiny", "trainable_parameters": 3}
    assert run["commit"] == commit
    assert run["metadata"]["git"] == {"commit": commit, "remote": "https://example.com/kto.git"}
    assert "secret" not in json.dumps(run)


def test_code_and_its_changes_are_uploaded_on_request_alone(fake_machine, commit):
    fake_machine.run(*TRAIN, "--wandb-project", "quiet")
    files = newest_run(fake_machine, "quiet")["files"]
    assert "wandb-metadata.json" in files
    assert not [name for name in files if name.startswith("code/") or "diff" in name]
    fake_machine.run(*TRAIN, "--wandb-project", "open", WANDB_SAVE_CODE="true")
    run = newest_run(fake_machine, "open")
    assert "diff.patch" in run["files"]
    assert run["commit"] == commit


def test_git_is_left_alone_on_request(fake_machine, commit):
    fake_machine.run(*TRAIN, "--wandb-project", "none", WANDB_DISABLE_GIT="true")
    run = newest_run(fake_machine, "none")
    assert "code" not in run["config"]["record"]
    assert not run["commit"]


def test_a_token_on_the_command_line_is_not_uploaded(fake_machine):
    fake_machine.run(*TRAIN, "--wandb-project", "token", "--hf-token", "hf_very_secret")
    run = newest_run(fake_machine, "token")
    assert "***" in run["metadata"]["args"]
    assert "***" in run["config"]["record"]["command"]
    assert "hf_very_secret" not in json.dumps(run)


ATTEMPTS = """
import json, os, sys
import wandb
from kto_sweep.agent.model_upload import CHECKPOINT
from kto_sweep.agent.wandb_run import ObjectiveTracker, TrialRun
from kto_sweep.home import Home
from kto_sweep.provenance import CodeInfo, Provenance
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.server_choice import local_target

home = Home.from_environment()
local_target(home).export()
folder = home.runs / "twice"

def attempt(gpu):
    return TrialRun.open(
        SweepRef("local", "attempts", ""), "twice", {"lora": {"r": 4}, "dataset": "d", "model_size": "tiny"},
        folder, objective=ObjectiveTracker("loss", "minimize"), local=True, on_stop=lambda: None,
        on_alert=print, home="h", agent="a", device=gpu, patience=30.0,
        provenance=Provenance(code=CodeInfo(gpu), environment={"python": gpu}),
    )

def config():
    wandb.Api().flush()
    return wandb.Api().run("local/attempts/twice").config

first = attempt("old")
first.loaded({
    "model": {"name": "old", "layers": 2}, "code": {"commit": "old", "branch": "b"}, "data": {"path": "d"},
})
first.metrics(1, {"loss": 0.5})
(folder / CHECKPOINT).parent.mkdir()
(folder / CHECKPOINT).touch()
first.preempt()
configs = [config()]
second = attempt("new")
second.preempt()
configs.append(config())
third = attempt("new")
third.loaded({"model": {"name": "new"}, "code": {"commit": "new"}})
third.succeed({})
configs.append(config())
print("RESULT " + json.dumps(configs))
"""


def test_the_latest_attempt_s_record_replaces_earlier_ones_once_it_is_complete(fake_machine):
    output = fake_machine.python("-c", ATTEMPTS, WANDB_SILENT="true")
    first, opened, loaded = json.loads(output.rpartition("RESULT ")[2])
    assert first["record"]["data"] == {"path": "d"}
    assert opened["record"] == {
        "model": {"name": "old", "layers": 2},
        "data": {"path": "d"},
        "code": {"commit": "new"},
        "environment": {"python": "new"},
    }
    assert loaded["record"] == {"model": {"name": "new"}, "code": {"commit": "new"}}
    for config in (first, opened, loaded):
        assert config["lora"] == {"r": 4}
        assert config["beta"] == 0.1
        assert not {"lora_r", "r"} & config.keys()


MONITORED = """
import os, subprocess, sys, time
from pathlib import Path
os.environ.update(
    WANDB_MODE="offline", WANDB_SILENT="true", WANDB_ERROR_REPORTING="false",
    WANDB_X_STATS_SAMPLING_INTERVAL="0.2", WANDB_X_STATS_BUFFER_SIZE="-1",
)
from kto_sweep.agent.wandb_run import Monitored, ObjectiveTracker, TrialRun
from kto_sweep.sweep.ref import SweepRef

code = "x = bytearray(400 << 20); x[::4096] = b'1' * len(x[::4096]); print(1, flush=True); input()"
worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
worker.stdout.readline()
run = TrialRun.open(
    SweepRef("e", "p", ""), "run1", {}, Path(sys.argv[1]) / "run1",
    objective=ObjectiveTracker("loss", "minimize"), local=False, on_stop=lambda: None, on_alert=print,
    home="h", agent="a", device="cpu", patience=5, monitored=Monitored(worker.pid, ()),
)
while not (values := run._run._system_metrics.get("proc.memory.rssMB")):
    time.sleep(0.1)
print(values[-1][1])
run.succeed({})
worker.kill()
worker.communicate()
"""


def test_system_metrics_are_those_of_the_worker_process(fake_machine, tmp_path: Path):
    """The worker has 400 MB; the agent's process, which opens the run, has less."""
    assert float(fake_machine.python("-c", MONITORED, str(tmp_path)).split()[-1]) > 400
