import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_cases import naive_log_prob, next_partners, tiny_model, token_rows

from kto_sweep.errors import TrialFailure
from kto_sweep.train.base_model import fingerprint_model
from kto_sweep.train.packed.compatibility import packed_decoder
from kto_sweep.train.packed.lora import AdapterSpec, AdapterStack
from kto_sweep.train.packed.microbatch import MicrobatchLimit
from kto_sweep.train.packed.pack import PairedRow, PairedRows
from kto_sweep.train.packed.step import score
from kto_sweep.train.reference import ReferenceModel, Scores, reference_scores, row_key

# The forked children use numpy and SQLite alone, none of the threads that Python warns about.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

BASE = ReferenceModel("weights", "none", "float32")


def rows(n: int = 5, *, max_length: int = 20, longest: int = 14) -> list[PairedRow]:
    return PairedRows(token_rows(n, longest=longest), next_partners(n), max_length)


def long_rows(n: int) -> list[PairedRow]:
    """So long that the first block holds one."""
    return [PairedRow(np.full(1000, at), np.full(500, at), np.full(400, at), True) for at in range(n)]


def values(batch: Sequence[PairedRow]) -> Scores:
    """Values that depend on the rows alone."""
    return np.array([[-row.completion.sum() / 7, -row.mismatched.sum() / 7] for row in batch])


class Counting:
    """Computes `values` and counts the rows; its clock advances by `seconds` per row."""

    def __init__(self, seconds: float = 0.0, fail_at: int | None = None) -> None:
        self.rows = 0
        self.blocks: list[int] = []
        self._seconds = seconds
        self._fail_at = fail_at

    def __call__(self, batch: Sequence[PairedRow]) -> Scores:
        if self._fail_at is not None and self.rows >= self._fail_at:
            raise KeyboardInterrupt
        self.rows += len(batch)
        self.blocks.append(len(batch))
        return values(batch)

    def clock(self) -> float:
        return self.rows * self._seconds


def test_values_are_those_of_the_base_model_without_adapters(tmp_path: Path) -> None:
    decoder = packed_decoder(tiny_model())
    adapters = AdapterStack(decoder.model, 1, 4, ["all-linear"])
    adapters.start(0, AdapterSpec(4, 8.0))
    adapters.weights += 0.3
    adapters.refresh()
    scores = reference_scores(
        BASE, rows(), tmp_path, lambda batch: score(decoder, batch, MicrobatchLimit()).numpy()
    )
    model = tiny_model()
    with torch.no_grad():
        naive = [
            [naive_log_prob(model, row.prompt, y).item() for y in (row.completion, row.mismatched)]
            for row in rows()
        ]
    assert scores == pytest.approx(np.array(naive), rel=1e-5)


def test_cached_rows_are_not_computed_again(tmp_path: Path) -> None:
    first, second, progress = Counting(), Counting(), []
    computed = reference_scores(BASE, rows(), tmp_path, first)
    cached = reference_scores(BASE, rows(), tmp_path, second, lambda *counts: progress.append(counts))
    assert (first.rows, second.rows, progress) == (5, 0, [])
    assert np.array_equal(computed, cached)
    assert np.array_equal(computed, values(rows()))


def test_only_rows_that_are_not_cached_are_computed(tmp_path: Path) -> None:
    many = rows(30)
    reference_scores(BASE, many[:20], tmp_path, Counting())
    more = Counting()
    subset = [many[at] for at in (25, 3, 19, 21, 3)]
    assert np.array_equal(reference_scores(BASE, subset, tmp_path, more), values(subset))
    assert more.rows == 2


def test_rows_of_the_same_tokens_are_computed_once(tmp_path: Path) -> None:
    once = Counting()
    twice = [*rows(), *rows()]
    assert np.array_equal(reference_scores(BASE, twice, tmp_path, once), values(twice))
    assert once.rows == 5


def test_the_log_probs_of_a_row_do_not_depend_on_the_other_rows() -> None:
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, 97, (12, 30))
    many = [PairedRow(prompt, *rng.integers(3, 97, (2, 12)), True) for prompt in [*prompts, *prompts]]
    decoder = packed_decoder(tiny_model())
    together = score(decoder, many, MicrobatchLimit())
    for n in (1, 4, 7):  # in parts of these sizes no prompt comes twice
        apart = [score(decoder, many[at : at + n], MicrobatchLimit()) for at in range(0, len(many), n)]
        # Most CPUs give the same bits; on some the last of a float32 depends on the size of the product.
        torch.testing.assert_close(torch.cat(apart), together, rtol=2e-7, atol=0)


def test_without_rows_no_cache_is_made(tmp_path: Path) -> None:
    assert reference_scores(BASE, [], tmp_path / "none", Counting()).shape == (0, 2)
    assert not (tmp_path / "none").exists()


def test_the_key_of_a_base_model_contains_what_values_depend_on() -> None:
    assert ReferenceModel("weights", "none", "float32", "another name").key == BASE.key
    others = [
        ReferenceModel("w", "none", "float32"),
        ReferenceModel("weights", "4bit", "float32"),
        ReferenceModel("weights", "none", "x"),
    ]
    assert len({base.key for base in [BASE, *others]}) == 4


def test_the_key_of_a_row_depends_on_its_tokens() -> None:
    keys = [row_key(row) for row in rows()]
    assert len(set(keys)) == 5
    other_partners = PairedRows(token_rows(5), [2, 3, 4, 0, 1], 20)
    assert not {row_key(row) for row in other_partners} & set(keys)
    # max_length matters only where it cuts a completion.
    assert [row_key(row) for row in rows(max_length=15)] != keys
    assert [row_key(row) for row in rows(max_length=40)] == [row_key(row) for row in rows(max_length=400)]
    # A token that moves from the completion to the prompt changes the key; the label does not.
    ab, cd = np.array([1, 2]), np.array([3, 4])
    joined = PairedRow(np.append(ab, 3), np.array([4]), cd, True)
    assert row_key(PairedRow(ab, cd, cd, True)) != row_key(joined)
    assert row_key(PairedRow(ab, cd, cd, False)) == row_key(PairedRow(ab, cd, cd, True))


def test_rows_computed_before_an_interruption_are_not_computed_again(tmp_path: Path) -> None:
    many, interrupted = long_rows(6), Counting(seconds=4.0, fail_at=4)
    with pytest.raises(KeyboardInterrupt):
        reference_scores(BASE, many, tmp_path, interrupted, clock=interrupted.clock)
    again, progress = Counting(seconds=4.0), []
    scores = reference_scores(
        BASE, many, tmp_path, again, lambda *counts: progress.append(counts), clock=again.clock
    )
    assert again.rows == 2
    assert np.array_equal(scores, values(many))
    assert progress == [(4, 6), (5, 6), (6, 6)]


def test_blocks_grow_while_they_are_fast_and_shrink_when_slow(tmp_path: Path) -> None:
    fast, slow = Counting(), Counting(seconds=10.0)
    reference_scores(BASE, long_rows(40), tmp_path / "fast", fast, clock=fast.clock)
    assert fast.blocks[:2] == [1, 1]
    assert fast.blocks == sorted(fast.blocks[:-1]) + fast.blocks[-1:]
    assert max(fast.blocks) >= 8
    reference_scores(BASE, rows(120), tmp_path / "slow", slow, clock=slow.clock)
    assert slow.blocks[0] > slow.blocks[1] > slow.blocks[2] > slow.blocks[-2]
    assert sum(slow.blocks) == 120


def test_values_that_are_not_finite_are_refused_and_not_cached(tmp_path: Path) -> None:
    with pytest.raises(TrialFailure, match="not finite"):
        reference_scores(BASE, rows(), tmp_path, lambda batch: np.full((len(batch), 2), np.nan))
    after = Counting()
    reference_scores(BASE, rows(), tmp_path, after)
    assert after.rows == 5


def _compute_together(folder: str, barrier: Any, counts: Any, indices: list[int]) -> None:
    def compute(batch: Sequence[PairedRow]) -> Scores:
        with counts.get_lock():
            for row in batch:
                counts[int(row.prompt[0])] += 1
        time.sleep(0.02)  # so that the other processes run while these rows are claimed
        return values(batch)

    barrier.wait()
    subset = [long_rows(60)[at] for at in indices]
    assert np.array_equal(reference_scores(BASE, subset, Path(folder), compute), values(subset))


def test_processes_share_the_rows_and_compute_each_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, counts = context.Barrier(3), context.Array("i", 60)
    parts = [list(range(60)), list(range(60)), list(range(30, 50))]
    workers = [
        context.Process(target=_compute_together, args=(str(tmp_path), barrier, counts, indices))
        for indices in parts
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert list(counts) == [1] * 60


def _die_computing(folder: str) -> None:
    def compute(batch: Sequence[PairedRow]) -> Scores:
        os.kill(os.getpid(), signal.SIGKILL)
        return values(batch)

    reference_scores(BASE, long_rows(3), Path(folder), compute)


def test_rows_of_a_process_that_died_are_computed_by_the_next(tmp_path: Path) -> None:
    worker = multiprocessing.get_context("fork").Process(target=_die_computing, args=(str(tmp_path),))
    worker.start()
    worker.join()
    assert worker.exitcode == -9
    after = Counting()
    reference_scores(BASE, long_rows(3), tmp_path, after)
    assert after.rows == 3


def test_a_fingerprint_changes_with_any_weight_and_with_the_configuration() -> None:
    model = tiny_model()
    before = fingerprint_model(model)
    assert before == fingerprint_model(tiny_model())
    assert before != fingerprint_model(tiny_model(seed=1))
    assert before != fingerprint_model(tiny_model("qwen2"))
    weight = model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight[3, 4], weight[3, 5] = weight[3, 5].clone(), weight[3, 4].clone()
    assert fingerprint_model(model) != before
    other = tiny_model()
    other.config.rope_parameters["rope_theta"] = 1234.0
    assert fingerprint_model(other) != before


def test_a_fingerprint_does_not_change_with_how_the_model_is_used() -> None:
    model = tiny_model()
    before = fingerprint_model(model)
    model.config.name_or_path = "somewhere/else"
    decoder = packed_decoder(model)
    stack = AdapterStack(decoder.model, 1, 4, ["all-linear"])
    assert fingerprint_model(model) == before
    stack.detach()
