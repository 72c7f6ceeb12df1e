"""One call of `kto-sweep train`: trains one trial without a sweep, in the same way as an agent."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from kto_sweep.agent.connectivity import Connectivity
from kto_sweep.agent.devices import CPU, Device, find_devices, grouped, lock_devices
from kto_sweep.agent.executor import Executor
from kto_sweep.agent.lease import AgentLease
from kto_sweep.agent.model_upload import read_log_model
from kto_sweep.agent.progress import EndReport, ProgressDisplay
from kto_sweep.agent.run_agent import PATIENCE_SECONDS
from kto_sweep.agent.state import AgentOutcome, AgentState, AgentStats, Settings
from kto_sweep.agent.supervisor import supervise
from kto_sweep.agent.trial_source import SingleTrialSource
from kto_sweep.agent.wandb_run import RunOptions, log_answers
from kto_sweep.agent.workers import TRAINER, WorkerProcess, log_path
from kto_sweep.alerts import RunAlert
from kto_sweep.disk import require_space
from kto_sweep.errors import KtoSweepError, UsageError
from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server
from kto_sweep.metrics import DEFAULT_METRIC
from kto_sweep.model_card import write_card
from kto_sweep.provenance import Provenance
from kto_sweep.run_log import StepTable
from kto_sweep.sweep.ref import LOCAL_ENTITY, SweepRef
from kto_sweep.terminal import LineConsole
from kto_sweep.trial import Trial
from kto_sweep.wandb_client.connection import Target, connect

if TYPE_CHECKING:
    import wandb

FEW_STEPS = 50
"""A run of at most this many steps shows each step; a longer one every EVERYth."""
EVERY = 5
SAMPLE_TOKENS = 128
"""Maximum tokens of each answer."""


@dataclass(frozen=True)
class Job:
    """A run to start or resume."""

    run_id: str
    trial: Trial
    name: str
    """Display name; empty: keep the server's."""
    project: str
    entity: str | None
    samples: int = 0
    """Number of held-out prompts whose answers are logged in a table at the end."""


class RunProgress(ProgressDisplay):
    """Shows the table of one run, and its progress bar on a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, (), DEFAULT_METRIC, None)
        self._table = StepTable(width=console.width if console.is_terminal else None)
        self._total = 0
        self.result: dict[str, Any] = {"state": None, "cause": "", "message": "", "summary": {}}
        """How the run ended, for --json."""

    def note(self, text: str) -> None:
        """Print a line of the run's log."""
        self.say(text)

    def started(self, run_id: str, name: str, config: Mapping[str, Any], device: str) -> None:
        """Show that the run is open."""
        self._names[run_id], self._latest[run_id] = "run", {}
        self.say(f"Run {run_id} ({name}) on {device}")
        self._bars[run_id] = self._progress.add_task("run", total=None, status="loading")

    def alert(self, run_id: str, alert: RunAlert) -> None:
        """Show the run's alert on a line."""
        self.say(str(alert))

    def planned(self, run_id: str, total_steps: int, done_steps: int) -> None:
        """Set the run's number of steps."""
        self._total = total_steps
        self._table.plan(total_steps, done_steps)
        super().planned(run_id, total_steps, done_steps)

    def progress(self, run_id: str, step: int, values: Mapping[str, float]) -> None:
        """Show a logged step."""
        self._latest[run_id].update(values)
        self._progress.update(self._bars[run_id], completed=step)
        shown = self._total <= FEW_STEPS or step in (1, self._total) or step % EVERY == 0
        if not shown:
            values = {name: value for name, value in values.items() if name.startswith("eval/")}
        for line in self._table.lines(step, values):
            self.say(line)

    def ended(self, run_id: str, how: str, summary: Mapping[str, Any]) -> None:
        """Show how the run ended."""
        how = "interrupted" if how == "requeued" else how
        self.result |= {"state": how, "summary": self._latest[run_id] | dict(summary)}
        super().ended(run_id, how, summary)

    def failed(self, run_id: str, cause: str, text: str) -> None:
        """Show that the run failed and why."""
        summary = dict(self._latest[run_id])
        self.result |= {"state": "failed", "cause": cause, "message": text, "summary": summary}
        super().failed(run_id, cause, text)


def choose_devices(*, gpus: int, cpu: bool) -> list[Device]:
    """The devices to train on: `gpus` GPUs, or the CPU. Raises UsageError if there are fewer."""
    devices = find_devices(os.environ, cpu=cpu)
    if devices != [CPU]:
        if len(devices) < gpus:
            raise UsageError(f"--gpus {gpus}: this box has {len(devices)}", hint=f"--gpus {len(devices)}")
        return devices[:gpus]
    if gpus > 1 and not cpu:
        raise UsageError(f"--gpus {gpus}: this box has no NVIDIA GPU", hint="drop --gpus to train on the CPU")
    return devices


def open_server(target: Target, *, offline: bool) -> "wandb.Api | None":
    """A connection to the server, which responds and accepts the key; None if offline. Raises ServerError."""
    return None if offline else connect(target)


def train_one(
    home: Home,
    job: Job,
    target: Target,
    *,
    offline: bool,
    gpus: int,
    cpu: bool,
    worker: Sequence[str] = TRAINER,
    report: EndReport | None = None,
) -> int:
    """The exit code: 0 finished, 1 failed or not sent, 128 + the signal if interrupted.

    `worker`: the command of its worker process. `report` gets what was done.
    Raises KtoSweepError for anything that prevents the run from starting.
    """
    report = report or EndReport()
    console = LineConsole(file=report.stream, highlight=False)
    log_model = read_log_model()
    devices = choose_devices(gpus=gpus, cpu=cpu)
    device = grouped(devices, gpus)[0] if gpus > 1 else devices[0]
    require_space(home.root)
    with lock_devices(devices, home):
        if job.name:
            os.environ["WANDB_NAME"] = job.name
        api = open_server(target, offline=offline)
        ref = SweepRef(_entity(job, target, api), job.project, "")
        server = "Offline: the run can be synced later" if offline else f"Talking to {target}"
        console.print(server, soft_wrap=True)
        if not offline:
            link = target.page_link(ref.run_url(target.app_url, job.run_id), console.file)
            console.print(f"  {link}", soft_wrap=True)
        revive = (lambda: ensure_server(home).url) if target.local else None
        connectivity = None if offline else Connectivity(target.base_url, revive)
        lease = AgentLease(home)
        with RunProgress(console) as progress:
            executor = Executor(
                SingleTrialSource(ref, job.run_id, job.trial.to_config()), home, progress, lease,
                RunOptions(
                    DEFAULT_METRIC, "minimize", target.local, PATIENCE_SECONDS,
                    provenance=Provenance.of_process(), log_model=log_model,
                ),
                connectivity=connectivity, start_worker=partial(WorkerProcess, command=worker),
            )  # fmt: skip
            settings = Settings(count=1, max_openings=1)
            state = supervise(AgentState.of({device: str(log_path(home, device))}, 1, settings), executor)
        stats = state.stats
        report.fields |= {
            "run": job.run_id,
            "url": None if offline else ref.run_url(target.app_url, job.run_id),
            "folder": str((home.runs / job.run_id).resolve()),
            "offline": offline,
            **progress.result,
            "interrupted": bool(stats.interrupted),
            "sent": not (offline or stats.unsent or stats.server_lost),
        }
        if state.outcome is AgentOutcome.RESTART:
            raise KtoSweepError(str(state.error), hint=_how_to_continue(home, job).removeprefix("Next: "))
        if state.outcome is AgentOutcome.KILLED:
            console.print(_how_to_continue(home, job), soft_wrap=True)
            report.exit_at_once(128 + stats.interrupted)
        if connectivity is not None:
            connectivity.end()
        lease.end()
    if job.samples and stats.finished and not (stats.unsent or stats.server_lost):
        _show_samples(console, home, job, ref)
    return _print_end(console, report, home, job, target, stats, offline=offline)


def _show_samples(console: Console, home: Home, job: Job, ref: SweepRef) -> None:
    """Log base and tuned answers to the run; an error here does not fail the run."""
    from kto_sweep.train.chat import compare_answers

    console.print(f"Answers to {job.samples} held-out prompts, by the base and the tuned model")
    folder = home.runs / job.run_id
    try:
        answers = compare_answers(home, folder, (), count=job.samples, max_tokens=SAMPLE_TOKENS)
        rows = [(answer.prompt, answer.base, answer.tuned) for answer in answers]
        log_answers(ref, job.run_id, folder, rows)
    except Exception as error:  # the run has ended and its weights are saved
        console.print(f"Could not log answers: {error}", markup=False, soft_wrap=True)


def _entity(job: Job, target: Target, api: "wandb.Api | None") -> str:
    if job.entity or target.local:
        return job.entity or LOCAL_ENTITY
    return str(api.default_entity) if api is not None else ""


def _print_end(
    console: Console,
    report: EndReport,
    home: Home,
    job: Job,
    target: Target,
    stats: AgentStats,
    *,
    offline: bool,
) -> int:
    folder = (home.runs / job.run_id).resolve()  # follows the link to --output-dir
    if (folder / "lineage.json").exists():
        write_card(folder)
    if stats.unsent or stats.server_lost:
        console.print(f"Could not reach {target}; the run's data is in {folder}", soft_wrap=True)
        console.print("When the server is back: kto-sweep sync")
        report.exit_at_once(1)
    if offline and (folder / "wandb").is_dir():
        to = "to W&B; --local: to the embedded server"
        console.print(f"To send it: kto-sweep sync {job.run_id}   ({to})", markup=False, soft_wrap=True)
    if stats.interrupted:
        console.print(_how_to_continue(home, job), soft_wrap=True)
        return 128 + stats.interrupted
    if not stats.finished:
        console.print(f"Log: {folder / 'console.log'}", soft_wrap=True)
        return 1
    console.print(f"Trained weights, log, lineage and model card: {folder}", soft_wrap=True)
    merge = "" if (folder / "model").is_dir() else f"   or: kto-sweep merge {job.run_id}"
    console.print(f"Next: kto-sweep chat {job.run_id}{merge}")
    return 0


def _how_to_continue(home: Home, job: Job) -> str:
    if not (home.runs / job.run_id / "trial.json").is_file():
        return "The run had not started yet: run the same command again"
    return f"Next: kto-sweep train --resume-from-checkpoint {job.run_id}   (continues from its checkpoint)"
