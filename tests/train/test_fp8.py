"""Products in FP8, emulated on a CPU: their rounding, and one path for a policy and its reference."""

from pathlib import Path

import pytest
import torch
from cotrainer_cases import Recorder
from packed_cases import next_partners, tiny_model, token_rows

from kto_sweep.errors import UsageError
from kto_sweep.home import Home
from kto_sweep.models.presets import Quantization
from kto_sweep.plan.gpus import NoFp8Error
from kto_sweep.train.base_model import load_base
from kto_sweep.train.context import WorkerContext
from kto_sweep.train.packed import fused, kernels
from kto_sweep.train.packed.compatibility import packed_decoder
from kto_sweep.train.packed.fp8 import Fp8Linear, multiply_in_fp8
from kto_sweep.train.packed.lora import AdapterSpec, AdapterStack
from kto_sweep.train.packed.microbatch import MicrobatchLimit
from kto_sweep.train.packed.pack import PairedRows
from kto_sweep.train.packed.step import SlotBatch, add_gradients, score
from kto_sweep.train.trial.request import TrialRequest
from kto_sweep.train.trl.trainer import train_with_trl
from kto_sweep.trial import Trial

CPU = torch.device("cpu")


def layer(bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(64, 48, bias=bias).requires_grad_(False)


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    return ((found - truth).norm() / truth.norm()).item()


def test_a_row_keeps_three_bits_of_mantissa_whatever_its_scale() -> None:
    x = torch.randn(5, 64) * torch.tensor([1e-6, 1.0, 1e4, 3.0, 0.0])[:, None]
    values, scale = kernels.to_fp8(x)
    back = values.float() * scale
    assert torch.all((back - x).abs() <= x.abs().amax(1, keepdim=True) * 2**-4)
    assert torch.equal(back[4], torch.zeros(64))
    weights = torch.rand(64, 1)
    assert relative(kernels.to_fp8(x, columns=weights)[0].float()[1], values.float()[1]) > 0.01


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_and_its_input_gradient_are_near_those_of_its_own_weights(bias: bool) -> None:
    own = layer(bias)
    x = torch.randn(7, 64, requires_grad=True)
    expected = own(x)
    grad = torch.randn_like(expected)
    (expected_grad,) = torch.autograd.grad(expected, x, grad)
    out = Fp8Linear(own)(x)
    (found_grad,) = torch.autograd.grad(out, x, grad)
    assert 1e-4 < relative(out, expected) < 0.06
    assert 1e-4 < relative(found_grad, expected_grad) < 0.06


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    fp8 = Fp8Linear(layer())
    x = torch.randn(6, 64)
    x[5] *= 1e5
    torch.testing.assert_close(fp8(x)[:3], fp8(x[:3]))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma2"])
def test_rewards_are_zero_at_step_0_and_the_loss_is_a_half(kind: str, dropout: float) -> None:
    model = tiny_model(kind)
    multiply_in_fp8(model, CPU)
    assert any(isinstance(module, Fp8Linear) for module in model.modules())
    decoder = packed_decoder(model)
    assert bool(list(fused.fused_layers(model))) == (kind != "gemma2")
    rows = PairedRows(token_rows(6), next_partners(6), 24)
    reference = score(decoder, rows, MicrobatchLimit())
    adapters = AdapterStack(model, 1, 4, ["all-linear"])
    adapters.start(0, AdapterSpec(4, 9.0, dropout=dropout))
    batch = SlotBatch(0, rows, *reference.T.tolist(), beta=0.1, weights=(1.0, 1.0), loss_type="kto", noise=1)
    sums = add_gradients(decoder, adapters, [batch], MicrobatchLimit())
    assert sums.loss.item() == pytest.approx(0.5, abs=1e-6)
    assert sums.chosen_rewards.item() == pytest.approx(0, abs=1e-5)
    assert adapters.grads.norm() > 0


def test_fused_layers_give_what_the_layers_give() -> None:
    results = []
    for unfuse in (False, True):
        model = tiny_model("qwen2")
        multiply_in_fp8(model, CPU)
        decoder = packed_decoder(model)
        if unfuse:
            fused.remove(model)
        rows = PairedRows(token_rows(6), next_partners(6), 24)
        results.append(score(decoder, rows, MicrobatchLimit()))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("quantization", "hint"), [("fp8", "none"), ("4bit-fp8", "4bit")])
def test_a_trial_that_needs_trls_trainer_is_refused(
    quantization: Quantization, hint: str, home: Home, tmp_path: Path
) -> None:
    trial = Trial(model="tiny", dataset="rows.jsonl", quantization=quantization, max_steps=1)
    request = TrialRequest("run", trial, tmp_path / "run", Recorder(), lambda: False)
    with pytest.raises(UsageError, match="TRL's trainer, which this trial needs") as caught:
        train_with_trl(WorkerContext(home), request)
    assert caught.value.hint == f"quantization: {hint}"


def test_a_device_without_fp8_is_refused_before_anything_is_loaded(home: Home) -> None:
    with pytest.raises(NoFp8Error, match="a CPU has no FP8"):
        load_base("tiny", quantization="fp8", device=CPU, home=home)
