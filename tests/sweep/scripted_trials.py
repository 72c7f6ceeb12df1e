"""A user's machine with an embedded server, and trials that log scripted values instead of training."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kept_environment import kept_environment

from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server

WORK = """
import json, os, sys
import wandb
from kto_sweep.wandb_client.private_api import heartbeat, register_agent
from kto_sweep.run_record import home_id
from kto_sweep.agent.runs import Objective, TrialRun
from kto_sweep.home import Home
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.server_choice import local_target

sweep, most, outcomes, between = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
home, ref = Home.from_environment(), SweepRef("local", "kto-sweep", sweep)
local_target(home).export()
api = wandb.Api()
agent, did = register_agent(api, ref, "box"), []
while len(did) < most:
    commands = heartbeat(api, agent, [])
    if not commands or commands[0].kind == "exit":
        break
    config, run_id = commands[0].config, commands[0].run_id
    objective, rate = Objective("eval/common_loss", "minimize"), config["learning_rate"]
    folder = home.runs / run_id
    run = TrialRun.open(ref, run_id, config, folder, objective=objective, local=True, on_stop=lambda: None,
                        home=home_id(home), agent="", device="cpu", patience=5.0)
    for step in range(1, 4):
        run.metrics(step, {"loss": rate * step, "eval/common_loss": rate / step})
    exec(between)
    outcome = outcomes.get(f"{rate:g} {config['batch_size']}", "finished")
    if outcome == "finished":
        run.succeed({"trial/seconds": 1.0})
    elif outcome == "put back":
        run.preempt()
    else:
        run.fail(outcome, "as output")
    did.append([run_id, rate, config["batch_size"]])
print("RESULT " + json.dumps(did))
"""
SWEEP = """
method: grid
metric: {name: eval/common_loss, goal: minimize}
parameters:
  learning_rate: {values: [0.001, 0.002]}
  batch_size: {values: [1, 2]}
  model_size: {value: tiny}
  dataset: {value: examples/support_replies.jsonl}
"""


@dataclass(frozen=True)
class Machine:
    """A user's machine without a W&B key."""

    folder: Path

    @property
    def home(self) -> Home:
        return Home(self.folder / "kto-home")

    @property
    def environment(self) -> dict[str, str]:
        return kept_environment() | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "KTO_SWEEP_HOME": str(self.home.root),
            "OMP_NUM_THREADS": "1",
        }

    def python(self, *args: str, code: int = 0, **env: str) -> str:
        """Output of a Python process that must end with `code`."""
        done = subprocess.run(
            [sys.executable, *args],
            cwd=self.folder,
            env=self.environment | env,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + (done.stderr if code else "")

    def run(self, *args: str, code: int = 0, **env: str) -> str:
        """Output of a kto-sweep command that must end with `code`."""
        return self.python("-m", "kto_sweep", *args, code=code, **env)

    def json(self, *args: str, **env: str) -> dict[str, Any]:
        answer = json.loads(self.run(*args, "--json", **env))
        assert isinstance(answer, dict)
        return answer

    def create(self, text: str = SWEEP, **env: str) -> str:
        """The id of a new sweep."""
        (self.folder / "sweep.yaml").write_text(text)
        return str(self.json("create", "sweep.yaml", **env)["id"])

    def work(
        self, sweep: str, most: int = 99, outcomes: Mapping[str, str] | None = None, between: str = ""
    ) -> list[tuple[str, float, int]]:
        """Run trials as the agent does, without training; (run, learning rate, batch size) of each.

        `outcomes` says how the trial of "learning rate, batch size" ends; `between` is run before its end.
        """
        output = self.python("-c", WORK, sweep, str(most), json.dumps(outcomes or {}), between)
        output = next(line[7:] for line in output.splitlines() if line.startswith("RESULT "))
        return [tuple(item) for item in json.loads(output)]

    def ask(self, code: str) -> Any:
        """The value of an expression in a script that uses wandb.Api."""
        address = ensure_server(self.home)
        script = f"import json, wandb\napi = wandb.Api()\nprint('RESULT ' + json.dumps({code}))"
        output = self.python(
            "-c", script, WANDB_BASE_URL=address.url, WANDB_API_KEY=address.key, WANDB_SILENT="true"
        )
        return json.loads(output.rpartition("RESULT ")[2])
