"""The KTO and APO-zero-unpaired losses, from log-ratios. Pure: tensors in, tensors out.

With r = log pi(y|x) - log pi_ref(y|x), summed over the completion's tokens, and the reference point z0 >= 0:

    desirable    lambda_D * (1 - sigmoid(beta * (r - z0)))  =  lambda_D * sigmoid(beta * (z0 - r))
    undesirable  lambda_U * (1 - sigmoid(beta * (z0 - r)))  =  lambda_U * sigmoid(beta * (r - z0))

KTO: arXiv 2402.01306, equations 7 and 8; z0 is the batch's estimate of KL(pi || pi_ref).
APO-zero-unpaired: arXiv 2408.06266, section 3; the same two lines with z0 = 0.
"""

import torch
from torch import Tensor

KTO = "kto"
APO_ZERO_UNPAIRED = "apo_zero_unpaired"
LOSS_TYPES = (KTO, APO_ZERO_UNPAIRED)


def needs_reference_point(loss_type: str) -> bool:
    """Whether the loss has a z0, and so needs the log-probs of mismatched completions."""
    return loss_type == KTO


def reference_point(mean_mismatched_log_ratio: Tensor) -> Tensor:
    """z0 from the mean log-ratio of the mismatched pairs of one whole batch; no gradient.

    A KL divergence is never negative, its estimate can be: hence the clamp.

    >>> reference_point(torch.tensor([-3.0, 0.5])).tolist()
    [0.0, 0.5]
    """
    return mean_mismatched_log_ratio.detach().clamp(min=0)


def losses(log_ratios: Tensor, desirable: Tensor, z0: Tensor, beta: Tensor, weights: Tensor) -> Tensor:
    """One loss per example; all arguments are of shape (examples,) or broadcast to it.

    `desirable` is boolean, `weights` holds lambda_D or lambda_U, whichever belongs to the example.

    r = 2, z0 = 1, beta = 0.5, weight 1:
    desirable 1 - sigmoid(0.5) = 0.377541, undesirable 1 - sigmoid(-0.5) = 0.622459.

    >>> r, z0, beta, one = (torch.tensor([x]) for x in (2.0, 1.0, 0.5, 1.0))
    >>> round(losses(r, torch.tensor([True]), z0, beta, one).item(), 6)
    0.377541
    >>> round(losses(r, torch.tensor([False]), z0, beta, one).item(), 6)
    0.622459
    """
    above = beta * (log_ratios - z0)
    return weights * torch.sigmoid(torch.where(desirable, -above, above))
