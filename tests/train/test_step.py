import pytest
import torch
from packed_cases import naive_log_prob, naive_loss, next_partners, peft_model, tiny_model, token_rows

from kto_sweep.models.architecture import Recompute
from kto_sweep.train.packed.compatibility import packed_decoder
from kto_sweep.train.packed.lora import AdapterSpec, AdapterStack, Targets
from kto_sweep.train.packed.microbatch import MicrobatchLimit
from kto_sweep.train.packed.pack import PairedRows
from kto_sweep.train.packed.step import SlotBatch, StepSums, add_gradients, score, step_items

WHOLE = MicrobatchLimit()
KINDS = [
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "phi",
    "phi3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "cohere",
    "smollm3",
    "olmo2",
]


class Case:
    """A tiny model whose adapters differ from the start, and rows with reference values."""

    def __init__(self, kind: str = "llama", specs: tuple[AdapterSpec, ...] = (AdapterSpec(4, 9.0),)) -> None:
        self.rows = PairedRows(token_rows(8), next_partners(8), max_length=20)
        self.decoder = packed_decoder(tiny_model(kind))
        self.adapters = AdapterStack(
            self.decoder.model, len(specs), max(s.rank for s in specs), {s.targets for s in specs}
        )
        for slot, spec in enumerate(specs):
            self.adapters.start(slot, spec)
            generator = torch.Generator().manual_seed(spec.seed)
            updated = {
                name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
                for name, tensor in self.adapters.tensors(slot).items()
            }
            self.adapters.start(slot, spec, updated)
        self.reference = score(self.decoder, self.rows, MicrobatchLimit())

    def batch(self, slot: int = 0, rows: slice = slice(None), **more: object) -> SlotBatch:
        settings = {"beta": 0.3, "weights": (1.0, 1.0), "loss_type": "kto"} | more
        matched, mismatched = self.reference[rows].T.tolist()
        return SlotBatch(slot, self.rows[rows], matched, mismatched, **settings)

    def gradients(
        self, batches: list[SlotBatch], limit: MicrobatchLimit = WHOLE
    ) -> tuple[StepSums, torch.Tensor]:
        self.adapters.clear_grads()
        sums = add_gradients(self.decoder, self.adapters, batches, limit)
        return sums, self.adapters.take_grads().clone()


def expect_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest value."""
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max(), (actual, expected)


@pytest.mark.parametrize(
    ("kind", "targets"), [*((kind, "all-linear") for kind in KINDS), ("qwen3_moe", ("q_proj", "v_proj"))]
)
def test_loss_rewards_z0_and_gradients_agree_with_one_row_at_a_time(kind: str, targets: Targets) -> None:
    spec = AdapterSpec(4, 9.0, targets=targets)
    case = Case(kind, (spec,))
    tensors = case.adapters.tensors(0)
    weights = (1.5, 0.5)
    case.reference[:, 1] -= 5  # z0 well above 0: otherwise the clamp would hide it
    sums, grads = case.gradients([case.batch(weights=weights)])
    policy = peft_model(kind, tensors, spec)
    naive = naive_loss(policy, tiny_model(kind), case.rows, 0.3, weights, drift=5)
    naive["loss"].backward()
    assert sums.loss[0].item() == pytest.approx(naive["loss"].item(), rel=1e-5)
    assert sums.kl_raw[0].item() == pytest.approx(naive["kl_raw"], rel=1e-5)
    chosen_rewards = sum(r for r, row in zip(naive["rewards"], case.rows, strict=True) if row.desirable)
    assert sums.chosen_rewards[0].item() == pytest.approx(chosen_rewards, rel=1e-5, abs=1e-5)
    tensor_grads = case.adapters.layout.take(grads[0], case.adapters.names(spec), 4)
    expected = {
        name.removeprefix("base_model.model.").removesuffix(".default.weight"): parameter.grad
        for name, parameter in policy.named_parameters()
        if "lora_" in name
    }
    assert tensor_grads.keys() == expected.keys()
    for name, grad in tensor_grads.items():
        expect_close(grad, expected[name], 2e-4)


@pytest.mark.parametrize("drift", [5.0, -500.0], ids=["z0 above 0", "z0 clamped at 0"])
def test_both_losses_agree_with_the_formula_on_both_sides_of_the_clamp(drift: float) -> None:
    case = Case()
    policy = peft_model("llama", case.adapters.tensors(0), AdapterSpec(4, 9.0))
    case.reference[:, 1] -= drift
    for loss_type in ("kto", "apo_zero_unpaired"):
        naive = naive_loss(policy, tiny_model(), case.rows, 0.3, loss_type=loss_type, drift=drift)
        sums, _ = case.gradients([case.batch(loss_type=loss_type)])
        assert sums.loss[0].item() == pytest.approx(naive["loss"].item(), rel=1e-5)


def test_apo_needs_no_mismatched_pass() -> None:
    case = Case()
    before = case.decoder.forwards
    case.gradients([case.batch(loss_type="apo_zero_unpaired")])
    assert case.decoder.forwards == before + 1
    case.gradients([case.batch(loss_type="kto")])
    assert case.decoder.forwards == before + 3


def test_untrained_loss_is_half_the_mean_weight() -> None:
    case = Case()
    case.adapters.start(0, AdapterSpec(4, 9.0))
    sums, _ = case.gradients([case.batch(weights=(1.5, 0.5))])
    desirable = sum(row.desirable for row in case.rows)
    half = 0.5 * (1.5 * desirable + 0.5 * (8 - desirable)) / 8
    assert sums.loss[0].item() == pytest.approx(half, abs=1e-6)
    assert sums.kl_raw[0].item() == pytest.approx(0, abs=1e-5)
    assert sums.chosen_rewards[0].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("recompute", [Recompute.NOTHING, Recompute.LAYER])
@pytest.mark.parametrize(
    "limit",
    [
        MicrobatchLimit(examples=1),
        MicrobatchLimit(examples=3),
        MicrobatchLimit(examples=4),
        MicrobatchLimit(tokens=60),
    ],
    ids=str,
)
def test_the_split_into_micro_batches_changes_nothing(
    limit: MicrobatchLimit, recompute: Recompute, dropout: float
) -> None:
    case = Case(
        specs=(AdapterSpec(4, 9.0, dropout=dropout), AdapterSpec(2, 5.0, dropout=dropout / 2, seed=1))
    )
    case.reference[:, 1] -= 5
    batches = [case.batch(0, slice(0, 5), noise=1), case.batch(1, slice(3, 8), noise=2)]
    whole, grads = case.gradients(batches)
    case.decoder.set_recompute(recompute)
    split, split_grads = case.gradients(batches, limit)
    assert len(limit.split(step_items(batches))) > 1
    for name, values in vars(whole).items():
        expect_close(vars(split)[name], values)
    expect_close(split_grads, grads, 1e-4)


def test_recomputing_changes_nothing() -> None:
    case = Case(specs=(AdapterSpec(4, 9.0, dropout=0.3),))
    whole, grads = case.gradients([case.batch(noise=3)])
    case.decoder.set_recompute(Recompute.LAYER)
    again, again_grads = case.gradients([case.batch(noise=3)])
    case.decoder.set_recompute(Recompute.NOTHING)
    assert again.loss.item() == whole.loss.item()
    expect_close(again_grads, grads, 1e-6)


def test_slots_of_different_rank_targets_and_batch_do_not_affect_each_other() -> None:
    first = AdapterSpec(4, 9.0, seed=1)
    second = AdapterSpec(16, 3.0, dropout=0.4, targets=("q_proj", "down_proj"), seed=2)
    case = Case(specs=(first, second))
    batches = [case.batch(0, slice(0, 3), beta=0.1), case.batch(1, slice(2, 8), beta=0.7, noise=9)]
    both, grads = case.gradients(batches)
    for batch in batches:
        alone, alone_grads = case.gradients([batch])
        slot = batch.slot
        assert both.loss[slot].item() == pytest.approx(alone.loss[slot].item(), rel=1e-6)
        expect_close(grads[slot], alone_grads[slot], 1e-4)
        assert alone_grads[1 - slot].abs().max() == 0


def test_dropout_changes_the_training_loss_but_no_score() -> None:
    plain, dropping = AdapterSpec(4, 9.0), AdapterSpec(4, 9.0, dropout=0.5)
    with_it, without = Case(specs=(dropping,)), Case(specs=(plain,))
    trained = [case.gradients([case.batch(noise=1)])[0].loss.item() for case in (with_it, without)]
    assert abs(trained[0] - trained[1]) > 1e-3
    other_noise = with_it.gradients([with_it.batch(noise=2)])[0].loss.item()
    assert abs(trained[0] - other_noise) > 1e-4
    scores = [
        score(case.decoder, case.rows, MicrobatchLimit(), case.adapters, 0) for case in (with_it, without)
    ]
    assert torch.equal(*scores)


def test_scores_do_not_depend_on_order_or_split() -> None:
    case = Case()
    expected = score(case.decoder, case.rows, MicrobatchLimit(), case.adapters, 0)
    shuffled = [5, 2, 7, 0, 1, 6, 4, 3]
    scores = score(
        case.decoder, [case.rows[at] for at in shuffled], MicrobatchLimit(examples=3), case.adapters, 0
    )
    expect_close(scores, expected[shuffled])
    policy = peft_model("llama", case.adapters.tensors(0), AdapterSpec(4, 9.0))
    naive = [
        [naive_log_prob(policy, row.prompt, y).item() for y in (row.completion, row.mismatched)]
        for row in case.rows
    ]
    expect_close(expected, torch.tensor(naive, dtype=torch.float64))
