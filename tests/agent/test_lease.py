"""Dead agents, the trials that they leave behind, and who may take them over."""

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kto_sweep.agent import lease
from kto_sweep.agent.devices import CPU, Device, lock_devices
from kto_sweep.agent.lease import (
    DEAD,
    AgentLease,
    BusyError,
    find_orphaned_trials,
    is_alive,
    of_sweep,
    release,
    remove_dead_leases,
    restore_files,
    take_over,
)
from kto_sweep.errors import UsageError
from kto_sweep.home import Home
from kto_sweep.locks import RunLock, holder, private_folder
from kto_sweep.run_record import RunRecord, home_id, read_record
from kto_sweep.sweep.ref import SweepRef

REF = SweepRef("local", "kto-sweep", "ab12cd34")
PRESENT = """
import sys, time
from pathlib import Path
from kto_sweep.agent.lease import AgentLease
from kto_sweep.home import Home
lease = AgentLease(Home(Path(sys.argv[1])))
print(lease.token, flush=True)
time.sleep(600)
"""


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def agent_of(home: Home) -> tuple[subprocess.Popen[str], str]:
    """Another agent's process and its token."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRESENT, str(home.root)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def leave(home: Home, run_id: str, token: str, **record: bool) -> Path:
    folder = home.runs / run_id
    folder.mkdir(parents=True)
    (folder / "trial.json").write_text(json.dumps({"learning_rate": 0.1}))
    RunRecord(REF.entity, REF.project, REF.id, True, "", agent=token, **record).write(folder)
    return folder


def test_an_agent_is_alive_until_its_process_ends_in_any_way(home):
    process, token = agent_of(home)
    assert is_alive(home, token)
    end(process)
    assert not is_alive(home, token)
    remove_dead_leases(home)
    assert not list((home.root / "agents").iterdir())


def test_locks_work_on_nfs(home, monkeypatch):
    """On NFS, a file must be open for writing to be locked exclusively."""
    real = fcntl.flock

    def flock(descriptor, operation):
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if operation & fcntl.LOCK_EX and mode == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    own = AgentLease(home)
    assert is_alive(home, own.token)
    own.end()
    (home.root / "agents" / "dead").touch()
    remove_dead_leases(home)
    assert not list((home.root / "agents").iterdir())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_an_error(home, monkeypatch, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UsageError, match=r"agents cannot be locked") as error:
        AgentLease(home)
    assert "KTO_SWEEP_HOME" in error.value.hint
    assert not list((home.root / "agents").iterdir())
    (home.root / "agents" / "dead").touch()
    with pytest.raises(UsageError, match="cannot be locked"):
        remove_dead_leases(home)


def test_trials_of_dead_agents_are_orphans_unless_the_server_has_all_of_them(home):
    process, token = agent_of(home)
    leave(home, "unfinished", token)
    leave(home, "unsent", token, ended=True)
    leave(home, "done", token, ended=True, sent=True)
    assert not find_orphaned_trials(home), "their agent is alive"
    end(process)
    orphans = find_orphaned_trials(home)
    assert [orphan.run_id for orphan in orphans] == ["unfinished", "unsent"]
    assert orphans[0].config == {"learning_rate": 0.1}
    assert of_sweep(orphans[0], REF)
    assert not of_sweep(orphans[0], SweepRef("local", "kto-sweep", "zz99zz99"))


def test_only_one_agent_takes_over_an_orphan(home):
    folder = leave(home, "run", "dead")
    first, second = find_orphaned_trials(home), find_orphaned_trials(home)
    own = AgentLease(home)
    assert take_over(first[0], own.token)
    assert not take_over(second[0], "another")
    record = read_record(folder)
    assert record is not None
    assert record.agent == own.token
    own.end()


def test_a_trial_is_released_unless_another_agent_has_taken_it(home):
    folder = leave(home, "run", "dead")
    first, second = find_orphaned_trials(home), find_orphaned_trials(home)
    worker = RunLock(folder)
    release(first[0])
    assert read_record(folder) == first[0].record
    worker.release()
    release(first[0])
    assert read_record(folder) == replace(first[0].record, agent="")
    ended = replace(first[0].record, agent="another", ended=True)
    ended.write(folder)
    release(second[0])
    assert read_record(folder) == ended


def test_an_agent_can_take_over_again_a_trial_that_it_could_not_open(home):
    folder = leave(home, "run", "dead")
    (orphan,) = find_orphaned_trials(home)
    assert take_over(orphan, "new")
    record = read_record(folder)
    assert record is not None
    replace(record, attempt=2, device="gpu 0").write(folder)  # as the opening does before it fails
    assert take_over(orphan, "new")
    assert read_record(folder) == replace(record, attempt=2, device="gpu 0")
    assert not take_over(orphan, "another")


def test_a_trial_is_taken_over_once_its_old_worker_has_exited(home):
    folder = leave(home, "run", "dead")
    code = "import sys,time;from pathlib import Path;from kto_sweep.locks import RunLock;" + (
        "claim=RunLock(Path(sys.argv[1]));print('claimed',flush=True);time.sleep(1)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    worker.stdout.readline()
    assert take_over(find_orphaned_trials(home)[0], "new")
    assert worker.poll() is not None or not Path(f"/proc/{worker.pid}/fd").exists()
    worker.communicate()
    RunLock(folder).release()


def test_an_old_worker_that_does_not_exit_is_reported_as_busy(home, monkeypatch):
    monkeypatch.setattr(lease, "WORKER_SECONDS", 0.3)
    folder = leave(home, "run", "dead")
    (orphan,) = find_orphaned_trials(home)
    claim = RunLock(folder)
    with pytest.raises(BusyError):
        take_over(orphan, "new")
    assert read_record(folder) == orphan.record
    claim.release()
    assert take_over(orphan, "new")


@pytest.mark.parametrize("damage", [b"", b"\xff\x80\x00", b"[1]", b"{}", b'{"entity": 1}', b"null"])
def test_damaged_records_of_a_trial_are_restored_unless_it_is_in_use(home, damage):
    folder = leave(home, "run", "dead")
    config = {"learning_rate": 0.1}
    record = RunRecord(REF.entity, REF.project, REF.id, True, "", agent=DEAD)
    assert not restore_files(home, "run", config, record)
    assert not restore_files(home, "elsewhere", config, record)
    for name in ("run.json", "trial.json"):
        (folder / name).write_bytes(damage)
        claim = RunLock(folder)
        assert not restore_files(home, "run", config, record)
        claim.release()
        restored = restore_files(home, "run", config, record)
        assert restored or (name, damage) in {("trial.json", b"{}"), ("trial.json", b'{"entity": 1}')}
        assert [orphan.run_id for orphan in find_orphaned_trials(home)] == ["run"]


def test_a_home_keeps_its_id_and_ids_are_unique(home, tmp_path):
    assert home_id(home) == home_id(home)
    assert home_id(home) != home_id(Home(tmp_path / "other"))


@pytest.mark.parametrize("damage", [b"", b"\xff\x80\x00", b"0123"])
def test_a_damaged_home_id_is_recovered_from_the_runs(home, damage):
    for number in (1, 2):
        was = home_id(home)
        (home.root / "home-id").write_bytes(damage)
        assert (home_id(home) == was) is (number == 2)
        folder = home.runs / "run"
        folder.mkdir(parents=True, exist_ok=True)
        RunRecord(REF.entity, REF.project, REF.id, True, "", home=home_id(home)).write(folder)


GPU = Device("gpu 0", "0", "GPU-aaaa")


def assert_gpu_is_refused(home, message):
    with pytest.raises(UsageError, match=message) as error, lock_devices([GPU], home):
        pass
    assert "--share-gpus" in error.value.hint


@pytest.mark.parametrize("user_home", ["user", "missing"])
def test_a_gpu_in_use_is_rejected_by_a_lock_that_only_its_user_can_write(
    home, monkeypatch, tmp_path, user_home
):
    """The lock is in the user's home folder, so it counts for all of his KTO_SWEEP_HOMEs."""
    user = tmp_path / user_home
    monkeypatch.setenv("HOME", str(user))
    other = Home(tmp_path / "other")
    if user_home == "missing":
        user.touch()  # no folder can be made there, as in a container
        other = home
    with lock_devices([GPU, CPU], home), lock_devices([CPU], home):
        assert_gpu_is_refused(other, f"gpu 0 is in use.*process {os.getpid()}")
    with lock_devices([GPU], other):
        pass
    folder = (home.root if user_home == "missing" else user / ".kto-sweep") / "locks"
    folder.chmod(0o777)
    with lock_devices([GPU], home):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_links_in_place_of_a_lock_or_its_folder_are_not_followed(home, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    victim = tmp_path / "file"
    victim.write_text("precious")
    with lock_devices([GPU], home):
        (lock,) = (tmp_path / "user" / ".kto-sweep" / "locks").iterdir()
    lock.unlink()
    lock.symlink_to(victim)
    assert_gpu_is_refused(home, "could not lock")
    with pytest.raises(OSError, match="symbolic link"):
        holder(lock)
    for root in (tmp_path / "user" / ".kto-sweep", home.root):
        shutil.rmtree(root / "locks", ignore_errors=True)
        root.mkdir(parents=True, exist_ok=True)
        (root / "locks").symlink_to(tmp_path)
    assert_gpu_is_refused(home, "could not lock")
    assert victim.read_text() == "precious"
    assert [path.name for path in tmp_path.glob("*.lock")] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a folder of another user")
def test_a_lock_folder_of_another_user_is_refused(tmp_path):
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(PermissionError, match="belongs to another user"):
        private_folder(tmp_path)
