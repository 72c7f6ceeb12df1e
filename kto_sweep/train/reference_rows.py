"""The rows of a data set with the base model's log-probs, computed or cached when a trial needs them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kto_sweep.data.dataset import TrainingData
from kto_sweep.data.split import batches, total_steps
from kto_sweep.data.table import Numbers, RowTable
from kto_sweep.train.base_model import LoadedBase, fingerprint_model
from kto_sweep.train.packed.compatibility import check_lengths
from kto_sweep.train.packed.decoder import Decoder
from kto_sweep.train.packed.engine import SCORING_LIMIT
from kto_sweep.train.packed.microbatch import retry_on_oom
from kto_sweep.train.packed.pack import ChosenRows, Item, PairedRow, PairedRows
from kto_sweep.train.packed.slot import ReferenceRows
from kto_sweep.train.packed.step import score
from kto_sweep.train.reference import Progress, ReferenceModel, Scores, reference_scores
from kto_sweep.train.reference_store import Note
from kto_sweep.trial import Trial


class ReferenceLogProbs:
    """One data set's rows, paired. Their reference log-probs are NaN until a trial needs them.

        reference = ReferenceLogProbs(decoder, base, data, cache)
        reference.fill(trial, progress, report.note)
        engine = Engine(decoder, reference.train, reference.held_out)

    `fill` is called for each trial that joins, between two steps: it fills the engine's arrays in place.
    Raises NotPackableError for rows that are too long for the model's position encoding.
    """

    def __init__(self, decoder: Decoder, base: LoadedBase, data: TrainingData, cache: Path) -> None:
        self._decoder = decoder
        dtype = str(base.dtype).removeprefix("torch.")
        self.model = ReferenceModel(fingerprint_model(base.model), base.quantization, dtype, base.name)
        """The model whose log-probs they are."""
        self._cache = cache
        self._limit = SCORING_LIMIT
        self.train = _without_reference(base, data.train, data.train_partners, data.max_length)
        """Rows to train on."""
        self.held_out = _without_reference(base, data.eval, data.eval_partners, data.max_length)
        """Rows to evaluate on."""

    def fill(self, trial: Trial, progress: Progress | None = None, note: Note | None = None) -> None:
        """Fill in the log-probs of all rows that `trial` trains and is evaluated on.

        `progress` counts the rows that no earlier trial needed; `note` gets a line about a damaged cache.
        Raises TrialFailure when log-probs are not finite or the disk is full, KtoSweepError when the cache
        cannot be used.
        """
        parts = [
            (self.train, trained_rows(trial, len(self.train.rows))),
            (self.held_out, range(len(self.held_out.rows))),
        ]
        wanted = [
            (part, index)
            for part, indices in parts
            for index in indices
            if np.isnan(part.reference[index, 0])
        ]
        rows = ChosenRows((part.rows, index) for part, index in wanted)
        scores = reference_scores(self.model, rows, self._cache, self._score, progress, note)
        for (part, index), pair in zip(wanted, scores, strict=True):
            part.reference[index] = pair

    def _score(self, rows: Sequence[PairedRow]) -> Scores:
        scores, self._limit = retry_on_oom(
            lambda limit: score(self._decoder, rows, limit), self._limit, [Item(row) for row in rows]
        )
        return scores.cpu().numpy()


def trained_rows(trial: Trial, rows: int) -> list[int]:
    """Indices of the rows in the trial's batches, in file order: all, unless it ends within one epoch."""
    steps = total_steps(rows, trial.batch_size, trial.epochs, trial.max_steps)
    return sorted(at for batch in batches(rows, trial.batch_size, 0, trial.seed)[:steps] for at in batch)


def _without_reference(
    base: LoadedBase, table: RowTable, partners: Numbers, max_length: int
) -> ReferenceRows:
    paired = PairedRows(table, partners, max_length)
    check_lengths(base.model, paired)
    return ReferenceRows(paired, np.full((len(paired), 2), np.nan))
