import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_cases import naive_log_prob, naive_loss, next_partners, peft_model, tiny_model, token_rows
from peft import PeftModel
from transformers import get_scheduler

from kto_sweep.data.split import batches
from kto_sweep.train.packed.compatibility import packed_decoder
from kto_sweep.train.packed.engine import Engine
from kto_sweep.train.packed.microbatch import MicrobatchLimit
from kto_sweep.train.packed.pack import PairedRows
from kto_sweep.train.packed.slot import ReferenceRows
from kto_sweep.train.packed.step import score
from kto_sweep.train.trial.adapters import save_adapters
from kto_sweep.trial import Trial

ROWS = 19


def make_trial(**more: Any) -> Trial:
    """High learning rate and few rows: everything moves in a few steps."""
    values = {"batch_size": 4, "learning_rate": 2e-2, "lora_r": 4, "beta": 0.3, "max_steps": 9, "seed": 1}
    return Trial(model="tiny", dataset="none", **values | more)


def make_engine(slots: int = 1, kind: str = "llama", **more: Any) -> Engine:
    decoder = packed_decoder(tiny_model(kind))
    rows = PairedRows(token_rows(ROWS), next_partners(ROWS), max_length=20)
    held_out = PairedRows(token_rows(7, seed=5), next_partners(7), max_length=20)
    train, evaluated = (
        ReferenceRows(r, score(decoder, r, MicrobatchLimit()).numpy()) for r in (rows, held_out)
    )
    return Engine(decoder, train, evaluated, slots=slots, **more)


def train(engine: Engine, slot: int, steps: int) -> list[dict[str, float]]:
    return [dict(engine.step().read()[slot].values) for _ in range(steps)]


def expect_same(actual: list[dict[str, float]], expected: list[dict[str, float]], tolerance: float) -> None:
    assert len(actual) == len(expected)
    for step, (row, expected_row) in enumerate(zip(actual, expected, strict=True)):
        for name, value in expected_row.items():
            assert row[name] == pytest.approx(value, rel=tolerance, abs=tolerance), (step, name)


def naive_training(trial: Trial, engine: Engine, kind: str, steps: int) -> list[dict[str, float]]:
    """The same trial with PEFT, torch's AdamW and transformers' schedule, one row at a time."""
    engine.join(0, trial)
    spec, tensors = engine.adapters(0)
    engine.leave(0)
    policy, reference = peft_model(kind, tensors, spec), tiny_model(kind)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=trial.learning_rate, weight_decay=trial.weight_decay)
    per_epoch = -(-ROWS // trial.batch_size)
    total = trial.max_steps or math.ceil(trial.epochs * per_epoch)
    scheduler = get_scheduler(trial.lr_scheduler, optimizer, math.ceil(trial.warmup_ratio * total), total)
    order = [b for epoch in range(9) for b in batches(ROWS, trial.batch_size, epoch, trial.seed)]
    weights = trial.weights(*engine.train.counts)
    logged = []
    for rows in order[:steps]:
        batch = [engine.train.rows[at] for at in rows]
        result = naive_loss(policy, reference, batch, trial.beta, weights, trial.loss_type)
        optimizer.zero_grad()
        result["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, trial.max_grad_norm)
        logged.append(
            {
                "loss": result["loss"].item(),
                "grad_norm": norm.item(),
                "learning_rate": scheduler.get_last_lr()[0],
            }
        )
        if trial.loss_type == "kto":
            logged[-1] |= {"kl_raw": result["kl_raw"], "kl": max(0, result["kl_raw"])}
        for side, label in (("chosen", True), ("rejected", False)):
            rewards = [r for r, row in zip(result["rewards"], batch, strict=True) if row.desirable is label]
            if rewards:
                logged[-1][f"rewards/{side}"] = sum(rewards) / len(rewards)
        optimizer.step()
        scheduler.step()
    return logged


@pytest.mark.parametrize(
    ("kind", "trial"),
    [
        ("llama", make_trial(rho=1.2, weight_decay=0.1, max_grad_norm=0.5)),
        ("qwen2", make_trial(loss_type="apo_zero_unpaired", lr_scheduler="linear", batch_size=3)),
        ("gemma3_text", make_trial(batch_size=1, max_steps=None, epochs=0.3, desirable_weight=2.0)),
        ("mistral", make_trial(batch_size=19, max_steps=4, lora_targets=("q_proj", "v_proj"))),
    ],
)
def test_training_agrees_with_peft_and_trls_formula_step_by_step(kind: str, trial: Trial) -> None:
    engine = make_engine(kind=kind)
    expected = naive_training(trial, engine, kind, 6 if trial.batch_size != 19 else 4)
    engine.join(0, trial)
    expect_same(train(engine, 0, len(expected)), expected, 2e-4)


def test_the_last_partial_batch_and_the_epochs() -> None:
    engine = make_engine()
    engine.join(0, make_trial(batch_size=8, max_steps=None, epochs=2))
    assert engine.total_steps(0) == 6
    logged = train(engine, 0, 6)
    assert [row["epoch"] for row in logged] == pytest.approx([8 / 19, 16 / 19, 1, 27 / 19, 35 / 19, 2])
    assert engine.done(0)
    with pytest.raises(ValueError, match="no slot has a step left"):
        engine.step()


OTHERS = [
    make_trial(
        lora_r=16, learning_rate=1e-3, batch_size=7, seed=7, loss_type="apo_zero_unpaired", max_steps=4
    ),
    make_trial(
        lora_r=2, lora_dropout=0.3, lora_targets=("q_proj", "down_proj"), optimizer="adamw_8bit", beta=0.05
    ),
]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_trial_gives_the_same_numbers_alone_and_beside_others_that_join_and_leave(dropout: float) -> None:
    trial = make_trial(lora_dropout=dropout)
    alone = make_engine()
    alone.join(0, trial)
    expected = train(alone, 0, 9)
    shared = make_engine(slots=3)
    shared.join(0, OTHERS[1])
    shared.step()
    shared.join(1, trial)  # joins late, in another slot
    rows = train(shared, 1, 2)
    shared.join(2, OTHERS[0])  # a larger rank changes the layout of all adapters
    rows += train(shared, 1, 3)
    shared.leave(0)
    rows += train(shared, 1, 4)
    expect_same(rows, expected, 1e-4)
    assert shared.done(2)
    for name in ("matched", "mismatched"):
        log_ratios, expected_ratios = getattr(shared.evaluate(1), name), getattr(alone.evaluate(0), name)
        assert log_ratios == pytest.approx(expected_ratios, rel=1e-3, abs=1e-3)


def test_every_slot_of_a_full_engine_gives_the_numbers_of_its_trial_alone() -> None:
    trials = [make_trial(max_steps=4), *OTHERS]
    shared = make_engine(slots=3)
    for slot, trial in enumerate(trials):
        shared.join(slot, trial)
    together = [shared.step().read() for _ in range(4)]
    for slot, trial in enumerate(trials):
        alone = make_engine()
        alone.join(0, trial)
        expect_same([dict(row[slot].values) for row in together], train(alone, 0, 4), 1e-4)


def test_a_slot_with_a_nan_is_reported_and_does_not_affect_others() -> None:
    healthy, faulty = make_engine(slots=2), make_engine(slots=2)
    for engine in (healthy, faulty):
        engine.join(0, make_trial())
        engine.join(1, make_trial(seed=3, lora_r=8))
        engine.step()
    state = faulty.state(1)
    name = next(key for key in state.tensors if key.startswith("weights/"))
    state.tensors[name][0, 0] = float("nan")  # type: ignore[index]
    faulty.leave(1)
    faulty.join(1, make_trial(seed=3, lora_r=8), state)
    for _ in range(3):
        expected, results = healthy.step().read(), faulty.step().read()
        assert results[0] == expected[0]
        assert expected[1].applied
        assert not results[1].applied
        assert results[1].values["grad_norm"] != results[1].values["grad_norm"]
        assert results[1].values["kl"] != results[1].values["kl"]
    for name, tensor in faulty.adapters(1)[1].items():  # unchanged, nan included
        torch.testing.assert_close(tensor, state.tensors[f"weights/{name}"], equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_continuing_from_a_state_gives_the_same_numbers_bit_for_bit(optimizer: str) -> None:
    trial = make_trial(optimizer=optimizer, lora_dropout=0.1)
    whole = make_engine()
    whole.join(0, trial)
    expected = train(whole, 0, 9)
    first = make_engine()
    first.join(0, trial)
    rows = train(first, 0, 4)
    second = make_engine()
    second.join(0, trial, first.state(0))
    assert rows + train(second, 0, 5) == expected


@contextmanager
def limited_memory(engine: Engine, tokens: int) -> Iterator[None]:
    """A forward of more than `tokens` tokens runs out of memory."""

    def check(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = engine.decoder.model.base_model.register_forward_pre_hook(check, with_kwargs=True)
    yield
    handle.remove()


def test_running_out_of_memory_splits_the_batch_and_changes_no_number() -> None:
    unlimited, limited = make_engine(), make_engine()
    for engine in (unlimited, limited):
        engine.join(0, make_trial(batch_size=9))
    expected = train(unlimited, 0, 4)
    with limited_memory(limited, 40):
        expect_same(train(limited, 0, 4), expected, 1e-4)
        assert limited.evaluate(0).matched == pytest.approx(unlimited.evaluate(0).matched, rel=1e-3, abs=1e-3)
    assert limited.limit.tokens is not None
    with limited_memory(limited, 1), pytest.raises(torch.OutOfMemoryError):
        limited.step()


@pytest.mark.parametrize("kind", ["llama", "phi", "gemma2"])
def test_peft_loads_the_adapters_and_gives_the_same_log_probs(kind: str, tmp_path: Path) -> None:
    engine = make_engine(slots=2, kind=kind)
    engine.join(0, make_trial(lora_r=6))
    engine.join(1, make_trial(lora_r=16, lora_alpha=5.0, lora_targets=("q_proj", "v_proj")))
    for _ in range(3):
        engine.step()
    for slot in (0, 1):
        save_adapters(tmp_path / "adapter", *engine.adapters(slot), base_model="some/model")
        with warnings.catch_warnings():  # PEFT uses names that transformers deprecates
            warnings.simplefilter("ignore", FutureWarning)
            loaded = PeftModel.from_pretrained(tiny_model(kind), str(tmp_path / "adapter"))
        log_probs = engine.evaluate(slot).matched + engine.held_out.reference[:, 0]
        assert abs(engine.evaluate(slot).matched).max() > 0.1
        naive = [naive_log_prob(loaded, row.prompt, row.completion).item() for row in engine.held_out.rows]
        assert log_probs == pytest.approx(naive, rel=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_resizing_keeps_the_trials() -> None:
    fixed, resized = make_engine(), make_engine()
    for engine in (fixed, resized):
        engine.join(0, make_trial())
    expected = train(fixed, 0, 6)
    rows = train(resized, 0, 2)
    resized.resize(3)
    resized.join(2, make_trial(seed=9))
    rows += train(resized, 0, 2)
    with pytest.raises(ValueError, match=r"a removed slot \(from 1\) has a trial"):
        resized.resize(1)
    resized.leave(2)
    resized.resize(1)
    rows += train(resized, 0, 2)
    expect_same(rows, expected, 1e-4)


def test_order_depends_on_the_seed_and_changes_every_epoch() -> None:
    def order(seed: int) -> list[float]:
        engine = make_engine()
        engine.join(0, make_trial(seed=seed, batch_size=1, max_steps=38, learning_rate=1e-9))
        return [row.get("logps/chosen", row.get("logps/rejected", 0)) for row in train(engine, 0, 38)]

    first, second = order(1), order(2)
    assert sorted(first[:19]) == pytest.approx(sorted(first[19:]), abs=1e-3)
    assert sorted(first[:19]) == pytest.approx(sorted(second[:19]), abs=1e-3)
    assert first[:19] != pytest.approx(first[19:], abs=1e-2)
    assert first[:19] != pytest.approx(second[:19], abs=1e-2)
