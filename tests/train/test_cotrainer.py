import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cotrainer_cases import (
    Recorder,
    TrainerHarness,
    expect_same,
    limited_memory,
    make_base,
    make_data,
    make_trial,
    train_alone,
)
from packed_cases import naive_log_prob, tiny_model
from peft import PeftModel

from kto_sweep.alerts import AlertLevel
from kto_sweep.data.dataset import TrainingData
from kto_sweep.errors import FailureCause, TrialFailure, UsageError
from kto_sweep.metrics import METRICS
from kto_sweep.models.architecture import Recompute
from kto_sweep.train.packed.engine import Engine
from kto_sweep.train.packed.step_result import StepResult
from kto_sweep.train.trial.request import TrainResult
from kto_sweep.train.worker.concurrency import SETTLING, WINDOW, Concurrency

OTHERS = {
    "ranks": make_trial(lora_r=16, lora_targets=("q_proj", "down_proj"), batch_size=7, seed=7, max_steps=5),
    "apo": make_trial(loss_type="apo_zero_unpaired", beta=0.5, lora_dropout=0.2, epochs=2),
    "8bit": make_trial(optimizer="adamw_8bit", learning_rate=1e-3, batch_size=1, max_steps=9, eval_steps=4),
}


def test_a_trial_from_rows_to_adapters(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    report = harness.start("run", make_trial(epochs=2))
    result = harness.run().result("run")
    harness.trainer.close()
    assert report.planned == [(8, 0)]
    assert "14 rows" in report.notes
    assert (result.steps, result.stopped) == (8, False)
    assert list(report.rows) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [step for step, row in report.rows.items() if "eval/loss" in row] == [3, 6, 8]
    names = {name for row in report.rows.values() for name in row}
    assert names == {
        name
        for name in METRICS
        if not name.startswith(("gpu/", "objective/", "failure/", "trial/", "seed_spread/"))
    }
    assert report.rows[1]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert report.rows[8]["eval/common_loss"] != pytest.approx(0.5, abs=1e-4)
    assert result.summary["trial/examples"] == 28
    assert result.summary["eval/loss"] == report.rows[8]["eval/loss"]
    with warnings.catch_warnings():  # PEFT uses names that transformers deprecates
        warnings.simplefilter("ignore", FutureWarning)
        tuned = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "run" / "adapter"))
    rows = [row for row in make_data().eval if row.label]
    ratios = [
        naive_log_prob(tuned, row.prompt, row.completion)
        - naive_log_prob(tiny_model(), row.prompt, row.completion)
        for row in rows
    ]
    below = sum(ratio.item() < 0 for ratio in ratios) / len(ratios)
    assert result.summary["eval/desirable_below_ref"] == pytest.approx(below)


def test_the_adapters_of_the_best_evaluation_are_kept(tmp_path: Path) -> None:
    trial = make_trial(max_steps=8, eval_steps=1, learning_rate=0.1, warmup_ratio=0.2, lora_r=8)
    harness = TrainerHarness(tmp_path)
    report = harness.start("run", trial)
    harness.run()
    losses = {step: row["eval/common_loss"] for step, row in report.rows.items()}
    best = min(losses, key=losses.__getitem__)
    assert best not in (1, 8)  # otherwise this test shows nothing
    again = TrainerHarness(tmp_path / "again")
    again.start("run", trial)
    again.steps(best)
    again.stop("run")
    again.run()
    files = ("best/adapter_model.safetensors", "adapter/adapter_model.safetensors")
    assert (tmp_path / "run" / files[0]).read_bytes() == (tmp_path / "again/run" / files[1]).read_bytes()


@pytest.mark.parametrize("overlap", [False, True])
def test_trials_that_join_and_leave_get_the_numbers_of_training_alone(tmp_path: Path, overlap: bool) -> None:
    expected = {name: train_alone(trial, tmp_path) for name, trial in OTHERS.items()}
    expected["late"] = train_alone(make_trial(max_steps=12), tmp_path)
    harness = TrainerHarness(tmp_path, overlap=overlap)
    harness.start("ranks", OTHERS["ranks"])
    harness.steps(1)
    harness.start("late", make_trial(max_steps=12))
    harness.steps(2)
    harness.start("apo", OTHERS["apo"])
    harness.start("8bit", OTHERS["8bit"])
    harness.steps(1)
    assert harness.active == ["ranks", "late", "apo", "8bit"]
    harness.run()
    for name, single in expected.items():
        expect_same(harness.reports[name], single.reports["only"])
        summary, expected_summary = harness.result(name).summary, single.result("only").summary
        assert summary.keys() == expected_summary.keys()
        assert summary["eval/common_loss"] == pytest.approx(expected_summary["eval/common_loss"], rel=1e-3)


def test_slots_grow_with_the_trials_and_shrink_when_none_is_pending(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    for name, steps in (("a", 3), ("b", 60), ("c", 60)):
        harness.start(name, make_trial(max_steps=steps, eval_steps=60))
    engine: Engine = harness.trainer._engine
    harness.steps(1)
    assert engine.slots == 3
    harness.steps(2)
    assert harness.active == ["b", "c"]
    harness.start("d", make_trial(max_steps=60, eval_steps=60))
    harness.steps(1)
    assert engine.slots == 3  # the new trial took the empty slot
    harness.stop("b")
    harness.steps(30)
    assert engine.slots == 2
    harness.run()
    for name in ("c", "d"):
        expect_same(
            harness.reports[name],
            train_alone(make_trial(max_steps=60, eval_steps=60), tmp_path).reports["only"],
        )


def test_stopping_one_trial_does_not_affect_others(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    harness.start("a", make_trial(epochs=3, seed=2))
    harness.start("b", make_trial(epochs=3))
    harness.steps(4)
    harness.stop("a")
    harness.run()
    stopped = harness.result("a")
    assert (stopped.steps, stopped.stopped) == (4, True)
    assert list(harness.reports["a"].rows) == [1, 2, 3, 4]
    assert (tmp_path / "a" / "adapter" / "adapter_model.safetensors").exists()
    expect_same(harness.reports["b"], train_alone(make_trial(epochs=3), tmp_path).reports["only"])


def test_a_trial_that_is_stopped_before_it_starts_takes_no_step(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    harness.stop("a")
    harness.start("a", make_trial())
    assert harness.run().result("a") == TrainResult({}, 0, stopped=True)


def test_a_stop_interrupts_the_reference_pass(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    report = harness.start("a", make_trial())
    report.preparing = lambda what, done, total: harness.stop("a")  # type: ignore[method-assign]
    result = harness.run().result("a")
    assert (result.steps, result.stopped) == (0, True)
    harness.start("b", make_trial())
    assert harness.run().result("b").steps == 4


def diverging(**more: Any) -> Any:
    return make_trial(learning_rate=1.0, max_grad_norm=0, warmup_ratio=0, weight_decay=1e30, **more)


def test_a_diverging_trial_fails_with_its_cause_and_does_not_affect_others(tmp_path: Path) -> None:
    expected = train_alone(make_trial(max_steps=12), tmp_path)
    harness = TrainerHarness(tmp_path)
    harness.start("bad", diverging(max_steps=12))
    harness.start("good", make_trial(max_steps=12))
    harness.run()
    failure = harness.outcomes["bad"]
    assert isinstance(failure, TrialFailure)
    assert failure.cause is FailureCause.DIVERGED
    bad = harness.reports["bad"]
    assert math.isnan(bad.rows[max(bad.rows)]["loss"])
    errors = [alert for alert in bad.alerts if alert.level is AlertLevel.ERROR]
    assert [alert.title for alert in errors] == ["loss not finite"]
    assert "loss is nan" in str(errors[0])
    assert not (tmp_path / "bad" / "checkpoint" / "last.safetensors").exists()
    expect_same(harness.reports["good"], expected.reports["only"])


def test_a_trial_that_cannot_start_fails_alone(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    (tmp_path / "file").write_text("in the way")
    harness.start("good", make_trial())
    harness.steps(1)
    # A rank that needs another layout.
    harness.start("targets", make_trial(lora_targets=("no_such_proj",), lora_r=64))
    harness.start("file", make_trial())
    harness.run()
    assert isinstance(harness.outcomes["targets"], UsageError)
    assert isinstance(harness.outcomes["file"], OSError)
    assert harness.result("good").steps == 4


def test_which_trials_fit_together(tmp_path: Path) -> None:
    trainer = TrainerHarness(tmp_path).trainer
    assert trainer.fits(make_trial(learning_rate=1e-5, lora_r=64, batch_size=32, seed=9, beta=0.5, epochs=3))
    for other in ({"max_length": 32}, {"eval_fraction": 0.2}, {"quantization": "4bit"}):
        assert not trainer.fits(make_trial(**other))
    assert not trainer.fits(make_trial(full_finetune=True))


def test_without_held_out_rows_nothing_is_evaluated(tmp_path: Path) -> None:
    rows = make_data()
    harness = TrainerHarness(tmp_path, rows=TrainingData.paired("data.jsonl", rows.train, rows.eval[:0], 24))
    report = harness.start("run", make_trial(max_steps=2))
    assert harness.run().result("run").steps == 2
    assert not any(name.startswith("eval/") for row in report.rows.values() for name in row)


def test_other_trials_use_the_cached_reference(tmp_path: Path) -> None:
    forwards = []
    loaded = make_base()
    loaded.model.base_model.register_forward_pre_hook(lambda *_: forwards.append(1))
    counts = []
    for more in ({}, {"lora_r": 8, "learning_rate": 1e-3, "seed": 5, "beta": 0.5}):
        harness = TrainerHarness(tmp_path, base=loaded)
        forwards.clear()
        harness.start(f"run{len(counts)}", make_trial(batch_size=14, max_steps=1, **more))
        harness.run()
        harness.trainer.close()
        counts.append(len(forwards))
    # Two forwards for all rows, the first time only.
    assert counts[0] == counts[1] + 2


def test_low_memory_splits_then_recomputes_and_changes_no_number(tmp_path: Path) -> None:
    trial = make_trial(max_steps=5, batch_size=6)
    expected = train_alone(trial, tmp_path)
    harness = TrainerHarness(tmp_path)
    layer = harness.trainer._admission._inputs.base.model.base_model.layers[0].forward
    harness.start("run", trial)
    harness.steps(1)
    with limited_memory(
        harness.trainer,
        lambda tokens: not torch.is_grad_enabled() or tokens < (200 if layer.recompute else 3),
    ):
        harness.run()
    report = harness.reports["run"]
    expect_same(report, expected.reports["only"])
    assert any("gate and up are recomputed" in note for note in report.notes)
    # The next trial starts without recomputation.
    harness.start("next", trial)
    harness.run()
    assert layer.recompute is Recompute.NOTHING
    expect_same(harness.reports["next"], expected.reports["only"])


@pytest.mark.parametrize("overlap", [False, True])
def test_the_last_trial_to_join_waits_when_memory_runs_out_and_continues_later(
    tmp_path: Path, overlap: bool
) -> None:
    trials = {
        "a": make_trial(max_steps=7),
        "b": make_trial(max_steps=9, seed=3),
        "c": make_trial(max_steps=5, lora_r=8),
    }
    harness = TrainerHarness(tmp_path, overlap=overlap)
    harness.start("a", trials["a"])
    harness.start("b", trials["b"])
    harness.steps(3)
    harness.start("c", trials["c"])
    harness.steps(2)
    with limited_memory(harness.trainer, lambda tokens: len(harness.active) <= 2):
        harness.run()
    assert any("waits until another one ends" in note for note in harness.reports["c"].notes)
    assert harness.trainer.concurrency == Concurrency(2, "2 trials at once: memory ran out with 3")
    assert harness.reports["c"].planned == [(5, 0)]
    for name, trial in trials.items():
        assert harness.result(name).steps == trial.max_steps
        expect_same(harness.reports[name], train_alone(trial, tmp_path).reports["only"])


def test_a_trial_that_is_stopped_while_it_waits_saves_its_adapters(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    harness.start("a", make_trial(max_steps=6))
    harness.start("b", make_trial(max_steps=6))
    harness.steps(2)
    with limited_memory(harness.trainer, lambda tokens: len(harness.active) == 1):
        harness.steps(1)
        assert harness.active == ["a"]
        harness.stop("b")
        harness.run()
    assert harness.result("b").stopped
    assert {path.name for path in (tmp_path / "b" / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_a_trial_that_does_not_fit_alone_fails_and_frees_its_memory(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    harness.start("run", make_trial())
    harness.steps(1)
    with limited_memory(harness.trainer, lambda tokens: False):
        harness.run()
    failure = harness.outcomes["run"]
    assert isinstance(failure, TrialFailure)
    assert failure.cause is FailureCause.OUT_OF_MEMORY
    assert failure.message == "CUDA out of memory. Tried to allocate 20.00 GiB."
    harness.start("next", make_trial())
    assert harness.run().result("next").steps == 4


@pytest.mark.parametrize("overlap", [False, True])
def test_step_times_decide_how_many_trials_train_at_once(tmp_path: Path, overlap: bool) -> None:
    """On the harness's clock a step of two trials takes as long as a step of one: the second is free."""
    harness = TrainerHarness(tmp_path, overlap=overlap)
    for name in "ab":
        assert harness.trainer.concurrency.slots == (1 if name == "a" else 2)
        harness.start(name, make_trial(max_steps=60, eval_steps=60))
        harness.steps(SETTLING + WINDOW + 2)
    assert harness.trainer.concurrency.slots == 4
    first, second = (
        [note for note in harness.reports[name].notes if "at once" in note] for name in ("a", "b")
    )
    assert first == ["trying 2 trials at once", *second]
    assert second[0].startswith("up to 4 trials at once: 2 in place of 1 added ")
    harness.crash()


@pytest.mark.parametrize("overlap", [False, True])
def test_each_step_has_its_own_time(tmp_path: Path, overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when two steps are read at once, as before an evaluation."""
    harness = TrainerHarness(tmp_path, overlap=overlap)
    tokens: list[int] = []
    step = Engine.step

    def one_second_step(self: Engine) -> StepResult:
        harness.clock.now += 1
        result = step(self)
        tokens.append(result.info[0].tokens)
        return result

    monkeypatch.setattr(Engine, "step", one_second_step)
    report = harness.start("a", make_trial(max_steps=8, eval_steps=4))
    while harness.trainer.busy:
        harness.trainer.step()
    speeds = [row["tokens_per_second"] for row in report.rows.values()]
    assert speeds == pytest.approx(tokens, rel=1e-3)
    assert len(set(tokens)) > 1


def test_others_wait_when_an_evaluation_does_not_fit(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    harness.start("a", make_trial(max_steps=3))
    harness.start("b", make_trial(max_steps=7, eval_steps=7))
    with limited_memory(
        harness.trainer,
        lambda tokens: torch.is_grad_enabled() or len(harness.active) != 2 or is_training(harness),
    ):
        harness.run()
    for name, steps in (("a", 3), ("b", 7)):
        assert harness.result(name).steps == steps
    assert any("waits" in note for note in harness.reports["b"].notes)


def is_training(harness: TrainerHarness) -> bool:
    """Whether the current forward is of training: trial a evaluates after its step 3."""
    return all(training.steps < 3 for training in harness.trainer.active)


def test_close_restores_the_model(tmp_path: Path) -> None:
    loaded = make_base()
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    attention = loaded.model.config._attn_implementation
    harness = TrainerHarness(tmp_path, base=loaded)
    harness.start("a", make_trial())
    harness.run()
    harness.trainer.close()
    assert loaded.model.config._attn_implementation == attention
    assert not any(module._forward_hooks for module in loaded.model.modules())
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_rows_are_reported_one_step_late_when_host_and_device_overlap(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path, overlap=True)
    report: Recorder = harness.start("a", make_trial(max_steps=6, eval_steps=4))
    counts = []
    for _ in range(6):
        harness.steps(1)
        counts.append(len(report.rows))
    assert counts == [0, 1, 2, 4, 4, 6]  # no row is late at an evaluation or at the end
