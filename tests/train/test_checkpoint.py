import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cotrainer_cases import Recorder, TrainerHarness, make_base, make_data, make_trial, train_alone
from safetensors.torch import load_file

from kto_sweep.errors import FailureCause, TrialFailure
from kto_sweep.train.packed.pack import PairedRows
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


def make_checkpoint(step: int = 3, **more: Any) -> Checkpoint:
    tensors = {
        "weights/layer.lora_A": torch.arange(6.0).view(2, 3).t(),
        "first/layer.lora_A": torch.full((2,), 1 / 3),
    }
    return Checkpoint(IDENTITY, SlotState(step, 12, tensors, 2.0), 1.5, 0.1 + 0.2, **more)


def test_a_saved_checkpoint_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    assert load_checkpoint(path, IDENTITY) is None
    save_checkpoint(path, make_checkpoint(step=1))
    save_checkpoint(path, make_checkpoint())
    loaded = load_checkpoint(path, IDENTITY)
    assert loaded is not None
    expected = make_checkpoint()
    for name, tensor in expected.state.tensors.items():
        assert torch.equal(loaded.state.tensors[name], tensor)
    state = replace(loaded.state, tensors=expected.state.tensors)
    assert replace(loaded, state=state) == expected
    assert [file.name for file in tmp_path.iterdir()] == ["last.safetensors"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            replace(IDENTITY, config={**IDENTITY.config, "learning_rate": 3e-3}),
            "it has learning_rate 0.001 (now 0.003)",
        ),
        (replace(IDENTITY, rows="others"), "it has other rows"),
        (replace(IDENTITY, base="another"), "it has other base weights"),
    ],
)
def test_a_checkpoint_with_another_identity_is_refused(tmp_path: Path, other: Identity, message: str) -> None:
    save_checkpoint(tmp_path / "x", make_checkpoint())
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "x", other)
    assert caught.value.message == message


@pytest.mark.parametrize("damage", [lambda raw: raw[:-5], lambda raw: b"", lambda raw: b"\xff" * 100])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "x"
    save_checkpoint(path, make_checkpoint())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path, IDENTITY)


def test_a_flipped_bit_anywhere_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_checkpoint(path, make_checkpoint())
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CheckpointError):
            load_checkpoint(path, IDENTITY)


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_checkpoint(path, make_checkpoint(step=1))
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


def test_the_fingerprint_of_rows_changes_with_every_part_of_them() -> None:
    data = make_data()
    train, partners = data.train, data.train_partners
    rows = PairedRows(train, partners, 24)
    ids, labels, shifted = train.ids.copy(), train.labels.copy(), np.roll(partners, 1)
    ids[train.boundaries[0] - 1] += 1
    labels[0] = not labels[0]
    longer, shorter = train.prompt_lengths.copy(), train.completion_lengths.copy()
    longer[0], shorter[0] = longer[0] + 1, shorter[0] - 1
    moved = replace(
        train,
        prompt_lengths=longer,
        completion_lengths=shorter,
        boundaries=train.boundaries + (np.arange(len(train)) == 0),
    )
    others = [
        PairedRows(train.take(np.arange(len(train))[::-1]), partners, 24),
        PairedRows(replace(train, ids=ids), partners, 24),
        PairedRows(replace(train, labels=labels), partners, 24),
        PairedRows(moved, partners, 24),
        PairedRows(train, shifted, 24),
        PairedRows(train, partners, 12),  # mismatched completions are cut elsewhere
    ]
    fingerprints = {fingerprint_rows(variant) for variant in [rows, *others]}
    assert len(fingerprints) == 7
    assert fingerprint_rows(rows[:3], rows[3:]) != fingerprint_rows(rows[:4], rows[4:])
    assert fingerprint_rows(rows) == fingerprint_rows(PairedRows(train, partners, 24))


# Continuing.

VARIED = [make_trial(epochs=3, lora_dropout=0.2), make_trial(epochs=3, optimizer="adamw_8bit", batch_size=3)]


@pytest.mark.parametrize("trial", VARIED)
@pytest.mark.parametrize("overlap", [False, True])
def test_a_trial_continues_after_a_crash_bit_for_bit(tmp_path: Path, trial: Trial, overlap: bool) -> None:
    expected = train_alone(trial, tmp_path).reports["only"]
    crashed = TrainerHarness(tmp_path, overlap=overlap)
    before = crashed.start("run", trial)
    crashed.steps(8)  # the last checkpoint is from the evaluation after step 6
    crashed.crash()
    harness = TrainerHarness(tmp_path, overlap=overlap)
    after = harness.start("run", trial)
    result = harness.run().result("run")
    total = max(expected.rows)
    assert after.planned == [(total, 6)]
    assert after.values == {step: row for step, row in expected.values.items() if step > 6}
    assert before.values.items() <= expected.values.items()
    assert "resuming after step 6" in after.notes
    assert "14 rows" not in after.notes
    uninterrupted = train_alone(trial, tmp_path).result("only").summary
    assert result.steps == total
    for name in uninterrupted.keys() - {"tokens_per_second", "trial/seconds"}:
        assert result.summary[name] == uninterrupted[name]


@pytest.mark.parametrize(
    ("logged", "first"),
    [(None, 4), (0, 1), (2, 3), (3, 4), (5, 6)],
    ids=["as the checkpoint says", "nothing", "fewer", "as many", "more"],
)
def test_rows_are_reported_once_however_many_the_agent_has_logged(
    tmp_path: Path, logged: int | None, first: int
) -> None:
    trial = make_trial(epochs=2)
    expected = train_alone(trial, tmp_path).reports["only"]
    crashed = TrainerHarness(tmp_path)
    crashed.start("run", trial)
    crashed.steps(5)  # checkpoint at 3
    crashed.crash()
    harness = TrainerHarness(tmp_path)
    report = harness.start("run", trial, logged=logged)
    harness.run()
    assert report.values == {step: row for step, row in expected.values.items() if step >= first}
    assert report.planned == [(8, first - 1)]


def test_a_stopped_trial_continues_and_a_finished_one_stays_finished(tmp_path: Path) -> None:
    trial = make_trial(epochs=2)
    expected = train_alone(trial, tmp_path)
    first = TrainerHarness(tmp_path)
    first.start("run", trial)
    first.steps(4)
    first.stop("run")
    assert first.run().result("run").stopped
    second = TrainerHarness(tmp_path)
    report = second.start("run", trial)
    result = second.run().result("run")
    assert list(report.rows) == [5, 6, 7, 8]
    assert report.values[8] == expected.reports["only"].values[8]
    third = TrainerHarness(tmp_path)
    again = third.start("run", trial, logged=7)
    summary = third.run().result("run").summary
    assert summary == result.summary | {
        "trial/seconds": pytest.approx(result.summary["trial/seconds"], abs=1e-3)
    }
    assert list(again.rows) == [8]
    # The checkpoint of a finished trial has no tensors.
    assert (tmp_path / "run/checkpoint/last.safetensors").stat().st_size < 5_000


def test_a_crash_between_the_last_step_and_the_end_loses_nothing(tmp_path: Path) -> None:
    trial = make_trial(epochs=2)
    expected = train_alone(trial, tmp_path)
    harness = TrainerHarness(tmp_path)
    harness.start("run", trial)
    harness.steps(8)
    # A crash before the adapters are saved: the last checkpoint still has all tensors.
    other = TrainerHarness(tmp_path / "other")
    other.start("run", trial)
    other.steps(7)
    engine, training = other.trainer._engine, other.trainer.active[0]
    engine_state = engine.step()
    training.log(8, dict(engine_state.read()[0].values), engine)
    training._writes.put(training._checkpointing(engine.state(0)))
    other.crash()
    again = TrainerHarness(tmp_path / "other")
    again.start("run", trial)
    assert again.run().result("run").steps == 8
    files = [folder / "run/adapter/adapter_model.safetensors" for folder in (tmp_path, tmp_path / "other")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert expected.result("only").steps == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("config", "it has learning_rate 0.01 (now 0.02)"),
        ("rows", "it has other rows"),
        ("base", "it has other base weights"),
        ("log", "the rows beside it are not complete"),
        ("damage", "it is damaged"),
    ],
)
def test_a_checkpoint_that_does_not_match_the_trial_is_not_used(
    tmp_path: Path, change: str, message: str
) -> None:
    crashed = TrainerHarness(tmp_path)
    crashed.start("run", make_trial(epochs=2))
    crashed.steps(5)
    crashed.crash()
    folder = tmp_path / "run" / "checkpoint"
    trial, more = make_trial(epochs=2), {}
    if change == "config":
        trial = make_trial(epochs=2, learning_rate=2e-2)
    elif change == "rows":
        more["rows"] = make_data(seed=4)
    elif change == "base":
        more["base"] = make_base(seed=4)
    elif change == "log":
        (folder / "rows.jsonl").write_text("")
    else:
        os.truncate(folder / "last.safetensors", 900)
    harness = TrainerHarness(tmp_path, **more)
    report = harness.start("run", trial)
    harness.run()
    assert any("is not used" in note and message in note for note in report.notes)
    assert list(report.rows) == [1, 2, 3, 4, 5, 6, 7, 8]
    # Some reference values are cached: on some CPUs the last bits depend on how many are computed at once.
    for step, row in train_alone(trial, tmp_path, **more).reports["only"].values.items():
        assert report.values[step] == pytest.approx(row, rel=1e-5, abs=1e-6), step
    assert len((folder / "rows.jsonl").read_text().splitlines()) == 8


@pytest.mark.parametrize("change", ["rows", "base"])
def test_a_run_fails_if_its_data_or_model_changed_since_its_first_steps(tmp_path: Path, change: str) -> None:
    crashed = TrainerHarness(tmp_path)
    crashed.start("run", make_trial(epochs=2))
    crashed.steps(5)
    crashed.crash()
    more = {"rows": make_data(seed=4)} if change == "rows" else {"base": make_base(seed=4)}
    changed = TrainerHarness(tmp_path, **more)
    changed.start("run", make_trial(epochs=2), logged=5)
    outcome = changed.run().outcomes["run"]
    assert isinstance(outcome, TrialFailure)
    assert outcome.cause is FailureCause.BAD_DATA
    assert "changed since the first 5 steps" in outcome.message
    again = TrainerHarness(tmp_path)
    again.start("run", make_trial(epochs=2), logged=5)
    assert again.run().result("run").steps == 8


def test_a_trial_continues_beside_others(tmp_path: Path) -> None:
    crashed = TrainerHarness(tmp_path)
    crashed.start("run", make_trial(epochs=3))
    crashed.steps(4)
    crashed.crash()
    harness = TrainerHarness(tmp_path)
    harness.start("other", make_trial(seed=8, lora_r=16, epochs=3))
    harness.steps(2)
    report = harness.start("run", make_trial(epochs=3))
    harness.run()
    expected = train_alone(make_trial(epochs=3), tmp_path).reports["only"].values
    assert list(report.rows) == list(range(4, 13))
    for step, row in report.values.items():
        assert row == pytest.approx(expected[step], rel=1e-4, abs=1e-4)


# When checkpoints are written.


def step_of(folder: Path) -> int | None:
    path = folder / "checkpoint" / "last.safetensors"
    loaded = checkpoints._load(path)
    return None if loaded is None else loaded.state.step


def test_checkpoints_are_written_at_evaluations_and_at_intervals(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    harness.start("run", make_trial(max_steps=12, eval_steps=6))
    steps = []
    for _ in range(11):
        harness.steps(1)
        steps.append(step_of(tmp_path / "run"))
        harness.clock.now += INTERVAL / 4 - 1
    harness.crash()
    assert steps == [None, None, None, None, 5, 6, 6, 6, 6, 10, 10]


def test_a_slow_disk_gets_few_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = TrainerHarness(tmp_path)

    def save_slowly(path: Path, checkpoint: Checkpoint) -> None:
        harness.clock.now += 10
        save_checkpoint(path, checkpoint)

    monkeypatch.setattr("kto_sweep.train.trial.checkpoint.save_checkpoint", save_slowly)
    harness.start("run", make_trial(max_steps=12, eval_steps=1))
    steps = []
    for _ in range(11):
        harness.steps(1)
        steps.append(step_of(tmp_path / "run"))
        harness.clock.now += COST_FACTOR * 10 / 3
    harness.crash()
    assert steps == [1, 1, 1, 4, 4, 4, 7, 7, 7, 10, 10]


def test_a_full_disk_gives_a_warning_and_does_not_fail_the_trial(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    report: Recorder = harness.start("run", make_trial(max_steps=9, eval_steps=9, lora_r=64))
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


def test_the_lineage_records_the_origin_of_the_adapters(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    harness.start("run", make_trial())
    harness.steps(1)
    path = tmp_path / "run" / "lineage.json"
    unfinished = json.loads(path.read_text())
    assert "result" not in unfinished
    harness.run()
    lineage = json.loads(path.read_text())
    assert lineage["model"]["name"] == "tiny"
    assert len(lineage["model"]["fingerprint"]) == len(lineage["data"]["fingerprint"]) == 64
    assert lineage["model"]["parameters"] == make_base().model.num_parameters()
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors").values()
    assert lineage["model"]["trainable_parameters"] == sum(tensor.numel() for tensor in tensors)
    assert Trial.from_config(lineage["trial"]) == make_trial()
    assert lineage["data"]["path"] == "data.jsonl"
    assert lineage["data"]["train"]["rows"] == 14
    assert lineage["data"]["train"]["desirable"] + lineage["data"]["train"]["undesirable"] == 14
    assert lineage["environment"]["threads"] == torch.get_num_threads()
    assert lineage["result"]["end"] == "finished"
    summary = harness.result("run").summary
    assert lineage["result"]["summary"]["eval/common_loss"] == summary["eval/common_loss"]
    assert lineage["started"] <= lineage["ended"]


def test_the_lineage_of_a_failed_trial_has_its_cause(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    harness.start("run", make_trial(learning_rate=1.0, max_grad_norm=0, warmup_ratio=0, weight_decay=1e30))
    harness.run()
    failure = harness.outcomes["run"]
    assert isinstance(failure, TrialFailure)
    result = json.loads((tmp_path / "run" / "lineage.json").read_text())["result"]
    assert result == {"end": "failed", "cause": FailureCause.DIVERGED, "message": failure.message}
