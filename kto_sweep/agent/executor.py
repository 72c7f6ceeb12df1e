"""Performs the scheduler's actions and reports events; the only file that starts threads.

                       one thread for each
slot                   HeartbeatLoop --> Commands, SweepGone
worker                 its messages --> WorkerMessage, WorkerExited; another thread ends it
W&B run while it opens --> RunOpened, RunNotOpened
        or closes      --> RunClosed
server                 Connectivity, read at each Tick

Everything else runs on the supervisor's thread.
"""

import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from kto_sweep.agent import actions as do
from kto_sweep.agent import events
from kto_sweep.agent.connectivity import Connectivity
from kto_sweep.agent.devices import Device
from kto_sweep.agent.events import OpeningFailure
from kto_sweep.agent.heartbeat import INTERVAL_SECONDS, HeartbeatLoop
from kto_sweep.agent.lease import AgentLease, BusyError, OrphanedTrial, release, take_over
from kto_sweep.agent.progress import ProgressDisplay
from kto_sweep.agent.state import Assignment, TrialEnd, TrialEndKind
from kto_sweep.agent.time_budget import Allowance
from kto_sweep.agent.trial_source import TrialSource
from kto_sweep.agent.wandb_run import (
    GivenBackError,
    Monitored,
    ObjectiveTracker,
    RunOptions,
    TrialRun,
    checkpoint_step,
)
from kto_sweep.agent.workers import WorkerProcess
from kto_sweep.alerts import AlertLevel, RunAlert
from kto_sweep.disk import shortage
from kto_sweep.errors import KtoSweepError
from kto_sweep.fingerprints import InputDrift, TrainedRun
from kto_sweep.home import Home
from kto_sweep.protocol import (
    Alert,
    Loaded,
    Metrics,
    Note,
    Planned,
    Preparing,
    StartTrial,
    StopTrial,
    TrialMessage,
)
from kto_sweep.run_record import home_id
from kto_sweep.sweep import seed_spread
from kto_sweep.trial import Trial
from kto_sweep.wandb_client.private_api import (
    Command,
    KeyRejectedError,
    is_service_gone,
    kill_wandb_core,
    wandb_core_exited,
)

TICK_SECONDS = 1.0
SHORT_SECONDS = 10.0
"""Idle slots do not ask the server for a trial for this long after a trial had to wait for disk space."""


class TakenError(KtoSweepError):
    """This agent may not continue a dead agent's trial."""


class Executor:
    """An agent's processes, W&B runs and heartbeats."""

    def __init__(
        self,
        source: TrialSource,
        home: Home,
        progress: ProgressDisplay,
        lease: AgentLease,
        run_options: RunOptions,
        *,
        connectivity: Connectivity | None = None,
        allowances: Sequence[Allowance] = (),
        drift: InputDrift | None = None,
        open_run: Callable[..., TrialRun] = TrialRun.open,
        start_worker: Callable[..., WorkerProcess] = WorkerProcess,
        heartbeat_seconds: float = INTERVAL_SECONDS,
        tick_seconds: float = TICK_SECONDS,
    ) -> None:
        """`connectivity`: None without a server. `allowances`: the agent's time limits."""
        self._source = source
        self._home = home
        self._home_id = home_id(home)
        self._progress = progress
        self._lease = lease
        self._run_options = run_options
        self._connectivity = connectivity
        self._allowances = allowances
        self._drift = drift
        self._open_run = open_run
        self._start_worker = start_worker
        self._heartbeat_seconds = heartbeat_seconds
        self._tick_seconds = tick_seconds
        self._events: queue.SimpleQueue[events.Event] = queue.SimpleQueue()
        self._tick_at = float("-inf")
        self._short_at = float("-inf")
        """When the disk was last full."""
        self._service_is_lost = False
        self._workers: dict[str, WorkerProcess] = {}
        self._devices: dict[str, Device] = {}
        """Those that a worker was started on, by name."""
        self._ending: dict[str, threading.Thread] = {}
        """Threads that end workers, by device."""
        self._runs: dict[str, TrialRun] = {}
        self._trials: dict[str, Trial] = {}
        """Of each run that was opened, for the record of its result."""
        self._closing: dict[str, threading.Thread] = {}
        """The last thread that closed each run."""
        self._heartbeats: dict[int, HeartbeatLoop] = {}
        self._ask_after: dict[int, float] = {}
        if connectivity is not None:
            _spawn("connectivity", connectivity.run)

    # Events.

    def put(self, event: events.Event) -> None:
        """Report an event; thread-safe."""
        self._events.put(event)

    def next_event(self) -> events.Event:
        """The next event; a Tick when one is due."""
        wait = self._tick_at + self._tick_seconds - time.monotonic()
        try:
            if wait > 0:
                return self._events.get(timeout=wait)
        except queue.Empty:
            pass
        self._tick_at = time.monotonic()
        return self._tick()

    def _tick(self) -> events.Event:
        connectivity = self._connectivity
        if not self._service_is_lost:
            self._service_is_lost = wandb_core_exited()
            if self._service_is_lost:
                return events.ServiceGone()
            if connectivity is not None and connectivity.moved_to:
                self._service_is_lost = True
                return events.ServerMoved(connectivity.moved_to)
        return events.Tick(
            time_left=min((allowance.left for allowance in self._allowances), default=float("inf")),
            server_silence=connectivity.silence if connectivity is not None else 0.0,
            server_trouble=connectivity.trouble if connectivity is not None else "",
            held_workers=frozenset(name for name, worker in self._workers.items() if worker.is_held),
        )

    # Actions.

    def perform(self, actions: Sequence[do.Action]) -> None:
        """Perform the scheduler's actions in order."""
        for action in actions:
            try:
                self._perform(action)
            except Exception as error:
                if not is_service_gone(error):
                    raise
                self.put(events.ServiceGone())

    def _perform(self, action: do.Action) -> None:  # noqa: PLR0912 - a table
        match action:
            case do.StartWorker():
                self._start(action)
            case do.KillWorker(device):
                self._workers[device].kill()
            case do.EndWorker(device, at_once):
                if worker := self._workers.pop(device, None):  # None: it could not be started
                    self._ending[device] = _spawn("end worker", partial(worker.end, at_once=at_once))
            case do.OpenRun():
                _spawn("open W&B run", partial(self._open, action))
            case do.CloseRun(slot, run_id, ending):
                run = self._runs.pop(run_id)
                closing = partial(self._close, slot, run_id, run, ending)
                self._closing[run_id] = _spawn("close W&B run", closing)
            case do.Dispatch():
                self._dispatch(action)
            case do.RequestStop(device, run_id):
                self._workers[device].send(StopTrial(run_id))
            case do.Heartbeat():
                self._continue_heartbeats(action)
            case do.CloseSlot(slot):
                if slot in self._heartbeats:
                    self._heartbeats[slot].end()
            case do.EndService():
                kill_wandb_core()
            case do.Record(run_id, message):
                self._record(self._runs[run_id], message)
            case do.Log(run_id, text):
                self._runs[run_id].note(text)
            case do.CompareInputs(trial, message):
                if self._drift is not None:
                    self._drift.check(TrainedRun(message.run_id, trial, message.summary))
            case do.Say(text):
                self._progress.say(text)
            case do.ShowStarted(run_id, name, config, device):
                self._progress.started(run_id, name, config, device)
            case do.ShowEnded(run_id, ending) if ending.kind is TrialEndKind.FAILED:
                self._progress.failed(run_id, ending.cause, ending.text)
            case do.ShowEnded(run_id, ending):
                self._progress.ended(run_id, ending.kind.value, ending.summary)

    def close(self) -> None:
        """End all heartbeats and wait until ending workers have exited."""
        for loop in self._heartbeats.values():
            loop.end()
        for ending in self._ending.values():
            ending.join()

    # Workers.

    def _start(self, action: do.StartWorker) -> None:
        name, number = action.device.name, action.worker
        if name in self._ending:
            self._ending[name].join()  # its GPU memory must be free first
        try:
            worker = self._start_worker(action.device, self._home)
        except OSError as error:  # no disk space for its log, no memory, or too many processes
            self.put(events.WorkerNotStarted(name, number, str(error)))
            return
        self._workers[name], self._devices[name] = worker, action.device
        _spawn(f"worker on {name}", partial(self._listen, worker, name, number))

    def _listen(self, worker: WorkerProcess, name: str, number: int) -> None:
        status = worker.listen(lambda message: self.put(events.WorkerMessage(name, number, message)))
        self.put(events.WorkerExited(name, number, status, worker.last_output()))

    def _dispatch(self, action: do.Dispatch) -> None:
        trial = action.trial
        if self._has_space(action.slot, trial.run_id):
            folder = str(self._folder(trial.run_id))
            provenance = self._run_options.provenance.to_json()
            self._workers[action.device].send(
                StartTrial(trial.run_id, trial.config, folder, trial.logged_step, provenance)
            )

    def _has_space(self, slot: int, run_id: str) -> bool:
        why = shortage(self._folder(run_id))
        if why:
            self._short_at = time.monotonic()
            self.put(events.DiskFull(slot, run_id, f"the disk of {self._home.root} {why}"))
        return not why

    def _folder(self, run_id: str) -> Path:
        return self._home.runs / run_id

    # W&B runs, each on its own thread, so that a slow or unreachable server does not block other trials.

    def _open(self, action: do.OpenRun) -> None:
        slot, run_id = action.slot, action.trial.run_id
        try:
            if run_id in self._closing:  # perhaps abandoned, but its thread still runs
                self._closing[run_id].join()
            if not self._has_space(slot, run_id):
                return
            orphan = action.trial.orphan
            if orphan is not None:
                self._take_over(orphan)
            run = self._opened(action, adopt=orphan is not None)
        except Exception as error:  # wandb has no common error class
            self.put(events.ServiceGone() if is_service_gone(error) else _not_opened(slot, run_id, error))
        else:
            self._runs[run_id] = run
            if action.trial.trial is not None:
                self._trials[run_id] = action.trial.trial
            self.put(events.RunOpened(slot, run_id, run.name, run.logged_steps))

    def _opened(self, action: do.OpenRun, *, adopt: bool) -> TrialRun:
        run_id, options = action.trial.run_id, self._run_options
        return self._open_run(
            self._source.ref,
            run_id,
            action.trial.config,
            self._folder(run_id),
            objective=ObjectiveTracker(options.metric, options.goal),
            alerts=options.alerts,
            local=options.local,
            on_stop=lambda: self.put(events.StopRequested(run_id)),
            on_alert=partial(self._progress.alert, run_id),
            home=self._home_id,
            agent=self._lease.token,
            device=action.device,
            patience=options.patience,
            adopt=adopt,
            earlier=self._source.busy_entries(run_id),
            provenance=options.provenance,
            monitored=self._monitored(action.device),
            log_model=options.log_model,
        )

    def _monitored(self, name: str) -> Monitored | None:
        """The worker of a device, or this process while it has none; None before its first worker."""
        worker, device = self._workers.get(name), self._devices.get(name)
        if device is None:
            return None
        pid = os.getpid() if worker is None else worker.pid
        return Monitored(pid, device.indices, several_processes=device.count > 1)

    def _take_over(self, orphan: OrphanedTrial) -> None:
        """Take over a dead agent's trial. Raises TakenError, or BusyError if its worker is still running."""
        if reason := self._source.why_lost(orphan.run_id):
            release(orphan)
            raise TakenError(reason)
        if not take_over(orphan, self._lease.token):
            raise TakenError("another agent on this box has it")

    def _close(self, slot: int, run_id: str, run: TrialRun, ending: TrialEnd) -> None:
        try:
            sent = _end_run(run, self._with_seed_spread(run, run_id, ending))
        except Exception as error:
            run.release_folder()
            if is_service_gone(error):
                self.put(events.ServiceGone())
                return
            sent = False
        self.put(events.RunClosed(slot, run_id, sent))

    def _with_seed_spread(self, run: TrialRun, run_id: str, ending: TrialEnd) -> TrialEnd:
        """The end with the spread between seeds in earlier sweeps; records the trial for later ones."""
        trial, options, ref = self._trials.pop(run_id, None), self._run_options, self._source.ref
        if ending.kind is not TrialEndKind.FINISHED or trial is None or not ref.id:
            return ending
        maximize = options.goal == "maximize"
        new = seed_spread.finished_trial(run_id, str(ref), trial, options.metric, maximize, ending.summary)
        try:
            earlier = seed_spread.record(self._home, new) if new is not None else {}
        except OSError as error:
            run.note(f"the spread between seeds is not recorded: {error}")
            return ending
        return replace(ending, summary={**ending.summary, **earlier})

    def _record(self, run: TrialRun, message: TrialMessage) -> None:
        """Log a message to the trial's run and display it."""
        match message:
            case Preparing(run_id, what, done, total):
                self._progress.preparing(run_id, what, done, total)
            case Loaded(_, provenance):
                run.loaded(provenance)
            case Planned(run_id, total_steps, done_steps):
                run.plan(total_steps, done_steps)
                self._progress.planned(run_id, total_steps, done_steps)
            case Metrics(run_id, step, values):
                run.metrics(step, values)
                if warning := run.take_warning():
                    self._progress.say(f"Warning: run {run_id}: {warning}")
                self._progress.progress(run_id, step, values)
            case Note(_, text):
                run.note(text)
                self._progress.note(text)
            case Alert(_, level, title, text, step):
                run.alert(RunAlert(AlertLevel(level), title, text, step))

    # Heartbeats.

    def _continue_heartbeats(self, action: do.Heartbeat) -> None:
        slot = action.slot
        self._ask_after[slot] = action.ask_after
        loop = self._heartbeats.get(slot)
        if loop is None:
            host = f"{socket.gethostname()} {action.device}"
            loop = self._heartbeats[slot] = HeartbeatLoop(
                register=lambda: self._source.register(host),
                beat=partial(self._beat, slot),
                on_commands=lambda commands: self.put(self._read_commands(slot, commands)),
                on_gone=lambda error: self.put(
                    events.ServiceGone() if wandb_core_exited() else events.SweepGone(error)
                ),
                is_gone=self._source.is_gone,
                on_trouble=self._progress.say,
                interval=self._heartbeat_seconds,
            )
            loop.resume(action.running)
            _spawn(f"heartbeat of slot {slot}", loop.run)
        else:
            loop.resume(action.running, soon=action.soon)

    def _beat(self, slot: int, agent_id: str, running: Sequence[str]) -> list[Command]:
        """The server's commands; a slot without a trial does not ask for one that could not start now."""
        now = time.monotonic()
        if not running and (now < self._ask_after[slot] or now - self._short_at < SHORT_SECONDS):
            return []
        try:
            commands = self._source.heartbeat(agent_id, running)
        except KeyRejectedError:
            self._set_key_rejected(rejected=True)
            raise
        self._set_key_rejected(rejected=False)
        return commands

    def _set_key_rejected(self, *, rejected: bool) -> None:
        if self._connectivity is not None:
            self._connectivity.key_rejected = rejected

    def _read_commands(self, slot: int, commands: Sequence[Command]) -> events.Commands:
        """The server's commands as an event, with a trial's configuration parsed."""
        runs = [command for command in commands if command.kind in ("run", "resume")]
        return events.Commands(
            slot,
            run=self._assignment(runs[0]) if runs else None,
            stop=tuple(command.run_id for command in commands if command.kind == "stop"),
            exit=any(command.kind == "exit" for command in commands),
        )

    def _assignment(self, command: Command) -> Assignment:
        done = checkpoint_step(self._folder(command.run_id))
        return Assignment.from_config(command.run_id, command.config or {}, done_steps=done)


def _end_run(run: TrialRun, ending: TrialEnd) -> bool:
    """Close a run; returns whether the server has all of its data."""
    match ending.kind:
        case TrialEndKind.FINISHED:
            return run.succeed(ending.summary)
        case TrialEndKind.FAILED:
            return run.fail(ending.cause, ending.text)
        case TrialEndKind.PREEMPTED:
            return run.preempt()
        case _:
            return run.stop(ending.summary, for_good=ending.kind is TrialEndKind.STOPPED)


def _not_opened(slot: int, run_id: str, error: Exception) -> events.RunNotOpened:
    kinds: dict[type[Exception], OpeningFailure] = {
        TakenError: OpeningFailure.TAKEN,
        BusyError: OpeningFailure.BUSY,
        GivenBackError: OpeningFailure.GIVEN_BACK,
    }
    return events.RunNotOpened(slot, run_id, kinds.get(type(error), OpeningFailure.ERROR), str(error))


def _spawn(name: str, work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True, name=name)
    thread.start()
    return thread
