"""The fused modules of a decoder against the original forwards, and padded rows."""

from typing import Any

import pytest
import torch
from packed_cases import tiny_model
from test_step import Case, expect_close

from kto_sweep.models.architecture import Recompute
from kto_sweep.train.packed import fused, kernels, pack
from kto_sweep.train.packed.attention import NAME
from kto_sweep.train.packed.decoder import Decoder
from kto_sweep.train.packed.lora import AdapterSpec

TWO = (AdapterSpec(4, 9.0), AdapterSpec(3, 2.0, seed=1))


@pytest.mark.parametrize(
    ("kind", "kinds"),
    [
        ("llama", {"Layer", "Norm"}),
        ("qwen2", {"Layer", "Norm"}),
        ("qwen3", {"Layer", "Norm"}),
        ("mistral", {"Layer", "Norm"}),
        ("gemma2", set()),
    ],
)
def test_only_supported_classes_are_fused_and_release_restores_all(kind: str, kinds: set[str]) -> None:
    model = tiny_model(kind)
    decoder = Decoder(model)
    assert model.config._attn_implementation == NAME
    assert {type(module).__name__ for module in fused.fused_modules(model)} == kinds
    decoder.release()
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_gradients_match_the_original_forwards(kind: str) -> None:
    case = Case(kind, TWO)
    batches = [case.batch(0), case.batch(1, slice(0, 5))]
    sums, grads = case.gradients(batches)
    fused.remove(case.decoder.model)
    original_sums, original_grads = case.gradients(batches)
    expect_close(sums.loss, original_sums.loss)
    expect_close(sums.kl_raw, original_sums.kl_raw)
    expect_close(grads, original_grads)


@pytest.mark.parametrize("level", list(Recompute))
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_what_is_computed_again_changes_no_number(kind: str, level: Recompute) -> None:
    case = Case(kind, TWO)
    batches = [case.batch(0), case.batch(1, slice(0, 5))]
    sums, grads = case.gradients(batches)
    case.decoder.set_recompute(level)
    again_sums, again_grads = case.gradients(batches)
    assert torch.equal(again_sums.loss, sums.loss)
    assert torch.equal(again_grads, grads)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("q_proj", "down_proj"), ("k_proj",)])
def test_adapters_on_some_layers_match_the_original_forwards(targets: tuple[str, ...]) -> None:
    case = Case("llama", (AdapterSpec(4, 9.0, targets=targets),))
    sums, grads = case.gradients([case.batch(0)])
    fused.remove(case.decoder.model)
    original_sums, original_grads = case.gradients([case.batch(0)])
    expect_close(sums.loss, original_sums.loss)
    expect_close(grads, original_grads)


def test_adapters_with_dropout_use_the_original_forward() -> None:
    case = Case("llama", (AdapterSpec(4, 9.0, dropout=0.1),))
    layers = list(fused.fused_layers(case.decoder.model))
    row = pack.pack([pack.Item(case.rows[0])], 1, case.adapters.device)
    with case.adapters.routed(row, training=True):
        assert all(layer.active_adapters() is None for layer in layers)
    assert all(layer.active_adapters() is not None for layer in layers)


def test_detached_adapters_leave_the_fused_layers() -> None:
    case = Case("llama")
    row = pack.pack([pack.Item(case.rows[0])], 1, case.adapters.device)
    with case.adapters.routed(row, training=True):
        case.adapters.detach()
        active = [layer.active_adapters() for layer in fused.fused_layers(case.decoder.model)]
    assert all(adapters is not None and adapters[0] is None for adapters in active)


def test_joined_weights_are_the_layers_own_memory() -> None:
    model = tiny_model("qwen2")
    layer: Any = model.model.layers[0]
    before = layer.self_attn.k_proj.weight.clone()
    decoder = Decoder(model)
    joined = next(fused.fused_layers(model)).qkv.weight(torch.float32)
    decoder.release()
    assert torch.equal(layer.self_attn.k_proj.weight, before)
    assert joined.untyped_storage().data_ptr() == layer.self_attn.k_proj.weight.untyped_storage().data_ptr()
    Decoder(model)
    assert next(fused.fused_layers(model)).qkv.weight(torch.float32).data_ptr() == joined.data_ptr()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_padding_changes_no_number(monkeypatch: pytest.MonkeyPatch, dropout: float) -> None:
    case = Case("mistral", (AdapterSpec(4, 9.0, dropout=dropout), AdapterSpec(3, 2.0, dropout=dropout)))
    batches = [case.batch(0, noise=3), case.batch(1, slice(0, 5), noise=4)]
    sums, grads = case.gradients(batches)
    monkeypatch.setitem(pack.ROUNDING, "cpu", 64)
    padded_sums, padded_grads = case.gradients(batches)
    for name, expected in vars(sums).items():
        expect_close(getattr(padded_sums, name), expected)
    expect_close(padded_grads, grads)


def test_a_padded_row_is_a_multiple_of_the_rounding_and_has_no_more_targets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case("llama")
    items = [pack.Item(row, example=at) for at, row in enumerate(case.rows)]
    plain = pack.pack(items, 1, case.adapters.device, keep=True)
    monkeypatch.setitem(pack.ROUNDING, "cpu", 64)
    padded = pack.pack(items, 1, case.adapters.device, keep=True)
    onto = pack.pack_onto(padded, items, items, 1, case.adapters.device)
    assert padded.tokens % 64 == 0
    assert onto.tokens % 64 == 0
    assert padded.tokens > plain.tokens
    assert torch.equal(padded.targets, plain.targets)
    assert torch.equal(padded.predicting, plain.predicting)
    assert padded.slot_spans == [(0, 0, padded.tokens)]
    assert onto.attention.gather is not None
    assert onto.attention.gather.max().item() == padded.tokens + onto.tokens - 1
    assert len(onto.attention.gather) == sum(onto.attention.key_lengths)


def test_swiglu_and_its_gradients_match_autograd() -> None:
    gate_up = torch.randn(5, 14, dtype=torch.float64, requires_grad=True)
    gate, up = gate_up.chunk(2, dim=1)
    out = torch.nn.functional.silu(gate) * up
    grad = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, gate_up, grad)
    torch.testing.assert_close(kernels.swiglu(gate_up.detach()), out.detach())
    kernels.swiglu_grads(gate_up.data, grad)
    torch.testing.assert_close(gate_up.data, expected)
    torch.testing.assert_close(grad, out.detach())


def test_the_gradient_of_a_norm_matches_autograd() -> None:
    x, residual, grad = (torch.randn(5, 6, dtype=torch.float64) for _ in range(3))
    weight = torch.randn(6, dtype=torch.float64)
    x.requires_grad_()
    expected = torch.autograd.grad(torch.nn.functional.rms_norm(x, (6,), weight, 1e-6), x, grad)[0] + residual
    kernels.rms_norm_grad(grad, x.detach(), weight, 1e-6, residual, out=residual)
    torch.testing.assert_close(residual, expected)


def test_rotating_backward_is_the_gradient_of_rotating() -> None:
    q, k = torch.randn(5, 4, 6, dtype=torch.float64), torch.randn(5, 2, 6, dtype=torch.float64)
    cos, sin = (torch.randn(5, 6, dtype=torch.float64) for _ in range(2))
    outs = torch.empty_like(q), torch.empty_like(k)
    kernels.rotate(q, k, cos, sin, outs)
    grad = torch.randn_like(q)
    back = torch.empty_like(q), torch.empty_like(k)
    kernels.rotate(grad, k, cos, sin, back, backward=True)
    # A linear map's gradient is its transpose: <rotate(q), grad> = <q, rotate back(grad)>.
    torch.testing.assert_close((outs[0] * grad).sum(), (q * back[0]).sum())
