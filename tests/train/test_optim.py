import pytest
import torch
from torch import Tensor

from kto_sweep.train.packed.optim import BLOCK, EIGHT_BIT, FULL, SlotAdamW, StepHyperparameters

torch.set_num_threads(1)
PARAMETERS = 2 * BLOCK


def hyperparameters(
    *, lr: list[float], decay: list[float], clip: list[float], active: list[float] | None = None
) -> StepHyperparameters:
    ones = [1.0] * len(lr)
    return StepHyperparameters(*(torch.tensor(values) for values in (lr, decay, clip, active or ones)))


def start(slots: int, kinds: list[str] | None = None) -> tuple[SlotAdamW, Tensor]:
    optimizer = SlotAdamW(slots, PARAMETERS, torch.device("cpu"))
    for slot in range(slots):
        optimizer.start(slot, (kinds or [FULL] * slots)[slot])
    return optimizer, torch.randn(slots, PARAMETERS, generator=torch.Generator().manual_seed(0))


def gradient(step: int, slots: int) -> Tensor:
    return 3 * torch.randn(slots, PARAMETERS, generator=torch.Generator().manual_seed(step + 1))


def test_every_slot_matches_torchs_adamw_with_its_own_hyperparameters() -> None:
    lr, decay, clip = [1e-2, 3e-3, 1e-1], [0.0, 0.1, 0.01], [1.0, float("inf"), 5.0]
    optimizer, weights = start(3)
    theirs = [torch.nn.Parameter(row.clone()) for row in weights]
    their_optimizers = [
        torch.optim.AdamW([p], lr=lr[at], weight_decay=decay[at], foreach=False)
        for at, p in enumerate(theirs)
    ]
    for step in range(20):
        grads = gradient(step, 3)
        outcome = optimizer.update(weights, grads.clone(), hyperparameters(lr=lr, decay=decay, clip=clip))
        for slot, (parameter, their_optimizer) in enumerate(zip(theirs, their_optimizers, strict=True)):
            parameter.grad = grads[slot].clone()
            norm = torch.nn.utils.clip_grad_norm_([parameter], clip[slot])
            their_optimizer.step()
            assert outcome.grad_norm[slot].item() == pytest.approx(norm.item(), rel=1e-6)
            assert (weights[slot] - parameter).abs().max() <= 1e-6 * parameter.abs().max()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [FULL, EIGHT_BIT])
def test_a_gradient_that_is_not_finite_skips_its_slot_and_does_not_affect_others(
    bad: float, kind: str
) -> None:
    same = {"lr": [1e-2, 1e-2], "decay": [0.1, 0.1], "clip": [1.0, 1.0]}
    optimizer, weights = start(2, [kind, FULL])
    other, other_weights = start(2, [kind, FULL])
    for step in range(6):
        grads = gradient(step, 2)
        other_grads = grads.clone()
        if step == 3:
            grads[0, 7] = bad
        before, state = weights.clone(), optimizer.state(0)
        outcome = optimizer.update(weights, grads, hyperparameters(**same))
        assert outcome.applied.tolist() == [step != 3, True]
        if step == 3:
            assert torch.equal(weights[0], before[0])
            assert torch.equal(optimizer.state(0).first, state.first)
            assert torch.equal(optimizer.state(0).second, state.second)
            assert optimizer.state(0).updates == state.updates == 3
        other.update(other_weights, other_grads, hyperparameters(**same))
        assert torch.equal(weights[1], other_weights[1])
    assert torch.isfinite(weights).all()


def test_an_inactive_slot_does_not_change() -> None:
    optimizer, weights = start(2)
    before = weights.clone()
    outcome = optimizer.update(
        weights, gradient(0, 2), hyperparameters(lr=[1.0, 1.0], decay=[0.1, 0.1], clip=[1, 1], active=[1, 0])
    )
    assert outcome.applied.tolist() == [True, False]
    assert not torch.equal(weights[0], before[0])
    assert torch.equal(weights[1], before[1])


def test_a_slot_that_joins_late_starts_at_its_first_step() -> None:
    optimizer, weights = start(2)
    both = {"lr": [1e-2, 1e-2], "decay": [0, 0], "clip": [1, 1]}
    for step in range(3):
        optimizer.update(weights, gradient(step, 2), hyperparameters(**both))
    weights[1] = 0.5
    optimizer.start(1, FULL)
    fresh, fresh_weights = start(1)
    fresh_weights[0] = 0.5
    for step in range(3):
        grads = gradient(step, 2)
        optimizer.update(weights, grads.clone(), hyperparameters(**both))
        fresh.update(fresh_weights, grads[1:].clone(), hyperparameters(lr=[1e-2], decay=[0], clip=[1]))
    assert torch.allclose(weights[1], fresh_weights[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [FULL, EIGHT_BIT])
def test_continuing_from_a_state_gives_the_same_weights(kind: str) -> None:
    optimizer, weights = start(1, [kind])
    same = hyperparameters(lr=[1e-2], decay=[0.1], clip=[1.0])
    for step in range(3):
        optimizer.update(weights, gradient(step, 1), same)
    other, _ = start(1, [kind])
    other.start(0, kind, optimizer.state(0))
    copy = weights.clone()
    for step in range(3, 6):
        optimizer.update(weights, gradient(step, 1), same)
        other.update(copy, gradient(step, 1), same)
    assert torch.equal(weights, copy)


def test_eight_bit_moments_end_near_full_ones() -> None:
    optimizer, weights = start(2, [FULL, EIGHT_BIT])
    weights[1] = weights[0]
    begin = weights[0].clone()
    for step in range(30):
        grads = gradient(step, 1).expand(2, -1).clone()
        optimizer.update(weights, grads, hyperparameters(lr=[1e-2] * 2, decay=[0.0] * 2, clip=[1.0] * 2))
    moved = (weights[0] - begin).norm()
    assert not torch.equal(weights[0], weights[1])
    assert (weights[1] - weights[0]).norm() < 0.1 * moved
