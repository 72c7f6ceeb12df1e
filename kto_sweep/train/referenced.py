"""The rows of a data set with the base model's log-probs, as trials need them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kto_sweep.data.dataset import TrainingData
from kto_sweep.data.rows import TokenRow
from kto_sweep.data.split import batches, total_steps
from kto_sweep.train.decoder import Decoder
from kto_sweep.train.engine import SCORING_LIMIT
from kto_sweep.train.fingerprint import fingerprint_model
from kto_sweep.train.limit import until_it_fits
from kto_sweep.train.models import LoadedBase
from kto_sweep.train.pack import Item, PairedRow, pair_rows
from kto_sweep.train.reference import Base, Progress, Scores, reference_scores
from kto_sweep.train.reference_store import Note
from kto_sweep.train.score import score
from kto_sweep.train.slot import ReferencedRows
from kto_sweep.train.support import check_lengths
from kto_sweep.trial import Trial


class References:
    """One data set's rows, paired; their reference log-probs are NaN until a trial has asked for them.

        references = References(decoder, base, data, max_length, cache)
        references.fill(trial, progress, report.note)
        engine = Engine(decoder, references.train, references.held_out)

    `fill` again, at any time between two steps, for each trial that joins: the engine's arrays are filled in
    place. Raises NotPackableError for rows that are too long for the model's position encoding.
    """

    def __init__(
        self, decoder: Decoder, base: LoadedBase, data: TrainingData, max_length: int, cache: Path
    ) -> None:
        self._decoder = decoder
        self.base = Base(
            fingerprint_model(base.model),
            base.quantization,
            str(base.dtype).removeprefix("torch."),
            base.name,
        )
        """The model whose log-probs they are."""
        self._cache = cache
        self._limit = SCORING_LIMIT
        self.train = _unknown(base, data.train, data.train_partners, max_length)
        """Rows to train on."""
        self.held_out = _unknown(base, data.eval, data.eval_partners, max_length)
        """Rows to evaluate on."""

    def fill(self, trial: Trial, progress: Progress | None = None, note: Note | None = None) -> None:
        """Have the log-probs of all rows that `trial` trains on and is evaluated on.

        `progress` counts those that no trial before has asked for; `note` hears of a damaged cache.
        Raises TrialFailure when log-probs are not finite or the disk is full, KtoSweepError when the cache
        cannot be used.
        """
        parts = [
            (self.train, trained_rows(trial, len(self.train.rows))),
            (self.held_out, range(len(self.held_out.rows))),
        ]
        wanted = [(part, at) for part, among in parts for at in among if np.isnan(part.reference[at, 0])]
        rows = [part.rows[at] for part, at in wanted]
        scores = reference_scores(self.base, rows, self._cache, self._score, progress, note)
        for (part, at), pair in zip(wanted, scores, strict=True):
            part.reference[at] = pair

    def _score(self, rows: Sequence[PairedRow]) -> Scores:
        scores, self._limit = until_it_fits(
            lambda limit: score(self._decoder, rows, limit), self._limit, [Item(row) for row in rows]
        )
        return scores.cpu().numpy()


def trained_rows(trial: Trial, rows: int) -> list[int]:
    """Which of so many rows the trial's batches hold, in file order: all, unless it ends within one epoch."""
    steps = total_steps(rows, trial.batch_size, trial.epochs, trial.max_steps)
    return sorted(at for batch in batches(rows, trial.batch_size, 0, trial.seed)[:steps] for at in batch)


def _unknown(
    base: LoadedBase, rows: Sequence[TokenRow], partners: Sequence[int], max_length: int
) -> ReferencedRows:
    paired = pair_rows(rows, partners, max_length)
    check_lengths(base.model, paired)
    return ReferencedRows(paired, np.full((len(paired), 2), np.nan))
