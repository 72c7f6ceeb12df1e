"""Log-probs of target tokens from hidden states, in chunks: never all (tokens, vocabulary) logits at once."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from kto_sweep.train.packed import kernels

CHUNK_BYTES = 2**29
"""Float32 logits of one chunk."""


@dataclass(frozen=True)
class Head:
    """From hidden states to logits, as the model's own forward does it."""

    output: nn.Module
    """The output layer, (n, hidden) -> (n, vocabulary), with its bias where it has one."""
    factor: float = 1.0
    """What logits are multiplied by (Cohere's logit_scale, 1 / Granite's logits_scaling)."""
    softcap: float | None = None
    """Logits l become softcap * tanh(l / softcap) (Gemma 2, arXiv 2408.00118, 2.2)."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Head":
        """The head of a transformers causal language model."""
        config: Any = model.config.get_text_config()
        factor = float(getattr(config, "logit_scale", None) or 1.0)
        factor /= float(getattr(config, "logits_scaling", None) or 1.0)
        output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        return cls(output, factor, getattr(config, "final_logit_softcapping", None))

    def is_plain(self, hidden: Tensor) -> bool:
        """Whether one kernel gives log-probs and their gradient from what the output layer gives."""
        plain = type(self.output) is nn.Linear and self.factor == 1.0 and not self.softcap
        return plain and kernels.compiled(hidden) is not None

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 (n, vocabulary)."""
        logits: Tensor = self.output(hidden)
        if self.factor != 1.0:
            logits = logits * self.factor
        if self.softcap:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits.float()


def target_log_probs(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """log softmax(logits)[target] for each hidden state: float32 (n,) from (n, hidden) and (n,)."""
    wants_grad = torch.is_grad_enabled() and hidden.requires_grad
    out: Tensor = _TargetLogProbs.apply(hidden, head, targets, wants_grad)  # type: ignore[no-untyped-call]
    return out


class _TargetLogProbs(torch.autograd.Function):
    """The gradient of each log-prob is taken in the forward, while its chunk's logits exist.

    A log-prob's gradient only has to be multiplied by a number in the backward, so that two passes over the
    output layer do what recomputing the logits would need three for.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, targets: Tensor, wants_grad: bool) -> Tensor:
        log_probs, grads = [], []
        plain = head.is_plain(hidden)
        for states, ids in _chunks(hidden, targets, head):
            if plain:
                logits = head.output(states)
                fast = kernels.target_log_probs(logits, ids, wants_grad=wants_grad)
                log_probs.append(fast)
                if wants_grad:
                    grads.append(logits @ head.output.weight)
                continue
            if not wants_grad:
                log_probs.append(-F.cross_entropy(head.logits(states), ids, reduction="none"))
                continue
            with torch.enable_grad():
                leaf = states.detach().requires_grad_()
                chunk = -F.cross_entropy(head.logits(leaf), ids, reduction="none")
                grads.append(torch.autograd.grad(chunk.sum(), leaf)[0])
            log_probs.append(chunk.detach())
        if wants_grad:
            ctx.save_for_backward(torch.cat(grads))
        return torch.cat(log_probs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * grads[0][:, None].to(slopes.dtype), None, None, None


def _chunks(hidden: Tensor, targets: Tensor, head: Head) -> list[tuple[Tensor, Tensor]]:
    vocabulary = int(getattr(head.output, "out_features", 0)) or 2**18
    size = max(16, CHUNK_BYTES // (4 * vocabulary))
    starts = range(0, hidden.shape[0], size)
    return [(hidden[at : at + size], targets[at : at + size]) for at in starts]
