"""What can happen to a sweep at night, each as a function that does it to an arena at once."""

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

from arena import Arena, processes

from kto_sweep.local_server.process import read_address
from kto_sweep.local_server.start import ensure_server

Happen = Callable[[Arena, random.Random], None]


@dataclass(frozen=True)
class Accident:
    """One of them."""

    name: str
    part: str
    """worker, supervisor, server or disk"""
    happen: Happen


def _signal(pid: int | None, number: int) -> None:
    with suppress(ProcessLookupError):
        if pid is not None:
            os.kill(pid, number)


def _worker(number: int) -> Happen:
    def happen(arena: Arena, rng: random.Random) -> None:
        if workers := arena.workers():
            _signal(rng.choice(workers), number)

    return happen


def _all_workers(arena: Arena, rng: random.Random) -> None:
    for pid in arena.workers():
        _signal(pid, signal.SIGKILL)


def _worker_twice(arena: Arena, rng: random.Random) -> None:
    """The second time while the next one is loading its libraries."""
    _all_workers(arena, rng)
    with suppress(AssertionError):
        arena.wait(arena.workers, 20, "another worker")
    _all_workers(arena, rng)


def _pause(pids: list[int], seconds: float) -> None:
    for pid in pids:
        _signal(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in pids:
        _signal(pid, signal.SIGCONT)


def _pause_workers(arena: Arena, rng: random.Random) -> None:
    _pause(arena.workers(), rng.uniform(0.5, 2))


def _pause_agents(arena: Arena, rng: random.Random) -> None:
    _pause([agent.pid for agent in arena.alive], rng.uniform(0.5, 2))


def _pause_server(arena: Arena, rng: random.Random) -> None:
    if pid := arena.server_pid():
        _pause([pid], rng.uniform(1, 4))


def _again(arena: Arena, agent: subprocess.Popen[bytes], *numbers: int) -> None:
    """End an agent by these signals and start another."""
    for number in numbers:
        _signal(agent.pid, number)
        time.sleep(0.3)
    agent.wait(90)
    arena.start_agent()


def _agent(*numbers: int) -> Happen:
    def happen(arena: Arena, rng: random.Random) -> None:
        if arena.alive:
            _again(arena, rng.choice(arena.alive), *numbers)

    return happen


def _kill_service(arena: Arena, rng: random.Random) -> None:
    """The process in which wandb does its work; the agent starts again by itself."""
    agents = {agent.pid for agent in arena.alive}
    for pid, parent, words in processes():
        if parent in agents and "wandb-core" in words:
            _signal(pid, signal.SIGKILL)


def _hang_up(arena: Arena, rng: random.Random) -> None:
    for agent in arena.alive:
        _signal(agent.pid, signal.SIGHUP)


def _power_cut(arena: Arena, rng: random.Random) -> None:
    """All processes of the box at once."""
    agents = arena.alive
    for pid in [*(agent.pid for agent in agents), *arena.workers(), arena.server_pid()]:
        _signal(pid, signal.SIGKILL)
    for agent in agents:
        agent.wait()
        arena.start_agent()


def _kill_server(arena: Arena, rng: random.Random) -> None:
    """Its agents start it again."""
    _signal(arena.server_pid(), signal.SIGKILL)


def _end_server(arena: Arena, rng: random.Random) -> None:
    _signal(arena.server_pid(), signal.SIGTERM)
    time.sleep(rng.uniform(0, 2))
    ensure_server(arena.home)


def _kill_server_often(arena: Arena, rng: random.Random) -> None:
    for _ in range(3):
        _signal(arena.server_pid(), signal.SIGKILL)
        ensure_server(arena.home)


def _move_server(arena: Arena, rng: random.Random) -> None:
    """Another program has its port when it is started again."""
    address = read_address(arena.home)
    _signal(arena.server_pid(), signal.SIGKILL)
    with socket.socket() as other, suppress(OSError):  # an agent may be faster
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", address.port if address else 0))
        other.listen()
        ensure_server(arena.home)


def _lock_database(arena: Arena, rng: random.Random) -> None:
    """Somebody looks into it with a tool of his own."""
    with closing(sqlite3.connect(arena.home.server / "runs.sqlite3", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(rng.uniform(1, 10))


def _clear(pattern: str) -> Happen:
    """Remove files or folders of the home while they are in use."""

    def happen(arena: Arena, rng: random.Random) -> None:
        for path in arena.home.root.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    return happen


def _damage(pattern: str, how: Callable[[Path, random.Random], None]) -> Happen:
    """Damage a file of an unfinished trial while nobody runs, as a crash of the whole box would."""

    def happen(arena: Arena, rng: random.Random) -> None:
        agents = arena.alive
        for pid in [*(agent.pid for agent in agents), *arena.workers()]:
            _signal(pid, signal.SIGKILL)
        for agent in agents:
            agent.wait()
        arena.wait(lambda: not arena.workers(), 30, "the workers' end")
        over = {run.name for run in arena.runs() if run.state == "finished"}  # nobody goes on with them
        if paths := [path for path in sorted(arena.home.runs.glob(pattern)) if over.isdisjoint(path.parts)]:
            how(rng.choice(paths), rng)
        for _ in agents:
            arena.start_agent()

    return happen


def _cut(path: Path, rng: random.Random) -> None:
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
        Accident(f"worker gets {signal.Signals(number).name}", "worker", _worker(number))
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
    Accident("all workers are killed", "worker", _all_workers),
    Accident("worker is killed, and the next while it loads", "worker", _worker_twice),
    Accident("workers stand still", "worker", _pause_workers),
]
SUPERVISOR = [
    Accident("agent is killed", "supervisor", _agent(signal.SIGKILL)),
    Accident("agent is aborted", "supervisor", _agent(signal.SIGABRT)),
    Accident("agent is interrupted", "supervisor", _agent(signal.SIGINT)),
    Accident("agent is ended", "supervisor", _agent(signal.SIGTERM)),
    Accident("agent is interrupted twice", "supervisor", _agent(signal.SIGINT, signal.SIGINT)),
    Accident("agent is ended, then killed", "supervisor", _agent(signal.SIGTERM, signal.SIGKILL)),
    Accident("wandb's service is killed", "supervisor", _kill_service),
    Accident("agents' terminal is closed", "supervisor", _hang_up),
    Accident("agents stand still", "supervisor", _pause_agents),
    Accident("power is cut", "supervisor", _power_cut),
]
SERVER = [
    Accident("server is killed", "server", _kill_server),
    Accident("server is ended", "server", _end_server),
    Accident("server is killed three times", "server", _kill_server_often),
    Accident("server stands still", "server", _pause_server),
    Accident("server moves to another port", "server", _move_server),
    Accident("server's database is locked", "server", _lock_database),
]
DISK = [
    Accident("checkpoint is cut off", "disk", _damage("*/checkpoint/last.safetensors", _cut)),
    Accident("checkpoint has a wrong byte", "disk", _damage("*/checkpoint/last.safetensors", _flip)),
    Accident("checkpoint is gone", "disk", _damage("*/checkpoint/last.safetensors", _remove)),
    Accident("rows end in half a line", "disk", _damage("*/checkpoint/rows.jsonl", _half_line)),
    Accident("rows are cut off", "disk", _damage("*/checkpoint/rows.jsonl", _cut)),
    Accident("rows are gone", "disk", _damage("*/checkpoint/rows.jsonl", _remove)),
    Accident("log ends in half a line", "disk", _damage("*/log.jsonl", _half_line)),
    Accident("log is cut off", "disk", _damage("*/log.jsonl", _cut)),
    Accident("console log is gone", "disk", _damage("*/console.log", _remove)),
    Accident("lineage is cut off", "disk", _damage("*/lineage.json", _cut)),
    Accident("log has garbage", "disk", _damage("*/log.jsonl", _garbage)),
    Accident("rows have garbage", "disk", _damage("*/checkpoint/rows.jsonl", _garbage)),
    Accident("run record is empty", "disk", _damage("*/run.json", _empty)),
    Accident("run record has garbage", "disk", _damage("*/run.json", _garbage)),
    Accident("configuration is empty", "disk", _damage("*/trial.json", _empty)),
    Accident("cache has garbage", "disk", _damage("../cache/reference/*.sqlite", _garbage)),
    Accident("checkpoints are removed", "disk", _clear("runs/*/checkpoint")),
    Accident("cache is removed", "disk", _clear("cache")),
    Accident("workers' logs are removed", "disk", _clear("workers/*")),
]
ACCIDENTS = [*WORKER, *SUPERVISOR, *SERVER, *DISK]
