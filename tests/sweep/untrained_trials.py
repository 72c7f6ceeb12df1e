"""Runs the trials of a sweep in W&B runs as the agent does, without training: they log given values."""

import json
from collections.abc import Mapping

from machine import Machine

SCRIPT = """
import json, os, sys
import wandb
from kto_sweep.wandb_client.private_api import heartbeat, register_agent
from kto_sweep.run_record import home_id
from kto_sweep.agent.wandb_run import ObjectiveTracker, TrialRun
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
    objective = ObjectiveTracker("eval/common_loss", "minimize")
    settings = {**config, **config.get("configuration", {})}
    rate, batch = settings["learning_rate"], settings["batch_size"]
    folder = home.runs / run_id
    run = TrialRun.open(ref, run_id, config, folder, objective=objective, local=True, on_stop=lambda: None,
                        on_alert=print, home=home_id(home), agent="", device="cpu", patience=5.0)
    for step in range(1, 4):
        run.metrics(step, {"loss": rate * step, "eval/common_loss": rate / step})
    exec(between)
    outcome = outcomes.get(f"{rate:g} {batch}", "finished")
    if outcome == "finished":
        run.succeed({"trial/seconds": 1.0})
    elif outcome == "requeued":
        run.preempt()
    else:
        run.fail(outcome, "as told")
    did.append([run_id, rate, batch])
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


def run_trials(
    machine: Machine,
    sweep: str,
    most: int = 99,
    outcomes: Mapping[str, str] | None = None,
    between: str = "",
) -> list[tuple[str, float, int]]:
    """Run at most `most` trials; returns (run id, learning rate, batch size) of each.

    `outcomes` says how the trial of "learning rate, batch size" ends: "finished" (the default), "requeued" or
    a failure cause. The code `between` runs before the end of each trial.
    """
    output = machine.python("-c", SCRIPT, sweep, str(most), json.dumps(outcomes or {}), between)
    result = next(line[7:] for line in output.splitlines() if line.startswith("RESULT "))
    return [tuple(trial) for trial in json.loads(result)]
