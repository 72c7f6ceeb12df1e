"""Estimated tokens of a trial's steps, against those of training."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from kto_sweep.data.dataset import prepare_data
from kto_sweep.data.examples import read_examples
from kto_sweep.data.load import load_tokens
from kto_sweep.data.split import all_batches
from kto_sweep.models.tokenizer import load_tokenizer
from kto_sweep.plan.workload import WorkloadCache
from kto_sweep.train.packed.pack import PairedRows
from kto_sweep.trial import Trial

torch.set_num_threads(1)

ROWS = str(Path(__file__).parents[2] / "examples" / "support_replies.jsonl")


def test_loads_match_those_of_training() -> None:
    trial = Trial(model="tiny", dataset=ROWS, batch_size=8, max_length=96, seed=5)
    tokens = load_tokens(ROWS, load_tokenizer("tiny"))
    data = prepare_data(tokens, eval_fraction=0.1, max_length=96)
    rows = PairedRows(data.train, data.train_partners, 96)
    work = WorkloadCache().workload(trial)
    assert work.exact
    assert (len(work.train), len(work.held_out)) == (len(data.train), len(data.eval))
    total = work.steps(trial)
    fed = [sum(rows[at].tokens() - 1 for at in chosen) for _, chosen in all_batches(len(rows), 8, total, 5)]
    peak, mean = work.peak_load(trial), work.mean_load(trial)
    assert peak.tokens + peak.mismatched == max(fed)
    each = sum(row.tokens() - 1 for row in rows) / len(rows)
    assert mean.tokens + mean.mismatched == pytest.approx(8 * each, abs=2)
    longest = work.longest_row
    assert longest.tokens + longest.mismatched <= max(row.tokens() for row in rows)


def test_without_the_tokenizer_tokens_are_estimated_from_characters() -> None:
    work = WorkloadCache().workload(Trial(model="nobody/has-this-model", dataset=ROWS, max_length=2048))
    assert not work.exact
    exact = WorkloadCache().workload(Trial(model="tiny", dataset=ROWS, max_length=2048))
    assert len(work.train) == len(exact.train)
    characters = sum(len(str(row.prompt)) for row in islice(read_examples(ROWS)[1], 10))
    assert work.mean_load(Trial(model="x", dataset=ROWS, batch_size=1)).tokens < characters
