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
from kto_sweep.train.packed.pack import pair_rows
from kto_sweep.train.packed.slot import ReferenceRows
from kto_sweep.train.packed.step import score
from kto_sweep.train.trial.adapters import save_adapters
from kto_sweep.trial import Trial

ROWS = 19


def trial(**more: Any) -> Trial:
    """High learning rate and few rows: everything moves in a few steps."""
    values = {"batch_size": 4, "learning_rate": 2e-2, "lora_r": 4, "beta": 0.3, "max_steps": 9, "seed": 1}
    return Trial(model="tiny", dataset="none", **values | more)


def engine(slots: int = 1, kind: str = "llama", **more: Any) -> Engine:
    decoder = packed_decoder(tiny_model(kind))
    rows = pair_rows(token_rows(ROWS), next_partners(ROWS), max_length=20)
    held_out = pair_rows(token_rows(7, seed=5), next_partners(7), max_length=20)
    train, evaluated = (
        ReferenceRows(r, score(decoder, r, MicrobatchLimit()).numpy()) for r in (rows, held_out)
    )
    return Engine(decoder, train, evaluated, slots=slots, **more)


def train(engine: Engine, slot: int, steps: int) -> list[dict[str, float]]:
    return [dict(engine.step().read()[slot].values) for _ in range(steps)]


def expect_same(found: list[dict[str, float]], expected: list[dict[str, float]], tolerance: float) -> None:
    assert len(found) == len(expected)
    for step, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, rel=tolerance, abs=tolerance), (step, name)


def naive_training(chosen: Trial, engine: Engine, kind: str, steps: int) -> list[dict[str, float]]:
    """The same trial with PEFT, torch's AdamW and transformers' schedule, one row at a time."""
    engine.join(0, chosen)
    spec, tensors = engine.adapters(0)
    engine.leave(0)
    policy, reference = peft_model(kind, tensors, spec), tiny_model(kind)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=chosen.learning_rate, weight_decay=chosen.weight_decay)
    per_epoch = -(-ROWS // chosen.batch_size)
    total = chosen.max_steps or math.ceil(chosen.epochs * per_epoch)
    scheduler = get_scheduler(chosen.lr_scheduler, optimizer, math.ceil(chosen.warmup_ratio * total), total)
    order = [b for epoch in range(9) for b in batches(ROWS, chosen.batch_size, epoch, chosen.seed)]
    weights = chosen.weights(*engine.train.counts)
    logged = []
    for rows in order[:steps]:
        batch = [engine.train.rows[at] for at in rows]
        found = naive_loss(policy, reference, batch, chosen.beta, weights, chosen.loss_type)
        optimizer.zero_grad()
        found["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, chosen.max_grad_norm)
        logged.append(
            {
                "loss": found["loss"].item(),
                "grad_norm": norm.item(),
                "learning_rate": scheduler.get_last_lr()[0],
            }
        )
        if chosen.loss_type == "kto":
            logged[-1] |= {"kl_raw": found["kl_raw"], "kl": max(0, found["kl_raw"])}
        for side, label in (("chosen", True), ("rejected", False)):
            mine = [r for r, row in zip(found["rewards"], batch, strict=True) if row.desirable is label]
            if mine:
                logged[-1][f"rewards/{side}"] = sum(mine) / len(mine)
        optimizer.step()
        scheduler.step()
    return logged


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [
        ("llama", trial(rho=1.2, weight_decay=0.1, max_grad_norm=0.5)),
        ("qwen2", trial(loss_type="apo_zero_unpaired", lr_scheduler="linear", batch_size=3)),
        ("gemma3_text", trial(batch_size=1, max_steps=None, epochs=0.3, desirable_weight=2.0)),
        ("mistral", trial(batch_size=19, max_steps=4, lora_targets=("q_proj", "v_proj"))),
    ],
)
def test_training_agrees_with_peft_and_trls_formula_step_by_step(kind: str, chosen: Trial) -> None:
    mine = engine(kind=kind)
    expected = naive_training(chosen, mine, kind, 6 if chosen.batch_size != 19 else 4)
    mine.join(0, chosen)
    expect_same(train(mine, 0, len(expected)), expected, 2e-4)


def test_the_last_partial_batch_and_the_epochs() -> None:
    mine = engine()
    mine.join(0, trial(batch_size=8, max_steps=None, epochs=2))
    assert mine.total_steps(0) == 6
    logged = train(mine, 0, 6)
    assert [row["epoch"] for row in logged] == pytest.approx([8 / 19, 16 / 19, 1, 27 / 19, 35 / 19, 2])
    assert mine.done(0)
    with pytest.raises(ValueError, match="no slot has a step left"):
        mine.step()


OTHERS = [
    trial(lora_r=16, learning_rate=1e-3, batch_size=7, seed=7, loss_type="apo_zero_unpaired", max_steps=4),
    trial(
        lora_r=2, lora_dropout=0.3, lora_targets=("q_proj", "down_proj"), optimizer="adamw_8bit", beta=0.05
    ),
]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_trial_is_the_same_alone_and_beside_others_that_come_and_go(dropout: float) -> None:
    chosen = trial(lora_dropout=dropout)
    alone = engine()
    alone.join(0, chosen)
    expected = train(alone, 0, 9)
    shared = engine(slots=3)
    shared.join(0, OTHERS[1])
    shared.step()
    shared.join(1, chosen)  # joins late, in another slot
    found = train(shared, 1, 2)
    shared.join(2, OTHERS[0])  # a larger rank: everything is laid out anew
    found += train(shared, 1, 3)
    shared.leave(0)
    found += train(shared, 1, 4)
    expect_same(found, expected, 1e-4)
    assert shared.done(2)
    for name in ("matched", "mismatched"):
        here, there = getattr(shared.evaluate(1), name), getattr(alone.evaluate(0), name)
        assert here == pytest.approx(there, rel=1e-3, abs=1e-3)


def test_every_slot_of_a_full_engine_is_its_trial_alone() -> None:
    trials = [trial(max_steps=4), *OTHERS]
    shared = engine(slots=3)
    for slot, each in enumerate(trials):
        shared.join(slot, each)
    together = [shared.step().read() for _ in range(4)]
    for slot, each in enumerate(trials):
        alone = engine()
        alone.join(0, each)
        expect_same([dict(row[slot].values) for row in together], train(alone, 0, 4), 1e-4)


def test_a_slot_that_goes_wrong_reaches_no_other_and_is_reported() -> None:
    calm, troubled = engine(slots=2), engine(slots=2)
    for each in (calm, troubled):
        each.join(0, trial())
        each.join(1, trial(seed=3, lora_r=8))
        each.step()
    broken = troubled.state(1)
    name = next(key for key in broken.tensors if key.startswith("weights/"))
    broken.tensors[name][0, 0] = float("nan")  # type: ignore[index]
    troubled.leave(1)
    troubled.join(1, trial(seed=3, lora_r=8), broken)
    for _ in range(3):
        expected, found = calm.step().read(), troubled.step().read()
        assert found[0] == expected[0]
        assert expected[1].applied
        assert not found[1].applied
        assert found[1].values["grad_norm"] != found[1].values["grad_norm"]
        assert found[1].values["kl"] != found[1].values["kl"]
    for name, tensor in troubled.adapters(1)[1].items():  # as it was, bad number included
        torch.testing.assert_close(tensor, broken.tensors[f"weights/{name}"], equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_going_on_from_a_state_gives_the_same_numbers_bit_for_bit(optimizer: str) -> None:
    chosen = trial(optimizer=optimizer, lora_dropout=0.1)
    whole = engine()
    whole.join(0, chosen)
    expected = train(whole, 0, 9)
    first = engine()
    first.join(0, chosen)
    found = train(first, 0, 4)
    second = engine()
    second.join(0, chosen, first.state(0))
    assert found + train(second, 0, 5) == expected


@contextmanager
def memory_for(engine: Engine, tokens: int) -> Iterator[None]:
    """Forwards of more than `tokens` tokens run out of memory."""

    def refuse(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = engine.decoder.model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    yield
    handle.remove()


def test_running_out_of_memory_splits_the_batch_and_changes_nothing() -> None:
    roomy, tight = engine(), engine()
    for each in (roomy, tight):
        each.join(0, trial(batch_size=9))
    expected = train(roomy, 0, 4)
    with memory_for(tight, 40):
        expect_same(train(tight, 0, 4), expected, 1e-4)
        assert tight.evaluate(0).matched == pytest.approx(roomy.evaluate(0).matched, rel=1e-3, abs=1e-3)
    assert tight.limit.tokens is not None
    with memory_for(tight, 1), pytest.raises(torch.OutOfMemoryError):
        tight.step()


@pytest.mark.parametrize("kind", ["llama", "phi", "gemma2"])
def test_peft_loads_the_adapters_and_gives_the_same_log_probs(kind: str, tmp_path: Path) -> None:
    mine = engine(slots=2, kind=kind)
    mine.join(0, trial(lora_r=6))
    mine.join(1, trial(lora_r=16, lora_alpha=5.0, lora_targets=("q_proj", "v_proj")))
    for _ in range(3):
        mine.step()
    for slot in (0, 1):
        save_adapters(tmp_path / "adapter", *mine.adapters(slot), base_model="some/model")
        with warnings.catch_warnings():  # PEFT calls what transformers has renamed
            warnings.simplefilter("ignore", FutureWarning)
            loaded = PeftModel.from_pretrained(tiny_model(kind), str(tmp_path / "adapter"))
        now = mine.evaluate(slot).matched + mine.held_out.reference[:, 0]
        assert abs(mine.evaluate(slot).matched).max() > 0.1
        naive = [naive_log_prob(loaded, row.prompt, row.completion).item() for row in mine.held_out.rows]
        assert now == pytest.approx(naive, rel=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_resizing_keeps_the_trials() -> None:
    steady, changing = engine(), engine()
    for each in (steady, changing):
        each.join(0, trial())
    expected = train(steady, 0, 6)
    found = train(changing, 0, 2)
    changing.resize(3)
    changing.join(2, trial(seed=9))
    found += train(changing, 0, 2)
    with pytest.raises(ValueError, match="still has a trial"):
        changing.resize(1)
    changing.leave(2)
    changing.resize(1)
    found += train(changing, 0, 2)
    expect_same(found, expected, 1e-4)


def test_order_depends_on_the_seed_and_changes_every_epoch() -> None:
    def order(seed: int) -> list[float]:
        mine = engine()
        mine.join(0, trial(seed=seed, batch_size=1, max_steps=38, learning_rate=1e-9))
        return [row.get("logps/chosen", row.get("logps/rejected", 0)) for row in train(mine, 0, 38)]

    one, other = order(1), order(2)
    assert sorted(one[:19]) == pytest.approx(sorted(one[19:]), abs=1e-3)
    assert sorted(one[:19]) == pytest.approx(sorted(other[:19]), abs=1e-3)
    assert one[:19] != pytest.approx(one[19:], abs=1e-2)
    assert one[:19] != pytest.approx(other[:19], abs=1e-2)
