"""The base model and the data of a process that trains, kept while trials name the same."""

import gc
from dataclasses import replace

import torch

from kto_sweep.data.dataset import DataSet, TrainingData, prepare_data
from kto_sweep.data.examples import DataSource, Progress
from kto_sweep.data.load import load_tokens
from kto_sweep.data.sources import require_apart
from kto_sweep.home import Home
from kto_sweep.models.model_checks import held_max_length
from kto_sweep.train.base_model import LoadedBase, load_base
from kto_sweep.train.device import pick_device
from kto_sweep.train.load_progress import LoadProgress, no_progress
from kto_sweep.train.trl.ranks import Ranks
from kto_sweep.trial import Trial


class WorkerContext:
    """One model and one data set at a time."""

    def __init__(self, home: Home, device: torch.device | None = None) -> None:
        self.home = home
        self.device = device or pick_device()
        self._base: LoadedBase | None = None
        self._tokens: dict[DataSource, DataSet] = {}
        """By data source, of one model."""
        self._tokenised_by = ""
        """That model."""

    def base(self, trial: Trial, progress: LoadProgress = no_progress) -> LoadedBase:
        """The base model of `trial`, in memory; `progress` as for load_base. Raises as load_base does."""
        wanted = (trial.base_model, trial.effective_quantization)
        if self._base is None or (self._base.name, self._base.quantization) != wanted:
            self.unload()
            # A fully fine-tuned model takes 16 bytes a weight with gradients and moments: all ranks share it.
            shards = Ranks.current().size if trial.full_finetune else 1
            self._base = load_base(
                trial.base_model,
                quantization=trial.effective_quantization,
                device=self.device,
                home=self.home,
                shards=shards,
                # The type of sharded weights is fixed at loading; in bf16 most updates would be rounded away.
                dtype=torch.float32 if shards > 1 else None,
                progress=progress,
            )
        return self._base

    def unload(self) -> None:
        """Free the base model's memory."""
        self._base = None
        gc.collect()  # at once: the next model may need all the memory
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def data(self, trial: Trial, progress: Progress = lambda _: None) -> TrainingData:
        """The rows of `trial` as token ids; `progress` gets the number of examples that are tokenised.

        Raises UsageError and DataError for unusable data.
        """
        base = self.base(trial)
        if self._tokenised_by != base.name:
            self._tokens, self._tokenised_by = {}, base.name
        held_out = trial.eval_dataset
        if held_out is not None:
            require_apart(trial.dataset, held_out)
        length = held_max_length(trial.base_model, trial.max_length)
        data = prepare_data(
            self._data_set(trial.dataset, base, progress),
            eval_fraction=trial.eval_fraction,
            max_length=length,
            held_out=None if held_out is None else self._data_set(held_out, base, progress),
        )
        if length == trial.max_length:
            return data
        note = f"data: max_length {trial.max_length} is held to the {length} positions of {base.name}"
        return replace(data, notes=(*data.notes, note))

    def _data_set(self, source: DataSource, base: LoadedBase, progress: Progress) -> DataSet:
        if source not in self._tokens:
            self._tokens[source] = load_tokens(
                source, base.tokenizer, cache=self.home.cache, progress=progress
            )
        return self._tokens[source]
