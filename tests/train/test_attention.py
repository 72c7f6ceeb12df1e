import pytest
import torch
from torch import Tensor

from kto_sweep.train.packed.attention import Packing, PrefixStore, packed_attention, supports_grouped_heads

torch.set_num_threads(1)


class Layer(torch.nn.Module):
    layer_idx = 3


def ends(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def dense(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """Attention of one sequence, written out: (queries, heads, dim). The last query is the last key's."""
    groups = q.shape[1] // k.shape[1]
    out = torch.empty_like(q)
    for i in range(q.shape[0]):
        position = k.shape[0] - q.shape[0] + i
        first = 0 if window is None else max(0, position - window + 1)
        for head in range(q.shape[1]):
            scores = (k[first : position + 1, head // groups] @ q[i, head]) * scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            out[i, head] = scores.softmax(0) @ v[first : position + 1, head // groups]
    return out


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 3, 100])
def test_packed_sequences_attend_only_to_themselves(window: int | None, softcap: float | None) -> None:
    torch.manual_seed(0)
    lengths = [4, 1, 7]
    q = torch.randn(1, 4, 12, 8, requires_grad=True)
    k, v = (torch.randn(1, 2, 12, 8, requires_grad=True) for _ in range(2))
    packing = Packing(lengths, lengths, ends(lengths), ends(lengths))
    output, _ = packed_attention(
        Layer(), q, k, v, None, scaling=0.4, sliding_window=window, softcap=softcap, packing=packing
    )
    sequences = zip(*(torch.split(x[0].transpose(0, 1), lengths) for x in (q, k, v)), strict=True)
    expected = torch.cat([dense(*sequence, 0.4, window, softcap) for sequence in sequences])
    torch.testing.assert_close(output[0], expected)
    direction = torch.randn_like(expected)
    grads = torch.autograd.grad((output[0] * direction).sum(), (q, k, v))
    expected_grads = torch.autograd.grad((expected * direction).sum(), (q, k, v))
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad)
    assert packing.windows == {window}


@pytest.mark.parametrize("window", [None, 3])
def test_a_second_forward_attends_to_the_keys_that_the_first_kept(window: int | None) -> None:
    """Two sequences of 5 and 3 tokens; the second forward continues the first 4 and 2 of them with 2 each."""
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 8, 8), torch.randn(1, 2, 8, 8), torch.randn(1, 2, 8, 8)
    store = PrefixStore()
    packed_attention(
        Layer(),
        q,
        k,
        v,
        None,
        scaling=0.4,
        packing=Packing([5, 3], [5, 3], ends([5, 3]), ends([5, 3]), keep=store),
    )
    q2, k2, v2 = torch.randn(1, 4, 4, 8), torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8)
    gather = torch.tensor([0, 1, 2, 3, 8, 9, 5, 6, 10, 11])
    packing = Packing([2, 2], [6, 4], ends([2, 2]), ends([6, 4]), prefix=store, gather=gather)
    output, _ = packed_attention(
        Layer(), q2, k2, v2, None, scaling=0.4, sliding_window=window, packing=packing
    )
    for at, (first, count) in enumerate(((0, 4), (5, 2))):
        keys, values = (
            torch.cat([kept[0, :, first : first + count], own[0, :, 2 * at : 2 * at + 2]], dim=1).transpose(
                0, 1
            )
            for kept, own in ((k, k2), (v, v2))
        )
        queries = q2[0, :, 2 * at : 2 * at + 2].transpose(0, 1)
        torch.testing.assert_close(
            output[0, 2 * at : 2 * at + 2], dense(queries, keys, values, 0.4, window, None)
        )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_grouped_heads_are_copied_where_the_kernel_does_not_support_them(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    assert isinstance(supports_grouped_heads(torch.device(device)), bool)
    assert device == "cuda" or not supports_grouped_heads(torch.device(device))


def test_unsupported_attention_is_refused() -> None:
    x = torch.randn(1, 2, 3, 8)
    packing = Packing([3], [3], ends([3]), ends([3]))
    with pytest.raises(NotImplementedError, match="does not pass `packing` on"):
        packed_attention(Layer(), x, x, x, None)
    with pytest.raises(NotImplementedError, match="attention sinks"):
        packed_attention(Layer(), x, x, x, None, s_aux=torch.zeros(2), packing=packing)
    with pytest.raises(NotImplementedError, match="attention mask"):
        packed_attention(Layer(), x, x, x, torch.zeros(3, 3), packing=packing)
    packing.keep = PrefixStore()
    with pytest.raises(NotImplementedError, match="no layer_idx"):
        packed_attention(torch.nn.Identity(), x, x, x, None, packing=packing)
