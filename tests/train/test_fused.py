"""The fused modules of a decoder against the original forwards, and padded rows."""

import pytest
import torch
from packed_cases import tiny_model
from test_step import Case, expect_close

from kto_sweep.train.packed import fused, kernels, pack
from kto_sweep.train.packed.attention import NAME
from kto_sweep.train.packed.decoder import Decoder
from kto_sweep.train.packed.lora import AdapterSpec

TWO = (AdapterSpec(4, 9.0), AdapterSpec(3, 2.0, seed=1))


@pytest.mark.parametrize(
    ("kind", "kinds"),
    [
        ("llama", {"Attention", "Mlp", "Norm"}),
        ("qwen2", {"Attention", "Mlp", "Norm"}),
        ("qwen3", {"Attention", "Mlp", "Norm"}),
        ("mistral", {"Attention", "Mlp", "Norm"}),
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


def test_adapters_on_some_layers_of_a_module_use_its_original_forward() -> None:
    case = Case("llama", (AdapterSpec(4, 9.0, targets=("q_proj", "down_proj")),))
    modules = [module for module in fused.fused_modules(case.decoder.model) if module.layer_groups]
    items = case.adapters
    with items.routed(pack.pack([pack.Item(case.rows[0])], 1, items.device), training=True):
        assert all(module.active_adapters() is None for module in modules)
    assert all(module.active_adapters() is not None for module in modules)


def test_detached_adapters_leave_the_fused_modules() -> None:
    case = Case("llama")
    with case.adapters.routed(pack.pack([pack.Item(case.rows[0])], 1, case.adapters.device), training=True):
        case.adapters.detach()
        active = [module.active_adapters() for module in fused.fused_modules(case.decoder.model)]
    assert all(adapters is not None and adapters[0] is None for adapters in active)


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
    gate, up = (torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    out = torch.nn.functional.silu(gate) * up
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, (gate, up), grad)
    grads = kernels.swiglu_grads(gate.detach(), up.detach(), grad)
    for a, b in zip(grads, (*expected, out.detach()), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(kernels.swiglu(gate.detach(), up.detach()), out.detach())


def test_rotating_backward_is_the_gradient_of_rotating() -> None:
    q, k = torch.randn(5, 4, 6, dtype=torch.float64), torch.randn(5, 2, 6, dtype=torch.float64)
    cos, sin = (torch.randn(5, 6, dtype=torch.float64) for _ in range(2))
    q.requires_grad_()
    rotated, _ = kernels.rotate(q, k, cos, sin, backward=False)
    grad = torch.randn_like(rotated)
    (expected,) = torch.autograd.grad(rotated, q, grad)
    torch.testing.assert_close(kernels.rotate(grad, k, cos, sin, backward=True)[0], expected)
