"""How long a whole sweep takes: trial after trial with TRL's KTOTrainer, and with kto-sweep.

    PYTHONPATH=. python benchmarks/makespan.py --data rows.jsonl --size 0.5b --tokenizer FOLDER \\
        --trial-steps 100 --baseline-steps 60 --json makespan.json --plot makespan.png

One sweep of learning rates x batch sizes on the same rows, three ways:

trl     as people do it today: a process per trial, one after another, TRL's KTOTrainer with its defaults
tuned   the same with precomputed reference log-probs and without gradient checkpointing
ours    `kto-sweep create` and `kto-sweep agent` on the embedded server, in a KTO_SWEEP_HOME made for it

All have LoRA r 16 on all linear layers, bf16 on a GPU and fp32 on a CPU, and evaluate the same held-out rows
once, after the last step. Start-up, model load and reference log-probs are part of each makespan. Baseline
trials run before and after ours, so that other load on the machine meets both.

With --baseline-steps below --trial-steps a baseline is extrapolated from one trial for each batch size:
learning rates x (start-up + evaluation + steps x median step), the median after --warmup steps, which favours
the baseline: its first steps are slower, as kernels are compiled for each new shape.

--json adds to the results that the file holds: each call can be short, --modes trl, then --modes ours.
"""

import argparse
import itertools
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from common import (
    ARCHITECTURES,
    describe_machine,
    for_trl,
    least_work,
    load_rows,
    matmul_ceiling,
    matmul_weights,
    memory_fraction,
    print_table,
    random_model,
    scratch_folder,
    tokenizer_of,
    write_json,
)
from makespan_report import MODES, plot, same_setting, table

from kto_sweep.home import Home
from kto_sweep.local_server.start import stop_server

CAP_PROBE = """
import sys, torch
torch.zeros(1, device="cuda")
sys.exit(abs(torch.cuda.get_per_process_memory_fraction() - float(sys.argv[1])) > 1e-3)
"""
"""Whether PyTorch took the memory limit from its environment."""

Result = dict[str, Any]


class Benchmark:
    """One sweep, ready to be run each way."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options = options
        self.scratch = scratch
        self.cuda = torch.cuda.is_available()
        self.model = options.model or random_model(options.size, options.tokenizer, scratch)
        self.rows = load_rows(
            options.data, tokenizer_of(self.model), options.max_length, options.eval_fraction
        )
        self.ceiling = matmul_ceiling() if self.cuda else None
        self.trials = len(options.learning_rates) * len(options.batch_sizes)
        tokens = statistics.fmean(len(row.prompt) + len(row.completion) for row in self.rows.train)
        self.tokens = tokens * sum(options.batch_sizes) * len(options.learning_rates) * options.trial_steps
        """Prompt and completion tokens that all trials train on."""
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("WANDB_")
        } | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        if options.memory_gib:
            self._limit_memory(options.memory_gib)
        torch.cuda.empty_cache()

    def _limit_memory(self, gib: float) -> None:
        """Have PyTorch itself keep every process that is started here within a smaller card's memory."""
        fraction = memory_fraction(gib)
        self.environment["PYTORCH_CUDA_ALLOC_CONF"] = f"per_process_memory_fraction:{fraction:.5f}"
        probe = [sys.executable, "-c", CAP_PROBE, str(fraction)]
        if subprocess.run(probe, env=self.environment, check=False).returncode:
            raise SystemExit(f"torch {torch.__version__} takes no memory limit from its environment")

    def setting(self) -> Result:
        """What results must agree in to be compared."""
        options = self.options
        name = options.size or Path(options.model).name
        return {
            "model": name if options.quantization == "none" else f"{name} in {options.quantization}",
            "memory_gib": options.memory_gib,
            "learning_rates": options.learning_rates,
            "batch_sizes": options.batch_sizes,
            "trial_steps": options.trial_steps,
            "max_length": options.max_length,
            "held_out_rows": len(self.rows.held_out),
            "gpus": options.gpus,
        }

    def summary(self, mode: str, seconds: float, step_s: float, **more: Any) -> Result:
        """A result as it is stored; seconds: the makespan, step_s: of one step of one trial."""
        result = {**self.setting(), "mode": mode, "makespan_s": round(seconds, 1), "step_s": step_s, **more}
        if self.ceiling:
            work = least_work(matmul_weights(self.model), self.tokens) / self.ceiling
            stepping = step_s * self.trials * self.options.trial_steps
            result |= {"of_ceiling_in_steps": work / stepping, "of_ceiling": work / seconds}
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        return result | {"machine": describe_machine(self.ceiling), "when": now}

    # TRL.

    @property
    def extrapolated(self) -> bool:
        return self.options.baseline_steps < self.options.trial_steps

    def write_rows(self, folder: Path) -> None:
        """The rows that a trial of each batch size trains on, and those held out, as TRL reads them."""
        for batch_size in self.options.batch_sizes:
            used = dict.fromkeys(self.rows.order(batch_size, self.options.trial_steps))
            _write_lines(folder / f"rows-{batch_size}.jsonl", [self.rows.examples[at] for at in used])
        _write_lines(folder / "held_out.jsonl", self.rows.held_out)

    def trl_trial(self, folder: Path, mode: str, batch_size: int, learning_rate: float) -> Result:
        """Seconds of one trial in a process of its own."""
        options, out = self.options, folder / "told.json"
        steps = options.baseline_steps if self.extrapolated else options.trial_steps
        command = [
            sys.executable, str(Path(__file__).with_name("trl_trial.py")),
            "--model", self.model, "--rows", str(folder / f"rows-{batch_size}.jsonl"),
            "--held-out", str(folder / "held_out.jsonl"), "--quantization", options.quantization,
            "--learning-rate", str(learning_rate), "--batch-size", str(batch_size),
            "--steps", str(steps), "--max-length", str(options.max_length), "--out", str(out),
            *(["--tuned"] if mode == "tuned" else []),
        ]  # fmt: skip
        os.sync()  # whose turn it is does not pay for what others have left to write, such as the model
        # What datasets and TRL keep on disk, trials may share; other benchmarks may not.
        environment = self.environment | {"HF_DATASETS_CACHE": str(folder / mode), "TQDM_DISABLE": "1"}
        began, cpu_began, load = time.time(), _cpu_seconds(), os.getloadavg()[0]
        _run(command, environment, folder / f"{mode}.log")
        seconds, told = time.time() - began, json.loads(out.read_text())
        if "error" in told:
            return {**told, "batch_size": batch_size}
        settled = told["step_s"][min(options.warmup, steps // 2) :]
        evaluation = told["evaluated"] - told["trained"]
        stepping = told["trained"] - told["began_stepping"]
        return {
            "batch_size": batch_size,
            "seconds": seconds,
            "start_s": seconds - stepping - evaluation,
            "step_s": statistics.median(settled),
            "evaluation_s": evaluation,
            "cpu_s": _cpu_seconds() - cpu_began,
            "peak_gib": told["peak_gib"],
            "load": load,
        }

    def trl_summary(self, mode: str, trials: Sequence[Result]) -> Result:
        """A baseline's makespan from the trials that were run."""
        failed = [trial for trial in trials if "error" in trial]
        if failed:
            return self.summary(mode, math.nan, math.nan, error=failed[0]["error"])
        options = self.options
        if self.extrapolated:
            seconds = len(options.learning_rates) * sum(
                trial["start_s"] + trial["evaluation_s"] + options.trial_steps * trial["step_s"]
                for trial in trials
            )
        else:
            seconds = sum(trial["seconds"] for trial in trials)
        return self.summary(
            mode, seconds, _mean(trials, "step_s"),
            start_s=_mean(trials, "start_s"), evaluation_s=_mean(trials, "evaluation_s"),
            peak_gib=max((trial["peak_gib"] for trial in trials if trial["peak_gib"]), default=None),
            cpu_s=None if self.extrapolated else sum(trial["cpu_s"] for trial in trials),
            extrapolated_from_steps=options.baseline_steps if self.extrapolated else None,
            load=_mean(trials, "load"),
        )  # fmt: skip

    # Ours.

    def ours(self, folder: Path) -> Result:
        """The sweep through the tool's own commands."""
        options = self.options
        home = Home(folder / "home")
        environment = self.environment | {"KTO_SWEEP_HOME": str(home.root)}
        sweep = folder / "sweep.yaml"
        sweep.write_text(yaml.safe_dump(self.sweep_file()))
        tool = [sys.executable, "-m", "kto_sweep"]
        os.sync()
        began, cpu_began, load = time.time(), _cpu_seconds(), os.getloadavg()[0]
        try:
            created = _run(
                [*tool, "create", str(sweep), "--local", "--json"], environment, folder / "create.log"
            )
            name = json.loads(created)["path"]
            together = ["--trials-per-gpu", str(options.trials_per_gpu or "auto")]
            devices = ["--gpus", options.gpus] if self.cuda else ["--cpu"]
            _run(
                [*tool, "agent", name, "--local", *together, *devices],
                environment,
                folder / "agent.log",
            )
            seconds, cpu_s = time.time() - began, _cpu_seconds() - cpu_began
            status = json.loads(
                _run([*tool, "status", name, "--local", "--json"], environment, folder / "status.log")
            )
        finally:
            stop_server(home)
        if status["finished"] != self.trials:
            said = "\n".join((folder / "agent.log").read_text(errors="replace").splitlines()[-60:])
            raise SystemExit(f"{said}\n{status['finished']} of {self.trials} trials finished")
        logs = [_read_log(path) for path in home.runs.glob("*/log.jsonl")]
        return self.summary(
            "ours", seconds, _step_seconds(logs),
            start_s=min(log[0]["at"] for log in logs) - began,
            end_s=began + seconds - max(log[-1]["at"] for log in logs), cpu_s=cpu_s,
            peak_gib=max(row.get("gpu/memory_peak_gb", 0.0) for log in logs for row in log) or None,
            load=load,
        )  # fmt: skip

    def sweep_file(self) -> Result:
        """The sweep as `kto-sweep create` takes it."""
        options = self.options
        fixed = {
            "model": self.model, "dataset": str(Path(options.data).resolve()),
            "max_steps": options.trial_steps, "max_length": options.max_length,
            "eval_fraction": options.eval_fraction, "eval_steps": options.trial_steps,
            "quantization": options.quantization,
        }  # fmt: skip
        searched = {"learning_rate": options.learning_rates, "batch_size": options.batch_sizes}
        return {
            "program": "agent.py",
            "method": "grid",
            "metric": {"name": "eval/common_loss", "goal": "minimize"},
            "parameters": {name: {"value": value} for name, value in fixed.items()}
            | {name: {"values": values} for name, values in searched.items()},
        }


def _run(command: Sequence[str], environment: Mapping[str, str], log: Path) -> str:
    """What the command printed. Raises SystemExit with the end of its log when it fails."""
    with log.open("a") as errors:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, check=False
        )
        errors.write(done.stdout)
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise SystemExit(f"{tail}\n{' '.join(command)}: exit status {done.returncode}")
    return done.stdout


def _cpu_seconds() -> float:
    """What all processes that were started here, and have ended, have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _write_lines(path: Path, examples: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(for_trl(example)) + "\n" for example in examples))


def _mean(trials: Sequence[Result], name: str) -> float:
    return statistics.fmean(trial[name] for trial in trials)


def _read_log(path: Path) -> list[Result]:
    """A trial's rows, each with the seconds since the epoch at which it was written."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row | {"at": datetime.fromisoformat(row["timestamp"]).timestamp()} for row in rows]


def _step_seconds(logs: Sequence[Sequence[Result]]) -> float:
    """Seconds of one step of one trial: between its rows, over the number of trials trained together."""
    gaps = [later["at"] - earlier["at"] for log in logs for earlier, later in itertools.pairwise(log)]
    spans = [(log[0]["at"], log[-1]["at"]) for log in logs]
    together = sum(end - begin for begin, end in spans) / (
        max(end for _, end in spans) - min(begin for begin, _ in spans)
    )
    return statistics.median(gaps) / together


def run(benchmark: Benchmark, modes: Sequence[str]) -> Iterator[Result]:
    """The result of each mode; half of the baselines' trials run before ours, half after."""
    options = benchmark.options
    rates = options.learning_rates[:1] if benchmark.extrapolated else options.learning_rates
    jobs = [
        (mode, batch_size, rate)
        for rate in rates
        for batch_size in options.batch_sizes
        for mode in modes
        if mode != "ours"
    ]
    done: dict[str, list[Result]] = {mode: [] for mode in modes}
    with tempfile.TemporaryDirectory(dir=benchmark.scratch) as name:
        folder = Path(name)
        benchmark.write_rows(folder)

        def run_baselines(chosen: Sequence[tuple[str, int, float]]) -> None:
            for mode, batch_size, rate in chosen:
                done[mode].append(benchmark.trl_trial(folder, mode, batch_size, rate))
                print(json.dumps({"mode": mode, "learning_rate": rate, **done[mode][-1]}), flush=True)

        run_baselines(jobs[: len(jobs) // 2])
        if "ours" in modes:
            result = benchmark.ours(folder)
            print(json.dumps(result), flush=True)
            yield result
        run_baselines(jobs[len(jobs) // 2 :])
    for mode in modes:
        if mode != "ours":
            yield benchmark.trl_summary(mode, done[mode])


def parse() -> argparse.Namespace:
    """The command line."""

    def numbers(kind: type) -> Any:
        return lambda text: [kind(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="JSON lines as `kto-sweep` reads them")
    parser.add_argument("--size", choices=[*ARCHITECTURES], help="random weights of this size")
    parser.add_argument("--tokenizer", help="for --size: a folder or .gguf file with a chat template")
    parser.add_argument("--model", help="in place of --size: a folder or .gguf file")
    parser.add_argument("--modes", default="trl,tuned,ours", help="empty: only the table and plot of --json")
    parser.add_argument("--learning-rates", type=numbers(float), default=[1e-6, 5e-6, 1e-5, 2e-5])
    parser.add_argument("--batch-sizes", type=numbers(int), default=[4, 8])
    parser.add_argument("--trial-steps", type=int, default=100)
    parser.add_argument("--baseline-steps", type=int, default=sys.maxsize, help="fewer: extrapolated")
    parser.add_argument("--warmup", type=int, default=35, help="steps that no baseline's median includes")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--eval-fraction", type=float, default=0.1)
    parser.add_argument("--trials-per-gpu", type=int, help="of ours; default: auto")
    parser.add_argument("--gpus", default="0", help="of ours, such as 0,1; the others use one")
    parser.add_argument("--quantization", choices=["none", "4bit"], default="none")
    parser.add_argument("--memory-gib", type=float, help="let each process have only so much of the GPU")
    parser.add_argument("--scratch", type=Path, help="kept, with its models, for the next call")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    options.modes = [mode for mode in options.modes.split(",") if mode]
    if unknown := set(options.modes) - set(MODES):
        parser.error(f"--modes: {', '.join(sorted(unknown))}: choose from {', '.join(MODES)}")
    if options.modes and not options.data:
        parser.error("--data is needed")
    if options.modes and not options.model and not (options.size and options.tokenizer):
        parser.error("give --model, or --size and --tokenizer")
    if options.trial_steps < 2:
        parser.error("--trial-steps: at least 2, to see what a step takes")
    if options.baseline_steps < options.trial_steps and options.baseline_steps <= options.warmup:
        parser.error("--baseline-steps: more than --warmup")
    if options.memory_gib and not torch.cuda.is_available():
        parser.error("--memory-gib: there is no GPU")
    return options


def main() -> None:
    options = parse()
    results: list[Result] = []
    if options.json and options.json.exists():
        results = json.loads(options.json.read_text())
    if options.modes:
        with scratch_folder(options.scratch) as scratch:
            benchmark = Benchmark(options, scratch)
            print(describe_machine(benchmark.ceiling), flush=True)
            for result in run(benchmark, options.modes):
                results = [
                    old for old in results if old["mode"] != result["mode"] or not same_setting(old, result)
                ]
                results.append(result)
                if options.json:
                    write_json(options.json, results)
    print_table(table(results))
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
