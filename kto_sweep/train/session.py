"""What trials of one process share, model and data, and the ways to train on them.

trial --> base model (kept while trials name the same) --> rows (kept likewise) --> co-trainer | trl trainer
"""

import contextlib
import gc
from collections.abc import Callable
from pathlib import Path

import torch

from kto_sweep.data.dataset import TrainingData, prepare_data
from kto_sweep.data.formats import LoadedData, load_examples
from kto_sweep.data.tokenise import TokenisedData, tokenise
from kto_sweep.home import Home
from kto_sweep.train.cotrain import CoTrainer
from kto_sweep.train.device import pick_device
from kto_sweep.train.models import LoadedBase, load_base
from kto_sweep.train.pace import Pace
from kto_sweep.train.request import Request
from kto_sweep.train.result import Report, TrainResult
from kto_sweep.train.room import Growth
from kto_sweep.train.support import NotPackableError
from kto_sweep.train.trl_ranks import Ranks
from kto_sweep.trial import Trial


class Session:
    """One process's model and data. One co-trainer at a time; close it before anything else is trained."""

    def __init__(self, home: Home, device: torch.device | None = None) -> None:
        self._home = home
        self._device = device or pick_device()
        self._base: LoadedBase | None = None
        self._loaded: tuple[str, LoadedData] | None = None
        self._tokens: tuple[object, TokenisedData] | None = None

    def train(
        self, trial: Trial, out_dir: Path, report: Report, should_stop: Callable[[], bool]
    ) -> TrainResult:
        """Train one trial from its first step or its checkpoint to its end.

        Adapters (or, after a full fine-tuning, the model) are in `out_dir` at the end.
        Raises UsageError and DataError for what the trial or its data cannot be, TrialFailure when training
        cannot go on.
        """
        request = Request("", trial, out_dir, report, should_stop)
        if trial.full_finetune:
            return self.train_with_trl(request)
        try:
            trainer = self.cotrainer(trial)
        except NotPackableError as reason:
            report.note(f"{reason.message}; trained with TRL's trainer instead")
            return self.train_with_trl(request)
        with contextlib.closing(trainer):
            trainer.start(request)
            while True:
                for ending in trainer.step():
                    if isinstance(ending.outcome, Exception):
                        raise ending.outcome
                    return ending.outcome

    def cotrainer(self, trial: Trial, growth: Growth | None = None) -> CoTrainer:
        """A trainer for `trial` and all that fit beside it; `growth`: what is known of how many those may be.

        Raises NotPackableError for a model or rows that only the trl trainer can train; UsageError,
        DataError and TrialFailure for a model or data that cannot be had.
        """
        base = self._load(trial)
        data = self._prepare(trial, base)
        pace = Pace.of(self._home.root, base, self._device)
        return CoTrainer(base, data, trial, cache=self._home.cache / "reference", growth=growth, pace=pace)

    def train_with_trl(self, request: Request) -> TrainResult:
        """Train one trial with TRL; its adapters or its model are in the request's folder at the end.

        Raises as `train` does, torch.OutOfMemoryError, and LostProcessError.
        """
        from kto_sweep.train.trl_trainer import train_trl  # seconds to import, for few trials

        trial = request.trial
        base = self._load(trial)
        data = self._prepare(trial, base)
        try:
            return train_trl(request, base, data, reference_dir=self._home.cache / "reference")
        finally:
            if trial.full_finetune:  # what was the base model is now the trained one
                self._base = None

    def _load(self, trial: Trial) -> LoadedBase:
        shards = _shards(trial)
        wanted = (trial.base_model, trial.effective_quantization)
        if self._base is None or (self._base.name, self._base.quantization) != wanted:
            self._base = None
            gc.collect()  # one model at a time: the next may need all the memory
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            self._base = load_base(
                trial.base_model,
                quantization=trial.effective_quantization,
                device=self._device,
                home=self._home,
                shards=shards,
                # Sharded weights cannot change their type later; in bf16 most updates would be rounded away.
                dtype=torch.float32 if shards > 1 and trial.full_finetune else None,
            )
        return self._base

    def _prepare(self, trial: Trial, base: LoadedBase) -> TrainingData:
        if self._loaded is None or self._loaded[0] != trial.dataset:
            self._loaded = (trial.dataset, load_examples(trial.dataset))
        loaded = self._loaded[1]
        key = (trial.dataset, base.name, trial.max_length)
        if self._tokens is None or self._tokens[0] != key:
            self._tokens = (key, tokenise(loaded.examples, base.tokenizer, trial.max_length))
        return prepare_data(
            loaded, self._tokens[1], eval_fraction=trial.eval_fraction, max_length=trial.max_length
        )


def _shards(trial: Trial) -> int:
    """Processes over which the base weights are spread: all ranks of a full fine-tuning, else one.

    With its gradients and moments, a model that is trained in full takes 16 bytes a weight.
    """
    return Ranks.present().size if trial.full_finetune else 1
