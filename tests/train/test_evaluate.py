import math
from typing import Any

import numpy as np
import pytest

from kto_sweep.metrics import METRICS
from kto_sweep.train.trial.evaluate import evaluate


def run(rewards: Any, kl_terms: Any, labels: Any, **more: Any) -> dict[str, float]:
    return evaluate(
        rewards, kl_terms, labels, **{"beta": 0.1, "weights": (1.0, 1.0), "loss_type": "kto", **more}
    )


def test_every_eval_metric_of_the_table_is_computed() -> None:
    metrics = run([1.0, -1.0], [0.0, 0.0], [True, False])
    assert set(metrics) == {name for name in METRICS if name.startswith("eval/")}


def test_a_worked_example() -> None:
    # beta r = ln 3, -ln 3; z0 = 0 as the mean of the terms is negative.
    r = 10 * math.log(3)
    metrics = run([r, 3 * r, -r], [-1.0, 0.5, -1.0], [True, True, False], weights=(1.0, 2.0))
    sigmoid = 1 / (1 + 27.0)  # 1 - sigmoid(3 ln 3)
    assert metrics["eval/loss"] == pytest.approx((1 / 4 + sigmoid + 2 / 4) / 3)
    assert metrics["eval/common_loss"] == pytest.approx(((1 / 4 + sigmoid) / 2 + 1 / 4) / 2)
    assert metrics["eval/margins"] == pytest.approx(0.1 * (2 * r + r))
    assert metrics["eval/dprime"] == pytest.approx(3 * r / math.sqrt(r**2 / 2))
    assert metrics["eval/auc"] == 1.0
    assert metrics["eval/desirable_below_ref"] == 0.0
    assert metrics["eval/kl"] == 0.0
    assert metrics["eval/kl_raw"] == pytest.approx(-0.5)


def test_z0_enters_the_loss_of_kto_and_not_that_of_apo() -> None:
    """Two labels against one: with as many of each, what z0 adds to one side it takes from the other."""
    rewards, labels = [5, 5, 5], [True, True, False]
    low, high = run(rewards, [0, 0, 0], labels), run(rewards, [5, 5, 5], labels)
    apo = run(rewards, [5, 5, 5], labels, loss_type="apo_zero_unpaired")
    assert (low["eval/kl"], high["eval/kl"]) == (0.0, 5.0)
    assert high["eval/loss"] == 0.5
    gained = 1 / (1 + math.exp(0.1 * 5))  # the loss of a row that gained 5 nats: 1 - sigmoid(beta r)
    assert low["eval/loss"] == pytest.approx((2 * gained + (1 - gained)) / 3)
    assert apo["eval/loss"] == low["eval/loss"]


def test_common_loss_depends_on_neither_beta_nor_weights_nor_counts() -> None:
    rewards, kl_terms, labels = [4.0, 1.0, -3.0], [0.5, 0.1, 0.2], [True, True, False]
    base = run(rewards, kl_terms, labels)["eval/common_loss"]
    other = run(rewards, kl_terms, labels, beta=2.0, weights=(5.0, 0.5), loss_type="apo_zero_unpaired")
    assert other["eval/common_loss"] == base
    # Undesirable rows three times as often: each label still counts one half.
    more = run([*rewards, -3.0, -3.0], [*kl_terms, 0.25, 0.2833333333333333], [*labels, False, False])
    assert more["eval/common_loss"] == pytest.approx(base)


def test_a_diverged_trial_has_a_worse_common_loss_although_its_margin_is_larger() -> None:
    rng = np.random.default_rng(0)
    labels = [True] * 50 + [False] * 50
    good = run(np.concatenate([rng.normal(20, 5, 50), rng.normal(-20, 5, 50)]), rng.normal(1, 1, 100), labels)
    broken = run(
        np.concatenate([rng.normal(-217, 90, 50), rng.normal(-800, 90, 50)]), rng.normal(-500, 9, 100), labels
    )
    assert broken["eval/margins"] > good["eval/margins"]
    assert broken["eval/common_loss"] > good["eval/common_loss"] + 0.2


def test_order_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    rewards, kl_terms, labels = rng.normal(size=101), rng.normal(size=101), rng.random(101) < 0.4
    order = rng.permutation(101)
    shuffled = run(rewards[order], kl_terms[order], labels[order])
    assert shuffled == pytest.approx(run(rewards, kl_terms, labels), rel=1e-12)


def test_with_one_label_metrics_that_need_both_are_left_out() -> None:
    metrics = run([1.0, 2.0], [0.0, 0.0], [False, False])
    assert {"eval/auc", "eval/margins", "eval/dprime", "eval/desirable_below_ref"}.isdisjoint(metrics)
    assert all(math.isfinite(value) for value in metrics.values())


def test_nan_gives_nan_and_huge_rewards_do_not_overflow() -> None:
    broken = run([math.nan, 1.0], [0.0, math.nan], [True, False])
    for name in ("common_loss", "loss", "auc", "margins", "kl", "kl_raw"):
        assert math.isnan(broken[f"eval/{name}"])
    assert run([1e8, -1e8], [0, 0], [True, False])["eval/common_loss"] == 0.0
