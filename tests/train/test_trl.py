import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_cases import TrlRecorder, make_base, make_data, make_trial, train

from kto_sweep.data.dataset import TrainingData
from kto_sweep.data.split import all_batches
from kto_sweep.errors import FailureCause, TrialFailure
from kto_sweep.home import Home
from kto_sweep.models.presets import Quantization
from kto_sweep.train.base_model import LoadedBase, load_base
from kto_sweep.train.packed.pack import PairedRow, PairedRows
from kto_sweep.train.trial.evaluate import evaluate
from kto_sweep.train.trial.request import TrialRequest
from kto_sweep.train.trl.kto_trainer import OurKTOTrainer
from kto_sweep.train.trl.trainer import train_trl
from kto_sweep.train.worker.admission_queue import AdmissionQueue
from kto_sweep.train.worker.cotrainer import CoTrainer

STEP_METRICS = {
    *("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "kl", "kl_raw"),
    *("logps/chosen", "logps/rejected", "grad_norm", "learning_rate", "epoch", "tokens_per_second"),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return make_base()


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return make_data()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of rows whose reference values TRL's trainer computes, per call."""
    counts: list[int] = []
    score = OurKTOTrainer.score

    def counted(self: OurKTOTrainer, rows: Any, reference: bool = False) -> Any:
        counts.append(len(rows) if reference else 0)
        return score(self, rows, reference)

    monkeypatch.setattr(OurKTOTrainer, "score", counted)
    return counts


def log_prob(model: Any, prompt: Any, completion: Any) -> float:
    """log pi(completion | prompt), nats, one row alone."""
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
    return float(log_probs[range(len(prompt) - 1, ids.shape[1] - 1), ids[0, len(prompt) :]].sum())


def ratios(policy: Any, reference: Any, rows: list[PairedRow], which: str) -> list[float]:
    pairs = [(row.prompt.tolist(), getattr(row, which).tolist()) for row in rows]
    return [log_prob(policy, *pair) - log_prob(reference, *pair) for pair in pairs]


@pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")  # PEFT's, in from_pretrained
def test_a_trial_from_rows_to_adapters(
    base: LoadedBase, data: TrainingData, tmp_path: Path, capfd: Any
) -> None:
    trial = make_trial(max_steps=20, eval_steps=8, beta=0.3, rho=1.2)
    result, report = train(trial, base, data, tmp_path)
    assert (result.steps, result.stopped, report.planned) == (20, False, [(20, 0)])
    assert (
        result.summary["trial/examples"] == 2 * 29 + 6 * 4 - 2 * 0 - 8
    )  # 8 steps an epoch, the last of 1 row
    assert list(report.rows) == list(range(1, 21))
    assert list(report.evaluations) == [8, 16, 20]
    for values in report.steps:
        assert set(values) <= STEP_METRICS
        assert all(math.isfinite(value) for value in values.values())
    assert any(set(values) == STEP_METRICS for values in report.steps)
    assert report.steps[7]["epoch"] == 1.0
    # It learns, and the saved adapters are the ones evaluated last.
    last = report.evaluations[20]
    assert last["eval/common_loss"] < 0.5
    assert last["eval/auc"] > 0.6
    policy = PeftModel.from_pretrained(make_base().model, tmp_path / "out" / "adapter")
    rows = PairedRows(data.eval, data.eval_partners, trial.max_length)
    expected = evaluate(
        ratios(policy, base.model, rows, "completion"),
        ratios(policy, base.model, rows, "mismatched"),
        [row.desirable for row in rows],
        beta=0.3,
        weights=trial.weights(*data.counts),
        loss_type="kto",
    )
    assert last == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert {name: result.summary[name] for name in last} == last
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


def test_the_first_step_has_the_loss_of_the_reference(
    base: LoadedBase, data: TrainingData, tmp_path: Path
) -> None:
    trial = make_trial(max_steps=1, batch_size=29, desirable_weight=2.0)
    first = train(trial, base, data, tmp_path)[1].steps[0]
    desirable, undesirable = data.counts
    assert first["loss"] == pytest.approx(0.5 * (2 * desirable + undesirable) / 29, abs=1e-5)
    assert first["kl_raw"] == pytest.approx(0, abs=1e-4)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert first["learning_rate"] == trial.learning_rate


def test_the_loss_matches_the_formula_on_the_logged_rewards(
    base: LoadedBase, data: TrainingData, tmp_path: Path
) -> None:
    trial = make_trial(batch_size=2, max_steps=25, undesirable_weight=1.7, beta=0.2)
    _, report = train(trial, base, data, tmp_path)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    mixed = [values for values in report.steps if "rewards/margins" in values]
    assert any(values["kl"] > 0 for values in mixed)
    for values in mixed:
        assert values["kl"] == max(values["kl_raw"], 0)
        z = 0.2 * values["kl"]
        good = 1 - sigmoid(values["rewards/chosen"] - z)
        bad = 1 - sigmoid(z - values["rewards/rejected"])
        assert values["loss"] == pytest.approx((good + 1.7 * bad) / 2, rel=1e-5)


def test_every_epoch_has_its_own_order_and_uses_every_row(
    base: LoadedBase, data: TrainingData, tmp_path: Path
) -> None:
    trial = make_trial(epochs=2, learning_rate=1e-12, seed=7)
    _, report = train(trial, base, data, tmp_path)
    steps = list(all_batches(29, 4, 16, seed=7))
    assert len(report.steps) == len(steps)
    for values, (_, batch) in zip(report.steps, steps, strict=True):
        for side, label in (("chosen", True), ("rejected", False)):
            rows = [data.train[at] for at in batch if data.train[at].label == label]
            assert (f"logps/{side}" in values) == bool(rows)
            if rows:
                expected = np.mean([log_prob(base.model, row.prompt, row.completion) for row in rows])
                assert values[f"logps/{side}"] == pytest.approx(expected, rel=1e-4)


def test_the_base_model_is_restored_and_trials_do_not_affect_each_other(
    data: TrainingData, tmp_path: Path
) -> None:
    base = make_base()
    ids = torch.tensor([[10, 20, 30]])
    before = base.model(input_ids=ids).logits
    first = train(make_trial(max_steps=5), base, data, tmp_path / "1")[1]
    train(make_trial(max_steps=3, lora_r=8, seed=1, learning_rate=0.5), base, data, tmp_path / "2")
    assert torch.equal(base.model(input_ids=ids).logits, before)
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert {name for name, _ in base.model.named_parameters()} == dict(
        make_base().model.named_parameters()
    ).keys()
    again = train(make_trial(max_steps=5), base, data, tmp_path / "3")[1]
    for one, other in zip(first.steps, again.steps, strict=True):
        one.pop("tokens_per_second"), other.pop("tokens_per_second")
        assert one == other
    assert first.evaluations == again.evaluations


@pytest.mark.slow  # TRL's trainer is the second choice: the rest of the file trains with it
def test_the_base_model_is_restored_after_a_failure(
    base: LoadedBase, data: TrainingData, tmp_path: Path
) -> None:
    class FullDisk(TrlRecorder):
        def metrics(self, step: int, values: Mapping[str, float]) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        train_trl(TrialRequest("run", make_trial(), tmp_path, FullDisk()), base, data, reference_dir=tmp_path)
    assert {name for name, _ in base.model.named_parameters()} == dict(
        make_base().model.named_parameters()
    ).keys()


def test_reference_values_are_computed_once_and_only_where_needed(
    base: LoadedBase, data: TrainingData, tmp_path: Path, computed: list[int]
) -> None:
    train(make_trial(max_steps=1, loss_type="apo_zero_unpaired"), base, data, tmp_path)
    assert sum(computed) == 4 + len(data.eval)
    train(make_trial(), base, data, tmp_path)
    assert sum(computed) == 29 + len(data.eval)
    other = {"learning_rate": 0.1, "batch_size": 7, "seed": 3, "lora_r": 2, "beta": 1, "epochs": 2}
    train(make_trial(**other), base, data, tmp_path)
    assert sum(computed) == 29 + len(data.eval)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_packed_trainers_reference_values_are_reused_in_the_same_precision(
    dtype: torch.dtype, data: TrainingData, tmp_path: Path, computed: list[int]
) -> None:
    base, trial = make_base(dtype), make_trial(max_steps=8)
    queue = AdmissionQueue()
    with contextlib.closing(CoTrainer(base, data, trial, queue, cache=tmp_path / "reference")) as packed:
        queue.put(TrialRequest("run", trial, tmp_path / "packed", TrlRecorder(), lambda: False))
        while not packed.step():
            pass
    _, report = train(trial, base, data, tmp_path)
    assert sum(computed) == (0 if dtype == torch.float32 else 29 + len(data.eval))
    assert report.steps[0]["loss"] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.slow  # TRL's trainer is the second choice: the rest of the file trains with it
def test_a_batch_of_one(base: LoadedBase, data: TrainingData, tmp_path: Path) -> None:
    _, report = train(make_trial(batch_size=1, max_steps=6), base, data, tmp_path / "kto")
    assert report.steps[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert report.steps[5]["kl_raw"] != 0  # its partner has another prompt
    apo = make_trial(batch_size=1, max_steps=3, loss_type="apo_zero_unpaired")
    _, report = train(apo, base, data, tmp_path / "apo")
    assert all({"kl", "kl_raw"}.isdisjoint(values) for values in report.steps)
    assert report.evaluations[3]["eval/kl_raw"] != 0  # eval/common_loss needs it for any loss


def test_a_stop_takes_effect_after_the_current_step(
    base: LoadedBase, data: TrainingData, tmp_path: Path
) -> None:
    result, report = train(make_trial(max_steps=9, eval_steps=2), base, data, tmp_path, stop_after=3)
    assert (result.steps, result.stopped) == (3, True)
    assert len(report.steps) == 3
    assert list(report.evaluations) == [2]
    result, _ = train(make_trial(max_steps=3), base, data, tmp_path, stop_after=3)
    assert not result.stopped  # it had finished
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow  # TRL's trainer is the second choice: the rest of the file trains with it
def test_lora_dropout_changes_training_and_not_evaluation(
    base: LoadedBase, data: TrainingData, tmp_path: Path
) -> None:
    plain = train(make_trial(max_steps=4), base, data, tmp_path)[1]
    dropped = train(make_trial(max_steps=4, lora_dropout=0.5), base, data, tmp_path)[1]
    assert dropped.steps[0]["loss"] == pytest.approx(plain.steps[0]["loss"])  # adapters begin at 0
    assert abs(dropped.steps[1]["loss"] - plain.steps[1]["loss"]) > 1e-3
    still = train(make_trial(max_steps=1, lora_dropout=0.5, learning_rate=1e-12), base, data, tmp_path)[1]
    assert still.evaluations[1]["eval/margins"] == pytest.approx(0, abs=1e-5)


def test_full_finetuning_learns_and_saves_the_model(data: TrainingData, tmp_path: Path) -> None:
    trial = make_trial(max_steps=10, full_finetune=True, learning_rate=0.003)
    _, report = train(trial, make_base(), data, tmp_path)
    assert report.steps[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    last = report.evaluations[10]
    assert last["eval/common_loss"] < 0.5
    AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    rows = PairedRows(data.eval, data.eval_partners, 16)
    drift = np.mean(ratios(trained, make_base().model, rows, "mismatched"))
    assert last["eval/kl_raw"] == pytest.approx(drift, rel=1e-3)


def saved_and_loaded(base: LoadedBase, folder: Path, quantization: Quantization = "none") -> LoadedBase:
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return load_base(str(folder), quantization=quantization, device=torch.device("cpu"), home=Home(folder))


def test_the_dropout_of_the_base_model_is_off(data: TrainingData, tmp_path: Path) -> None:
    base = saved_and_loaded(make_base(attention_dropout=0.5), tmp_path / "saved")
    first = train(make_trial(max_steps=1), base, data, tmp_path)[1].steps[0]
    assert first["loss"] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantised_base_model_learns(
    data: TrainingData, tmp_path: Path, quantization: Quantization
) -> None:
    base = saved_and_loaded(make_base(hidden_size=64), tmp_path / "saved", quantization)
    _, report = train(make_trial(max_steps=16), base, data, tmp_path)
    assert report.steps[0]["loss"] == pytest.approx(0.5, abs=0.01)
    assert report.steps[12]["loss"] < 0.3


@pytest.mark.slow  # TRL's trainer is the second choice: the rest of the file trains with it
def test_8bit_adamw_trains(base: LoadedBase, data: TrainingData, tmp_path: Path) -> None:
    _, report = train(make_trial(max_steps=5, optimizer="adamw_8bit"), base, data, tmp_path)
    assert abs(report.steps[4]["loss"] - 0.5) > 1e-3


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "constant"])
@pytest.mark.slow  # TRL's trainer is the second choice: the rest of the file trains with it
def test_the_learning_rate_follows_the_schedule(
    base: LoadedBase, data: TrainingData, tmp_path: Path, scheduler: str
) -> None:
    from kto_sweep.train.packed.optim import lr_factor

    trial = make_trial(max_steps=6, warmup_ratio=0.3, lr_scheduler=scheduler)
    _, report = train(trial, base, data, tmp_path)
    expected = [trial.learning_rate * lr_factor(scheduler, step, 2, 6) for step in range(6)]
    assert [values["learning_rate"] for values in report.steps] == pytest.approx(expected)


def test_a_loss_that_is_not_finite_ends_the_trial(data: TrainingData, tmp_path: Path) -> None:
    trial = make_trial(max_steps=5)
    object.__setattr__(trial, "learning_rate", 1e30)  # more than a sweep file may have
    with pytest.raises(TrialFailure, match="the loss is nan") as raised:
        train(trial, make_base(), data, tmp_path)
    assert raised.value.cause is FailureCause.DIVERGED


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("full_finetune", [False, True])
def test_training_on_a_gpu(data: TrainingData, tmp_path: Path, full_finetune: bool) -> None:
    base = make_base(torch.bfloat16, "cuda")
    rate = 0.003 if full_finetune else 0.05
    trial = make_trial(max_steps=16, full_finetune=full_finetune, learning_rate=rate)
    _, report = train(trial, base, data, tmp_path)
    assert report.steps[0]["loss"] == pytest.approx(0.5, abs=0.01)
    assert report.steps[12]["loss"] < 0.45
    for name in ("allocated", "peak", "reserved"):
        assert report.steps[0][f"gpu/memory_{name}_gb"] > 0


def test_full_finetuning_of_half_precision_weights_moves_them(data: TrainingData, tmp_path: Path) -> None:
    base = make_base(torch.bfloat16)
    trial = make_trial(max_steps=8, full_finetune=True, learning_rate=1e-5)
    _, report = train(trial, base, data, tmp_path)
    # Each update is far below bf16's resolution; together they still show.
    assert report.steps[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert abs(report.evaluations[8]["eval/margins"]) > 1e-5
    assert base.model.dtype == torch.float32
