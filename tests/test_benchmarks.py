"""Each benchmark runs with its smallest settings on a CPU; `mypy` checks their calls in between."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
ROWS = str(ROOT / "examples" / "support_replies.jsonl")
SMALL = "--max-length 128 --warmup 1"
RUNS = {
    "artifact": "--gigabytes 0.01",
    "chaos": "--faults 1 --steps 40 --seed 1",
    "dashboard": "--loads 1",
    "devices": f"--data {ROWS} --model MODEL --devices 1 --kinds lora --steps 8 {SMALL}",
    "fuzz": "--requests 20 --seed 1",
    "gpu_check": "--device cpu --models qwen2",
    "importance_simulation": "--sweeps 1 --minutes 0.05",
    "large_data": "--rows 2000",
    "load": "--runs 2 --seconds 5 --finished 100 --repeats 1",
    "makespan": f"--data {ROWS} --model MODEL --learning-rates 1e-3 --batch-sizes 4 --trial-steps 2 {SMALL}",
    "search": "--seeds 1 --minutes 0.05",
    "size": "--runs 60 --rows 25000 --cells 1000",
    "step": f"--data {ROWS} --model MODEL --steps 2 {SMALL}",
    "verdict_simulation": "--sweeps 1",
}
ELSEWHERE = {
    "cotrain_check": "needs a GPU: minutes on a CPU",
    "fp8_check": "needs a GPU with FP8",
    "gpu_accidents": "needs GPUs",
    "memory": "needs a GPU",
    "slots": "needs a GPU",
    "trl_trial": "makespan starts it",
    "makespan_report": "makespan imports it",
    "common": "the others import it",
    "wandb_suite": "needs a checkout of wandb",
    "wandb_suite_plugin": "wandb_suite loads it",
    "wandb_suite_server": "wandb_suite starts it",
}


def test_every_benchmark_is_run_or_says_why_not():
    assert {path.stem for path in FOLDER.glob("*.py")} == RUNS.keys() | ELSEWHERE.keys()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_runs(name, tmp_path, tiny_base):
    arguments = RUNS[name].replace("MODEL", str(tiny_base)).split()
    environ = os.environ | {"PYTHONPATH": str(ROOT), "KTO_SWEEP_HOME": str(tmp_path / "home")}
    command = [sys.executable, FOLDER / f"{name}.py", *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=1100, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip()
    assert "exit status" not in done.stdout  # what a benchmark prints of a process that failed
