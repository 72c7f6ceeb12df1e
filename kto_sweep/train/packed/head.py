"""Log-probs of target tokens from hidden states, in chunks: never all (tokens, vocabulary) logits at once."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from kto_sweep.train.packed import kernels

CHUNK_BYTES = 2**29
"""Bytes of one chunk's float32 logits."""


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
        # From the configuration, since the model's forward would compute all logits. compatibility.py
        # compares log-probs, which catches a model that uses another name for its factor.
        config: Any = model.config.get_text_config()
        factor = float(getattr(config, "logit_scale", None) or 1.0)
        factor /= float(getattr(config, "logits_scaling", None) or 1.0)
        output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        return cls(output, factor, getattr(config, "final_logit_softcapping", None))

    def is_plain(self, hidden: Tensor) -> bool:
        """Whether one kernel turns the output layer's logits into log-probs and their gradient."""
        plain = type(self.output) is nn.Linear and self.factor == 1.0 and not self.softcap
        return plain and kernels.triton_module(hidden) is not None

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 (n, vocabulary) from (n, hidden)."""
        logits: Tensor = self.output(hidden)
        if self.factor != 1.0:
            logits = logits * self.factor
        if self.softcap:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        # Last, since the model applies factor and cap in its own precision. From here on float32: log-probs
        # in bfloat16 have two or three digits, and KTO's log-ratios are small differences of them.
        return logits.float()


def target_log_probs(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """log softmax(logits)[target] in nats: float32 (n,) from hidden states (n, hidden) and ids (n,)."""
    # Decided here: inside a Function's forward gradients are always off.
    wants_grad = torch.is_grad_enabled() and hidden.requires_grad
    out: Tensor = _TargetLogProbs.apply(hidden, head, targets, wants_grad)  # type: ignore[no-untyped-call]
    return out


class _TargetLogProbs(torch.autograd.Function):
    """Takes the gradient of each log-prob in the forward, while its chunk's logits exist.

    The backward only multiplies it by a number, so two passes over the output layer do what recomputing the
    logits would need three for.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, targets: Tensor, wants_grad: bool) -> Tensor:
        """Float32 (n,) from (n, hidden) and (n,)."""
        log_probs, grads = [], []
        plain = head.is_plain(hidden)
        for states, ids in _chunks(hidden, targets, head):
            if plain:
                logits = head.output(states)  # the kernel widens each as it reads it: no float32 copy
                chunk_log_probs = kernels.target_log_probs(logits, ids, wants_grad=wants_grad)
                log_probs.append(chunk_log_probs)
                if wants_grad:
                    # `logits` now holds d log-prob / d logits; a product takes it to the hidden states.
                    grads.append(logits @ head.output.weight)
                continue
            if not wants_grad:
                log_probs.append(-F.cross_entropy(head.logits(states), ids, reduction="none"))
                continue
            # One graph per chunk, from a separate leaf: its logits are freed before the next chunk's exist.
            with torch.enable_grad():
                leaf = states.detach().requires_grad_()
                chunk = -F.cross_entropy(head.logits(leaf), ids, reduction="none")
                # A log-prob depends on its own hidden state alone, so the sum's gradient holds each one's.
                grads.append(torch.autograd.grad(chunk.sum(), leaf)[0])
            log_probs.append(chunk.detach())
        if wants_grad:
            ctx.save_for_backward(torch.cat(grads))  # (n, hidden): small beside the logits
        return torch.cat(log_probs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Gradient of the hidden states, (n, hidden), from one of the log-probs, (n,)."""
        (slopes,) = ctx.saved_tensors
        return slopes * grads[0][:, None].to(slopes.dtype), None, None, None


def _chunks(hidden: Tensor, targets: Tensor, head: Head) -> list[tuple[Tensor, Tensor]]:
    """Pieces of (n, hidden) and (n,) whose float32 logits take CHUNK_BYTES at most."""
    # 2^18, about the largest vocabulary today, for output layers that do not say theirs.
    vocabulary = int(getattr(head.output, "out_features", 0)) or 2**18
    # At least 16 rows: each chunk reads all of the output layer's weights.
    size = max(16, CHUNK_BYTES // (4 * vocabulary))
    starts = range(0, hidden.shape[0], size)
    return [(hidden[at : at + size], targets[at : at + size]) for at in starts]
