"""Memory from sizes alone, against measurements on a GPU and against what autograd saves here."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from kto_sweep.models.architecture import BY_MODEL, Architecture, find_architecture
from kto_sweep.models.tiny import Recipe
from kto_sweep.plan.gpus import GPUS
from kto_sweep.plan.memory import (
    AdapterShape,
    StepLoad,
    activation_bytes_per_token,
    adapter_parameters,
    peak_memory,
    weight_bytes,
)
from kto_sweep.plan.timing import TimingModel
from kto_sweep.train.packed.decoder import Decoder
from kto_sweep.train.packed.lora import AdapterSpec, AdapterStack
from kto_sweep.train.packed.pack import Item, PairedRow, pack
from kto_sweep.train.tiny import tiny_model

QWEN = {
    size: dataclasses.replace(BY_MODEL[f"Qwen/Qwen2.5-{name}-Instruct"], vocabulary=151936)
    for size, name in (("0.5b", "0.5B"), ("1.5b", "1.5B"), ("7b", "7B"))
}

torch.set_num_threads(1)

# From benchmarks/RESULTS.md, 2026-11-23, "the packed step in fewer kernels". The tokens are those of the
# fullest of the 29 steps that each line measured: batches of 8 rows, seeds 0 to trials - 1.
ON_AN_H200 = [
    ("7b", 1, StepLoad(3144, 2678, 2404), 25.7, 0.177),
    ("7b", 3, StepLoad(7670, 6309, 6893), 42.1, 0.151),
    ("1.5b", 4, StepLoad(10970, 9478, 8398), 20.9, 0.052),
    ("1.5b", 8, StepLoad(19800, 16934, 15244), 35.8, 0.044),
    ("0.5b", 1, StepLoad(3144, 2678, 2404), 3.9, 0.098),
    ("0.5b", 8, StepLoad(19800, 16934, 15244), 16.8, 0.020),
    ("0.5b", 16, StepLoad(36980, 31005, 29397), 30.5, 0.018),
]


@pytest.mark.parametrize(("size", "trials", "fullest", "gib", "seconds"), ON_AN_H200)
def test_peaks_and_steps_match_those_measured_on_an_h200(
    size: str, trials: int, fullest: StepLoad, gib: float, seconds: float
) -> None:
    shape = AdapterShape(trials, 16)
    assert peak_memory(QWEN[size], "none", shape, fullest).gib == pytest.approx(gib, rel=0.05)
    mean = StepLoad(2075 * trials, 1705 * trials, 1705 * trials)
    step = TimingModel(QWEN[size], "none", GPUS["h200"]).step(mean, shape)
    assert step is not None
    assert step.seconds / trials == pytest.approx(seconds, rel=0.15)


def small_model(**sizes: int) -> PreTrainedModel:
    config = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": 50,
    }  # fmt: skip
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**config | sizes))


def saved_bytes(rank: int = 8, dropout: float = 0.0, **sizes: int) -> tuple[int, Architecture]:
    """Bytes that autograd saves for the backward of 60 tokens, in float32, and the model's sizes."""
    model = small_model(**sizes)
    decoder = Decoder(model)
    adapters = AdapterStack(model, 1, rank, ["all-linear"])
    adapters.start(0, AdapterSpec(rank, 2.0 * rank, dropout))
    rng = np.random.default_rng(0)
    prompt, completion = rng.integers(0, 50, 31), rng.integers(0, 50, 30)
    forward = pack([Item(PairedRow(prompt, completion, completion, True))], 1, torch.device("cpu"))
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() in weights:
            return x
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        held.append(x)
        return x

    held: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), adapters.routed(forward, training=True):
        log_probs = decoder.log_probs(forward, 1)
        kept_in_all = sum(kept.values())
    assert log_probs.requires_grad
    return kept_in_all, Architecture.from_config(model.config.to_dict())


@pytest.mark.parametrize(
    ("more", "fewer"),
    [
        ({"intermediate_size": 128}, {"intermediate_size": 64}),
        ({"intermediate_size": 128, "dropout": 0.1}, {"intermediate_size": 64, "dropout": 0.1}),
        ({"rank": 32}, {"rank": 8}),
    ],
)
def test_saved_bytes_of_a_layer_follow_the_formula(more: dict, fewer: dict) -> None:
    """Differences only: on a CPU, norms and attention save different tensors than on a GPU."""
    (large, large_model), (small, small_model_) = saved_bytes(**more), saved_bytes(**fewer)
    expected = [
        activation_bytes_per_token(
            model, "none", AdapterShape(1, sizes.get("rank", 8), dropout="dropout" in sizes)
        )
        for model, sizes in ((large_model, more), (small_model_, fewer))
    ]
    # 16 bit in the formula, 32 bit here; 60 tokens, 2 layers.
    assert (large - small) == 2 * (expected[0] - expected[1]) * 60 * 2


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
def test_adapter_parameters_match_the_engine(targets: str | tuple[str, ...]) -> None:
    model = small_model(intermediate_size=96, num_key_value_heads=2)
    sizes = Architecture.from_config(model.config.to_dict())
    for rank in (4, 8, 20):
        shape = AdapterStack(model, 1, rank, [targets])
        assert adapter_parameters(sizes, rank, targets) == shape.layout.parameters
        shape.detach()


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_those_of_the_model(tied: bool) -> None:
    model = small_model(tie_word_embeddings=tied, num_key_value_heads=2)
    sizes = Architecture.from_config(model.config.to_dict())
    biases = sum(p.numel() for name, p in model.named_parameters() if name.endswith("bias"))
    assert sizes.weights == sum(p.numel() for p in model.parameters()) - biases


def test_quantised_weights_are_those_of_bitsandbytes() -> None:
    """7B in NF4: 6.53 G matrix weights at 4.127 bits (QLoRA, section 3), embedding and output in 16 bit."""
    gib = weight_bytes(BY_MODEL["Qwen/Qwen2.5-7B-Instruct"], "4bit") / 2**30
    assert gib == pytest.approx(6.525e9 * 4.127 / 8 / 2**30 + 2 * 2 * 152064 * 3584 / 2**30, rel=1e-3)


def test_recomputing_and_a_smaller_step_need_less_memory() -> None:
    model, shape, load = QWEN["7b"], AdapterShape(1, 16), StepLoad(3144, 2678, 2404)
    whole = peak_memory(model, "none", shape, load).gib
    again = peak_memory(model, "none", shape, load, recompute=True).gib
    one = peak_memory(model, "none", shape, StepLoad(400, 300, 300), recompute=True).gib
    assert one < again < whole
    assert one > weight_bytes(model, "none") / 2**30


def test_sizes_of_a_folder_and_of_the_tiny_preset(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, Recipe(steps=1, tokenizer_texts=400))
    architecture = find_architecture(str(folder))
    assert architecture == BY_MODEL["tiny"]
    assert architecture == Architecture.from_config(AutoConfig.from_pretrained(folder).to_dict())
