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
from kto_sweep.train.packed.pack import PairedRow, pair_rows
from kto_sweep.train.packed.step import score
from kto_sweep.train.reference import ReferenceModel, Scores, reference_scores, row_key

# The forked children use numpy and SQLite alone, none of the threads that Python warns about.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

BASE = ReferenceModel("weights", "none", "float32")


def rows(n: int = 5, *, max_length: int = 20, longest: int = 14) -> list[PairedRow]:
    return pair_rows(token_rows(n, longest=longest), next_partners(n), max_length)


def long_rows(n: int) -> list[PairedRow]:
    """So long that the first block holds one."""
    return [PairedRow(np.full(1000, at), np.full(500, at), np.full(400, at), True) for at in range(n)]


def values(asked: Sequence[PairedRow]) -> Scores:
    """Some function of the rows."""
    return np.array([[-row.completion.sum() / 7, -row.mismatched.sum() / 7] for row in asked])


class Counting:
    """`values`, and how many rows were asked for; a clock that a row moves by `seconds`."""

    def __init__(self, seconds: float = 0.0, fail_at: int | None = None) -> None:
        self.rows = 0
        self.blocks: list[int] = []
        self._seconds = seconds
        self._fail_at = fail_at

    def __call__(self, asked: Sequence[PairedRow]) -> Scores:
        if self._fail_at is not None and self.rows >= self._fail_at:
            raise KeyboardInterrupt
        self.rows += len(asked)
        self.blocks.append(len(asked))
        return values(asked)

    def clock(self) -> float:
        return self.rows * self._seconds


def test_values_are_the_base_models_whatever_adapters_are_there(tmp_path: Path) -> None:
    decoder = packed_decoder(tiny_model())
    adapters = AdapterStack(decoder.model, 1, 4, ["all-linear"])
    adapters.start(0, AdapterSpec(4, 8.0))
    adapters.weights += 0.3
    adapters.refresh()
    found = reference_scores(
        BASE, rows(), tmp_path, lambda asked: score(decoder, asked, MicrobatchLimit()).numpy()
    )
    model = tiny_model()
    with torch.no_grad():
        naive = [
            [naive_log_prob(model, row.prompt, y).item() for y in (row.completion, row.mismatched)]
            for row in rows()
        ]
    assert found == pytest.approx(np.array(naive), rel=1e-5)


def test_the_second_time_nothing_is_computed(tmp_path: Path) -> None:
    first, second, told = Counting(), Counting(), []
    one = reference_scores(BASE, rows(), tmp_path, first)
    two = reference_scores(BASE, rows(), tmp_path, second, lambda *counts: told.append(counts))
    assert (first.rows, second.rows, told) == (5, 0, [])
    assert np.array_equal(one, two)
    assert np.array_equal(one, values(rows()))


def test_only_rows_that_are_not_there_are_computed(tmp_path: Path) -> None:
    many = rows(30)
    reference_scores(BASE, many[:20], tmp_path, Counting())
    more = Counting()
    chosen = [many[at] for at in (25, 3, 19, 21, 3)]
    assert np.array_equal(reference_scores(BASE, chosen, tmp_path, more), values(chosen))
    assert more.rows == 2


def test_rows_of_the_same_tokens_are_computed_once(tmp_path: Path) -> None:
    once = Counting()
    twice = [*rows(), *rows()]
    assert np.array_equal(reference_scores(BASE, twice, tmp_path, once), values(twice))
    assert once.rows == 5


def test_a_row_has_the_same_log_probs_whatever_rows_it_comes_with() -> None:
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, 97, (12, 30))
    many = [PairedRow(prompt, *rng.integers(3, 97, (2, 12)), True) for prompt in [*prompts, *prompts]]
    decoder = packed_decoder(tiny_model())
    together = score(decoder, many, MicrobatchLimit())
    for n in (1, 4, 7):  # in such parts no prompt comes twice
        apart = [score(decoder, many[at : at + n], MicrobatchLimit()) for at in range(0, len(many), n)]
        # Most CPUs give the same bits; on some the last of a float32 depends on how much is multiplied.
        torch.testing.assert_close(torch.cat(apart), together, rtol=2e-7, atol=0)


def test_no_rows_need_no_cache(tmp_path: Path) -> None:
    assert reference_scores(BASE, [], tmp_path / "none", Counting()).shape == (0, 2)
    assert not (tmp_path / "none").exists()


def test_the_base_model_has_a_key_of_what_values_depend_on() -> None:
    assert ReferenceModel("weights", "none", "float32", "another name").key == BASE.key
    others = [
        ReferenceModel("w", "none", "float32"),
        ReferenceModel("weights", "4bit", "float32"),
        ReferenceModel("weights", "none", "x"),
    ]
    assert len({base.key for base in [BASE, *others]}) == 4


def test_a_row_has_a_key_of_its_tokens() -> None:
    keys = [row_key(row) for row in rows()]
    assert len(set(keys)) == 5
    other_partners = pair_rows(token_rows(5), [2, 3, 4, 0, 1], 20)
    assert not {row_key(row) for row in other_partners} & set(keys)
    # max_length matters only where it cuts a completion.
    assert [row_key(row) for row in rows(max_length=15)] != keys
    assert [row_key(row) for row in rows(max_length=40)] == [row_key(row) for row in rows(max_length=400)]
    # Tokens that move from the completion to the prompt are another row; its label is not asked for.
    ab, cd = np.array([1, 2]), np.array([3, 4])
    joined = PairedRow(np.append(ab, 3), np.array([4]), cd, True)
    assert row_key(PairedRow(ab, cd, cd, True)) != row_key(joined)
    assert row_key(PairedRow(ab, cd, cd, False)) == row_key(PairedRow(ab, cd, cd, True))


def test_what_was_computed_before_an_interruption_is_used(tmp_path: Path) -> None:
    many, broken = long_rows(6), Counting(seconds=4.0, fail_at=4)
    with pytest.raises(KeyboardInterrupt):
        reference_scores(BASE, many, tmp_path, broken, clock=broken.clock)
    again, told = Counting(seconds=4.0), []
    found = reference_scores(
        BASE, many, tmp_path, again, lambda *counts: told.append(counts), clock=again.clock
    )
    assert again.rows == 2
    assert np.array_equal(found, values(many))
    assert told == [(4, 6), (5, 6), (6, 6)]


def test_blocks_grow_while_they_are_fast_and_shrink_when_slow(tmp_path: Path) -> None:
    fast, slow = Counting(), Counting(seconds=10.0)
    reference_scores(BASE, long_rows(40), tmp_path / "fast", fast, clock=fast.clock)
    assert fast.blocks[:2] == [1, 1]
    assert fast.blocks == sorted(fast.blocks[:-1]) + fast.blocks[-1:]
    assert max(fast.blocks) >= 8
    reference_scores(BASE, rows(120), tmp_path / "slow", slow, clock=slow.clock)
    assert slow.blocks[0] > slow.blocks[1] > slow.blocks[2] > slow.blocks[-2]
    assert sum(slow.blocks) == 120


def test_values_that_are_not_finite_are_refused_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(TrialFailure, match="not finite"):
        reference_scores(BASE, rows(), tmp_path, lambda asked: np.full((len(asked), 2), np.nan))
    after = Counting()
    reference_scores(BASE, rows(), tmp_path, after)
    assert after.rows == 5


def _compute_together(folder: str, barrier: Any, counts: Any, mine: list[int]) -> None:
    def compute(asked: Sequence[PairedRow]) -> Scores:
        with counts.get_lock():
            for row in asked:
                counts[int(row.prompt[0])] += 1
        time.sleep(0.02)  # so that the others come while these rows are claimed
        return values(asked)

    barrier.wait()
    chosen = [long_rows(60)[at] for at in mine]
    assert np.array_equal(reference_scores(BASE, chosen, Path(folder), compute), values(chosen))


def test_processes_compute_each_row_once_and_share_them_out(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, counts = context.Barrier(3), context.Array("i", 60)
    wanted = [list(range(60)), list(range(60)), list(range(30, 50))]
    workers = [
        context.Process(target=_compute_together, args=(str(tmp_path), barrier, counts, mine))
        for mine in wanted
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert list(counts) == [1] * 60


def _die_computing(folder: str) -> None:
    def compute(asked: Sequence[PairedRow]) -> Scores:
        os.kill(os.getpid(), signal.SIGKILL)
        return values(asked)

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
