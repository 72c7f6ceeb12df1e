"""The sizes of a base model that determine memory and time, read from its config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from kto_sweep.models.model_config import find_config, text_part
from kto_sweep.models.presets import PRESETS

FUSED_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""The `model_type`s whose layers train/packed/fused.py rewrites."""

TIED_BY_DEFAULT = ("gemma", "cohere")
"""`model_type`s that tie output layer and embedding unless config.json says otherwise."""


class Recompute(IntEnum):
    """What the backward computes again instead of keeping it; each saves more memory and takes more time."""

    NOTHING = 0
    MLP = 1
    """Gate and up, the widest tensors of a layer: two products of seven."""
    LAYER = 2
    """All of a layer: only its input is kept."""


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder with attention and a gated MLP in each layer."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """The output layer is the embedding."""
    fused: bool = True
    """train/packed/fused.py rewrites its layers."""
    head_norms: bool = False
    """q and k have norms of each head before their rotary positions."""
    plain_head: bool = True
    """Whether logits are neither capped nor scaled."""
    experts: int = 1
    """MLPs per layer."""
    active_experts: int = 1
    """Experts per token."""

    @property
    def queries(self) -> int:
        """Number of query features of all heads."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Number of key features of all heads, equal to that of value features."""
        return self.key_value_heads * self.head_dim

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """(in, out) features of one block's linear layers, by the last part of their names."""
        h, i = self.hidden, self.intermediate
        return {
            "q_proj": (h, self.queries),
            "k_proj": (h, self.keys),
            "v_proj": (h, self.keys),
            "o_proj": (self.queries, h),
            "gate_proj": (h, i),
            "up_proj": (h, i),
            "down_proj": (i, h),
        }

    @property
    def linear_weights(self) -> int:
        """Number of weights in the linear layers, without the output layer."""
        attention = 2 * self.hidden * (self.queries + self.keys)
        mlp = 3 * self.hidden * self.intermediate * self.experts
        return self.layers * (attention + mlp)

    @property
    def used_weights(self) -> int:
        """Number of linear weights used per token."""
        attention = 2 * self.hidden * (self.queries + self.keys)
        mlp = 3 * self.hidden * self.intermediate * self.active_experts
        return self.layers * (attention + mlp)

    @property
    def other_weights(self) -> int:
        """Number of weights in embedding, output layer and norms, which are not quantised."""
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return tables + (2 * self.layers + 1) * self.hidden

    @property
    def weights(self) -> int:
        """Total number of weights."""
        return self.linear_weights + self.other_weights

    @property
    def key(self) -> str:
        """A key that is equal for models of equal sizes, used for measured rates."""
        sizes = (self.layers, self.hidden, self.intermediate, self.heads, self.key_value_heads, self.head_dim)
        experts = f"e{self.experts}/{self.active_experts}" if self.experts > 1 else ""
        return f"{'x'.join(map(str, sizes))}v{self.vocabulary}{experts}"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Architecture":
        """The architecture in a config.json. Raises KeyError if it names the sizes differently."""
        sizes = text_part(config)
        heads = int(sizes["num_attention_heads"])
        hidden = int(sizes["hidden_size"])
        experts = sizes.get("num_local_experts") or sizes.get("num_experts") or 1
        family = str(sizes.get("model_type", ""))
        scaled = (
            sizes.get("logit_scale") or sizes.get("logits_scaling") or sizes.get("final_logit_softcapping")
        )
        silu = sizes.get("hidden_act", "silu") == "silu"
        expert_size = sizes.get("moe_intermediate_size") if experts > 1 else None
        return cls(
            hidden=hidden,
            intermediate=int(expert_size or sizes["intermediate_size"]),
            layers=int(sizes["num_hidden_layers"]),
            heads=heads,
            key_value_heads=int(sizes.get("num_key_value_heads") or heads),
            head_dim=int(sizes.get("head_dim") or hidden // heads),
            vocabulary=int(sizes["vocab_size"]),
            tied=bool(sizes.get("tie_word_embeddings", family.startswith(TIED_BY_DEFAULT))),
            fused=family in FUSED_FAMILIES and silu and experts == 1,
            head_norms=family == "qwen3",
            plain_head=not scaled,
            experts=int(experts),
            active_experts=int(sizes.get("num_experts_per_tok") or 1) if experts > 1 else 1,
        )


# Sizes of the presets, from their published config.json, so that plans work offline.
_PRESETS = {
    "tiny": Architecture(96, 288, 2, 4, 2, 24, 1200, tied=True),
    "135m": Architecture(576, 1536, 30, 9, 3, 64, 49152, tied=True),
    "360m": Architecture(960, 2560, 32, 15, 5, 64, 49152, tied=True),
    "0.5b": Architecture(896, 4864, 24, 14, 2, 64, 151936, tied=True),
    "1.5b": Architecture(1536, 8960, 28, 12, 2, 128, 151936, tied=True),
    "3b": Architecture(2048, 11008, 36, 16, 2, 128, 151936, tied=True),
    "7b": Architecture(3584, 18944, 28, 28, 4, 128, 152064, tied=False),
    "8b": Architecture(4096, 14336, 32, 32, 8, 128, 128256, tied=False),
    "13b": Architecture(5120, 13824, 40, 40, 40, 128, 32000, tied=False),
    "14b": Architecture(5120, 13824, 48, 40, 8, 128, 152064, tied=False),
    "20b": Architecture(
        2880, 2880, 24, 64, 8, 64, 201088, tied=False, fused=False, experts=32, active_experts=4
    ),
}

BY_MODEL = {PRESETS[name].model: sizes for name, sizes in _PRESETS.items()}
"""The presets' architectures by model name."""


def find_architecture(model: str) -> Architecture | None:
    """The architecture of `model`: a preset, a folder, a .gguf file or a hub id.

    None if the hub cannot be reached or the configuration has an unknown form.
    Raises UsageError for a folder or file that is not a model.
    """
    preset = BY_MODEL.get(model)
    if preset is not None:
        return preset
    try:
        return Architecture.from_config(find_config(model))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
