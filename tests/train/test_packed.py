import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from packed_cases import naive_log_prob, naive_loss, next_partners, token_rows
from peft import LoraConfig, PeftModel, get_peft_model

from kto_sweep.data.dataset import TrainingData
from kto_sweep.data.split import partners
from kto_sweep.errors import UsageError
from kto_sweep.home import Home
from kto_sweep.metrics import METRICS
from kto_sweep.presets import Quantization
from kto_sweep.train.limit import Limit
from kto_sweep.train.lora import AdapterSpec, AdapterStack
from kto_sweep.train.models import LoadedBase, load_base
from kto_sweep.train.pack import pair_rows
from kto_sweep.train.packed import train_packed
from kto_sweep.train.result import TrainResult
from kto_sweep.train.score import score
from kto_sweep.train.step import SlotBatch, add_gradients
from kto_sweep.train.support import packed_decoder
from kto_sweep.trial import Trial


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


def base(home: Home, quantization: Quantization = "none") -> LoadedBase:
    return load_base("tiny", quantization=quantization, device=torch.device("cpu"), home=home)


def data() -> TrainingData:
    train, held_out = token_rows(14), token_rows(6, seed=9)
    return TrainingData("data.jsonl", train, held_out, partners(train, 0), partners(held_out, 0), ())


def trial(**more: object) -> Trial:
    values = {"batch_size": 4, "learning_rate": 1e-2, "lora_r": 4, "max_length": 24, "seed": 1}
    return Trial(model="tiny", dataset="none", **values | more)  # type: ignore[arg-type]


class Recorder:
    """A Report that remembers."""

    def __init__(self) -> None:
        self.total = 0
        self.rows: list[tuple[int, Mapping[str, float]]] = []
        self.notes: list[str] = []

    def plan(self, total_steps: int) -> None:
        self.total = total_steps

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append((step, values))

    def note(self, text: str) -> None:
        self.notes.append(text)


def train(
    chosen: Trial, loaded: LoadedBase, folder: Path, stop_after: float = math.inf
) -> tuple[Recorder, TrainResult]:
    report = Recorder()
    result = train_packed(
        chosen,
        loaded,
        data(),
        folder / "out",
        report,
        lambda: len(report.rows) >= stop_after,
        cache=folder / "cache",
    )
    return report, result


def test_a_trial_from_rows_to_adapters(home: Home, tmp_path: Path) -> None:
    loaded = base(home)
    report, result = train(trial(epochs=2, eval_steps=3), loaded, tmp_path)
    assert report.total == result.steps == 8
    assert not result.stopped
    logged = [step for step, values in report.rows if "loss" in values]
    evaluated = [step for step, values in report.rows if "eval/loss" in values]
    assert logged == [1, 2, 3, 4, 5, 6, 7, 8]
    assert evaluated == [3, 6, 8]
    names = {name for _, values in report.rows for name in values}
    assert names == {
        name for name in METRICS if not name.startswith(("gpu/", "objective/", "failure/", "trial/"))
    }
    assert report.rows[0][1]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert report.rows[-1][1]["eval/common_loss"] != pytest.approx(0.5, abs=1e-4)
    assert result.summary["trial/examples"] == 28
    assert result.summary["eval/loss"] == report.rows[-1][1]["eval/loss"]
    # The model is as it was, and PEFT finds on it what the last evaluation found.
    with warnings.catch_warnings():  # PEFT calls what transformers has renamed
        warnings.simplefilter("ignore", FutureWarning)
        tuned = PeftModel.from_pretrained(base(home).model, str(tmp_path / "out" / "adapter"))
    ratios = [
        naive_log_prob(tuned, row.prompt, row.completion)
        - naive_log_prob(loaded.model, row.prompt, row.completion)
        for row in data().eval
    ]
    desirable = [ratio.item() for ratio, row in zip(ratios, data().eval, strict=True) if row.label]
    below = sum(ratio < 0 for ratio in desirable) / len(desirable)
    assert result.summary["eval/desirable_below_ref"] == pytest.approx(below)


def test_other_trials_find_the_reference_in_the_cache(home: Home, tmp_path: Path) -> None:
    loaded = base(home)
    forwards = []
    loaded.model.base_model.register_forward_pre_hook(lambda *_: forwards.append(1))
    counts = []
    for more in ({}, {"lora_r": 8, "learning_rate": 1e-3, "seed": 5, "beta": 0.5}):
        forwards.clear()
        train(trial(batch_size=14, max_steps=1, **more), loaded, tmp_path)
        counts.append(len(forwards))
    # Two forwards for all rows, the first time only.
    assert counts[0] == counts[1] + 2


def test_it_stops_when_it_is_told_to(home: Home, tmp_path: Path) -> None:
    report, result = train(trial(epochs=2, eval_steps=100), base(home), tmp_path, stop_after=3)
    assert (result.steps, result.stopped) == (3, True)
    assert [step for step, _ in report.rows] == [1, 2, 3]
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()


def test_without_held_out_rows_nothing_is_evaluated(home: Home, tmp_path: Path) -> None:
    report = Recorder()
    rows = data()
    alone = TrainingData("data.jsonl", rows.train, [], rows.train_partners, [], ())
    result = train_packed(
        trial(max_steps=2), base(home), alone, tmp_path, report, lambda: False, cache=tmp_path / "cache"
    )
    assert result.steps == 2
    assert not any(name.startswith("eval/") for _, values in report.rows for name in values)


def test_an_exploding_trial_says_so_and_ends(home: Home, tmp_path: Path) -> None:
    report, result = train(
        trial(learning_rate=1.0, max_grad_norm=0, max_steps=12, warmup_ratio=0, weight_decay=1e30),
        base(home),
        tmp_path,
    )
    assert result.steps == 12
    assert any("gradient is not finite" in note for note in report.notes)


def test_full_fine_tuning_is_the_other_trainers(home: Home, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="trains adapters only"):
        train(trial(full_finetune=True), base(home), tmp_path)


@pytest.mark.parametrize(("quantization", "tolerance"), [("4bit", 1e-5), ("8bit", 2e-2)])
def test_quantised_bases_agree_with_peft_one_row_at_a_time(
    home: Home, quantization: Quantization, tolerance: float
) -> None:
    loaded = base(home, quantization)
    config = LoraConfig(r=4, lora_alpha=9, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        policy = get_peft_model(base(home, quantization).model, config)
    rows = pair_rows(token_rows(6), next_partners(6), 24)
    decoder = packed_decoder(loaded.model)
    reference = score(decoder, rows, Limit())
    adapters = AdapterStack(decoder.model, 1, 4, ["all-linear"])
    spec = AdapterSpec(4, 9.0)
    adapters.start(0, spec)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in adapters.tensors(0).items()
    }
    adapters.start(0, spec, tensors)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.copy_(
                    tensors[name.removeprefix("base_model.model.").removesuffix(".default.weight")]
                )
    batch = SlotBatch(0, rows, *reference.T.tolist(), beta=0.1, weights=(1.0, 1.0), loss_type="kto")
    sums = add_gradients(decoder, adapters, [batch], Limit())
    decoder.release()
    adapters.detach()
    for model in (policy, loaded.model):
        model.train()  # see decoder.freeze
    expected = naive_loss(policy, loaded.model, rows, 0.1)
    expected["loss"].backward()
    assert sums.loss.item() == pytest.approx(expected["loss"].item(), rel=tolerance)
    grads = adapters.layout.take(adapters.take_grads()[0], adapters.names(spec), 4)
    norm = math.sqrt(sum(grad.square().sum().item() for grad in grads.values()))
    theirs = [p.grad for p in policy.parameters() if p.grad is not None]
    expected_norm = math.sqrt(sum(grad.square().sum().item() for grad in theirs))
    assert norm == pytest.approx(expected_norm, rel=10 * tolerance)
