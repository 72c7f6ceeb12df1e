"""Faults that a sweep must survive; each has a function that injects it into a SweepHarness."""

import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from sweep_harness import SweepHarness, processes

from kto_sweep.local_server.process import read_address
from kto_sweep.local_server.start import ensure_server

Inject = Callable[[SweepHarness, random.Random], None]


@dataclass(frozen=True)
class Fault:
    """A fault with its name."""

    name: str
    part: str
    """worker, supervisor, server or disk"""
    inject: Inject


def _signal(pid: int | None, number: int) -> None:
    with suppress(ProcessLookupError):
        if pid is not None:
            os.kill(pid, number)


def _worker(number: int) -> Inject:
    def inject(harness: SweepHarness, rng: random.Random) -> None:
        if workers := harness.workers():
            _signal(rng.choice(workers), number)

    return inject


def _all_workers(harness: SweepHarness, rng: random.Random) -> None:
    for pid in harness.workers():
        _signal(pid, signal.SIGKILL)


def _worker_twice(harness: SweepHarness, rng: random.Random) -> None:
    """Kill all workers, and the next ones while they load their libraries."""
    _all_workers(harness, rng)
    with suppress(AssertionError):
        harness.wait(harness.workers, 20, "another worker")
    _all_workers(harness, rng)


def _pause(pids: list[int], seconds: float) -> None:
    for pid in pids:
        _signal(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in pids:
        _signal(pid, signal.SIGCONT)


def _pause_workers(harness: SweepHarness, rng: random.Random) -> None:
    _pause(harness.workers(), rng.uniform(0.5, 2))


def _pause_agents(harness: SweepHarness, rng: random.Random) -> None:
    _pause([agent.pid for agent in harness.running_agents], rng.uniform(0.5, 2))


def _pause_server(harness: SweepHarness, rng: random.Random) -> None:
    if pid := harness.server_pid():
        _pause([pid], rng.uniform(1, 4))


def _wandb_cores(harness: SweepHarness) -> list[int]:
    """Process ids of wandb-core, the process that sends an agent's data."""
    agents = {agent.pid for agent in harness.running_agents}
    return [pid for pid, parent, words in processes() if parent in agents and "wandb-core" in words]


def _everything(harness: SweepHarness) -> list[int]:
    """Process ids of the machine's agents, wandb-cores, workers and server."""
    agents = [agent.pid for agent in harness.running_agents]
    server = harness.server_pid()
    return [*agents, *_wandb_cores(harness), *harness.workers(), *([server] if server else [])]


def freezes(seconds: float) -> list["Fault"]:
    """Faults that stop processes for so long, one kind or all, and let them continue."""
    kinds: dict[str, Callable[[SweepHarness], list[int]]] = {
        "one agent is frozen": lambda harness: [agent.pid for agent in harness.running_agents[:1]],
        "agents are frozen": lambda harness: [agent.pid for agent in harness.running_agents],
        "workers are frozen": lambda harness: harness.workers(),
        "server is frozen": lambda harness: list(filter(None, [harness.server_pid()])),
        "wandb's services are frozen": _wandb_cores,
        "everything is frozen": _everything,
    }

    def inject_into(pids: Callable[[SweepHarness], list[int]]) -> Inject:
        return lambda harness, rng: _pause(pids(harness), seconds)

    return [Fault(name, "freeze", inject_into(pids)) for name, pids in kinds.items()]


def _restart_agent(harness: SweepHarness, agent: subprocess.Popen[bytes], *numbers: int) -> None:
    """Send an agent these signals, and start another."""
    for number in numbers:
        _signal(agent.pid, number)
        time.sleep(0.3)
    agent.wait(90)
    harness.start_agent()


def _agent(*numbers: int) -> Inject:
    def inject(harness: SweepHarness, rng: random.Random) -> None:
        if harness.running_agents:
            _restart_agent(harness, rng.choice(harness.running_agents), *numbers)

    return inject


def _kill_service(harness: SweepHarness, rng: random.Random) -> None:
    """Kill wandb-core, the process that sends the runs' data. The agent restarts by itself."""
    for pid in _wandb_cores(harness):
        _signal(pid, signal.SIGKILL)


def _hang_up(harness: SweepHarness, rng: random.Random) -> None:
    for agent in harness.running_agents:
        _signal(agent.pid, signal.SIGHUP)


def _cut_power(harness: SweepHarness, rng: random.Random) -> None:
    """Kill all processes of the machine at once; what they wrote last and did not sync is lost in part."""
    agents, pids = harness.running_agents, _everything(harness)
    for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that all end at one moment
        for pid in pids:
            _signal(pid, number)
    for agent in agents:
        agent.wait()
    harness.wait(lambda: not harness.workers(), 30, "the workers' end")
    for pattern in UNSYNCED:
        for path in harness.home.root.glob(pattern):
            _lose_end(path, rng)
    for checkpoint in harness.home.runs.glob("*/checkpoint/last.safetensors"):
        data = checkpoint.read_bytes()
        checkpoint.with_name(f"{checkpoint.name}.new").write_bytes(data[: rng.randrange(len(data))])
    wal = harness.home.server / "runs.sqlite3-wal"
    with wal.open("ab") as file:  # a transaction that was being written; all before it were synced
        file.write(rng.randbytes(rng.randrange(1, 9000)))
    wal.with_name("runs.sqlite3-shm").unlink(missing_ok=True)  # never synced
    for _ in agents:
        harness.start_agent()


UNSYNCED = ("runs/*/log.jsonl", "runs/*/console.log", "runs/*/wandb/*/*.wandb", "workers/*", "server/*.log")
"""Files of the home that grow without being synced."""


def _lose_end(path: Path, rng: random.Random) -> None:
    """Lose up to a page of the file's end, or fill it with zeros, as file systems do after a power cut."""
    size = path.stat().st_size
    lost = rng.randrange(min(size, 4096) + 1)
    os.truncate(path, size - lost)
    if rng.random() < 0.5:
        os.truncate(path, size)


def _kill_server(harness: SweepHarness, rng: random.Random) -> None:
    """Kill the server. The agents start it again."""
    _signal(harness.server_pid(), signal.SIGKILL)


def _terminate_server(harness: SweepHarness, rng: random.Random) -> None:
    _signal(harness.server_pid(), signal.SIGTERM)
    time.sleep(rng.uniform(0, 2))
    ensure_server(harness.home)


def _kill_server_often(harness: SweepHarness, rng: random.Random) -> None:
    for _ in range(3):
        _signal(harness.server_pid(), signal.SIGKILL)
        ensure_server(harness.home)


def _move_server(harness: SweepHarness, rng: random.Random) -> None:
    """Restart the server while another program has its port."""
    address = read_address(harness.home)
    _signal(harness.server_pid(), signal.SIGKILL)
    with socket.socket() as other, suppress(OSError):  # an agent may be faster
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", address.port if address else 0))
        other.listen()
        ensure_server(harness.home)


def _lock_database(harness: SweepHarness, rng: random.Random) -> None:
    """Lock the database, as a user's SQLite tool may."""
    with closing(sqlite3.connect(harness.home.server / "runs.sqlite3", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(rng.uniform(1, 10))


def _clear(pattern: str) -> Inject:
    """Remove files or folders of the home while they are in use."""

    def inject(harness: SweepHarness, rng: random.Random) -> None:
        for path in harness.home.root.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    return inject


def _damage(pattern: str, how: Callable[[Path, random.Random], None]) -> Inject:
    """Kill agents and workers, damage a file of an unfinished trial, and start agents again."""

    def inject(harness: SweepHarness, rng: random.Random) -> None:
        agents = harness.running_agents
        for pid in [*(agent.pid for agent in agents), *harness.workers()]:
            _signal(pid, signal.SIGKILL)
        for agent in agents:
            agent.wait()
        harness.wait(lambda: not harness.workers(), 30, "the workers' end")
        # The files of a finished run are not read again.
        finished = {run.name for run in harness.runs() if run.state == "finished"}
        paths = [path for path in sorted(harness.home.runs.glob(pattern)) if finished.isdisjoint(path.parts)]
        if paths:
            how(rng.choice(paths), rng)
        for _ in agents:
            harness.start_agent()

    return inject


def _truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size + 1))


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[rng.randrange(len(data))] ^= 0xFF
        path.write_bytes(data)


def _garbage(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    place = rng.randrange(len(data) + 1)
    path.write_bytes(data[:place] + rng.randbytes(20) + data[place + 20 :])


def _empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def _remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def _half_line(path: Path, rng: random.Random) -> None:
    with path.open("ab") as file:
        file.write(b'{"step": 7, "lo')


WORKER = [
    *(
        Fault(f"worker gets {signal.Signals(number).name}", "worker", _worker(number))
        for number in (
            signal.SIGKILL,
            signal.SIGSEGV,
            signal.SIGABRT,
            signal.SIGBUS,
            signal.SIGFPE,
            signal.SIGILL,
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGHUP,
        )
    ),
    Fault("all workers are killed", "worker", _all_workers),
    Fault("worker is killed, and the next while it loads", "worker", _worker_twice),
    Fault("workers are paused", "worker", _pause_workers),
]
SUPERVISOR = [
    Fault("agent is killed", "supervisor", _agent(signal.SIGKILL)),
    Fault("agent is aborted", "supervisor", _agent(signal.SIGABRT)),
    Fault("agent is interrupted", "supervisor", _agent(signal.SIGINT)),
    Fault("agent is terminated", "supervisor", _agent(signal.SIGTERM)),
    Fault("agent is interrupted twice", "supervisor", _agent(signal.SIGINT, signal.SIGINT)),
    Fault("agent is terminated, then killed", "supervisor", _agent(signal.SIGTERM, signal.SIGKILL)),
    Fault("wandb's service is killed", "supervisor", _kill_service),
    Fault("agents' terminal is closed", "supervisor", _hang_up),
    Fault("agents are paused", "supervisor", _pause_agents),
    Fault("power is cut", "supervisor", _cut_power),
]
SERVER = [
    Fault("server is killed", "server", _kill_server),
    Fault("server is terminated", "server", _terminate_server),
    Fault("server is killed three times", "server", _kill_server_often),
    Fault("server is paused", "server", _pause_server),
    Fault("server moves to another port", "server", _move_server),
    Fault("server's database is locked", "server", _lock_database),
]
DISK = [
    Fault("checkpoint is truncated", "disk", _damage("*/checkpoint/last.safetensors", _truncate)),
    Fault("checkpoint has a wrong byte", "disk", _damage("*/checkpoint/last.safetensors", _flip)),
    Fault("checkpoint is missing", "disk", _damage("*/checkpoint/last.safetensors", _remove)),
    Fault("rows end in half a line", "disk", _damage("*/checkpoint/rows.jsonl", _half_line)),
    Fault("rows are truncated", "disk", _damage("*/checkpoint/rows.jsonl", _truncate)),
    Fault("rows are missing", "disk", _damage("*/checkpoint/rows.jsonl", _remove)),
    Fault("log ends in half a line", "disk", _damage("*/log.jsonl", _half_line)),
    Fault("log is truncated", "disk", _damage("*/log.jsonl", _truncate)),
    Fault("console log is missing", "disk", _damage("*/console.log", _remove)),
    Fault("lineage is truncated", "disk", _damage("*/lineage.json", _truncate)),
    Fault("log has garbage", "disk", _damage("*/log.jsonl", _garbage)),
    Fault("rows have garbage", "disk", _damage("*/checkpoint/rows.jsonl", _garbage)),
    Fault("run record is empty", "disk", _damage("*/run.json", _empty)),
    Fault("run record has garbage", "disk", _damage("*/run.json", _garbage)),
    Fault("configuration is empty", "disk", _damage("*/trial.json", _empty)),
    Fault("cache has garbage", "disk", _damage("../cache/reference/*.sqlite", _garbage)),
    Fault("checkpoints are removed", "disk", _clear("runs/*/checkpoint")),
    Fault("cache is removed", "disk", _clear("cache")),
    Fault("workers' logs are removed", "disk", _clear("workers/*")),
]
FAULTS = [*WORKER, *SUPERVISOR, *SERVER, *DISK]
