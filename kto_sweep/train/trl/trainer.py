"""Train one trial with TRL: full fine-tuning, several devices, models that the packed trainer cannot pack.

base model + adapters -> reference log-probs (cache) -> TRL's loop, with our evaluation -> saved weights

Rows, checkpoints and files are the same TrialTraining as in the packed trainer. With several ranks the first
one has it and leads; the others follow.
"""

import copy
import gc
import inspect
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments
from trl.trainer.kto_config import KTOConfig

from kto_sweep.data.dataset import TrainingData
from kto_sweep.data.split import all_batches, total_steps
from kto_sweep.data.table import Numbers, RowTable
from kto_sweep.errors import UsageError
from kto_sweep.models.model_config import copy_processor
from kto_sweep.models.presets import IN_FP8
from kto_sweep.train.base_model import LoadedBase, check_token_ids, fingerprint_model
from kto_sweep.train.context import WorkerContext
from kto_sweep.train.device import gpu_memory
from kto_sweep.train.lora_targets import find_targets, is_linear, shortest_names, text_decoder
from kto_sweep.train.packed.engine import LogRatios
from kto_sweep.train.packed.lora import AdapterSpec
from kto_sweep.train.packed.optim import lr_factor, warmup_steps
from kto_sweep.train.packed.pack import ChosenRows, PairedRow, PairedRows
from kto_sweep.train.packed.slot import ReferenceRows, SlotState, adapter_spec
from kto_sweep.train.reference import ReferenceModel, Scores, reference_scores
from kto_sweep.train.reference_rows import trained_rows
from kto_sweep.train.trial.adapters import replaced
from kto_sweep.train.trial.checkpoint import (
    Checkpoint,
    Clock,
    Identity,
    fingerprint_rows,
    load_checkpoint,
    write_tensors,
)
from kto_sweep.train.trial.request import StopRequestedError, TrainResult, TrialRequest
from kto_sweep.train.trial.training import SharedInputs, SlotBackend, TrialTraining
from kto_sweep.train.trl.kto_trainer import OnStep, OurKTOTrainer
from kto_sweep.train.trl.ranks import Ranks, is_sharded
from kto_sweep.trial import Trial

_CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in inspect.signature(TrainingArguments).parameters
    else "gradient_checkpointing"  # transformers before 5.2x
)
_OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit"}


def train_with_trl(context: WorkerContext, request: TrialRequest) -> TrainResult:
    """Train one trial with the model and data of `context`; its weights are then in the request's folder.

    Raises TrialFailure, UsageError, DataError, torch.OutOfMemoryError, and LostProcessError.
    """
    quantization = request.trial.effective_quantization
    if quantization in IN_FP8:  # PEFT does not know these layers, and the packed trainer rejected the model
        raise UsageError(
            f"quantization {quantization}: TRL's trainer, which this trial needs, does not multiply in FP8",
            hint=f"quantization: {'none' if quantization == 'fp8' else '4bit'}",
        )
    base = context.base(request.trial, request.load_progress)
    data = context.data(request.trial, request.tokenise_progress)
    check_token_ids(base, data)
    try:
        return train_trl(request, base, data, reference_dir=context.home.cache / "reference")
    finally:
        if request.trial.full_finetune:  # its weights are the trained ones now
            context.unload()


def train_trl(
    request: TrialRequest,
    base: LoadedBase,
    data: TrainingData,
    *,
    reference_dir: Path,
    clock: Clock = time.monotonic,
) -> TrainResult:
    """Train a trial from its first step or its checkpoint to its end; see TrialTraining for its files.

    The base model is restored afterwards; full fine-tuning leaves the trained one. Reference log-probs are
    cached in `reference_dir`. Every rank calls this with the same arguments; only the first one reports, and
    its result is the trial's.

    Raises TrialFailure when the training fails.
    """
    ranks = Ranks.current()
    with _restored(base.model), warnings.catch_warnings():
        # PEFT and TRL call what transformers will rename: users cannot do anything about it.
        warnings.filterwarnings("ignore", "`.*` is deprecated and will be removed in v6", FutureWarning)
        if request.trial.full_finetune:
            base.model.float()  # type: ignore[no-untyped-call]  # in bf16 most updates would be rounded away
        rank = _RankTraining(request, base, data, ranks)
        if not ranks.is_first:
            return rank.follow()
        # Inline, not on a thread: all ranks take part in saving.
        training = _TrlTraining(request, rank.inputs, clock, inline=True)
        try:
            return rank.lead(training, reference_dir)
        except Exception as error:
            training.fail(error)
            raise
        finally:
            training.close()


class _TrlTraining(TrialTraining):
    """A training with TRL's trainer; it does not continue from checkpoints of the packed trainer."""

    @property
    def _identity(self) -> Identity:
        own = super()._identity
        return Identity({**own.config, "trainer": "trl"}, own.rows, own.base)

    def _saving(self, backend: SlotBackend, name: str) -> Callable[[], None]:
        if not self.trial.full_finetune:
            return super()._saving(backend, name)
        if name == "best":  # writing all weights after each evaluation would take too long
            return lambda: None
        assert isinstance(backend, _TrlSlot)
        return partial(backend.save_model, self.request.folder / name)


class _TrlSlot:
    """TRL's trainer as a SlotBackend: one slot, always taken."""

    def __init__(self, trainer: OurKTOTrainer, trial: "_RankTraining") -> None:
        self.train = trial.train
        self.held_out = trial.held_out
        self._trainer = trainer
        self._trial = trial

    def total_steps(self, slot: int) -> int:
        """Optimizer steps in all."""
        return len(self._trial.batches)

    def examples(self, slot: int) -> int:
        """Examples trained on."""
        return sum(len(batch) for batch in self._trial.batches[: self._trainer.state.global_step])

    def evaluate(self, slot: int) -> LogRatios:
        """Log-ratios on the held-out rows."""
        scores = self._trainer.lead("score", list(self.held_out.rows))
        matched, mismatched = (scores - self.held_out.reference).T
        return LogRatios(matched, mismatched)

    def state(self, slot: int) -> SlotState:
        """Weights and optimizer, on the host."""
        step = self._trainer.state.global_step
        return SlotState(step, self.examples(slot), self._trainer.lead("take_state"), float(step))

    def adapters(self, slot: int) -> tuple[AdapterSpec, dict[str, Tensor]]:
        """The adapters' weights by layer, copied to the host."""
        tensors = {
            name.removeprefix("base_model.model.").removesuffix(".default.weight"): tensor
            for name, tensor in self._trainer.lead("weights").items()
        }
        layers = {name.rpartition(".")[0] for name in tensors}
        targets = shortest_names(self._trial.base.model, layers)
        return replace(adapter_spec(self._trial.trial), targets=targets), tensors

    def save_model(self, folder: Path) -> None:
        """Write all weights, and the tokenizer, as safetensors."""
        model, tokenizer = self._trial.base.model, self._trial.base.tokenizer
        with replaced(folder) as new:
            tokenizer.save_pretrained(str(new))
            copy_processor(self._trial.base.name, new)
            if not is_sharded(model):
                model.save_pretrained(str(new))
                return
            # save_pretrained of a sharded model makes all ranks write. Tied weights are left out, as it does.
            config = copy.copy(model.config)
            del config.distributed_config
            config.save_pretrained(str(new))
            buffers = {name: tensor for name, tensor in model.named_buffers() if name in model.state_dict()}
            tensors = self._trainer.lead("weights")
            write_tensors(new / "model.safetensors", tensors | buffers, {"format": "pt"})


class _RankTraining:
    """One trial's rows and batches in one rank. The first rank leads, the others follow its calls."""

    def __init__(self, request: TrialRequest, base: LoadedBase, data: TrainingData, ranks: Ranks) -> None:
        self.trial = trial = request.trial
        self.base = base
        self.train = _rows(data.train, data.train_partners, data.max_length)
        self.held_out = _rows(data.eval, data.eval_partners, data.max_length)
        n = len(data.train)
        steps = total_steps(n, trial.batch_size, trial.epochs, trial.max_steps)
        self.batches = [batch for _, batch in all_batches(n, trial.batch_size, steps, trial.seed)]
        self._model = _reference_model(base)
        rows_hash = fingerprint_rows(self.train.rows, self.held_out.rows)
        self.inputs = SharedInputs(base, data, self._model.fingerprint, rows_hash)
        self._request = request
        self._ranks = ranks

    def lead(self, training: TrialTraining, reference_dir: Path) -> TrainResult:
        """Train as the first rank."""
        done = self._ranks.broadcast(None if training.finished else training.steps)
        if done is None:
            return training.finish_again().result()

        def on_step(step: int, values: dict[str, float]) -> bool:
            values["epoch"] = slot.examples(0) / len(self.train.rows)
            values |= gpu_memory(trainer.args.device)
            if training.evaluates(step):
                values |= training.evaluation(slot)
            training.log(step, values, slot)
            continues = step < len(self.batches) and not self._request.should_stop()
            if continues:
                training.checkpoint_if_due(slot)
            return bool(trainer.lead("release", continues))

        trainer = self._trainer(on_step)
        slot = _TrlSlot(trainer, self)
        if training.state is not None:
            trainer.resume(done, training.state.tensors)
        try:
            self._fill_reference(trainer, reference_dir)
        except StopRequestedError:
            trainer.lead("release", False)
            return training.stop(slot).result()
        trainer.lead("release", True)
        training.attach(slot, 0)
        trainer.train()
        finished = training.steps == len(self.batches)
        result = (training.finish(slot) if finished else training.stop(slot)).result()
        trainer.lead("release")
        return result

    def follow(self) -> TrainResult:
        """Train as another rank; its result is empty."""
        done: int | None = self._ranks.broadcast()
        if done is not None:
            trainer = self._trainer(lambda step, values: bool(trainer.follow()))
            if done:
                trainer.resume(done, self._load().state.tensors)
            if trainer.follow():
                trainer.train()
                trainer.follow()
        return TrainResult({}, 0, stopped=False)

    def _load(self) -> Checkpoint:
        """The checkpoint that the first rank has verified."""
        identity = Identity(
            {**self.trial.to_config(), "trainer": "trl"}, self.inputs.rows_hash, self.inputs.model_hash
        )
        checkpoint = load_checkpoint(self._request.folder / "checkpoint" / "last.safetensors", identity)
        assert checkpoint is not None
        return checkpoint

    def _fill_reference(self, trainer: OurKTOTrainer, folder: Path) -> None:
        """Get the reference log-probs, cached in `folder` or computed. Raises StopRequestedError."""
        request = self._request

        def compute(rows: Sequence[PairedRow]) -> Scores:
            scores: Scores = trainer.lead("score", rows, True)
            return scores

        used = trained_rows(self.trial, len(self.train.rows))
        wanted = ChosenRows(
            [
                *((self.train.rows, at) for at in used),
                *((self.held_out.rows, at) for at in range(len(self.held_out.rows))),
            ]
        )
        scores = reference_scores(
            self._model, wanted, folder, compute, request.reference_progress, request.report.note
        )
        self.train.reference[used] = scores[: len(used)]
        self.held_out.reference[:] = scores[len(used) :]
        trainer.lead("set_reference", self.train.reference)

    def _trainer(self, on_step: OnStep) -> OurKTOTrainer:
        trial, steps = self.trial, len(self.batches)
        warmup = warmup_steps(steps, trial.warmup_ratio)
        return OurKTOTrainer(
            model=_with_gradients(self.base.model, whole=trial.full_finetune),
            args=_arguments(trial, self.base, self.inputs.data, self._request.folder, steps, self._ranks),
            tokenizer=self.base.tokenizer,
            peft_config=None if trial.full_finetune else _lora(trial, self.base.model),
            rows=self.train.rows,
            batches=self.batches,
            lr_factor=lambda step: lr_factor(trial.lr_scheduler, step, warmup, steps),
            on_step=on_step,
            ranks=self._ranks,
        )


def _rows(table: RowTable, partners: Numbers, max_length: int) -> ReferenceRows:
    paired = PairedRows(table, partners, max_length)
    return ReferenceRows(paired, np.full((len(paired), 2), np.nan))


def _arguments(
    trial: Trial, base: LoadedBase, data: TrainingData, out_dir: Path, steps: int, ranks: Ranks
) -> KTOConfig:
    cuda = base.model.device.type == "cuda"
    desirable, undesirable = trial.weights(*data.counts)
    arguments: dict[str, Any] = dict(  # noqa: C408  # reads as the call that it is
        output_dir=str(out_dir),
        # For scoring only: our data loader makes the batches. TRL rejects 1, as it pairs rows within a batch.
        per_device_train_batch_size=max(2, trial.batch_size // ranks.size),
        max_steps=steps,
        max_length=trial.max_length,
        learning_rate=trial.learning_rate,
        optim="adamw_torch_fused" if cuda and trial.optimizer == "adamw" else _OPTIMIZERS[trial.optimizer],
        weight_decay=trial.weight_decay,
        max_grad_norm=trial.max_grad_norm,
        seed=trial.seed,
        beta=trial.beta,
        desirable_weight=desirable,
        undesirable_weight=undesirable,
        loss_type=trial.loss_type,
        disable_dropout=False,  # it would disable LoRA's; the base model has none
        precompute_ref_log_probs=trial.full_finetune,  # else TRL loads a second model
        bf16=cuda,
        use_cpu=not cuda,
        ddp_backend=None if ranks.size == 1 else "nccl" if cuda else "gloo",
        ddp_find_unused_parameters=False,
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


def _with_gradients(model: PreTrainedModel, *, whole: bool) -> PreTrainedModel:
    """`model`, if `whole` with gradients for what text reaches: the text decoder and the output layer."""
    model.requires_grad_(False)
    if whole:
        text_decoder(model).requires_grad_(True)
        model.get_output_embeddings().requires_grad_(True)  # type: ignore[no-untyped-call]
    return model


def _lora(trial: Trial, model: PreTrainedModel) -> LoraConfig:
    return LoraConfig(
        r=trial.lora_r,
        lora_alpha=trial.effective_lora_alpha,  # type: ignore[arg-type]  # PEFT only divides by it
        lora_dropout=trial.lora_dropout,
        # By full name: PEFT's own all-linear takes layers that text does not reach, or that it then refuses.
        target_modules=list(find_targets(model, trial.lora_targets, accepts=is_linear)),
        task_type="CAUSAL_LM",
    )


def _reference_model(base: LoadedBase) -> ReferenceModel:
    """What the reference log-probs depend on: below float32 also on padding, which this trainer has.

    With the packed trainer's bfloat16 values, rewards would not be 0 before the first step.
    """
    weights = str(base.model.dtype).removeprefix("torch.")
    dtype = "bfloat16" if base.model.device.type == "cuda" else weights
    if dtype != "float32":
        dtype += " by TRL" if weights == dtype else f" by TRL, weights in {weights}"
    return ReferenceModel(fingerprint_model(base.model), base.quantization, dtype, base.name)


@contextmanager
def _restored(model: PreTrainedModel) -> Iterator[None]:
    """Remove from `model` afterwards what TRL and PEFT added, for the next trial."""
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
    """Replace PEFT's wrapped layers by the layers in them."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    vars(model).pop("peft_config", None)
