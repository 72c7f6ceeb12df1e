"""A sweep that wandb registered, with fixed flags in its command, under kto-sweep agent."""

import json
from typing import Any

from machine import Machine

REGISTER = """
import json, sys, wandb
print("SWEEP", wandb.sweep(json.loads(sys.argv[1]), entity="local", project="tests"))
"""


def registered(machine: Machine, *arguments: str) -> str:
    """A sweep whose command has these arguments, registered by wandb's own function."""
    config: dict[str, Any] = {
        "method": "grid",
        "metric": {"name": "loss", "goal": "minimize"},
        "command": ["${env}", "${interpreter}", "${program}", *arguments],
        "program": "agent.py",
        "parameters": {
            "model_size": {"value": "tiny"},
            "dataset": {"value": "examples/support_replies.jsonl"},
            "max_steps": {"value": 2},
            "learning_rate": {"values": [0.003]},
        },
    }
    environment = machine.server_environment() | {"WANDB_SILENT": "true"}
    output = machine.python("-c", REGISTER, json.dumps(config), **environment)
    return f"local/tests/{output.rpartition('SWEEP ')[2].strip()}"


def test_an_agent_trains_with_the_flags_that_the_command_fixes(fake_machine: Machine) -> None:
    flags = ("--beta=0.5", "--max_steps=9", "${args}", "--lora_r", "4", "--seed=${envvar:SEED_OF_BOX}")
    name = registered(fake_machine, *flags)
    fake_machine.run("agent", name, SEED_OF_BOX="7")
    (trial,) = fake_machine.json("compare", name)["trials"]
    config = {key: trial["config"][key] for key in ("beta", "max_steps", "lora_r", "seed", "learning_rate")}
    assert config == {"beta": 0.5, "max_steps": 2, "lora_r": 4, "seed": 7, "learning_rate": 0.003}
    (path,) = fake_machine.home.runs.glob("*/trial.json")
    assert json.loads(path.read_text()).items() >= config.items()
