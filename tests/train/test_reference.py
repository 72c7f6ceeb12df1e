import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_cases import naive_log_prob, next_partners, tiny_model, token_rows

from kto_sweep.errors import TrialFailure
from kto_sweep.train.fingerprint import fingerprint_model
from kto_sweep.train.limit import Limit
from kto_sweep.train.lora import AdapterSpec, AdapterStack
from kto_sweep.train.pack import PairedRow, pair_rows
from kto_sweep.train.reference import BLOCK_ROWS, Base, Scores, reference_key, reference_scores
from kto_sweep.train.score import score
from kto_sweep.train.support import packed_decoder

BASE = Base("weights", "none", "float32")


def rows(n: int = 5, *, max_length: int = 20, longest: int = 14) -> list[PairedRow]:
    return pair_rows(token_rows(n, longest=longest), next_partners(n), max_length)


class Counting:
    """Some function of the rows, and how many it was asked for."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.rows = 0
        self._fail_at = fail_at

    def __call__(self, asked: Sequence[PairedRow]) -> Scores:
        if self._fail_at is not None and self.rows >= self._fail_at:
            raise KeyboardInterrupt
        self.rows += len(asked)
        return np.array([[-row.completion.sum(), -row.mismatched.sum()] for row in asked], dtype=float)


def test_values_are_the_base_models_whatever_adapters_are_there(tmp_path: Path) -> None:
    decoder = packed_decoder(tiny_model())
    adapters = AdapterStack(decoder.model, 1, 4, ["all-linear"])
    adapters.start(0, AdapterSpec(4, 8.0))
    adapters.weights += 0.3
    adapters.refresh()
    found = reference_scores(BASE, rows(), tmp_path, lambda asked: score(decoder, asked, Limit()).numpy())
    model = tiny_model()
    with torch.no_grad():
        naive = [
            [naive_log_prob(model, row.prompt, y).item() for y in (row.completion, row.mismatched)]
            for row in rows()
        ]
    assert found == pytest.approx(np.array(naive), rel=1e-5)


def test_the_second_time_nothing_is_computed(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    one = reference_scores(BASE, rows(), tmp_path, first)
    two = reference_scores(BASE, rows(), tmp_path, second)
    assert (first.rows, second.rows) == (5, 0)
    assert np.array_equal(one, two)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_the_key_changes_with_what_the_values_depend_on_and_nothing_else() -> None:
    key = reference_key(BASE, rows())
    assert key == reference_key(Base("weights", "none", "float32"), rows())
    for base in (
        Base("other", "none", "float32"),
        Base("weights", "4bit", "float32"),
        Base("weights", "none", "x"),
    ):
        assert reference_key(base, rows()) != key
    other_partners = pair_rows(token_rows(5), [2, 3, 4, 0, 1], 20)
    assert reference_key(BASE, other_partners) != key
    assert reference_key(BASE, rows(6)) != key
    # max_length matters only where it cuts a completion.
    assert reference_key(BASE, rows(max_length=15)) != key
    assert reference_key(BASE, rows(max_length=40)) == reference_key(BASE, rows(max_length=400))
    # Tokens that move from the completion to the prompt are another row.
    ab, cd = (np.array(ids) for ids in ([1, 2], [3, 4]))
    joined = [PairedRow(np.append(ab, 3), np.array([4]), cd, True)]
    assert reference_key(BASE, [PairedRow(ab, cd, cd, True)]) != reference_key(BASE, joined)
    assert reference_key(BASE, [PairedRow(ab, cd, cd, False)]) == reference_key(
        BASE, [PairedRow(ab, cd, cd, True)]
    )


def test_what_was_computed_before_an_interruption_is_used(tmp_path: Path) -> None:
    many = rows(2 * BLOCK_ROWS + 3)
    with pytest.raises(KeyboardInterrupt):
        reference_scores(BASE, many, tmp_path, Counting(fail_at=2 * BLOCK_ROWS))
    again, told = Counting(), []
    found = reference_scores(BASE, many, tmp_path, again, lambda done, total: told.append((done, total)))
    assert again.rows == 3
    assert np.array_equal(found, Counting()(many))
    assert told == [(64, 131), (128, 131), (131, 131)]
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_entry_is_computed_again(tmp_path: Path, damage: str) -> None:
    expected = reference_scores(BASE, rows(), tmp_path, Counting())
    (entry,) = tmp_path.iterdir()
    data = bytearray(entry.read_bytes())
    data[-3] ^= 1
    entry.write_bytes({"flipped": bytes(data), "cut": bytes(data[:-9]), "empty": b""}[damage])
    again = Counting()
    assert np.array_equal(reference_scores(BASE, rows(), tmp_path, again), expected)
    assert again.rows == 5


def test_values_that_are_not_finite_are_refused_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(TrialFailure, match="not finite"):
        reference_scores(BASE, rows(), tmp_path, lambda asked: np.full((len(asked), 2), np.nan))
    assert not list(tmp_path.glob("*.safetensors"))


def _compute_slowly(folder: str, barrier: Any, counts: Any) -> None:
    def compute(asked: Sequence[PairedRow]) -> Scores:
        with counts.get_lock():
            counts.value += len(asked)
        return Counting()(asked)

    barrier.wait()
    reference_scores(BASE, rows(40), Path(folder), compute)


def test_two_processes_compute_an_entry_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, counts = context.Barrier(3), context.Value("i", 0)
    workers = [
        context.Process(target=_compute_slowly, args=(str(tmp_path), barrier, counts)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert counts.value == 40


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
