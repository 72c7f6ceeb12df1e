import pytest
import torch
from packed_cases import tiny_model

from kto_sweep.train.packed import head as head_module
from kto_sweep.train.packed.head import Head, target_log_probs

torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["llama", "phi", "gemma2", "cohere", "granite"])
def test_logits_match_the_models_own_forward(kind: str) -> None:
    model = tiny_model(kind)
    ids = torch.arange(3, 20)[None]
    hidden = model.base_model(ids).last_hidden_state[0]
    torch.testing.assert_close(Head.of(model).logits(hidden), model(ids).logits[0])


@pytest.mark.parametrize("chunk", [16, 1000])
def test_log_probs_and_gradients_match_a_log_softmax(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "CHUNK_BYTES", chunk * 4 * 50)
    head = Head(torch.nn.Linear(8, 50), factor=0.5, softcap=3.0)
    hidden = torch.randn(37, 8, requires_grad=True)
    targets = torch.randint(0, 50, (37,))
    weights = torch.randn(37)
    log_probs = target_log_probs(hidden, head, targets)
    expected = head.logits(hidden).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(log_probs, expected)
    grads = [torch.autograd.grad((values * weights).sum(), hidden)[0] for values in (log_probs, expected)]
    torch.testing.assert_close(*grads)


def test_only_one_chunk_of_logits_exists_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "CHUNK_BYTES", 20 * 4 * 50)
    chunks: list[int] = []
    output = torch.nn.Linear(8, 50)
    output.register_forward_hook(lambda _module, _args, logits: chunks.append(logits.shape[0]))
    hidden = torch.randn(50, 8, requires_grad=True)
    target_log_probs(hidden, Head(output), torch.zeros(50, dtype=torch.long)).sum().backward()
    assert chunks == [20, 20, 10]  # once each: the backward recomputes nothing
