import threading
from pathlib import Path

import pytest
from cotrain_cases import TrainerHarness, memory, trial

from kto_sweep.train.trial.adapters import save_adapters
from kto_sweep.train.trial.pending_writes import MAX_JOBS, PendingWrites

PATIENCE = 20
"""Seconds after which a test that waits has failed."""


def test_jobs_run_in_order_and_are_done_when_it_is_closed() -> None:
    writer, done, gate = PendingWrites(), [], threading.Event()
    writer.put(lambda: gate.wait(PATIENCE))
    second = writer.put(lambda: done.append(1))
    assert not second.done()
    threading.Timer(0.1, gate.set).start()
    writer.put(lambda: done.append(2))
    writer.close()
    assert done == [1, 2]


def test_who_gives_too_many_jobs_waits() -> None:
    writer, gate, given = PendingWrites(), threading.Event(), threading.Event()

    def give() -> None:
        for _ in range(MAX_JOBS + 1):
            writer.put(lambda: gate.wait(PATIENCE))
        given.set()

    threading.Thread(target=give, daemon=True).start()
    assert not given.wait(0.3)
    gate.set()
    assert given.wait(PATIENCE)
    writer.close()


@pytest.mark.parametrize("inline", [False, True])
def test_an_error_comes_back_once_and_ends_all_but_the_last_words(inline: bool) -> None:
    writer = PendingWrites(inline=inline)

    def fail() -> None:
        raise OSError(28, "No space left on device")

    assert isinstance(writer.put(fail).exception(PATIENCE), OSError)
    with pytest.raises(OSError, match="No space left"):
        writer.check()
    with pytest.raises(OSError, match="No space left"):
        writer.put(lambda: None)
    assert writer.put_last(lambda: "why").result(PATIENCE) == "why"
    writer.close()


def test_a_trial_whose_files_take_long_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def slowly(folder: Path, *more: object) -> None:
        if folder.parent.name == "slow":
            assert gate.wait(PATIENCE)
        save_adapters(folder, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("kto_sweep.train.trial.training.save_adapters", slowly)
    harness = TrainerHarness(tmp_path)
    harness.start("slow", trial(max_steps=2, eval_steps=2))
    harness.start("other", trial(max_steps=6, eval_steps=6))
    harness.steps(5)
    assert len(harness.reports["other"].values) == 5
    assert (
        harness.outcomes == {}
    )  # the slow one has taken its two steps; it has ended once its files are there
    assert len(harness.reports["slow"].values) == 2
    gate.set()
    harness.run()
    assert {harness.result(name).steps for name in ("slow", "other")} == {2, 6}
    for folder in ("slow/best", "slow/adapter", "other/adapter"):
        assert (tmp_path / folder / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("then", ["steps on", "stands up", "is stopped while it waits"])
def test_a_full_disk_under_the_best_adapters_ends_their_trial_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    gate = threading.Event()

    def full(folder: Path, *more: object) -> None:
        if folder.parent.name == "unlucky":
            assert gate.wait(PATIENCE)
            raise OSError(28, "No space left on device")
        save_adapters(folder, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("kto_sweep.train.trial.training.save_adapters", full)
    harness = TrainerHarness(tmp_path)
    harness.start("other", trial(max_steps=6, eval_steps=2))
    harness.start("unlucky", trial(max_steps=6, eval_steps=2))
    for _ in range(2):
        harness.trainer.step()
    writer = harness.trainer.active[1]._writes
    with memory(harness.trainer, lambda tokens: then == "steps on" or harness.active == ["other"]):
        if then == "is stopped while it waits":
            threading.Timer(0.5, gate.set).start()  # it stands up once there is room among its files
            harness.trainer.step()
            assert harness.active == ["other"]
            harness.stop("unlucky")
        gate.set()
        writer.put_last(lambda: None).result(PATIENCE)
        harness.run()
    assert isinstance(harness.outcomes["unlucky"], OSError)
    assert harness.result("other").steps == 6
    assert '"end": "failed"' in (tmp_path / "unlucky/lineage.json").read_text()
