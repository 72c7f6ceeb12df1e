"""Memory from sizes alone, against measurements on a GPU and against what autograd saves here."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from kto_sweep.models.architecture import BY_MODEL, Architecture, Recompute, find_architecture
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
from kto_sweep.train.packed import fused
from kto_sweep.train.packed.decoder import Decoder
from kto_sweep.train.packed.fused import _Kept
from kto_sweep.train.packed.lora import AdapterSpec, AdapterStack
from kto_sweep.train.packed.pack import Item, PairedRow, pack
from kto_sweep.train.tiny import tiny_model

QWEN = {
    size: dataclasses.replace(BY_MODEL[f"Qwen/Qwen2.5-{name}-Instruct"], vocabulary=151936)
    for size, name in (("0.5b", "0.5B"), ("1.5b", "1.5B"), ("7b", "7B"))
}

torch.set_num_threads(1)

# From benchmarks/RESULTS.md, 2026-12-01, "a layer as one function": the fullest of the steps that
# benchmarks/memory.py measured, and the peak of all.
PEAKS_ON_AN_H200 = [
    ("7b", "none", 1, Recompute.NOTHING, StepLoad(2478, 2305, 1326), 22.84),
    ("7b", "none", 2, Recompute.NOTHING, StepLoad(5146, 4806, 3460), 31.22),
    ("7b", "none", 2, Recompute.MLP, StepLoad(9953, 9204, 6734), 25.58),
    ("7b", "none", 1, Recompute.LAYER, StepLoad(5255, 4906, 3412), 17.06),
    ("7b", "4bit", 4, Recompute.NOTHING, StepLoad(10573, 9159, 6647), 39.53),
    ("7b", "4bit", 2, Recompute.MLP, StepLoad(5146, 4806, 3460), 11.94),
    ("7b", "fp8", 3, Recompute.NOTHING, StepLoad(8624, 7381, 5061), 36.04),
    ("7b", "4bit-fp8", 4, Recompute.MLP, StepLoad(10573, 9159, 6647), 18.79),
    ("1.5b", "none", 4, Recompute.NOTHING, StepLoad(10573, 9159, 6647), 18.81),
    ("0.5b", "none", 8, Recompute.NOTHING, StepLoad(19507, 17305, 13284), 15.07),
]
# 2026-11-23, "the packed step in fewer kernels": seconds per step and trial.
SECONDS_ON_AN_H200 = [
    ("7b", 1, 0.177),
    ("7b", 3, 0.151),
    ("1.5b", 4, 0.052),
    ("1.5b", 8, 0.044),
    ("0.5b", 1, 0.098),
    ("0.5b", 8, 0.020),
    ("0.5b", 16, 0.018),
]


@pytest.mark.parametrize(("size", "quantization", "trials", "recompute", "load", "gib"), PEAKS_ON_AN_H200)
def test_peaks_match_those_measured_on_an_h200(
    size: str, quantization: str, trials: int, recompute: Recompute, load: StepLoad, gib: float
) -> None:
    peak = peak_memory(QWEN[size], quantization, AdapterShape(trials, 16), load, recompute=recompute)
    assert peak.gib == pytest.approx(gib, rel=0.05)


@pytest.mark.parametrize(("size", "trials", "seconds"), SECONDS_ON_AN_H200)
def test_steps_match_those_measured_on_an_h200(size: str, trials: int, seconds: float) -> None:
    mean = StepLoad(2075 * trials, 1705 * trials, 1705 * trials)
    step = TimingModel(QWEN[size], "none", GPUS["h200"]).step(mean, AdapterShape(trials, 16))
    assert step is not None
    assert step.seconds / trials == pytest.approx(seconds, rel=0.15)


def small_model(**sizes: int) -> PreTrainedModel:
    config = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": 50,
    }  # fmt: skip
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**config | sizes))


def saved_bytes(
    monkeypatch: pytest.MonkeyPatch, rank: int = 8, dropout: float = 0.0, **sizes: int
) -> tuple[int, Architecture]:
    """Bytes that are kept for the backward of 60 tokens, in float32, and the model's sizes."""
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
    layers: list[Any] = []

    def remembered(*fields: Any) -> Any:
        layers.append(_Kept(*fields))
        return layers[-1]

    monkeypatch.setattr(fused, "_Kept", remembered)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), adapters.routed(forward, training=True):
        log_probs = decoder.log_probs(forward, 1)
        for layer in layers:  # what fused layers keep, autograd does not know
            fields = [*vars(layer).values(), *(vars(layer.attended).values() if layer.attended else ())]
            tensors = [x for x in fields if isinstance(x, torch.Tensor)]
            for x in [*tensors, *(layer.attended.heads if layer.attended else ())]:
                keep(x)
        kept_in_all = sum(kept.values())
    monkeypatch.undo()
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
def test_saved_bytes_of_a_layer_follow_the_formula(
    more: dict, fewer: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Differences only: on a CPU, norms and attention save different tensors than on a GPU."""
    (large, large_model), (small, small_model_) = (
        saved_bytes(monkeypatch, **sizes) for sizes in (more, fewer)
    )
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
    again = peak_memory(model, "none", shape, load, recompute=Recompute.LAYER).gib
    one = peak_memory(model, "none", shape, StepLoad(400, 300, 300), recompute=Recompute.LAYER).gib
    assert one < again < whole
    assert one > weight_bytes(model, "none") / 2**30


def test_sizes_of_a_folder_and_of_the_tiny_preset(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, Recipe(steps=1, tokenizer_texts=400))
    architecture = find_architecture(str(folder))
    assert architecture == BY_MODEL["tiny"]
    assert architecture == Architecture.from_config(AutoConfig.from_pretrained(folder).to_dict())
