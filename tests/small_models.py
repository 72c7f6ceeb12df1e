"""Random models of many kinds with 2 layers or fewer, saved with a tokenizer as a user would have them."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from kto_sweep.models.tiny import Recipe, make_tokenizer

POSITIONS = 64
VOCABULARY = 400
_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": POSITIONS,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
_QWEN_VISION = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 32}
_QWEN_TEXT = {
    **_TEXT,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
}

TEXT_MODELS: Mapping[str, dict[str, Any]] = {
    "llama": _TEXT,
    "gpt2": {
        "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS,
        "bos_token_id": 1, "eos_token_id": 1,
    },
    "mamba": {
        "vocab_size": VOCABULARY, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 1,
        "bos_token_id": 1, "eos_token_id": 1,
    },
}  # fmt: skip
VISION_LANGUAGE_MODELS: Mapping[str, dict[str, Any]] = {
    "mistral3": {
        "text_config": {**_TEXT, "model_type": "mistral"},
        "vision_config": {**_VISION, "model_type": "pixtral"},
        "image_token_index": 5,
    },
    "qwen2_vl": {"text_config": _QWEN_TEXT, "vision_config": {**_QWEN_VISION, "embed_dim": 32}},
    "qwen2_5_vl": {"text_config": _QWEN_TEXT, "vision_config": _QWEN_VISION},
    "qwen3_vl": {
        "text_config": _QWEN_TEXT,
        "vision_config": {**_QWEN_VISION, "deepstack_visual_indexes": [0]},
    },
    "gemma3": {
        "text_config": {**_TEXT, "sliding_window": 8},
        "vision_config": _VISION,
        "mm_tokens_per_image": 4,
    },
    "llava": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": {**_VISION, "model_type": "clip_vision_model"},
        "image_token_index": 5,
    },
}


@cache
def _core() -> PreTrainedTokenizerFast:
    return make_tokenizer(Recipe(vocabulary=VOCABULARY, tokenizer_texts=50))


def small_tokenizer(*added: str) -> PreTrainedTokenizerFast:
    """A tokenizer with VOCABULARY tokens, and then the `added` ones."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_core().backend_tokenizer, pad_token="<|pad|>", eos_token="<|end|>"
    )
    tokenizer.chat_template = _core().chat_template
    tokenizer.add_tokens(list(added), special_tokens=True)
    return tokenizer


def small_model(kind: str, **changes: Any) -> PreTrainedModel:
    """A random model of a `model_type`, float32 on the CPU."""
    torch.manual_seed(0)
    vision = VISION_LANGUAGE_MODELS.get(kind)
    loader = AutoModelForCausalLM if vision is None else AutoModelForImageTextToText
    model: PreTrainedModel = loader.from_config(
        CONFIG_MAPPING[kind](**{**(vision or TEXT_MODELS[kind]), **changes}), dtype=torch.float32
    )
    return model


def save(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """The folder, with model and tokenizer."""
    model.save_pretrained(folder)
    (tokenizer or small_tokenizer()).save_pretrained(folder)
    return folder
