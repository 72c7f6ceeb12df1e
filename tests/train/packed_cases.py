"""Tiny models, random rows, and a naive reference: one row at a time, with PEFT and TRL's formula."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from kto_sweep.data.rows import TokenRow
from kto_sweep.data.table import RowTable
from kto_sweep.train.packed.lora import AdapterSpec
from kto_sweep.train.packed.pack import PairedRow

torch.set_num_threads(1)

VOCABULARY = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXTRA_CONFIG: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 5},
    # Older versions of transformers choose sdpa, which leaves out its soft cap.
    "gemma2": {"sliding_window": 5, "attn_implementation": "eager"},
    "gemma3_text": {"sliding_window": 5},
    "cohere": {"logit_scale": 0.5},
    "granite": {"logits_scaling": 2.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


def tiny_model(kind: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A model of two layers with weights large enough for every mistake to show; float32, on the CPU."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[kind](**{**SIZES, **EXTRA_CONFIG.get(kind, {})})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or name.endswith("bias"):
                parameter.normal_(0, 0.25)
    return model.eval()


def token_rows(n: int, seed: int = 0, longest: int = 14) -> RowTable:
    """Random rows of different lengths, prompts and labels; every second prompt has the same prefix."""
    rng = np.random.default_rng(seed)
    prefix = rng.integers(3, VOCABULARY, 9).tolist()

    def random_ids(low: int) -> list[int]:
        return rng.integers(3, VOCABULARY, rng.integers(low, longest + 1)).tolist()

    return RowTable.from_rows(
        TokenRow(prefix * (at % 2) + random_ids(1), random_ids(1), bool(at % 3), at) for at in range(n)
    )


def next_partners(n: int) -> list[int]:
    """Each row's partner is the next one."""
    return [(at + 1) % n for at in range(n)]


def peft_model(kind: str, tensors: dict[str, torch.Tensor], spec: AdapterSpec) -> Any:
    """A fresh tiny model with PEFT adapters that hold `tensors`, as AdapterStack.tensors gives them."""
    targets = spec.targets if isinstance(spec.targets, str) else list(spec.targets)
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=targets, task_type="CAUSAL_LM")
    with warnings.catch_warnings():  # PEFT uses names that transformers deprecates
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(tiny_model(kind), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                key = name.removeprefix("base_model.model.").removesuffix(".default.weight")
                parameter.copy_(tensors[key])
    return model


def naive_log_prob(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """log pi(completion|prompt): one row, no padding, the model's own forward."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(list(completion))[:, None]).sum()


def naive_loss(
    policy: Any,
    reference: Any,
    rows: Sequence[PairedRow],
    beta: float,
    weights: tuple[float, float] = (1.0, 1.0),
    loss_type: str = "kto",
    drift: float = 0.0,
) -> dict[str, Any]:
    """TRL 1.16's KTOTrainer.compute_loss for one batch, averaged over the batch: loss, rewards, KL.

    `drift` is added to every mismatched log-ratio, so that a test can choose the sign of z0.
    """
    ratios, mismatched_ratios = [], []
    for row in rows:
        with torch.no_grad():
            reference_log_prob = naive_log_prob(reference, row.prompt, row.completion)
            mismatched_reference = naive_log_prob(reference, row.prompt, row.mismatched)
            mismatched_log_prob = naive_log_prob(policy, row.prompt, row.mismatched)
        ratios.append(naive_log_prob(policy, row.prompt, row.completion) - reference_log_prob)
        mismatched_ratios.append(mismatched_log_prob - mismatched_reference + drift)
    raw = torch.stack(mismatched_ratios).mean()
    kl = raw.clamp(min=0).detach()
    losses = []
    for row, ratio in zip(rows, ratios, strict=True):
        if loss_type == "kto":
            up = ratio - kl if row.desirable else kl - ratio
            losses.append(weights[0 if row.desirable else 1] * (1 - torch.sigmoid(beta * up)))
        else:
            up = torch.sigmoid(beta * ratio)
            losses.append(weights[0] * (1 - up) if row.desirable else weights[1] * up)
    return {
        "loss": torch.stack(losses).mean(),
        "rewards": [beta * ratio.item() for ratio in ratios],
        "kl_raw": raw.item(),
    }
