import threading
from pathlib import Path

import pytest
from cotrainer_cases import TrainerHarness, limited_memory, make_trial

from kto_sweep.train.trial.adapters import save_adapters
from kto_sweep.train.trial.pending_writes import MAX_JOBS, PendingWrites

TIMEOUT = 20
"""Seconds after which a waiting test fails."""


def test_jobs_run_in_order_and_close_waits_for_them() -> None:
    writes, done, gate = PendingWrites(), [], threading.Event()
    writes.put(lambda: gate.wait(TIMEOUT))
    second = writes.put(lambda: done.append(1))
    assert not second.done()
    threading.Timer(0.1, gate.set).start()
    writes.put(lambda: done.append(2))
    writes.close()
    assert done == [1, 2]


def test_put_blocks_while_too_many_jobs_are_pending() -> None:
    writes, gate, all_put = PendingWrites(), threading.Event(), threading.Event()

    def put_jobs() -> None:
        for _ in range(MAX_JOBS + 1):
            writes.put(lambda: gate.wait(TIMEOUT))
        all_put.set()

    threading.Thread(target=put_jobs, daemon=True).start()
    assert not all_put.wait(0.3)
    gate.set()
    assert all_put.wait(TIMEOUT)
    writes.close()


@pytest.mark.parametrize("inline", [False, True])
def test_an_error_is_raised_again_and_only_the_last_job_still_runs(inline: bool) -> None:
    writes = PendingWrites(inline=inline)

    def fail() -> None:
        raise OSError(28, "No space left on device")

    assert isinstance(writes.put(fail).exception(TIMEOUT), OSError)
    with pytest.raises(OSError, match="No space left"):
        writes.check()
    with pytest.raises(OSError, match="No space left"):
        writes.put(lambda: None)
    assert writes.put_last(lambda: "why").result(TIMEOUT) == "why"
    writes.close()


def test_a_trial_with_slow_writes_does_not_block_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def save_slowly(folder: Path, *more: object) -> None:
        if folder.parent.name == "slow":
            assert gate.wait(TIMEOUT)
        save_adapters(folder, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("kto_sweep.train.trial.training.save_adapters", save_slowly)
    harness = TrainerHarness(tmp_path)
    harness.start("slow", make_trial(max_steps=2, eval_steps=2))
    harness.start("other", make_trial(max_steps=6, eval_steps=6))
    harness.steps(5)
    assert len(harness.reports["other"].values) == 5
    # The slow trial has taken its two steps, but ends only when its files are written.
    assert harness.outcomes == {}
    assert len(harness.reports["slow"].values) == 2
    gate.set()
    harness.run()
    assert {harness.result(name).steps for name in ("slow", "other")} == {2, 6}
    for folder in ("slow/best", "slow/adapter", "other/adapter"):
        assert (tmp_path / folder / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("then", ["continues", "waits for memory", "is stopped while it waits"])
def test_a_full_disk_while_saving_the_best_adapters_fails_that_trial_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    gate = threading.Event()

    def fail(folder: Path, *more: object) -> None:
        if folder.parent.name == "failing":
            assert gate.wait(TIMEOUT)
            raise OSError(28, "No space left on device")
        save_adapters(folder, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("kto_sweep.train.trial.training.save_adapters", fail)
    harness = TrainerHarness(tmp_path)
    harness.start("other", make_trial(max_steps=6, eval_steps=2))
    harness.start("failing", make_trial(max_steps=6, eval_steps=2))
    for _ in range(2):
        harness.trainer.step()
    writes = harness.trainer.active[1]._writes
    with limited_memory(harness.trainer, lambda tokens: then == "continues" or harness.active == ["other"]):
        if then == "is stopped while it waits":
            threading.Timer(0.5, gate.set).start()  # it leaves its slot when it can queue a checkpoint
            harness.trainer.step()
            assert harness.active == ["other"]
            harness.stop("failing")
        gate.set()
        writes.put_last(lambda: None).result(TIMEOUT)
        harness.run()
    assert isinstance(harness.outcomes["failing"], OSError)
    assert harness.result("other").steps == 6
    assert '"end": "failed"' in (tmp_path / "failing/lineage.json").read_text()
