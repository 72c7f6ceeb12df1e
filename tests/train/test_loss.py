import pytest
import torch

from kto_sweep.train.loss import losses, reference_point


def test_a_worked_example_with_weights() -> None:
    """r = 3, z0 = 1, beta = 0.5: beta (r - z0) = 1.

    desirable, weight 2: 2 (1 - sigmoid(1)) = 2 * 0.268941 = 0.537883
    undesirable, weight 4: 4 (1 - sigmoid(-1)) = 4 * 0.731059 = 2.924234
    """
    r, z0, beta = (torch.full((2,), value, dtype=torch.float64) for value in (3.0, 1.0, 0.5))
    values = losses(r, torch.tensor([True, False]), z0, beta, torch.tensor([2.0, 4.0]))
    assert values.tolist() == pytest.approx([0.537883, 2.924234], abs=1e-6)


def test_apo_zero_unpaired_is_the_loss_at_z0_zero() -> None:
    """r = 2, beta = 1: desirable 1 - sigmoid(2) = 0.119203, undesirable sigmoid(2) = 0.880797."""
    r, one = torch.full((2,), 2.0), torch.ones(2)
    values = losses(r, torch.tensor([True, False]), torch.zeros(2), one, one)
    assert values.tolist() == pytest.approx([0.119203, 0.880797], abs=1e-6)


def test_untrained_loss_is_half_the_weight() -> None:
    zero = torch.zeros(2)
    values = losses(zero, torch.tensor([True, False]), zero, torch.tensor(0.1), torch.tensor([1.5, 0.5]))
    assert values.tolist() == [0.75, 0.25]


def test_gradient_pulls_desirable_up_and_undesirable_down() -> None:
    r = torch.zeros(2, requires_grad=True)
    losses(r, torch.tensor([True, False]), torch.zeros(2), torch.tensor(0.4), torch.ones(2)).sum().backward()
    assert r.grad is not None
    assert r.grad.tolist() == pytest.approx([-0.1, 0.1])  # beta / 4


def test_reference_point_carries_no_gradient() -> None:
    mean = torch.tensor([0.5], requires_grad=True)
    assert not reference_point(mean).requires_grad


def test_extreme_log_ratios_stay_finite() -> None:
    r = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    values = losses(
        r, torch.tensor([True, True, False, False]), torch.zeros(4), torch.tensor(1.0), torch.ones(4)
    )
    assert values.tolist() == [0, 1, 1, 0]
    values.sum().backward()
    assert r.grad is not None
    assert torch.isfinite(r.grad).all()
