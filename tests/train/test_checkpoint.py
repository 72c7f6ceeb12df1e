import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from cotrain_cases import Recorder, TrainerHarness, alone, base, data, trial

from kto_sweep.errors import FailureCause, TrialFailure
from kto_sweep.train.packed.pack import pair_rows
from kto_sweep.train.packed.slot import SlotState
from kto_sweep.train.trial import checkpoint as checkpoints
from kto_sweep.train.trial.checkpoint import (
    COST_FACTOR,
    INTERVAL,
    Checkpoint,
    CheckpointError,
    Identity,
    fingerprint_rows,
    load_checkpoint,
    save_checkpoint,
)
from kto_sweep.trial import Trial

IDENTITY = Identity({"model": "tiny", "learning_rate": 1e-3, "lora_targets": ["q_proj"]}, "rows", "base")


def checkpoint(step: int = 3, **more: Any) -> Checkpoint:
    tensors = {
        "weights/layer.lora_A": torch.arange(6.0).view(2, 3).t(),
        "first/layer.lora_A": torch.full((2,), 1 / 3),
    }
    return Checkpoint(IDENTITY, SlotState(step, 12, tensors, 2.0), 1.5, 0.1 + 0.2, **more)


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    assert load_checkpoint(path, IDENTITY) is None
    save_checkpoint(path, checkpoint(step=1))
    save_checkpoint(path, checkpoint())
    found = load_checkpoint(path, IDENTITY)
    assert found is not None
    wanted = checkpoint()
    for name, tensor in wanted.state.tensors.items():
        assert torch.equal(found.state.tensors[name], tensor)
    bare = dataclasses.replace(found, state=dataclasses.replace(found.state, tensors=wanted.state.tensors))
    assert bare == wanted
    assert [file.name for file in tmp_path.iterdir()] == ["last.safetensors"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            dataclasses.replace(IDENTITY, config={**IDENTITY.config, "learning_rate": 3e-3}),
            "it has learning_rate 0.001 (now 0.003)",
        ),
        (dataclasses.replace(IDENTITY, rows="others"), "it has other rows"),
        (dataclasses.replace(IDENTITY, base="another"), "it has other base weights"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, other: Identity, words: str) -> None:
    save_checkpoint(tmp_path / "x", checkpoint())
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "x", other)
    assert caught.value.message == words


@pytest.mark.parametrize("damage", [lambda raw: raw[:-5], lambda raw: b"", lambda raw: b"\xff" * 100])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "x"
    save_checkpoint(path, checkpoint())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path, IDENTITY)


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_checkpoint(path, checkpoint())
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CheckpointError):
            load_checkpoint(path, IDENTITY)


def test_a_full_disk_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_checkpoint(path, checkpoint(step=1))
    before = path.read_bytes()
    with file_size_limit(len(before) + 10_000), pytest.raises(OSError, match="File too large"):
        save_checkpoint(path, Checkpoint(IDENTITY, SlotState(2, 1, {"a": torch.zeros(10**5)}, 1.0), 1, None))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


@contextmanager
def file_size_limit(n: int) -> Iterator[None]:
    """Writes beyond `n` bytes of a file fail, as on a full disk."""
    import resource
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_the_rows_hash_changes_with_every_part_of_them() -> None:
    rows = pair_rows(data().train, data().train_partners, 24)
    first = rows[0]
    others = [
        rows[1:],
        [*rows[1:], first],
        [dataclasses.replace(first, desirable=not first.desirable), *rows[1:]],
        [dataclasses.replace(first, mismatched=first.mismatched[::-1].copy() + 1), *rows[1:]],
    ]
    hashes = {fingerprint_rows(each) for each in [rows, *others]}
    assert len(hashes) == 5
    assert fingerprint_rows(rows[:3], rows[3:]) != fingerprint_rows(rows[:4], rows[4:])
    assert fingerprint_rows(rows) == fingerprint_rows(list(rows))


# Going on.

VARIED = [trial(epochs=3, lora_dropout=0.2), trial(epochs=3, optimizer="adamw_8bit", batch_size=3)]


@pytest.mark.parametrize("chosen", VARIED)
@pytest.mark.parametrize("overlap", [False, True])
def test_a_trial_goes_on_after_a_crash_bit_for_bit(tmp_path: Path, chosen: Trial, overlap: bool) -> None:
    expected = alone(chosen, tmp_path).reports["only"]
    crashed = TrainerHarness(tmp_path, overlap=overlap)
    before = crashed.start("run", chosen)
    crashed.steps(8)  # the last checkpoint is that of the evaluation after step 6
    crashed.crash()
    harness = TrainerHarness(tmp_path, overlap=overlap)
    after = harness.start("run", chosen)
    result = harness.run().result("run")
    total = max(expected.rows)
    assert after.planned == [(total, 6)]
    assert after.values == {step: row for step, row in expected.values.items() if step > 6}
    assert before.values.items() <= expected.values.items()
    assert "resuming after step 6" in after.notes
    assert "14 rows" not in after.notes
    whole = alone(chosen, tmp_path).result("only").summary
    assert result.steps == total
    for name in whole.keys() - {"tokens_per_second", "trial/seconds"}:
        assert result.summary[name] == whole[name]


@pytest.mark.parametrize(
    ("logged", "first"),
    [(None, 4), (0, 1), (2, 3), (3, 4), (5, 6)],
    ids=["as the checkpoint says", "nothing", "fewer", "as many", "more"],
)
def test_each_row_comes_once_whatever_the_reader_has(tmp_path: Path, logged: int | None, first: int) -> None:
    chosen = trial(epochs=2)
    expected = alone(chosen, tmp_path).reports["only"]
    crashed = TrainerHarness(tmp_path)
    crashed.start("run", chosen)
    crashed.steps(5)  # checkpoint at 3
    crashed.crash()
    harness = TrainerHarness(tmp_path)
    report = harness.start("run", chosen, logged=logged)
    harness.run()
    assert report.values == {step: row for step, row in expected.values.items() if step >= first}
    assert report.planned == [(8, first - 1)]


def test_a_stopped_trial_goes_on_and_a_finished_one_is_finished(tmp_path: Path) -> None:
    chosen = trial(epochs=2)
    expected = alone(chosen, tmp_path)
    first = TrainerHarness(tmp_path)
    first.start("run", chosen)
    first.steps(4)
    first.stop("run")
    assert first.run().result("run").stopped
    second = TrainerHarness(tmp_path)
    report = second.start("run", chosen)
    result = second.run().result("run")
    assert list(report.rows) == [5, 6, 7, 8]
    assert report.values[8] == expected.reports["only"].values[8]
    third = TrainerHarness(tmp_path)
    again = third.start("run", chosen, logged=7)
    summary = third.run().result("run").summary
    assert summary == result.summary | {
        "trial/seconds": pytest.approx(result.summary["trial/seconds"], abs=1e-3)
    }
    assert list(again.rows) == [8]
    # A mark is left of the finished trial, no tensors.
    assert (tmp_path / "run/checkpoint/last.safetensors").stat().st_size < 5_000


def test_a_crash_between_the_last_step_and_the_end_costs_nothing(tmp_path: Path) -> None:
    chosen = trial(epochs=2)
    expected = alone(chosen, tmp_path)
    harness = TrainerHarness(tmp_path)
    harness.start("run", chosen)
    harness.steps(8)
    # As if it had ended before the adapters were saved: the last checkpoint still has everything.
    other = TrainerHarness(tmp_path / "other")
    other.start("run", chosen)
    other.steps(7)
    engine, training = other.trainer._engine, other.trainer.active[0]
    engine_state = engine.step()
    training.log(8, dict(engine_state.read()[0].values), engine)
    training._writes.put(training._checkpointing(engine.state(0)))
    other.crash()
    again = TrainerHarness(tmp_path / "other")
    again.start("run", chosen)
    assert again.run().result("run").steps == 8
    files = [folder / "run/adapter/adapter_model.safetensors" for folder in (tmp_path, tmp_path / "other")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert expected.result("only").steps == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("config", "it has learning_rate 0.01 (now 0.02)"),
        ("rows", "it has other rows"),
        ("base", "it has other base weights"),
        ("log", "the rows beside it are not complete"),
        ("damage", "it is damaged"),
    ],
)
def test_a_checkpoint_that_is_not_the_trials_is_not_used(tmp_path: Path, change: str, words: str) -> None:
    crashed = TrainerHarness(tmp_path)
    crashed.start("run", trial(epochs=2))
    crashed.steps(5)
    crashed.crash()
    folder = tmp_path / "run" / "checkpoint"
    chosen, more = trial(epochs=2), {}
    if change == "config":
        chosen = trial(epochs=2, learning_rate=2e-2)
    elif change == "rows":
        more["rows"] = data(seed=4)
    elif change == "base":
        more["base"] = base(seed=4)
    elif change == "log":
        (folder / "rows.jsonl").write_text("")
    else:
        os.truncate(folder / "last.safetensors", 900)
    harness = TrainerHarness(tmp_path, **more)
    report = harness.start("run", chosen)
    harness.run()
    assert any("is not used" in note and words in note for note in report.notes)
    assert list(report.rows) == [1, 2, 3, 4, 5, 6, 7, 8]
    # Some reference values are still there: on some CPUs the last bits depend on how many are computed.
    for step, row in alone(chosen, tmp_path, **more).reports["only"].values.items():
        assert report.values[step] == pytest.approx(row, rel=1e-5, abs=1e-6), step
    assert len((folder / "rows.jsonl").read_text().splitlines()) == 8


@pytest.mark.parametrize("change", ["rows", "base"])
def test_a_run_whose_data_or_model_has_changed_since_its_first_steps_fails(
    tmp_path: Path, change: str
) -> None:
    crashed = TrainerHarness(tmp_path)
    crashed.start("run", trial(epochs=2))
    crashed.steps(5)
    crashed.crash()
    more = {"rows": data(seed=4)} if change == "rows" else {"base": base(seed=4)}
    changed = TrainerHarness(tmp_path, **more)
    changed.start("run", trial(epochs=2), logged=5)
    outcome = changed.run().outcomes["run"]
    assert isinstance(outcome, TrialFailure)
    assert outcome.cause is FailureCause.BAD_DATA
    assert "changed since the first 5 steps" in outcome.message
    again = TrainerHarness(tmp_path)
    again.start("run", trial(epochs=2), logged=5)
    assert again.run().result("run").steps == 8


def test_a_trial_goes_on_beside_others(tmp_path: Path) -> None:
    crashed = TrainerHarness(tmp_path)
    crashed.start("run", trial(epochs=3))
    crashed.steps(4)
    crashed.crash()
    harness = TrainerHarness(tmp_path)
    harness.start("other", trial(seed=8, lora_r=16, epochs=3))
    harness.steps(2)
    report = harness.start("run", trial(epochs=3))
    harness.run()
    expected = alone(trial(epochs=3), tmp_path).reports["only"].values
    assert list(report.rows) == list(range(4, 13))
    for step, row in report.values.items():
        assert row == pytest.approx(expected[step], rel=1e-4, abs=1e-4)


# When checkpoints are written.


def step_of(folder: Path) -> int | None:
    path = folder / "checkpoint" / "last.safetensors"
    found = checkpoints._load(path)
    return None if found is None else found.state.step


def test_checkpoints_are_written_at_evaluations_and_from_time_to_time(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    harness.start("run", trial(max_steps=12, eval_steps=6))
    steps = []
    for _ in range(11):
        harness.steps(1)
        steps.append(step_of(tmp_path / "run"))
        harness.clock.now += INTERVAL / 4 - 1
    harness.crash()
    assert steps == [None, None, None, None, 5, 6, 6, 6, 6, 10, 10]


def test_a_slow_disk_gets_few_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = TrainerHarness(tmp_path)

    def slowly(path: Path, kept: Checkpoint) -> None:
        harness.clock.now += 10
        save_checkpoint(path, kept)

    monkeypatch.setattr("kto_sweep.train.trial.checkpoint.save_checkpoint", slowly)
    harness.start("run", trial(max_steps=12, eval_steps=1))
    steps = []
    for _ in range(11):
        harness.steps(1)
        steps.append(step_of(tmp_path / "run"))
        harness.clock.now += COST_FACTOR * 10 / 3
    harness.crash()
    assert steps == [1, 1, 1, 4, 4, 4, 7, 7, 7, 10, 10]


def test_a_full_disk_costs_a_warning_and_not_the_trial(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    report: Recorder = harness.start("run", trial(max_steps=9, eval_steps=9, lora_r=64))
    harness.steps(1)
    harness.clock.now += INTERVAL
    with file_size_limit(100_000):
        harness.steps(1)
        harness.clock.now += INTERVAL
        harness.steps(1)
    assert step_of(tmp_path / "run") is None
    warnings = [note for note in report.notes if "no checkpoint written" in note]
    assert warnings == ["WARNING: step 2: no checkpoint written: " + warnings[0].rpartition(": ")[2]]
    harness.clock.now += INTERVAL
    harness.steps(1)
    assert step_of(tmp_path / "run") == 4
    assert harness.run().result("run").steps == 9


# Lineage.


def test_the_lineage_says_where_adapters_come_from(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    harness.start("run", trial())
    harness.steps(1)
    path = tmp_path / "run" / "lineage.json"
    begun = json.loads(path.read_text())
    assert "result" not in begun
    harness.run()
    found = json.loads(path.read_text())
    assert found["model"]["name"] == "tiny"
    assert len(found["model"]["fingerprint"]) == len(found["data"]["fingerprint"]) == 64
    assert found["model"]["parameters"] == base().model.num_parameters()
    assert Trial.from_config(found["trial"]) == trial()
    assert found["data"]["path"] == "data.jsonl"
    assert found["data"]["train"]["rows"] == 14
    assert found["data"]["train"]["desirable"] + found["data"]["train"]["undesirable"] == 14
    assert torch.__version__.startswith(found["software"]["torch"])  # the package's may lack "+cu130"
    assert found["hardware"]["device"].startswith("CPU")
    assert found["result"]["end"] == "finished"
    assert found["result"]["summary"]["eval/common_loss"] == harness.result("run").summary["eval/common_loss"]
    assert found["started"] <= found["ended"]


def test_the_lineage_of_a_failed_trial_says_why(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    harness.start("run", trial(learning_rate=1.0, max_grad_norm=0, warmup_ratio=0, weight_decay=1e30))
    harness.run()
    failure = harness.outcomes["run"]
    assert isinstance(failure, TrialFailure)
    result = json.loads((tmp_path / "run" / "lineage.json").read_text())["result"]
    assert result == {"end": "failed", "cause": FailureCause.DIVERGED, "message": failure.message}
