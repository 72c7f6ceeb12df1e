import pytest
import torch
from transformers import get_scheduler

from kto_sweep.train.packed.optim import lr_factor, warmup_steps


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("total", "ratio"), [(20, 0.15), (7, 0.0), (1, 0.0), (3, 1.0)])
def test_learning_rates_match_transformers(kind: str, total: int, ratio: float) -> None:
    warmup = warmup_steps(total, ratio)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    name = "constant_with_warmup" if kind == "constant" else kind
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    for step in range(total):
        assert 2.0 * lr_factor(kind, step, warmup, total) == pytest.approx(
            scheduler.get_last_lr()[0], abs=1e-12
        )
        optimizer.step()
        scheduler.step()
