"""Base models by `model_size`, with their default quantization."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Quantization = Literal["none", "4bit", "8bit", "fp8", "4bit-fp8"]
"""Precision of the base weights."""
IN_FP8 = frozenset({"fp8", "4bit-fp8"})
"""Those whose products are in FP8."""


@dataclass(frozen=True)
class Preset:
    """One value of `model_size`."""

    name: str
    model: str
    """Hub id; `tiny` is generated locally from a seed."""
    quantization: Quantization
    """Chosen so that LoRA fits on a 24 GB GPU."""
    positions: int
    """Tokens that the model can hold."""
    doc: str
    lora_r: int = 16
    """LoRA rank of `kto-sweep train`; in a sweep the default is 16."""
    max_length: int = 2048
    """max_length of `kto-sweep train`; in a sweep the default is 2048."""
    published_in: str = ""
    """Format of its weights if they are published quantized; training unpacks them."""


_TABLE = (
    Preset("tiny", "tiny", "none", 4096, "a toy model made locally from a seed: for demos and tests", 8, 512),
    Preset("135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "none", 8192, "trains on a CPU"),
    Preset("360m", "HuggingFaceTB/SmolLM2-360M-Instruct", "none", 8192, "trains on a CPU, slowly"),
    Preset("0.5b", "Qwen/Qwen2.5-0.5B-Instruct", "none", 32768, "the smallest with a long context"),
    Preset("1.5b", "Qwen/Qwen2.5-1.5B-Instruct", "none", 32768, "a quick search on one GPU"),
    Preset("3b", "Qwen/Qwen2.5-3B-Instruct", "none", 32768, "6 GB of weights in bf16", 32),
    Preset("7b", "Qwen/Qwen2.5-7B-Instruct", "4bit", 32768, "6 GB of weights in 4 bit, 15 GB in bf16", 32),
    Preset("8b", "meta-llama/Llama-3.1-8B-Instruct", "4bit", 131072, "gated: needs HF_TOKEN", 32),
    Preset("13b", "meta-llama/Llama-2-13b-chat-hf", "4bit", 4096, "gated: needs HF_TOKEN", 32, 1024),
    Preset("14b", "Qwen/Qwen2.5-14B-Instruct", "4bit", 32768, "10 GB of weights in 4 bit", 32, 1024),
    Preset(
        "20b",
        "openai/gpt-oss-20b",
        "none",
        131072,
        "mixture of experts, published in 4 bit (MXFP4)",
        16,
        1024,
        "mxfp4",
    ),
)

PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in _TABLE}


def names_a_path(model: str) -> bool:
    """Whether a model's name can only be a path, not a hub id."""
    return model.startswith((".", "/", "~")) or model.endswith(".gguf") or model.count("/") > 1
