import math
import warnings

import pytest
import torch
from packed_cases import naive_loss, next_partners, token_rows
from peft import LoraConfig, get_peft_model

from kto_sweep.home import Home
from kto_sweep.models.presets import Quantization
from kto_sweep.train.base_model import LoadedBase, load_base
from kto_sweep.train.packed import fused
from kto_sweep.train.packed.compatibility import packed_decoder
from kto_sweep.train.packed.lora import AdapterSpec, AdapterStack
from kto_sweep.train.packed.microbatch import MicrobatchLimit
from kto_sweep.train.packed.pack import PairedRows
from kto_sweep.train.packed.step import SlotBatch, add_gradients, score


def base(home: Home, quantization: Quantization = "none") -> LoadedBase:
    return load_base("tiny", quantization=quantization, device=torch.device("cpu"), home=home)


@pytest.mark.parametrize(("quantization", "tolerance"), [("4bit", 1e-5), ("8bit", 2e-2)])
def test_quantised_bases_agree_with_peft_one_row_at_a_time(
    home: Home, quantization: Quantization, tolerance: float
) -> None:
    loaded = base(home, quantization)
    config = LoraConfig(r=4, lora_alpha=9, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        policy = get_peft_model(base(home, quantization).model, config)
    rows = PairedRows(token_rows(6), next_partners(6), 24)
    decoder = packed_decoder(loaded.model)
    reference = score(decoder, rows, MicrobatchLimit())
    adapters = AdapterStack(decoder.model, 1, 4, ["all-linear"])
    spec = AdapterSpec(4, 9.0)
    adapters.start(0, spec)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in adapters.tensors(0).items()
    }
    adapters.start(0, spec, tensors)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.copy_(
                    tensors[name.removeprefix("base_model.model.").removesuffix(".default.weight")]
                )
    batch = SlotBatch(0, rows, *reference.T.tolist(), beta=0.1, weights=(1.0, 1.0), loss_type="kto")
    sums = add_gradients(decoder, adapters, [batch], MicrobatchLimit())
    decoder.release()
    adapters.detach()
    for model in (policy, loaded.model):
        model.train()  # see decoder.freeze
    expected = naive_loss(policy, loaded.model, rows, 0.1)
    expected["loss"].backward()
    assert sums.loss.item() == pytest.approx(expected["loss"].item(), rel=tolerance)
    grads = adapters.layout.take(adapters.take_grads()[0], adapters.names(spec), 4)
    norm = math.sqrt(sum(grad.square().sum().item() for grad in grads.values()))
    theirs = [p.grad for p in policy.parameters() if p.grad is not None]
    expected_norm = math.sqrt(sum(grad.square().sum().item() for grad in theirs))
    assert norm == pytest.approx(expected_norm, rel=10 * tolerance)


@pytest.mark.parametrize(("quantization", "kinds"), [("4bit", {"Layer", "Norm"}), ("8bit", {"Norm"})])
def test_layers_in_4_bit_are_fused_and_those_in_8_bit_keep_their_own_rounding(
    home: Home, quantization: Quantization, kinds: set[str]
) -> None:
    decoder = packed_decoder(base(home, quantization).model)
    assert {type(module).__name__ for module in fused.fused_modules(decoder.model)} == kinds
    decoder.release()
