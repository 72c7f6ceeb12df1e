"""SIGKILL of the server at every step of an artifact: nothing half is served, the SDK's retry succeeds."""

import subprocess
import sys
import time
from pathlib import Path

from machine import Machine
from sdk_scripts import SETTINGS, script_results, start_script

from kto_sweep.local_server.start import running_server, stop_server

SERVER = """
import os, signal, sys
from pathlib import Path
from kto_sweep.server import artifact_creation, artifact_storage, main, received_file, request_body
from kto_sweep.server.app import graphql_api
from kto_sweep.server.store import artifact_contents

todo = Path(sys.argv[2])

def die_in(module, name, point, *, after=False, when=lambda *args: True):
    function = getattr(module, name)
    def call(*args, **values):
        due = todo.read_text().split("\\n")[0] == point and when(*args)
        result = function(*args, **values) if after or not due else None
        if due:
            todo.write_text("\\n".join(todo.read_text().split("\\n")[1:]))
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(module, name, call)

def is_commit(context, payload):
    return "mutation CommitArtifact" in payload["query"]

die_in(received_file, "checksum", "in the middle of the file")
die_in(artifact_contents, "add_content", "between the rename and its record")
die_in(artifact_contents, "fill_manifest", "while the manifest is stored", after=True)
die_in(artifact_contents, "release", "in the commit", after=True)
die_in(graphql_api, "execute", "before the answer to the commit", after=True, when=is_commit)
deaths = 0
while (pid := os.fork()) and os.waitpid(pid, 0)[1] == signal.SIGKILL:
    deaths += 1
if pid:
    print(deaths)
else:
    sys.exit(main.main(["--home", sys.argv[1]]))
"""
"""Serves in a forked process, and in another when that one is killed; prints at the end how many were."""
FAST_RETRIES = {
    f"WANDB__{kind}_RETRY_WAIT_{limit}_SECONDS": "1"  # wandb cuts fractions off
    for kind in ("GRAPHQL", "FILE_TRANSFER")
    for limit in ("MIN", "MAX")
}
POINTS = [
    "in the middle of the file",
    "between the rename and its record",
    "while the manifest is stored",
    "in the commit",
    "before the answer to the commit",
]
LOG = """
with open("large.bin", "wb") as file:
    file.write(os.urandom(3 << 20))
with wandb.init(id="survivor") as run:
    artifact = wandb.Artifact("weights", type="model")
    artifact.add_file("large.bin")
    run.log_artifact(artifact, aliases=["best"]).wait()
    report([artifact.version, sorted(artifact.aliases)])
"""
READ = """
api = wandb.Api()
found = [[one.version, one.state, one.size] for one in api.artifacts("model", "acme/tests/weights")]
same = open(api.artifact("acme/tests/weights:best").file(), "rb").read() == open("large.bin", "rb").read()
report([found, same])
"""


def test_server_killed_at_every_step_of_an_artifact(tmp_path: Path) -> None:
    machine, todo = Machine(tmp_path / "machine"), tmp_path / "todo"
    machine.home.root.mkdir(parents=True)
    todo.write_text("\n".join(POINTS))
    command = [sys.executable, "-c", SERVER, str(machine.home.root), str(todo)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as servers:
        while (address := running_server(machine.home)) is None:
            assert servers.poll() is None
            time.sleep(0.02)
        machine.environ |= SETTINGS | FAST_RETRIES
        machine.environ |= {"WANDB_BASE_URL": address.url, "WANDB_API_KEY": address.key}
        [logged] = script_results(start_script(machine, LOG))
        assert logged == ["v0", ["best", "latest"]]
        [[found, same]] = script_results(start_script(machine, READ))
        assert found == [["v0", "COMMITTED", 3 << 20]]
        assert same
        folder = machine.home.server / "artifacts"
        assert len([*folder.glob("??/*")]) == 1
        assert [*folder.glob("uploads/*")] == []
        stop_server(machine.home)
        assert servers.communicate() == (f"{len(POINTS)}\n", None)
