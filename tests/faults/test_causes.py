"""Trials that fail: their causes, and that the other trials continue."""

import json
import os
import shutil
import time
from contextlib import suppress

import forked_python
import pytest
from machine import KTO_SWEEP
from sweep_harness import ROWS, TWO_BY_TWO, Losses, SweepHarness, fake_losses, small_disk


def causes(harness: SweepHarness) -> dict[tuple[object, ...], str]:
    """`failure/cause` or the state, by cell."""
    return {harness.cell(run): run.summary.get("failure/cause", run.state) for run in harness.runs()}


@pytest.mark.usefixtures("base_model")
def test_trials_that_cannot_be_fail_once_each_and_the_others_go_on(tmp_path):
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    names = ("good", "gone", "garbage", "one_label", "more")
    for name in names:
        shutil.copy(ROWS, tmp_path / f"{name}.jsonl")
    axes = {"dataset": [f"{name}.jsonl" for name in names]}
    harness = SweepHarness(tmp_path, axes, cli=forked_python.CLI, options=("--trials-per-gpu", "2"))
    try:
        harness.create(max_steps=6, learning_rate=1e-3)
        (tmp_path / "gone.jsonl").unlink()
        (tmp_path / "garbage.jsonl").write_bytes(os.urandom(4096))
        alike = "".join(json.dumps(row | {"label": True}) + "\n" for row in rows)
        (tmp_path / "one_label.jsonl").write_text(alike)
        harness.start_agent()
        harness.finish()
        cause_of = causes(harness)
    finally:
        harness.close()
    bad = {f"{name}.jsonl" for name in ("gone", "garbage", "one_label")}
    assert len(cause_of) == 5
    for (dataset,), cause in cause_of.items():
        assert cause == ("bad data" if dataset in bad else "finished"), harness.output()


@pytest.mark.slow  # seldom
def test_a_data_file_that_changes_between_two_trials_is_told_of(tmp_path):
    shutil.copy(ROWS, tmp_path / "rows.jsonl")
    harness = SweepHarness(tmp_path, {"seed": [1, 2]}, options=("--trials-per-gpu", "1"))
    try:
        harness.create(dataset="rows.jsonl", max_steps=3)
        assert harness.start_agent("--count", "1").wait(120) == 0
        rows = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "rows.jsonl").write_text("".join(rows[:-40]))
        harness.finish()
        assert harness.output().count("Warning: the rows of rows.jsonl changed during this sweep") == 1
        (told,) = json.loads(harness.run("status", "--json"))["differences"]
        assert all(run.name in told for run in harness.runs())
        assert "Warning" in harness.run("compare")
    finally:
        harness.close()


DEADLY = """
import os, signal

def before_step(config, step):
    if (config["learning_rate"], config["seed"], step) == (0.003, 1, 7):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_trial_that_no_worker_survives_does_not_take_the_others_with_it(tmp_path):
    harness = SweepHarness(tmp_path, TWO_BY_TWO, options=("--trials-per-gpu", "4"))
    harness.script_training(DEADLY)
    try:
        harness.create()
        harness.start_agent()
        harness.finish()
        runs = {harness.cell(run): run for run in harness.runs()}
        victim = runs.pop((0.003, 1))
        assert (victim.state, victim.summary["failure/cause"]) == ("failed", "worker crash"), harness.output()
        assert len(runs) == 3
        for run in runs.values():
            assert run.state == "finished", harness.output()
            assert [row["loss"] for row in run.rows] == fake_losses(TWO_BY_TWO)[harness.cell(run)]
    finally:
        harness.close()


def test_a_trial_that_is_stopped_for_good_leaves_no_checkpoint_behind(tmp_path):
    harness = SweepHarness(tmp_path, {"seed": [1]})
    try:
        harness.create(max_steps=2000)
        agent = harness.start_agent()
        harness.wait(
            lambda: list(harness.home.runs.glob("*/checkpoint/last.safetensors")), what="a checkpoint"
        )
        harness.run("cancel", harness.sweep[2])
        agent.wait(120)
        assert "stopped" in harness.output()
        assert not list(harness.home.runs.glob("*/checkpoint"))
        assert list(harness.home.runs.glob("*/adapter"))
    finally:
        harness.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_full_disk_is_waited_for(tmp_path, baseline: Losses):
    try:
        disk = small_disk(tmp_path / "machine", 500)
        folder = disk.__enter__()
    except OSError as reason:
        pytest.skip(str(reason))
    harness = SweepHarness(folder, TWO_BY_TWO, cli=KTO_SWEEP, options=("--trials-per-gpu", "2"))
    try:
        harness.create()
        harness.start_agent()
        harness.wait_for_progress(5)
        filler = folder / "filler"
        with filler.open("wb") as file, suppress(OSError):
            while True:
                file.write(b"x" * (1 << 20))
        harness.wait(
            lambda: "disk full" in harness.output() or "disk space" in harness.output(), 120, "a full disk"
        )
        time.sleep(3)
        refused = harness.command("pause", harness.sweep[2])
        assert refused.returncode == 1
        assert "disk is full; nothing was changed" in refused.stderr
        assert "running" in harness.run("status")
        filler.unlink()
        harness.finish()
        harness.check(baseline)
    finally:
        harness.close()
        disk.__exit__(None, None, None)
