"""A frozen causal language model that gives the log-probs of packed completions."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from kto_sweep.models.architecture import Recompute
from kto_sweep.train.packed import attention, fused
from kto_sweep.train.packed.head import Head, target_log_probs
from kto_sweep.train.packed.kernels import is_4bit
from kto_sweep.train.packed.pack import Pack


class Decoder:
    """`model`, frozen and without dropout, with packed attention; `packed_decoder` checks it first."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.head = Head.of(model)
        self.forwards = 0
        """Forward passes so far."""
        # Without the output layer: the whole model's forward would give logits for every token, prompts too.
        self._body: Any = model.base_model
        self._original_attention = model.config._attn_implementation
        freeze(model)
        model.set_attn_implementation(attention.NAME)
        fused.install(model)

    def release(self) -> None:
        """Give the model its original attention and forwards back; it stays frozen."""
        self.set_recompute(Recompute.NOTHING)
        fused.remove(self.model)
        self.model.set_attn_implementation(self._original_attention)

    @property
    def device(self) -> torch.device:
        """The device that holds the model."""
        return self.model.device

    def log_probs(self, pack: Pack, examples: int) -> Tensor:
        """Each example's sum of its targets' log-probs, nats: float64 (examples,); 0 for those not in `pack`.

        Float64, because log-ratios are small differences of sums over hundreds of tokens.
        """
        self.forwards += 1
        hidden = self._body(
            input_ids=pack.ids[None],  # (1, tokens): one row, so no padding
            # Positions inside each sequence: by default the model would number the whole row.
            position_ids=pack.positions[None],
            # transformers' cache would keep every layer's keys; `packing` keeps those that are used again.
            use_cache=False,
            packing=pack.attention,  # transformers passes it to each layer's attention
        ).last_hidden_state[0]  # (tokens, hidden)
        # Only states that predict a target reach the output layer: its cost grows with the vocabulary.
        by_token = target_log_probs(hidden.index_select(0, pack.predicting), self.head, pack.targets)
        sums = torch.zeros(examples, dtype=torch.float64, device=by_token.device)
        return sums.index_add(0, pack.examples, by_token.double())

    @property
    def recompute_levels(self) -> list[Recompute]:
        """What this model's backward passes can compute again, from nothing to most."""
        fused_layers = any(fused.fused_layers(self.model))
        return list(Recompute) if fused_layers else [Recompute.NOTHING, Recompute.LAYER]

    def set_recompute(self, level: Recompute) -> None:
        """What backward passes compute again instead of keeping it."""
        for fused_layer in fused.fused_layers(self.model):
            fused_layer.recompute = level
        others = (layer for layer in self.model.modules() if isinstance(layer, GradientCheckpointingLayer))
        for layer in others:
            if isinstance(layer.__dict__.get("forward"), fused.Layer):
                continue
            layer.gradient_checkpointing = level is Recompute.LAYER
            # Nothing random happens in a forward: no generator state is kept for the second one. Not
            # reentrant: that needs an input with a gradient, and the first layer's, from the frozen
            # embedding, has none.
            layer._gradient_checkpointing_func = partial(  # type: ignore[assignment]
                checkpoint, use_reentrant=False, preserve_rng_state=False
            )
            # Layers are checkpointed in training mode only; what is in them stays in eval mode.
            layer.training = level is Recompute.LAYER


def freeze(model: PreTrainedModel) -> None:
    """No gradients for the model's own weights, no dropout in it."""
    model.requires_grad_(False)
    model.train(False)
    for module in model.modules():
        if is_4bit(module):
            # On a CPU, bitsandbytes turns a layer in eval mode into a format that has no backward.
            module.training = True
