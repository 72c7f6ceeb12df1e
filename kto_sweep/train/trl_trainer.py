"""Train one trial with TRL: full fine-tuning, several devices, models that the packed trainer cannot pack.

base model + adapters -> reference values (cache) -> TRL's loop, evaluated by us -> saved

The trial's course (rows, checkpoints, files) is the same as in the packed trainer. With several ranks the
first one has it, and the others do what it says.
"""

import copy
import gc
import inspect
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from kto_sweep.train.adapter_files import replaced
from kto_sweep.train.checkpoint import Checkpoint, Identity, fingerprint_rows, load_checkpoint
from kto_sweep.train.course import Course, Ground, Seats
from kto_sweep.train.device import gpu_memory
from kto_sweep.train.engine import LogRatios
from kto_sweep.train.fingerprint import fingerprint_model
from kto_sweep.train.keeper import Clock
from kto_sweep.train.lora import AdapterSpec
from kto_sweep.train.models import LoadedBase
from kto_sweep.train.pack import PairedRow, pair_rows
from kto_sweep.train.reference import Base, Scores, reference_scores
from kto_sweep.train.referenced import trained_rows
from kto_sweep.train.request import Request, ToldToStopError
from kto_sweep.train.result import TrainResult
from kto_sweep.train.schedule import lr_factor, warmup_steps
from kto_sweep.train.slot import ReferencedRows, SlotState, adapter_spec
from kto_sweep.train.tensor_file import write_tensors
from kto_sweep.train.trl_kto import OnStep, OurKTOTrainer
from kto_sweep.train.trl_ranks import Ranks
from kto_sweep.train.trl_state import is_sharded
from kto_sweep.trial import Trial

_CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in inspect.signature(TrainingArguments).parameters
    else "gradient_checkpointing"  # transformers before 5.2x
)
_OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit"}


def train_trl(
    request: Request,
    base: LoadedBase,
    data: TrainingData,
    *,
    reference_dir: Path,
    clock: Clock = time.monotonic,
) -> TrainResult:
    """Train a trial from its first step or its checkpoint to its end; see Course for its files.

    The base model is given back as it was; after a full fine-tuning it is the trained one. Reference values
    are kept in `reference_dir`. Every rank calls this with the same arguments; the first one's request is
    reported to, and its result is the trial's.

    Raises TrialFailure when the training cannot go on.
    """
    ranks = Ranks.present()
    with _given_back(base.model), warnings.catch_warnings():
        # PEFT and TRL call what transformers is going to rename: theirs to mend, nothing to tell our users.
        warnings.filterwarnings("ignore", "`.*` is deprecated and will be removed in v6", FutureWarning)
        if request.trial.full_finetune:
            base.model.float()  # type: ignore[no-untyped-call]  # in bf16 most updates would be rounded away
        work = _Work(request, base, data, ranks)
        if not ranks.leads:
            return work.follow()
        course = _TrlCourse(request, work.ground, clock, inline=True)  # all ranks take part in saving
        try:
            return work.lead(course, reference_dir)
        except Exception as error:
            course.fail(error)
            raise
        finally:
            course.close()


class _TrlCourse(Course):
    """A course in TRL's trainer; it cannot go on from what another trainer has put away."""

    @property
    def _identity(self) -> Identity:
        own = super()._identity
        return Identity({**own.config, "trainer": "trl"}, own.rows, own.base)

    def _saving(self, engine: Seats, name: str) -> Callable[[], None]:
        if not self.trial.full_finetune:
            return super()._saving(engine, name)
        if name == "best":  # all weights are too much to be written after each evaluation
            return lambda: None
        assert isinstance(engine, _TrlSeat)
        return partial(engine.save_model, self.request.folder / name)


class _TrlSeat:
    """TRL's trainer as a course sees it: one slot, always taken."""

    def __init__(self, trainer: OurKTOTrainer, work: "_Work") -> None:
        self.train = work.train
        self.held_out = work.held_out
        self._trainer = trainer
        self._work = work

    def total_steps(self, slot: int) -> int:
        """Optimizer steps in all."""
        return len(self._work.batches)

    def examples(self, slot: int) -> int:
        """Examples trained on."""
        return sum(len(batch) for batch in self._work.batches[: self._trainer.state.global_step])

    def evaluate(self, slot: int) -> LogRatios:
        """How the trial has moved on the held-out rows."""
        scores = self._trainer.lead("score", self.held_out.rows)
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
        return adapter_spec(self._work.trial), tensors

    def save_model(self, folder: Path) -> None:
        """Write all weights, and the tokenizer, as safetensors."""
        model, tokenizer = self._work.base.model, self._work.base.tokenizer
        with replaced(folder) as new:
            tokenizer.save_pretrained(str(new))
            if not is_sharded(model):
                model.save_pretrained(str(new))
                return
            # By itself a sharded model has all ranks write. What is tied to another weight is left out.
            config = copy.copy(model.config)
            del config.distributed_config
            config.save_pretrained(str(new))
            kept = {name: tensor for name, tensor in model.named_buffers() if name in model.state_dict()}
            tensors = self._trainer.lead("weights")
            write_tensors(new / "model.safetensors", tensors | kept, {"format": "pt"})


class _Work:
    """One trial's rows and batches, and the way through its training."""

    def __init__(self, request: Request, base: LoadedBase, data: TrainingData, ranks: Ranks) -> None:
        self.trial = trial = request.trial
        self.base = base
        self.train = _rows(data.train, data.train_partners, trial)
        self.held_out = _rows(data.eval, data.eval_partners, trial)
        n = len(data.train)
        steps = total_steps(n, trial.batch_size, trial.epochs, trial.max_steps)
        self.batches = [batch for _, batch in all_batches(n, trial.batch_size, steps, trial.seed)]
        self._identity = _identity(base)
        rows_hash = fingerprint_rows(self.train.rows, self.held_out.rows)
        self.ground = Ground(base, data, self._identity.fingerprint, rows_hash)
        self._request = request
        self._ranks = ranks

    def lead(self, course: Course, reference_dir: Path) -> TrainResult:
        """Train as the first rank."""
        done = self._ranks.tell(None if course.finished else course.steps)
        if done is None:
            return course.finish_again().result()

        def on_step(step: int, values: dict[str, float]) -> bool:
            values["epoch"] = seat.examples(0) / len(self.train.rows)
            values |= gpu_memory(trainer.args.device)
            if course.evaluates(step):
                values |= course.evaluation(seat)
            course.write(step, values, seat)
            goes_on = step < len(self.batches) and not self._request.should_stop()
            if goes_on:
                course.keep(seat)
            return bool(trainer.lead("release", goes_on))

        trainer = self._trainer(on_step)
        seat = _TrlSeat(trainer, self)
        if course.state is not None:
            trainer.go_on(done, course.state.tensors)
        try:
            self._refer(trainer, reference_dir)
        except ToldToStopError:
            trainer.lead("release", False)
            return course.stop(seat).result()
        trainer.lead("release", True)
        course.sit_down(seat, 0)
        trainer.train()
        finished = course.steps == len(self.batches)
        result = (course.finish(seat) if finished else course.stop(seat)).result()
        trainer.lead("release")
        return result

    def follow(self) -> TrainResult:
        """Train as another rank; the result tells nothing."""
        done: int | None = self._ranks.tell()
        if done is not None:
            trainer = self._trainer(lambda step, values: bool(trainer.follow()))
            if done:
                trainer.go_on(done, self._load().state.tensors)
            if trainer.follow():
                trainer.train()
                trainer.follow()
        return TrainResult({}, 0, stopped=False)

    def _load(self) -> Checkpoint:
        """The checkpoint that the first rank has found good."""
        identity = Identity(
            {**self.trial.to_config(), "trainer": "trl"}, self.ground.rows_hash, self.ground.model_hash
        )
        found = load_checkpoint(self._request.folder / "checkpoint" / "last.safetensors", identity)
        assert found is not None
        return found

    def _refer(self, trainer: OurKTOTrainer, folder: Path) -> None:
        """Have the reference values, from the cache or computed into it. Raises ToldToStopError."""
        request = self._request

        def compute(rows: Sequence[PairedRow]) -> Scores:
            scores: Scores = trainer.lead("score", rows, True)
            return scores

        used = trained_rows(self.trial, len(self.train.rows))
        wanted = [self.train.rows[at] for at in used] + list(self.held_out.rows)
        scores = reference_scores(
            self._identity, wanted, folder, compute, request.reference_progress, request.report.note
        )
        self.train.reference[used] = scores[: len(used)]
        self.held_out.reference[:] = scores[len(used) :]
        trainer.lead("set_reference", self.train.reference)

    def _trainer(self, on_step: OnStep) -> OurKTOTrainer:
        trial, steps = self.trial, len(self.batches)
        warmup = warmup_steps(steps, trial.warmup_ratio)
        return OurKTOTrainer(
            model=self.base.model.requires_grad_(trial.full_finetune),
            args=_arguments(trial, self.base, self.ground.data, self._request.folder, steps, self._ranks),
            tokenizer=self.base.tokenizer,
            peft_config=None if trial.full_finetune else _lora(trial),
            rows=self.train.rows,
            batches=self.batches,
            lr_factor=lambda step: lr_factor(trial.lr_scheduler, step, warmup, steps),
            on_step=on_step,
            ranks=self._ranks,
        )


def _rows(rows: Sequence[Any], partners: Sequence[int], trial: Trial) -> ReferencedRows:
    paired = pair_rows(rows, partners, trial.max_length)
    return ReferencedRows(paired, np.full((len(paired), 2), np.nan))


def _arguments(
    trial: Trial, base: LoadedBase, data: TrainingData, out_dir: Path, steps: int, ranks: Ranks
) -> KTOConfig:
    cuda = base.model.device.type == "cuda"
    desirable, undesirable = trial.weights(*data.counts)
    arguments: dict[str, Any] = dict(  # noqa: C408  # reads as the call that it is
        output_dir=str(out_dir),
        # Of scoring; batches are cut by us. TRL refuses 1 for kto, as it takes its pairs from the batch.
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
        disable_dropout=False,  # it would be LoRA's; the base model has none
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
    """What the reference values depend on: below float32 also on how rows are fed, padded here.

    The packed trainer's bfloat16 values would move every reward before the first step.
    """
    weights = str(base.model.dtype).removeprefix("torch.")
    dtype = "bfloat16" if base.model.device.type == "cuda" else weights
    if dtype != "float32":
        dtype += " by TRL" if weights == dtype else f" by TRL, weights in {weights}"
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
