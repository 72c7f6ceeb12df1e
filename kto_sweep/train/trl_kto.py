"""TRL's KTOTrainer on our rows: our pairs, order, reference values and metric names.

What it does not take over from TRL 1.16, because trials must not depend on it:
* pairs for the KL term by rotation within a batch, which pairs answers to one prompt; ours are fixed, with
  different prompts, so a last batch of one row is right as well;
* the same order of rows in every epoch; ours is shuffled by the trial's seed;
* reference values computed anew for each trial; ours come from the cache;
* no LoRA dropout whatever was asked for; the KL estimate only after it was cut at 0.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from kto_sweep.data.split import batches
from kto_sweep.train.pack import PairedRow
from kto_sweep.train.reference import Scores

_NAMES = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "kl",
    "kl_raw",
    "logps/chosen",
    "logps/rejected",
)
"""What TRL (and `OurKTOTrainer`, kl_raw) measures under the names that we log."""

OnStep = Callable[[int, dict[str, float]], None]
"""Told the optimizer steps done and what the last one measured."""


class EpochOrder(Sampler[int]):
    """Row numbers in the order of `data.split.batches`, another one each epoch."""

    def __init__(self, rows: int, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0; the training loop calls this."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from batches(self._rows, self._rows, self._epoch, self._seed)[0]

    def __len__(self) -> int:
        return self._rows


class _Watch(TrainerCallback):
    """Notes when each step begins, and ends the training when it is told to."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        self.began = 0.0
        self.stopped = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.began = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._should_stop():
            self.stopped = control.should_training_stop = True


class OurKTOTrainer(KTOTrainer):
    """KTOTrainer that takes rows as they are and tells each step to `on_step`."""

    def __init__(
        self,
        *,
        model: Any,
        args: KTOConfig,
        tokenizer: Any,
        peft_config: Any,
        rows: Sequence[PairedRow],
        on_step: OnStep,
        should_stop: Callable[[], bool],
    ) -> None:
        self._watch = _Watch(should_stop)
        super().__init__(
            model=model,
            args=args,
            train_dataset=_dataset(rows),
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=[self._watch],
        )
        self.remove_callback(PrinterCallback)
        self.precompute_ref_logps = True  # see set_reference; TRL would compute them in its constructor
        self._rows = rows
        self._on_step = on_step
        self._tokens_before = 0

    @property
    def stopped(self) -> bool:
        """Whether `should_stop` ended the training."""
        return self._watch.stopped

    def set_reference(self, scores: Scores) -> None:
        """Give each row its reference log-probs, (rows, 2): matched and mismatched, nats."""
        self.train_dataset = _dataset(self._rows, scores)

    @torch.no_grad()
    def score(self, rows: Sequence[PairedRow], *, reference: bool = False) -> Scores:
        """(rows, 2) log-probs of matched and mismatched completions, nats, float64; without dropout.

        `reference`: without adapters, where the model has them.
        """
        model: Any = self.model
        training = model.training
        model.train(False)
        scores = np.zeros((len(rows), 2))
        # Rows of like length together, for little padding; as many as a batch, which is known to fit.
        size = self.args.per_device_train_batch_size
        order = np.argsort([row.tokens() for row in rows], kind="stable")
        try:
            for at in range(0, len(rows), size):
                chosen = order[at : at + size]
                scores[chosen] = self._score_batch([rows[row] for row in chosen], reference=reference)
        finally:
            model.train(training)
        return scores

    def _score_batch(self, rows: Sequence[PairedRow], *, reference: bool) -> Scores:
        model: Any = self.model
        inputs = self._prepare_inputs(self.data_collator([_row(row) for row in rows]))
        scores = np.zeros((len(rows), 2))
        with self.accelerator.autocast(), _without_adapters(model) if reference else nullcontext():
            for column, prefix in enumerate(("", "KL_")):
                ids, mask = inputs[f"{prefix}input_ids"], inputs[f"{prefix}completion_mask"]
                output = model(
                    input_ids=ids,
                    attention_mask=inputs[f"{prefix}attention_mask"],
                    labels=ids.masked_fill(mask == 0, -100),
                    fused_lm_head=True,
                )
                scores[:, column] = output.log_probs.double().sum(-1).cpu()
        return scores

    # What follows overrides methods of KTOTrainer and Trainer.

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        return EpochOrder(len(self._rows), self.args.seed)

    def _compute_kl_logps(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
        found: torch.Tensor | None = super()._compute_kl_logps(model, batch)  # type: ignore[no-untyped-call]
        if found is not None:
            self._metrics["train"]["kl_raw"].append((found - batch["ref_KL_logps"]).mean().item())
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Tell what one step measured; the summary at the end of training is not told."""
        measured, self._metrics["train"] = self._metrics["train"], type(self._metrics["train"])(list)
        if "loss" not in logs:
            return
        values = {name: float(np.mean(measured[name])) for name in _NAMES if name in measured}
        if not self.calculate_KL:
            values.pop("kl", None)
        values |= {
            "loss": logs["loss"],
            "grad_norm": float(logs["grad_norm"]),
            "learning_rate": logs["learning_rate"],
            "tokens_per_second": self._step_tokens() / (time.perf_counter() - self._watch.began),
        }
        self._on_step(self.state.global_step, values)

    def _step_tokens(self) -> int:
        """Prompt and completion tokens of the last step."""
        tokens, self._tokens_before = self._total_train_tokens - self._tokens_before, self._total_train_tokens
        return int(tokens)


def _without_adapters(model: Any) -> AbstractContextManager[None]:
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()


def _row(row: PairedRow) -> dict[str, Any]:
    """A row under TRL's names."""
    return {
        "prompt_ids": row.prompt.tolist(),
        "completion_ids": row.completion.tolist(),
        "KL_completion_ids": row.mismatched.tolist(),
        "label": row.desirable,
    }


def _dataset(rows: Sequence[PairedRow], scores: Scores | None = None) -> Dataset:
    dataset = Dataset.from_list([_row(row) for row in rows])
    if scores is None:
        return dataset
    dataset = dataset.add_column("ref_logps", scores[:, 0].tolist())
    return dataset.add_column("ref_KL_logps", scores[:, 1].tolist())
