"""The base model and the data of a process that trains, kept while trials name the same."""

import gc

import torch

from kto_sweep.data.dataset import TrainingData, prepare_data
from kto_sweep.data.formats import LoadedData, load_examples
from kto_sweep.data.tokenise import TokenisedData, tokenise
from kto_sweep.home import Home
from kto_sweep.train.base_model import LoadedBase, load_base
from kto_sweep.train.device import pick_device
from kto_sweep.train.trl.ranks import Ranks
from kto_sweep.trial import Trial


class WorkerContext:
    """One model and one data set at a time."""

    def __init__(self, home: Home, device: torch.device | None = None) -> None:
        self.home = home
        self.device = device or pick_device()
        self._base: LoadedBase | None = None
        self._examples: tuple[str | tuple[str, ...], LoadedData] | None = None
        """By dataset."""
        self._tokens: tuple[object, TokenisedData] | None = None
        """By dataset, model and max_length."""

    def base(self, trial: Trial) -> LoadedBase:
        """The base model of `trial`, in memory. Raises as load_base does."""
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
            )
        return self._base

    def unload(self) -> None:
        """Free the base model's memory."""
        self._base = None
        gc.collect()  # at once: the next model may need all the memory
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def data(self, trial: Trial) -> TrainingData:
        """The rows of `trial` as token ids. Raises UsageError and DataError for unusable data."""
        base = self.base(trial)
        if self._examples is None or self._examples[0] != trial.dataset:
            self._examples = (trial.dataset, load_examples(trial.dataset))
        examples = self._examples[1]
        key = (trial.dataset, base.name, trial.max_length)
        if self._tokens is None or self._tokens[0] != key:
            self._tokens = (key, tokenise(examples.examples, base.tokenizer, trial.max_length))
        return prepare_data(
            examples, self._tokens[1], eval_fraction=trial.eval_fraction, max_length=trial.max_length
        )
