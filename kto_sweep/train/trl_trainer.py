"""Train one trial with TRL: full fine-tuning, and models that the packed trainer cannot pack.

base model + adapters -> reference values (cache) -> TRL's loop, evaluated by us -> saved
"""

import gc
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, TrainingArguments
from trl.trainer.kto_config import KTOConfig

from kto_sweep.data.dataset import TrainingData
from kto_sweep.data.split import all_batches, total_steps
from kto_sweep.errors import FailureCause, TrialFailure
from kto_sweep.train.device import gpu_memory
from kto_sweep.train.evaluate import evaluate
from kto_sweep.train.fingerprint import fingerprint_model
from kto_sweep.train.models import LoadedBase
from kto_sweep.train.pack import PairedRow, pair_rows
from kto_sweep.train.reference import Base, Scores, reference_scores
from kto_sweep.train.referenced import trained_rows
from kto_sweep.train.result import Report, TrainResult
from kto_sweep.train.schedule import warmup_steps
from kto_sweep.train.trl_kto import OurKTOTrainer
from kto_sweep.trial import Trial

_CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in inspect.signature(TrainingArguments).parameters
    else "gradient_checkpointing"  # transformers before 5.2x
)
_OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit"}
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def train_trl(
    trial: Trial,
    base: LoadedBase,
    data: TrainingData,
    out_dir: Path,
    report: Report,
    should_stop: Callable[[], bool],
    *,
    reference_dir: Path,
) -> TrainResult:
    """Train `trial`; its adapters go to out_dir/adapter, all weights of a full fine-tuning to out_dir/model.

    The base model is given back as it was; after a full fine-tuning it is the trained one. Reference values
    are kept in `reference_dir`.

    Raises TrialFailure: a configuration that TRL cannot train, or a loss that is no number any more.
    """
    began = time.perf_counter()
    check_trainable(trial)
    steps = total_steps(len(data.train), trial.batch_size, trial.epochs, trial.max_steps)
    report.plan(steps)
    training = _Training(trial, data, report, steps)
    with _given_back(base.model), warnings.catch_warnings():
        # PEFT and TRL call what transformers is going to rename: theirs to mend, nothing to tell our users.
        warnings.filterwarnings("ignore", "`.*` is deprecated and will be removed in v6", FutureWarning)
        if trial.full_finetune:
            base.model.float()  # type: ignore[no-untyped-call]  # in bf16 most updates would be rounded away
        identity = _identity(base)
        trainer = OurKTOTrainer(
            model=base.model.requires_grad_(trial.full_finetune),
            args=_arguments(trial, base, data, out_dir, steps),
            tokenizer=base.tokenizer,
            peft_config=None if trial.full_finetune else _lora(trial),
            rows=training.rows,
            on_step=training.on_step,
            should_stop=should_stop,
        )
        training.prepare(trainer, identity, reference_dir)
        trainer.train()
        _save(trainer, base, out_dir)
    summary = training.summary(time.perf_counter() - began)
    return TrainResult(summary, training.step, trainer.stopped and training.step < steps)


class _Training:
    """What happens around TRL's steps: references before, reports and evaluations between."""

    def __init__(self, trial: Trial, data: TrainingData, report: Report, steps: int) -> None:
        self.trial = trial
        self.rows = pair_rows(data.train, data.train_partners, trial.max_length)
        self._held_out = pair_rows(data.eval, data.eval_partners, trial.max_length)
        self._weights = trial.weights(*data.counts)
        self._report = report
        self._steps = steps
        self._batches = all_batches(len(self.rows), trial.batch_size, steps, trial.seed)
        self._last: dict[str, float] = {}
        self.step = self.examples = 0

    def prepare(self, trainer: OurKTOTrainer, base: Base, folder: Path) -> None:
        """Give the trainer its reference values, computed or from the cache."""
        self._trainer = trainer

        def scores(rows: Sequence[PairedRow]) -> Scores:
            def compute(missing: Sequence[PairedRow]) -> Scores:
                return trainer.score(missing, reference=True)

            return reference_scores(base, rows, folder, compute, note=self._report.note)

        used = trained_rows(self.trial, len(self.rows))
        reference = np.full((len(self.rows), 2), np.nan)
        reference[used] = scores([self.rows[at] for at in used])
        trainer.set_reference(reference)
        self._held_out_reference = scores(self._held_out)

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """Report a step; evaluate after some of them and after the last."""
        self.step = step
        self.examples += len(next(self._batches)[1])
        values["epoch"] = self.examples / len(self.rows)
        self._log(values | gpu_memory(self._trainer.args.device))
        if not math.isfinite(values["loss"]):
            raise TrialFailure(
                FailureCause.DIVERGED,
                f"the loss is {values['loss']} at step {step}",
                hint="try a smaller learning_rate, or a smaller beta",
            )
        due = step == self._steps or step % self.trial.eval_every(self._steps) == 0
        if self._held_out and due:
            self._log(self._evaluate())

    def _evaluate(self) -> dict[str, float]:
        ratios = self._trainer.score(self._held_out, reference=False) - self._held_out_reference
        return evaluate(
            ratios[:, 0],
            ratios[:, 1],
            [row.desirable for row in self._held_out],
            beta=self.trial.beta,
            weights=self._weights,
            loss_type=self.trial.loss_type,
        )

    def _log(self, values: dict[str, float]) -> None:
        self._report.metrics(self.step, values)
        self._last |= values

    def summary(self, seconds: float) -> dict[str, float | int | str]:
        """Last value of each metric, and what the trial took."""
        return {**self._last, "trial/seconds": seconds, "trial/examples": self.examples}


def check_trainable(trial: Trial) -> None:
    """Raise TrialFailure when TRL refuses the trial, before any time is spent."""
    if trial.batch_size == 1 and trial.loss_type == "kto":
        raise TrialFailure(
            FailureCause.BAD_CONFIG,
            "batch_size 1: TRL's trainer does not train kto on single examples",
            hint="batch_size: 2 or more, or full_finetune: false on a model that can be trained packed",
        )


def _arguments(trial: Trial, base: LoadedBase, data: TrainingData, out_dir: Path, steps: int) -> KTOConfig:
    cuda = base.model.device.type == "cuda"
    desirable, undesirable = trial.weights(*data.counts)
    arguments: dict[str, Any] = dict(  # noqa: C408  # reads as the call that it is
        output_dir=str(out_dir),
        per_device_train_batch_size=trial.batch_size,
        max_steps=steps,
        max_length=trial.max_length,
        learning_rate=trial.learning_rate,
        lr_scheduler_type=_SCHEDULES[trial.lr_scheduler],
        warmup_steps=warmup_steps(steps, trial.warmup_ratio),
        optim="adamw_torch_fused" if cuda and trial.optimizer == "adamw" else _OPTIMIZERS[trial.optimizer],
        weight_decay=trial.weight_decay,
        max_grad_norm=trial.max_grad_norm,
        seed=trial.seed,
        beta=trial.beta,
        desirable_weight=desirable,
        undesirable_weight=undesirable,
        loss_type=trial.loss_type,
        disable_dropout=False,  # it would be LoRA's; the base model has none
        precompute_ref_log_probs=trial.full_finetune,  # else TRL loads a second model
        bf16=cuda,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    arguments[_CHECKPOINTING] = cuda
    return KTOConfig(**arguments)


def _lora(trial: Trial) -> LoraConfig:
    targets = trial.lora_targets
    return LoraConfig(
        r=trial.lora_r,
        lora_alpha=trial.effective_lora_alpha,  # type: ignore[arg-type]  # PEFT only divides by it
        lora_dropout=trial.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )


def _identity(base: LoadedBase) -> Base:
    """What the reference values depend on, the precision that TRL computes in included."""
    weights = str(base.model.dtype).removeprefix("torch.")
    computed_in = "bfloat16" if base.model.device.type == "cuda" else weights
    dtype = weights if computed_in == weights else f"{weights} computed in {computed_in}"
    return Base(fingerprint_model(base.model), base.quantization, dtype, base.name)


@contextmanager
def _given_back(model: PreTrainedModel) -> Iterator[None]:
    """Take from `model` afterwards all that TRL and PEFT put on it, so that the next trial finds it clean."""
    forward = vars(model).get("forward")
    try:
        yield
    finally:
        _unload(model)
        if forward is None:
            vars(model).pop("forward", None)
        else:
            model.forward = forward
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            getattr(model, f"{_CHECKPOINTING}_disable")()
        model.disable_input_require_grads()  # type: ignore[no-untyped-call]
        model.requires_grad_(False)
        model.train(False)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _unload(model: PreTrainedModel) -> None:
    """Put each layer back that adapters were wrapped around."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    vars(model).pop("peft_config", None)


def _save(trainer: OurKTOTrainer, base: LoadedBase, out_dir: Path) -> None:
    """Write what was trained, as safetensors."""
    model: Any = trainer.model
    if isinstance(model, PeftModel):
        # Embeddings are never trained; asked to find that out by itself, PEFT looks on the hub.
        model.save_pretrained(str(out_dir / "adapter"), save_embedding_layers=False)
    else:
        model.save_pretrained(str(out_dir / "model"))
        base.tokenizer.save_pretrained(str(out_dir / "model"))
