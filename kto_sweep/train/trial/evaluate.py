"""All `eval/*` metrics, from one number per row: r = log pi(y|x) - log pi_ref(y|x), in nats.

No metric is a mean of batch means, so the same weights give the same numbers for any batch size and order.
KTO: arXiv 2402.01306, equations 7 and 8. APO-zero, unpaired: arXiv 2408.06266.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kto_sweep.data.auc import auc

COMMON_BETA = 0.1
"""beta of `eval/common_loss`: the same for all trials, so that trials with different betas are comparable."""

LossType = Literal["kto", "apo_zero_unpaired"]
Floats = NDArray[np.float64]


def evaluate(
    rewards: ArrayLike,
    kl_terms: ArrayLike,
    labels: ArrayLike,
    *,
    beta: float,
    weights: tuple[float, float],
    loss_type: LossType,
) -> dict[str, float]:
    """All `eval/*` metrics of a held-out set; those that need both labels are left out when one is missing.

    `rewards`: r of each row, in nats, without beta. `kl_terms`: the same for the row's prompt with another
    prompt's completion. `labels`: true for desirable. `weights`: (lambda_D, lambda_U) of the trial.

    Untrained, r is 0 everywhere: the loss is half the mean weight, and nothing tells the labels apart.

    >>> start = evaluate([0, 0], [0, 0], [True, False], beta=0.3, weights=(2, 1), loss_type="kto")
    >>> start["eval/common_loss"], start["eval/loss"], start["eval/auc"], start["eval/margins"]
    (0.5, 0.75, 0.5, 0.0)
    """
    r = np.asarray(rewards, dtype=np.float64)  # (rows,)
    desirable = np.asarray(labels, dtype=bool)
    kl_raw = float(np.mean(np.asarray(kl_terms, dtype=np.float64)))
    # z0 of all rows at once: the estimate then does not depend on a batch size.
    z0 = float(np.maximum(kl_raw, 0.0))  # not max(): it would hide a NaN
    own = kto_losses(r, z0, desirable, beta=beta, loss_type=loss_type)
    metrics = {
        "eval/common_loss": common_loss(r, z0, desirable),
        "eval/loss": float(np.mean(np.where(desirable, weights[0], weights[1]) * own)),
        "eval/kl": z0,
        "eval/kl_raw": kl_raw,
    }
    # Metrics that need a label which is missing are left out: a made-up value would rank.
    chosen, rejected = r[desirable], r[~desirable]
    if chosen.size:
        metrics["eval/desirable_below_ref"] = float(np.mean(chosen < 0))
    if chosen.size and rejected.size:
        metrics["eval/auc"] = auc(chosen, rejected)
        # With the trial's own beta, as rewards are defined; common_loss is what compares trials.
        metrics["eval/margins"] = beta * float(chosen.mean() - rejected.mean())
        metrics["eval/dprime"] = dprime(chosen, rejected)
    return metrics


def kto_losses(
    r: Floats, z0: float, desirable: NDArray[np.bool_], *, beta: float, loss_type: LossType
) -> Floats:
    """The loss of each row, without its weight.

    kto: 1 - sigmoid(beta (r - z0)) where desirable, 1 - sigmoid(beta (z0 - r)) elsewhere.
    apo_zero_unpaired: the same with z0 = 0.

    With beta = 1, r = ln 3 and z0 = 0: sigmoid(ln 3) = 3/4, so 1/4 if desirable and 3/4 if not; z0 = ln 3
    brings both back to 1/2.

    >>> r, labels = np.log([3.0, 3.0]), np.array([True, False])
    >>> kto_losses(r, 0.0, labels, beta=1, loss_type="kto").round(6).tolist()
    [0.25, 0.75]
    >>> kto_losses(r, np.log(3), labels, beta=1, loss_type="kto").round(6).tolist()
    [0.5, 0.5]
    >>> kto_losses(r, np.log(3), labels, beta=1, loss_type="apo_zero_unpaired").round(6).tolist()
    [0.25, 0.75]
    """
    reference = z0 if loss_type == "kto" else 0.0
    gain = np.where(desirable, 1.0, -1.0) * beta * (r - reference)
    return 0.5 * (1.0 - np.tanh(gain / 2.0))  # 1 - sigmoid(gain), without overflow


def common_loss(r: Floats, z0: float, desirable: NDArray[np.bool_]) -> float:
    """The KTO loss at beta 0.1 and rho 1 (both labels count the same): the yardstick for all trials.

    In [0, 1], 0.5 untrained, less is better. With r = +-10 ln 3 on the right sides and z0 = 0, beta r is
    +-ln 3 and every row's loss is 1/4, however many rows each label has:

    >>> round(common_loss(10 * np.log([3, 3, 3, 1 / 3]), 0.0, np.array([True, True, True, False])), 6)
    0.25
    """
    losses = kto_losses(r, z0, desirable, beta=COMMON_BETA, loss_type="kto")
    sides = [losses[desirable], losses[~desirable]]
    return float(np.mean([side.mean() for side in sides if side.size]))


def dprime(chosen: Floats, rejected: Floats) -> float:
    """(mean - mean) / sqrt((variance + variance) / 2): how far apart the labels are, in standard deviations.

    0 when all rows are alike, as before training; infinite when only the labels differ.

    >>> dprime(np.array([3.0, 5.0]), np.array([1.0, 3.0]))
    2.0
    """
    difference = float(chosen.mean() - rejected.mean())
    spread = float(np.sqrt((chosen.var() + rejected.var()) / 2.0))
    if spread == 0.0:
        return 0.0 if difference == 0.0 else float(np.copysign(np.inf, difference))
    return difference / spread
