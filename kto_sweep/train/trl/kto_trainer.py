"""TRL's KTOTrainer with our rows, pairs, order, reference log-probs, whole-batch loss and metric names.

What differs from TRL 1.16, so that trials are comparable:
* TRL pairs rows for the KL term by rotation within a batch, which can pair two answers to one prompt. Our
  pairs are fixed and have different prompts, so that a batch of one row works too.
* TRL keeps the order of rows in every epoch. Ours is shuffled by the trial's seed.
* TRL computes reference log-probs for each trial. Ours come from the cache.
* TRL averages each process's metrics. Ours are of the whole batch, however it is split over processes.
* TRL disables LoRA dropout, and logs the KL estimate only after clamping it at 0.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from kto_sweep.data.keys import hash64
from kto_sweep.train.loss import losses, needs_reference_point, reference_point
from kto_sweep.train.packed.pack import PairedRow
from kto_sweep.train.reference import Scores
from kto_sweep.train.trl.ranks import Ranks, is_sharded, put_state, take_state, take_weights

OnStep = Callable[[int, dict[str, float]], bool]
"""Gets the optimizer steps done and the last one's metrics; returning False ends the training."""


class OurKTOTrainer(KTOTrainer):
    """KTOTrainer that trains on given rows and batches, and reports each step to `on_step`.

    With several ranks each has a trainer. Methods that all must call together are started by the first rank
    with `lead`, while the others are in `follow`.
    """

    # Otherwise TRL hashes all weights to find its own cached values, which fails with sharded weights.
    precompute_ref_logps = property(lambda self: False, lambda self, value: None)

    def __init__(
        self,
        *,
        model: Any,
        args: KTOConfig,
        tokenizer: Any,
        peft_config: Any,
        rows: Sequence[PairedRow],
        batches: Sequence[Sequence[int]],
        lr_factor: Callable[[int], float],
        on_step: OnStep,
        ranks: Ranks,
    ) -> None:
        """`batches`: row indices of every optimizer step; `lr_factor`: of a step counted from 0."""
        super().__init__(
            model=model,
            args=args,
            train_dataset=Dataset.from_list([_row(row) for row in rows[:1]]),  # see get_train_dataloader
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        self.remove_callback(PrinterCallback)
        _run_head_too(model)
        self._rows = rows
        self._reference: Scores = np.full((len(rows), 2), np.nan)
        self._batches = batches
        self._lr_factor = lr_factor
        self._on_step = on_step
        self._ranks = ranks
        self._done = 0
        self._state: Mapping[str, Tensor] | None = None
        self._sums: dict[str, float] = {}
        self._began = 0.0

    def set_reference(self, scores: Scores) -> None:
        """Set the rows' reference log-probs, (rows, 2): matched and mismatched, nats."""
        self._reference = scores

    def resume(self, done: int, tensors: Mapping[str, Tensor]) -> None:
        """Start after `done` steps, with the result of `take_state` at that time."""
        self._done, self._state = done, tensors

    # Called by all ranks together.

    def lead(self, what: str, *args: Any) -> Any:
        """Call the method `what` in every rank; the result here."""
        self._ranks.broadcast((what, args))
        return getattr(self, what)(*args)

    def follow(self) -> Any:
        """Call the methods that the first rank leads, until it leads `release`; the result of that."""
        while True:
            call: tuple[str, tuple[Any, ...]] = self._ranks.broadcast()
            what, args = call
            result = getattr(self, what)(*args)
            if what == "release":
                return result

    def release(self, value: Any = None) -> Any:
        """End `follow` in the other ranks; its result there is `value`."""
        return value

    @torch.no_grad()
    def score(self, rows: Sequence[PairedRow], reference: bool = False) -> Scores:
        """(rows, 2) log-probs of matched and mismatched completions, nats, float64; without dropout.

        `reference`: without the model's adapters, if any.
        """
        model: Any = self.model
        training = model.training
        model.train(False)
        scores = np.zeros((len(rows), 2))
        # Rows of similar length together, for little padding; no more than a batch, which fits.
        size = self.args.per_device_train_batch_size * self._ranks.size
        order = np.argsort([row.tokens() for row in rows], kind="stable").tolist()
        try:
            for at in range(0, len(rows), size):
                block = order[at : at + size]
                chosen = self._ranks.share(block)
                # A rank without a row still runs a forward: the others may need its part of the weights.
                batch = self._score_batch([rows[row] for row in chosen or block[:1]], reference)
                scores[chosen] = batch[: len(chosen)]
        finally:
            model.train(training)
        return self._ranks.sum(torch.from_numpy(scores).to(self.args.device)).cpu().numpy()

    def _score_batch(self, rows: Sequence[PairedRow], reference: bool) -> Scores:
        model: Any = self.model
        inputs = self._prepare_inputs(self.data_collator([_row(row) for row in rows]))
        with self.accelerator.autocast(), _without_adapters(model) if reference else nullcontext():
            columns = [_log_probs(model, inputs, prefix).sum(-1).cpu() for prefix in ("", "KL_")]
        return torch.stack(columns, dim=1).numpy()

    def weights(self) -> dict[str, Tensor]:
        """The trainable parameters, on the host."""
        model: Any = self.model
        return take_weights(model)

    def take_state(self) -> dict[str, Tensor]:
        """Weights and optimizer, on the host."""
        model: Any = self.model
        optimizer: Any = self.optimizer
        return take_state(model, optimizer.optimizer)  # torch's, inside accelerate's

    # Overridden methods of KTOTrainer and Trainer.

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This rank's part of each remaining batch."""
        steps = range(self._done, len(self._batches))
        return DataLoader(steps, batch_size=None, collate_fn=self._inputs)  # type: ignore[arg-type]

    def _inputs(self, step: int) -> dict[str, Tensor]:
        whole = self._batches[step]
        share = self._ranks.share(whole)
        chosen = list(share or whole[:1])  # every rank needs a forward; an extra row gets weight 0 below
        inputs: dict[str, Tensor] = self.data_collator([_row(self._rows[at]) for at in chosen])
        inputs["reference"] = torch.from_numpy(self._reference[chosen])
        inputs["counts"] = torch.full((len(chosen),), float(bool(share)), dtype=torch.float64)
        inputs["whole"] = torch.tensor(len(whole))
        return inputs

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """The trial's own learning rates."""
        done = self._done
        chosen: Any = optimizer or self.optimizer
        scheduler = LambdaLR(chosen, lambda step: self._lr_factor(done + step))
        self.lr_scheduler, self._created_lr_scheduler = scheduler, True
        return scheduler

    def _init_training_state(self, *args: Any) -> tuple[int, int]:
        progress: tuple[int, int] = super()._init_training_state(*args)
        self.state.global_step = self._done
        return progress

    def _prepare_for_training(self, *args: Any) -> Any:
        model: Any = self.model
        if is_sharded(model):
            # Older versions of transformers wrap it in DDP too, which fails with sharded weights.
            accelerator: Any = self.accelerator
            prepare = accelerator.prepare_model
            accelerator.prepare_model = lambda model, **_: prepare(
                model, device_placement=False, evaluation_mode=True
            )
        prepared = super()._prepare_for_training(*args)  # type: ignore[no-untyped-call]
        if self._state is not None:
            optimizer: Any = self.optimizer
            put_state(model, optimizer.optimizer, self._state)
            self._state = None
        return prepared

    def training_step(self, *args: Any) -> Tensor:
        """Trainer's, with dropout that depends on seed, step and rank only."""
        self._began = time.perf_counter()
        noise = hash64(
            np.int64(self.args.seed) ^ hash64(np.int64(self.state.global_step * 1024 + self._ranks.rank))
        )
        torch.manual_seed(int(noise[0]))
        loss: Tensor = super().training_step(*args)  # type: ignore[no-untyped-call]
        return loss

    def _compute_loss(self, model: Any, inputs: Mapping[str, Tensor], return_outputs: bool = False) -> Tensor:
        """This rank's part of the mean loss of the whole batch, times the number of ranks: a scalar.

        The ranks' gradients are averaged afterwards, hence the factor.
        """
        counts, desirable, whole = inputs["counts"], inputs["label"].bool(), inputs["whole"]
        reference, mismatched_reference = inputs["reference"].unbind(1)
        kl_raw = torch.zeros((), dtype=torch.float64, device=counts.device)
        if needs_reference_point(self.loss_type):
            with torch.no_grad():
                mismatched = _log_probs(model, inputs, "KL_").sum(-1)
            # z0 belongs to the whole batch: summed over the ranks before any of them has a loss.
            kl_raw = self._ranks.sum(((mismatched - mismatched_reference) * counts).sum()) / whole
        outputs = _outputs(model, inputs, "", **self._router_arguments)
        log_probs = outputs.log_probs.double().sum(-1)
        z0 = reference_point(kl_raw)
        weights = torch.where(desirable, self.desirable_weight, self.undesirable_weight)
        by_row = losses(log_probs - reference, desirable, z0, torch.tensor(self.beta), weights) * counts
        self._measure(inputs, log_probs.detach(), by_row.detach(), kl_raw)
        loss = by_row.sum() / whole * self._ranks.size
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        return loss

    @property
    def _router_arguments(self) -> dict[str, bool]:
        return {"output_router_logits": True} if self.aux_loss_enabled else {}

    def _measure(
        self, inputs: Mapping[str, Tensor], log_probs: Tensor, losses: Tensor, kl_raw: Tensor
    ) -> None:
        """Sum the metrics over the whole batch; all of shape (rows,), `kl_raw` a scalar."""
        counts, whole = inputs["counts"], inputs["whole"]
        chosen = counts * inputs["label"].double()
        rejected = counts - chosen
        rewards = self.beta * (log_probs - inputs["reference"][:, 0])
        columns = {
            "loss": losses,
            "chosen": chosen,
            "rejected": rejected,
            "rewards/chosen": rewards * chosen,
            "rewards/rejected": rewards * rejected,
            "logps/chosen": log_probs * chosen,
            "logps/rejected": log_probs * rejected,
            "tokens": inputs["attention_mask"].sum(-1) * counts,
        }
        sums = self._ranks.sum(torch.stack(list(columns.values())).sum(-1)).tolist()
        self._sums = dict(zip(columns, sums, strict=True))
        self._sums["loss"] /= int(whole)
        self._sums["kl_raw"] = kl_raw.item()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Report one step's metrics; the summary at the end of training is left out."""
        if "loss" not in logs:
            return
        sums = self._sums
        values = {"loss": sums["loss"]}
        for side in ("chosen", "rejected"):
            if sums[side]:
                values[f"rewards/{side}"] = sums[f"rewards/{side}"] / sums[side]
                values[f"logps/{side}"] = sums[f"logps/{side}"] / sums[side]
        if sums["chosen"] and sums["rejected"]:
            values["rewards/margins"] = values["rewards/chosen"] - values["rewards/rejected"]
        if needs_reference_point(self.loss_type):
            values["kl_raw"] = sums["kl_raw"]
            values["kl"] = 0.0 if sums["kl_raw"] < 0 else sums["kl_raw"]  # not max(): it would hide a NaN
        values["grad_norm"] = float(logs["grad_norm"])
        values["learning_rate"] = logs["learning_rate"]
        values["tokens_per_second"] = sums["tokens"] / (time.perf_counter() - self._began)
        if not self._on_step(self.state.global_step, values):
            self.control.should_training_stop = True


def _run_head_too(model: PreTrainedModel) -> None:
    """Run a sharded output layer in each forward, on an empty tensor.

    TRL uses its weights without calling it. FSDP keeps it in one group with the last norm, and a group of
    which only a part runs stays gathered or stays sharded (torch before 2.13).
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def run(module: nn.Module, args: Any, output: Any) -> None:
        head(output[0][:, :0])

    if isinstance(head, FSDPModule):
        model.base_model.register_forward_hook(run)


def _outputs(model: Any, inputs: Mapping[str, Tensor], prefix: str, **more: Any) -> Any:
    """A forward with TRL's fused output layer, on matched (no prefix) or mismatched (`KL_`) completions."""
    ids, mask = inputs[f"{prefix}input_ids"], inputs[f"{prefix}completion_mask"]
    return model(
        input_ids=ids,
        attention_mask=inputs[f"{prefix}attention_mask"],
        labels=ids.masked_fill(mask == 0, -100),
        use_cache=False,
        fused_lm_head=True,
        **more,
    )


def _log_probs(model: Any, inputs: Mapping[str, Tensor], prefix: str) -> Tensor:
    """Log-probs of each row's completion tokens, 0 elsewhere: float64 (rows, tokens)."""
    log_probs: Tensor = _outputs(model, inputs, prefix).log_probs.double()
    return log_probs


def _without_adapters(model: Any) -> AbstractContextManager[None]:
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()


def _row(row: PairedRow) -> dict[str, Any]:
    """A row with TRL's column names."""
    return {
        "prompt_ids": row.prompt.tolist(),
        "completion_ids": row.completion.tolist(),
        "KL_completion_ids": row.mismatched.tolist(),
        "label": row.desirable,
    }
