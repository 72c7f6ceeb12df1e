import pytest
import torch
from packed_cases import tiny_model, token_rows

from kto_sweep.data.keys import hash64
from kto_sweep.errors import UsageError
from kto_sweep.train.lora_targets import find_targets
from kto_sweep.train.packed.lora import AdapterSpec, AdapterStack
from kto_sweep.train.packed.pack import Item, PairedRows, pack

CPU = torch.device("cpu")


def stack(
    slots: int = 1, rank: int = 8, targets: tuple[object, ...] = ("all-linear",), seed: int = 0
) -> AdapterStack:
    return AdapterStack(tiny_model(seed=seed), slots, rank, targets)  # type: ignore[arg-type]


def test_all_linear_is_every_linear_layer_but_the_output() -> None:
    names = find_targets(tiny_model(), "all-linear")
    assert len(names) == 2 * 7
    assert "lm_head" not in names


def test_targets_are_the_last_part_of_a_layers_name() -> None:
    assert list(find_targets(tiny_model(), ("v_proj", "q_proj"))) == [
        f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj")
    ]


@pytest.mark.parametrize("name", ["proj", "query", "lm_head", "embed_tokens"])
def test_a_target_that_is_not_a_linear_layer_is_an_error_that_lists_the_linear_layers(name: str) -> None:
    with pytest.raises(UsageError, match=f"named '{name}'") as caught:
        find_targets(tiny_model(), ("q_proj", name))
    assert "down_proj, gate_proj" in caught.value.hint


def test_initial_weights_depend_only_on_the_trial() -> None:
    spec = AdapterSpec(4, 8.0, seed=3, targets=("q_proj",))
    alone = stack(rank=4, targets=(("q_proj",),))
    alone.start(0, spec)
    shared = stack(slots=3, rank=32)
    shared.start(0, AdapterSpec(32, 8.0, seed=1))
    shared.start(2, spec)
    expected, tensors = alone.tensors(0), shared.tensors(2)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_starts_uniform_within_one_over_the_root_of_its_inputs_and_b_at_zero() -> None:
    adapters = stack()
    adapters.start(0, AdapterSpec(8, 8.0))
    tensors = adapters.tensors(0)
    a = tensors["model.layers.0.mlp.down_proj.lora_A"]
    assert a.shape == (8, 48)
    assert 0.9 * 48**-0.5 < a.abs().max() <= 48**-0.5
    assert abs(a.mean()) < 5 * 48**-0.5 / 3**0.5 / a.numel() ** 0.5  # 5 sigma of a uniform mean
    b = tensors["model.layers.0.mlp.down_proj.lora_B"]
    assert b.shape == (32, 8)
    assert not b.any()
    other = tensors["model.layers.1.mlp.down_proj.lora_A"]
    assert not torch.equal(a, other)


def test_slots_start_and_stop_without_changing_others() -> None:
    adapters = stack(slots=2)
    adapters.start(0, AdapterSpec(8, 8.0, seed=1))
    before = adapters.tensors(0)
    adapters.start(1, AdapterSpec(2, 8.0, seed=2))
    adapters.stop(1)
    assert not adapters.weights[1].any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapters.tensors(0).items())
    with pytest.raises(ValueError, match="slot 1 is empty"):
        adapters.tensors(1)


def test_a_slot_can_start_from_tensors() -> None:
    adapters = stack(slots=2, rank=8)
    spec = AdapterSpec(3, 8.0, seed=1)
    adapters.start(0, spec)
    tensors = {name: torch.randn(tensor.shape) for name, tensor in adapters.tensors(0).items()}
    adapters.start(1, spec, tensors)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in adapters.tensors(1).items())


def test_the_model_is_the_base_model_outside_routed_and_after_detach() -> None:
    model = tiny_model()
    ids = torch.arange(3, 20)[None]
    expected = model(ids).logits
    adapters = AdapterStack(model, 1, 4, ["all-linear"])
    adapters.start(0, AdapterSpec(4, 8.0))
    adapters.weights += 0.1
    adapters.refresh()
    rows = PairedRows(token_rows(2), [1, 0], 20)
    packed = pack([Item(row, 0, at) for at, row in enumerate(rows)], 1, CPU)
    assert torch.equal(model(ids).logits, expected)
    states = torch.ones(1, packed.tokens, 32)
    base = model.model.layers[0].mlp(states)
    with adapters.routed(packed, training=False):
        assert not torch.allclose(model.model.layers[0].mlp(states), base)
    adapters.detach()
    with adapters.routed(packed, training=False):
        assert torch.equal(model(ids).logits, expected)


def test_dropout_zeroes_its_share_of_features_and_keeps_the_mean() -> None:
    """A linear layer whose base weight is 0 and whose adapters are the identity shows its dropped input."""
    layer = torch.nn.Linear(64, 64, bias=False)
    torch.nn.init.zeros_(layer.weight)
    model = tiny_model()
    model.model.layers[0].self_attn.q_proj = layer
    adapters = AdapterStack(model, 2, 64, [("q_proj",)])
    for slot, dropout in enumerate((0.25, 0.6)):
        spec = AdapterSpec(64, 64.0, dropout=dropout, targets=("q_proj",))
        adapters.start(slot, spec)
        tensors = {name: torch.zeros_like(tensor) for name, tensor in adapters.tensors(slot).items()}
        tensors["model.layers.0.self_attn.q_proj.lora_A"] = torch.eye(64)
        tensors["model.layers.0.self_attn.q_proj.lora_B"] = torch.eye(64)
        adapters.start(slot, spec, tensors)
    rows = PairedRows(token_rows(40, longest=20), [(at + 1) % 40 for at in range(40)], 64)
    items = [Item(row, int(at >= 20), at, noise=int(hash64(at)[0])) for at, row in enumerate(rows)]  # type: ignore[arg-type]
    packed = pack(items, 2, CPU)
    with adapters.routed(packed, training=True):
        output = layer(torch.ones(1, packed.tokens, 64))[0]
    for (_, start, end), chance in zip(packed.slot_spans, (0.25, 0.6), strict=True):
        share = (output[start:end] == 0).double().mean().item()
        sigma = (chance * (1 - chance) / output[start:end].numel()) ** 0.5
        assert abs(share - chance) < 5 * sigma
        kept = output[start:end][output[start:end] != 0]
        assert kept.unique().tolist() == pytest.approx([1 / (1 - chance)])
        by_feature = (output[start:end] == 0).double().mean(0)  # no feature is dropped always or never
        assert (by_feature - chance).abs().max() < 6 * (chance * (1 - chance) / (end - start)) ** 0.5
    with adapters.routed(packed, training=False):
        assert torch.equal(layer(torch.ones(1, packed.tokens, 64))[0], torch.ones(packed.tokens, 64))
