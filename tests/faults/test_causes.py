"""Trials that fail: by what, for what reason, and what becomes of the others."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from arena import ROWS, TWO_BY_TWO, Arena, Losses, small_disk


def causes(arena: Arena) -> dict[tuple[object, ...], str]:
    """`failure/cause` or the state, by cell."""
    return {arena.cell(run): run.summary.get("failure/cause", run.state) for run in arena.runs()}


def test_trials_that_cannot_be_fail_once_each_and_the_others_go_on(tmp_path):
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    names = ("good", "gone", "garbage", "one_label", "more")
    for name in names:
        shutil.copy(ROWS, tmp_path / f"{name}.jsonl")
    axes = {"dataset": [f"{name}.jsonl" for name in names]}
    arena = Arena(tmp_path, axes, options=("--trials-per-gpu", "2"))
    try:
        arena.create(max_steps=6, learning_rate=1e-3)
        (tmp_path / "gone.jsonl").unlink()
        (tmp_path / "garbage.jsonl").write_bytes(os.urandom(4096))
        alike = "".join(json.dumps(row | {"label": True}) + "\n" for row in rows)
        (tmp_path / "one_label.jsonl").write_text(alike)
        arena.start_agent()
        arena.finish()
        found = causes(arena)
    finally:
        arena.close()
    bad = {f"{name}.jsonl" for name in ("gone", "garbage", "one_label")}
    assert len(found) == 5
    for (dataset,), cause in found.items():
        assert cause == ("bad data" if dataset in bad else "finished"), arena.said()


def test_a_data_file_that_changes_between_two_trials_is_told_of(tmp_path):
    shutil.copy(ROWS, tmp_path / "rows.jsonl")
    arena = Arena(tmp_path, {"seed": [1, 2]}, options=("--trials-per-gpu", "1"))
    try:
        arena.create(dataset="rows.jsonl", max_steps=3)
        assert arena.start_agent("--count", "1").wait(120) == 0
        rows = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "rows.jsonl").write_text("".join(rows[:-40]))
        arena.finish()
        assert arena.said().count("BEWARE: the rows of rows.jsonl changed during this sweep") == 1
        (told,) = json.loads(arena.command("status", "--json"))["differences"]
        assert all(run.name in told for run in arena.runs())
        assert "Warning" in arena.command("compare")
    finally:
        arena.close()


DEADLY = """
import os, signal, sys

if any("kto_sweep.train.worker" in word for word in sys.orig_argv):
    from kto_sweep.train.course import Course

    write = Course.write

    def write_or_die(self, step, *rest):
        if (self.trial.learning_rate, self.trial.seed, step) == (0.003, 1, 7):
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, step, *rest)

    Course.write = write_or_die
"""


def test_a_trial_that_no_worker_survives_does_not_take_the_others_with_it(tmp_path, undisturbed: Losses):
    arena = Arena(tmp_path, TWO_BY_TWO, options=("--trials-per-gpu", "4"))
    arena.patch(DEADLY)
    try:
        arena.create()
        arena.start_agent()
        arena.finish()
        runs = {arena.cell(run): run for run in arena.runs()}
        victim = runs.pop((0.003, 1))
        assert (victim.state, victim.summary["failure/cause"]) == ("failed", "worker crash"), arena.said()
        assert len(runs) == 3
        for run in runs.values():
            assert run.state == "finished", arena.said()
            assert [row["loss"] for row in run.rows] == pytest.approx(undisturbed[arena.cell(run)], rel=1e-4)
    finally:
        arena.close()


def test_a_trial_that_is_stopped_for_good_leaves_no_checkpoint_behind(tmp_path):
    arena = Arena(tmp_path, {"seed": [1]})
    try:
        arena.create(max_steps=2000)
        agent = arena.start_agent()
        arena.wait(lambda: list(arena.home.runs.glob("*/checkpoint/last.safetensors")), what="a checkpoint")
        arena.command("cancel", arena.sweep[2])
        agent.wait(120)
        assert "stopped" in arena.said()
        assert not list(arena.home.runs.glob("*/checkpoint"))
        assert list(arena.home.runs.glob("*/adapter"))
    finally:
        arena.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_full_disk_is_waited_for(tmp_path, undisturbed: Losses):
    try:
        disk = small_disk(tmp_path / "box", 500)
        folder = disk.__enter__()
    except OSError as reason:
        pytest.skip(str(reason))
    arena = Arena(folder, TWO_BY_TWO, options=("--trials-per-gpu", "2"))
    try:
        arena.create()
        arena.start_agent()
        arena.wait_for_progress(5)
        filler = folder / "filler"
        with filler.open("wb") as file, suppress(OSError):
            while True:
                file.write(b"x" * (1 << 20))
        arena.wait(lambda: "disk full" in arena.said() or "for room" in arena.said(), 120, "a full disk")
        time.sleep(3)
        refused = subprocess.run(
            [sys.executable, "-m", "kto_sweep", "pause", arena.sweep[2]],
            cwd=arena.folder, env=arena.environment(), capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert refused.returncode == 1
        assert "disk is full; nothing was changed" in refused.stderr
        assert "running" in arena.command("status")
        filler.unlink()
        arena.finish()
        arena.check(undisturbed)
    finally:
        arena.close()
        disk.__exit__(None, None, None)
