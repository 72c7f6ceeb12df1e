"""Which rows the base model reads for a trial, and that later trials use the cached values."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from packed_cases import naive_log_prob, next_partners, tiny_model, token_rows

from kto_sweep.data.dataset import TrainingData
from kto_sweep.data.split import all_batches
from kto_sweep.train.base_model import LoadedBase
from kto_sweep.train.packed.compatibility import packed_decoder
from kto_sweep.train.packed.decoder import Decoder
from kto_sweep.train.packed.engine import Engine
from kto_sweep.train.reference_rows import ReferenceLogProbs, trained_rows
from kto_sweep.train.reference_store import entries
from kto_sweep.trial import Trial

ROWS, HELD_OUT = 40, 6


def make_data(rows: int = ROWS) -> TrainingData:
    train, held_out = token_rows(rows), token_rows(HELD_OUT, seed=9)
    partners = [np.array(next_partners(n)) for n in (rows, HELD_OUT)]
    return TrainingData("data", train, held_out, *partners, 40, ())


def make_trial(**more: object) -> Trial:
    values = {"batch_size": 4, "learning_rate": 1e-2, "lora_r": 4, "max_length": 40, "seed": 1}
    return Trial(model="tiny", dataset="none", **values | more)  # type: ignore[arg-type]


class SharedCache:
    """The reference cache of a home, used by one process after another, each with a model of its own."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def start(self, rows: int = ROWS) -> tuple[Decoder, ReferenceLogProbs]:
        """Decoder and references of a new process."""
        model = tiny_model()
        decoder = packed_decoder(model)
        # No tokenizer: the rows are token ids.
        base = LoadedBase("tiny", model, cast(Any, None), torch.float32, "none")
        return decoder, ReferenceLogProbs(decoder, base, make_data(rows), self._cache)

    def read(self, trial: Trial, rows: int = ROWS) -> int:
        """Number of rows that the base model reads when a new process fills in those of `trial`."""
        decoder, references = self.start(rows)
        before = decoder.forwards
        progress: list[tuple[int, int]] = []
        references.fill(trial, lambda done, total: progress.append((done, total)))
        count = progress[-1][0] - progress[0][0] if progress else 0
        assert (decoder.forwards > before) == (count > 0)
        return count


@pytest.fixture
def shared_cache(tmp_path: Path) -> SharedCache:
    return SharedCache(tmp_path)


def test_only_rows_that_a_trial_uses_are_read(shared_cache: SharedCache) -> None:
    assert shared_cache.read(make_trial(max_steps=3)) == 3 * 4 + HELD_OUT
    assert shared_cache.read(make_trial(max_steps=5)) == 2 * 4
    assert shared_cache.read(make_trial(epochs=3)) == ROWS - 5 * 4
    assert shared_cache.read(make_trial(epochs=3, seed=7)) == 0


@pytest.mark.parametrize(
    "more",
    [
        {"learning_rate": 1e-6},
        {"lora_r": 16, "lora_alpha": 5, "lora_dropout": 0.2},
        {"beta": 0.5, "loss_type": "apo_zero_unpaired"},
        {"batch_size": 2, "max_steps": 6},
        {"optimizer": "adamw_8bit", "weight_decay": 0.1},
    ],
)
def test_settings_that_values_do_not_depend_on_read_no_rows(
    shared_cache: SharedCache, more: dict[str, object]
) -> None:
    shared_cache.read(make_trial(max_steps=3))
    assert shared_cache.read(make_trial(**{"max_steps": 3} | more)) == 0


def test_another_seed_reads_only_its_other_rows(shared_cache: SharedCache) -> None:
    first, second = make_trial(max_steps=3), make_trial(max_steps=3, seed=2)
    shared_cache.read(first)
    more = set(trained_rows(second, ROWS)) - set(trained_rows(first, ROWS))
    assert 0 < len(more) < 12
    assert shared_cache.read(second) == len(more)


def test_a_new_row_is_read_and_so_is_the_one_that_gets_it_as_partner(shared_cache: SharedCache) -> None:
    whole = make_trial(epochs=1)
    shared_cache.read(whole)
    # The last row's partner was the first one and is now the new row.
    assert shared_cache.read(whole, ROWS + 1) == 2


def test_a_trial_that_joins_adds_its_rows_in_place(shared_cache: SharedCache) -> None:
    decoder, references = shared_cache.start()
    first, second = make_trial(max_steps=3), make_trial(max_steps=3, seed=2)
    references.fill(first)
    filled = np.flatnonzero(~np.isnan(references.train.reference[:, 0]))
    assert filled.tolist() == trained_rows(first, ROWS)
    engine = Engine(decoder, references.train, references.held_out, slots=2)
    engine.join(0, first)
    engine.step()
    references.fill(second)
    engine.join(1, second)
    losses = [result.values["loss"] for result in engine.step().read().values()]
    assert np.isfinite(losses).all()
    assert losses[1] == pytest.approx(0.5, abs=1e-6)  # its first step: policy and reference agree
    engine.close()


def test_values_match_one_row_at_a_time(shared_cache: SharedCache) -> None:
    _, references = shared_cache.start()
    references.fill(make_trial(epochs=1))
    model = tiny_model()
    for part in (references.train, references.held_out):
        with torch.no_grad():
            naive = [
                [naive_log_prob(model, row.prompt, y).item() for y in (row.completion, row.mismatched)]
                for row in part.rows
            ]
        assert part.reference == pytest.approx(np.array(naive), rel=1e-5)


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        ({"max_steps": 1}, 1),
        ({"max_steps": 10}, 10),
        ({"max_steps": 25}, 25),
        ({"epochs": 0.35}, 4),
        ({"epochs": 2, "batch_size": 7}, 12),
    ],
)
def test_trained_rows_are_those_of_all_batches(more: dict[str, object], steps: int) -> None:
    trial = make_trial(**more)
    batches = all_batches(ROWS, trial.batch_size, steps, trial.seed)
    assert trained_rows(trial, ROWS) == sorted({at for _, batch in batches for at in batch})


def test_the_cache_entry_names_the_base_model(shared_cache: SharedCache, tmp_path: Path) -> None:
    shared_cache.read(make_trial(max_steps=1))
    (entry,) = entries(tmp_path)
    assert (entry.about["model"], entry.about["dtype"], entry.rows) == ("tiny", "float32", 4 + HELD_OUT)
