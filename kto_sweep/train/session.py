"""The training function that every way in shares, and what trials of one process share: model and data.

trial --> base model (kept while trials name the same) --> rows (kept likewise) --> packed | trl trainer
"""

import gc
from collections.abc import Callable
from pathlib import Path

import torch

from kto_sweep.data.dataset import TrainingData, prepare_data
from kto_sweep.data.formats import LoadedData, load_examples
from kto_sweep.data.tokenise import TokenisedData, tokenise
from kto_sweep.home import Home
from kto_sweep.train.device import pick_device
from kto_sweep.train.models import LoadedBase, load_base
from kto_sweep.train.packed import train_packed
from kto_sweep.train.result import Report, TrainResult
from kto_sweep.train.support import NotPackableError
from kto_sweep.trial import Trial


class Session:
    """Trains trials one after another in this process."""

    def __init__(self, home: Home, device: torch.device | None = None) -> None:
        self._home = home
        self._device = device or pick_device()
        self._base: LoadedBase | None = None
        self._loaded: tuple[str, LoadedData] | None = None
        self._tokens: tuple[object, TokenisedData] | None = None

    def train(
        self, trial: Trial, out_dir: Path, report: Report, should_stop: Callable[[], bool]
    ) -> TrainResult:
        """Train one trial; adapters (or, after a full fine-tuning, the model) are in `out_dir` at the end.

        Raises UsageError and DataError for what the trial or its data cannot be, TrialFailure and
        torch.OutOfMemoryError when training cannot go on.
        """
        out_dir.mkdir(parents=True, exist_ok=True)
        base = self._load(trial)
        data = self._prepare(trial, base)
        for note in data.notes:
            report.note(note)
        if not trial.full_finetune:
            try:
                return train_packed(
                    trial, base, data, out_dir, report, should_stop,
                    cache=self._home.cache / "reference",
                    progress=lambda done, total: report.preparing("reference log-probs", done, total),
                )  # fmt: skip
            except NotPackableError as reason:
                report.note(f"{reason.message}; trained with TRL's trainer instead")
        return self._train_trl(trial, base, data, out_dir, report, should_stop)

    def _train_trl(
        self,
        trial: Trial,
        base: LoadedBase,
        data: TrainingData,
        out_dir: Path,
        report: Report,
        should_stop: Callable[[], bool],
    ) -> TrainResult:
        from kto_sweep.train.trl_trainer import train_trl  # seconds to import, for few trials

        try:
            return train_trl(
                trial, base, data, out_dir, report, should_stop, reference_dir=self._home.cache / "reference"
            )
        finally:
            if trial.full_finetune:  # what was the base model is now the trained one
                self._base = None

    def _load(self, trial: Trial) -> LoadedBase:
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
