import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cotrain_cases import Recorder, TrainerHarness, alone, base, data, expect_same, memory, trial
from packed_cases import naive_log_prob, tiny_model
from peft import PeftModel

from kto_sweep.data.dataset import TrainingData
from kto_sweep.errors import FailureCause, TrialFailure, UsageError
from kto_sweep.metrics import METRICS
from kto_sweep.train.packed.engine import Engine
from kto_sweep.train.packed.step_result import StepResult
from kto_sweep.train.trial.request import TrainResult
from kto_sweep.train.worker.concurrency import SETTLING, WINDOW, Concurrency

OTHERS = {
    "ranks": trial(lora_r=16, lora_targets=("q_proj", "down_proj"), batch_size=7, seed=7, max_steps=5),
    "apo": trial(loss_type="apo_zero_unpaired", beta=0.5, lora_dropout=0.2, epochs=2),
    "8bit": trial(optimizer="adamw_8bit", learning_rate=1e-3, batch_size=1, max_steps=9, eval_steps=4),
}


def test_a_trial_from_rows_to_adapters(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    report = harness.start("run", trial(epochs=2))
    result = harness.run().result("run")
    harness.trainer.close()
    assert report.planned == [(8, 0)]
    assert "14 rows" in report.notes
    assert (result.steps, result.stopped) == (8, False)
    assert list(report.rows) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [step for step, row in report.rows.items() if "eval/loss" in row] == [3, 6, 8]
    names = {name for row in report.rows.values() for name in row}
    assert names == {
        name for name in METRICS if not name.startswith(("gpu/", "objective/", "failure/", "trial/"))
    }
    assert report.rows[1]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert report.rows[8]["eval/common_loss"] != pytest.approx(0.5, abs=1e-4)
    assert result.summary["trial/examples"] == 28
    assert result.summary["eval/loss"] == report.rows[8]["eval/loss"]
    with warnings.catch_warnings():  # PEFT calls what transformers has renamed
        warnings.simplefilter("ignore", FutureWarning)
        tuned = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "run" / "adapter"))
    rows = [row for row in data().eval if row.label]
    ratios = [
        naive_log_prob(tuned, row.prompt, row.completion)
        - naive_log_prob(tiny_model(), row.prompt, row.completion)
        for row in rows
    ]
    below = sum(ratio.item() < 0 for ratio in ratios) / len(ratios)
    assert result.summary["eval/desirable_below_ref"] == pytest.approx(below)


def test_the_adapters_of_the_best_evaluation_are_kept(tmp_path: Path) -> None:
    chosen = trial(max_steps=8, eval_steps=1, learning_rate=0.1, warmup_ratio=0.2, lora_r=8)
    harness = TrainerHarness(tmp_path)
    report = harness.start("run", chosen)
    harness.run()
    losses = {step: row["eval/common_loss"] for step, row in report.rows.items()}
    best = min(losses, key=losses.__getitem__)
    assert best not in (1, 8)  # else this test shows nothing
    again = TrainerHarness(tmp_path / "again")
    again.start("run", chosen)
    again.steps(best)
    again.stop("run")
    again.run()
    files = ("best/adapter_model.safetensors", "adapter/adapter_model.safetensors")
    assert (tmp_path / "run" / files[0]).read_bytes() == (tmp_path / "again/run" / files[1]).read_bytes()


@pytest.mark.parametrize("overlap", [False, True])
def test_trials_that_come_and_go_are_each_as_if_alone(tmp_path: Path, overlap: bool) -> None:
    expected = {name: alone(chosen, tmp_path) for name, chosen in OTHERS.items()}
    expected["calm"] = alone(trial(max_steps=12), tmp_path)
    harness = TrainerHarness(tmp_path, overlap=overlap)
    harness.start("ranks", OTHERS["ranks"])
    harness.steps(1)
    harness.start("calm", trial(max_steps=12))  # joins late
    harness.steps(2)
    harness.start("apo", OTHERS["apo"])
    harness.start("8bit", OTHERS["8bit"])
    harness.steps(1)
    assert harness.active == ["ranks", "calm", "apo", "8bit"]
    harness.run()
    for name, single in expected.items():
        expect_same(harness.reports[name], single.reports["only"])
        found, wanted = harness.result(name).summary, single.result("only").summary
        assert found.keys() == wanted.keys()
        assert found["eval/common_loss"] == pytest.approx(wanted["eval/common_loss"], rel=1e-3)


def test_slots_grow_with_the_trials_and_shrink_when_nobody_comes(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    for name, steps in (("a", 3), ("b", 60), ("c", 60)):
        harness.start(name, trial(max_steps=steps, eval_steps=60))
    engine: Engine = harness.trainer._engine
    harness.steps(1)
    assert engine.slots == 3
    harness.steps(2)
    assert harness.active == ["b", "c"]
    harness.start("d", trial(max_steps=60, eval_steps=60))
    harness.steps(1)
    assert engine.slots == 3  # the new trial took the empty slot
    harness.stop("b")
    harness.steps(30)
    assert engine.slots == 2
    harness.run()
    for name in ("c", "d"):
        expect_same(
            harness.reports[name], alone(trial(max_steps=60, eval_steps=60), tmp_path).reports["only"]
        )


def test_stopping_one_reaches_no_other(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    harness.start("a", trial(epochs=3, seed=2))
    harness.start("b", trial(epochs=3))
    harness.steps(4)
    harness.stop("a")
    harness.run()
    stopped = harness.result("a")
    assert (stopped.steps, stopped.stopped) == (4, True)
    assert list(harness.reports["a"].rows) == [1, 2, 3, 4]
    assert (tmp_path / "a" / "adapter" / "adapter_model.safetensors").exists()
    expect_same(harness.reports["b"], alone(trial(epochs=3), tmp_path).reports["only"])


def test_a_trial_that_is_stopped_before_it_begins(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    harness.stop("a")
    harness.start("a", trial())
    assert harness.run().result("a") == TrainResult({}, 0, stopped=True)


def test_a_stop_interrupts_the_reference_pass(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    report = harness.start("a", trial())
    report.preparing = lambda what, done, total: harness.stop("a")  # type: ignore[method-assign]
    result = harness.run().result("a")
    assert (result.steps, result.stopped) == (0, True)
    harness.start("b", trial())
    assert harness.run().result("b").steps == 4


def exploding(**more: Any) -> Any:
    return trial(learning_rate=1.0, max_grad_norm=0, warmup_ratio=0, weight_decay=1e30, **more)


def test_a_diverging_trial_ends_with_its_cause_and_reaches_no_other(tmp_path: Path) -> None:
    expected = alone(trial(max_steps=12), tmp_path)
    harness = TrainerHarness(tmp_path)
    harness.start("bad", exploding(max_steps=12))
    harness.start("good", trial(max_steps=12))
    harness.run()
    failure = harness.outcomes["bad"]
    assert isinstance(failure, TrialFailure)
    assert failure.cause is FailureCause.DIVERGED
    bad = harness.reports["bad"]
    assert math.isnan(bad.rows[max(bad.rows)]["loss"])
    assert any(note.startswith("WARNING: step") and "loss is nan" in note for note in bad.notes)
    assert "KTO: loss not finite" in bad.alerts
    assert not (tmp_path / "bad" / "checkpoint" / "last.safetensors").exists()
    expect_same(harness.reports["good"], expected.reports["only"])


def test_what_one_trial_cannot_be_ends_it_alone(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    (tmp_path / "file").write_text("in the way")
    harness.start("good", trial())
    harness.steps(1)
    # A rank that needs another layout.
    harness.start("targets", trial(lora_targets=("no_such_proj",), lora_r=64))
    harness.start("file", trial())
    harness.run()
    assert isinstance(harness.outcomes["targets"], UsageError)
    assert isinstance(harness.outcomes["file"], OSError)
    assert harness.result("good").steps == 4


def test_which_trials_fit_together(tmp_path: Path) -> None:
    trainer = TrainerHarness(tmp_path).trainer
    assert trainer.fits(trial(learning_rate=1e-5, lora_r=64, batch_size=32, seed=9, beta=0.5, epochs=3))
    for other in ({"max_length": 32}, {"eval_fraction": 0.2}, {"quantization": "4bit"}):
        assert not trainer.fits(trial(**other))
    assert not trainer.fits(trial(full_finetune=True))


def test_without_held_out_rows_nothing_is_evaluated(tmp_path: Path) -> None:
    rows = data()
    harness = TrainerHarness(
        tmp_path, rows=TrainingData("data.jsonl", rows.train, [], rows.train_partners, [], ())
    )
    report = harness.start("run", trial(max_steps=2))
    assert harness.run().result("run").steps == 2
    assert not any(name.startswith("eval/") for row in report.rows.values() for name in row)


def test_other_trials_find_the_reference_in_the_cache(tmp_path: Path) -> None:
    forwards = []
    loaded = base()
    loaded.model.base_model.register_forward_pre_hook(lambda *_: forwards.append(1))
    counts = []
    for more in ({}, {"lora_r": 8, "learning_rate": 1e-3, "seed": 5, "beta": 0.5}):
        harness = TrainerHarness(tmp_path, base=loaded)
        forwards.clear()
        harness.start(f"run{len(counts)}", trial(batch_size=14, max_steps=1, **more))
        harness.run()
        harness.trainer.close()
        counts.append(len(forwards))
    # Two forwards for all rows, the first time only.
    assert counts[0] == counts[1] + 2


def test_a_short_memory_splits_then_recomputes_and_changes_nothing(tmp_path: Path) -> None:
    chosen = trial(max_steps=5, batch_size=6)
    expected = alone(chosen, tmp_path)
    harness = TrainerHarness(tmp_path)
    layer = harness.trainer._admission._inputs.base.model.base_model.layers[0]
    harness.start("run", chosen)
    harness.steps(1)
    with memory(
        harness.trainer,
        lambda tokens: not torch.is_grad_enabled() or tokens < (200 if layer.gradient_checkpointing else 3),
    ):
        harness.run()
    report = harness.reports["run"]
    expect_same(report, expected.reports["only"])
    assert any("activations are recomputed" in note for note in report.notes)
    # The next trial begins without what this one needed.
    harness.start("next", chosen)
    harness.run()
    assert not layer.gradient_checkpointing
    expect_same(harness.reports["next"], expected.reports["only"])


@pytest.mark.parametrize("overlap", [False, True])
def test_the_last_to_join_waits_when_memory_runs_out_and_then_goes_on(tmp_path: Path, overlap: bool) -> None:
    chosen = {"a": trial(max_steps=7), "b": trial(max_steps=9, seed=3), "c": trial(max_steps=5, lora_r=8)}
    harness = TrainerHarness(tmp_path, overlap=overlap)
    harness.start("a", chosen["a"])
    harness.start("b", chosen["b"])
    harness.steps(3)
    harness.start("c", chosen["c"])
    harness.steps(2)
    with memory(harness.trainer, lambda tokens: len(harness.active) <= 2):
        harness.run()
    assert any("waits until another one ends" in note for note in harness.reports["c"].notes)
    assert harness.trainer.concurrency == Concurrency(2, "2 trials at once: memory ran out with 3")
    assert harness.reports["c"].planned == [(5, 0)]
    for name, each in chosen.items():
        assert harness.result(name).steps == each.max_steps
        expect_same(harness.reports[name], alone(each, tmp_path).reports["only"])


def test_a_trial_that_is_stopped_while_it_waits_leaves_its_adapters(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    harness.start("a", trial(max_steps=6))
    harness.start("b", trial(max_steps=6))
    harness.steps(2)
    with memory(harness.trainer, lambda tokens: len(harness.active) == 1):
        harness.steps(1)
        assert harness.active == ["a"]
        harness.stop("b")
        harness.run()
    assert harness.result("b").stopped
    assert {path.name for path in (tmp_path / "b" / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_a_trial_that_does_not_fit_alone_fails_and_the_next_one_has_all_the_memory(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    harness.start("run", trial())
    harness.steps(1)
    with memory(harness.trainer, lambda tokens: False):
        harness.run()
    failure = harness.outcomes["run"]
    assert isinstance(failure, TrialFailure)
    assert failure.cause is FailureCause.OUT_OF_MEMORY
    assert failure.message == "CUDA out of memory. Tried to allocate 20.00 GiB."
    harness.start("next", trial())
    assert harness.run().result("next").steps == 4


@pytest.mark.parametrize("overlap", [False, True])
def test_steps_say_how_many_trials_are_worth_it(tmp_path: Path, overlap: bool) -> None:
    """Under the tests' clock a step of two trials takes as long as one of one: the second is free."""
    harness = TrainerHarness(tmp_path, overlap=overlap)
    for name in "ab":
        assert harness.trainer.concurrency.slots == (1 if name == "a" else 2)
        harness.start(name, trial(max_steps=60, eval_steps=60))
        harness.steps(SETTLING + WINDOW + 2)
    assert harness.trainer.concurrency.slots == 4
    first, second = (
        [note for note in harness.reports[name].notes if "at once" in note] for name in ("a", "b")
    )
    assert first == ["trying 2 trials at once", *second]
    assert second[0].startswith("4 trials at once: 2 in place of 1 added ")
    harness.crash()


@pytest.mark.parametrize("overlap", [False, True])
def test_each_step_has_its_own_time(tmp_path: Path, overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the host reads its numbers: before an evaluation two steps are read at once."""
    harness = TrainerHarness(tmp_path, overlap=overlap)
    tokens: list[int] = []
    step = Engine.step

    def second_long(self: Engine) -> StepResult:
        harness.clock.now += 1
        result = step(self)
        tokens.append(result.info[0].tokens)
        return result

    monkeypatch.setattr(Engine, "step", second_long)
    report = harness.start("a", trial(max_steps=8, eval_steps=4))
    while harness.trainer.busy:
        harness.trainer.step()
    told = [row["tokens_per_second"] for row in report.rows.values()]
    assert told == pytest.approx(tokens, rel=1e-3)
    assert len(set(tokens)) > 1


def test_an_evaluation_that_does_not_fit_has_others_wait(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    harness.start("a", trial(max_steps=3))
    harness.start("b", trial(max_steps=7, eval_steps=7))
    with memory(
        harness.trainer,
        lambda tokens: torch.is_grad_enabled() or len(harness.active) != 2 or no_eval(harness),
    ):
        harness.run()
    for name, steps in (("a", 3), ("b", 7)):
        assert harness.result(name).steps == steps
    assert any("waits" in note for note in harness.reports["b"].notes)


def no_eval(harness: TrainerHarness) -> bool:
    """Whether the forward that runs is no evaluation: those are of the trial whose row is not written yet."""
    return all(training.steps < 3 for training in harness.trainer.active)


def test_the_model_is_given_back_as_it_was(tmp_path: Path) -> None:
    loaded = base()
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    attention = loaded.model.config._attn_implementation
    harness = TrainerHarness(tmp_path, base=loaded)
    harness.start("a", trial())
    harness.run()
    harness.trainer.close()
    assert loaded.model.config._attn_implementation == attention
    assert not any(module._forward_hooks for module in loaded.model.modules())
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_rows_come_one_step_late_when_host_and_device_overlap(tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path, overlap=True)
    report: Recorder = harness.start("a", trial(max_steps=6, eval_steps=4))
    seen = []
    for _ in range(6):
        harness.steps(1)
        seen.append(len(report.rows))
    assert seen == [0, 1, 2, 4, 4, 6]  # all are there at an evaluation and at the end
