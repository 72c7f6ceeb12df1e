"""Errors in training --> their causes: what is tried again, and what would only happen again."""

import errno
import importlib

import jinja2
import pytest
import torch
from small_models import POSITIONS, VOCABULARY, small_model

from kto_sweep.agent.retry_policy import is_retried
from kto_sweep.errors import DataError, FailureCause, ServerError, TrialFailure, UsageError
from kto_sweep.train.device import LostProcessError
from kto_sweep.train.failures import classify
from kto_sweep.train.lora_targets import find_targets

ASSERT = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"


@pytest.mark.parametrize(
    ("error", "cause", "retried"),
    [
        (TrialFailure(FailureCause.DIVERGED, "nan"), "diverged", False),
        (DataError("no rows"), "bad data", False),
        (UsageError("no model"), "bad config", False),
        (ServerError("gone"), "worker crash", True),
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory", False),
        (MemoryError(), "out of memory", False),
        (OSError(errno.ENOSPC, "No space left on device"), "disk full", True),
        (OSError(errno.ESTALE, "Stale file handle"), "worker crash", True),
        (ConnectionResetError("reset"), "network", True),
        (RuntimeError("can't start new thread"), "worker crash", True),
        (torch.AcceleratorError("CUDA error: an illegal memory access"), "sick GPU", True),
        (torch.AcceleratorError(ASSERT), "bad config", False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "sick GPU", True),
        (LostProcessError("process 2 of 2 ended with signal 9"), "worker crash", True),
        (KeyError("a defect of ours"), "internal error", False),
        (FileNotFoundError(errno.ENOENT, "No such file"), "internal error", False),
        (ModuleNotFoundError("No module named 'fla'", name="fla.ops"), "bad config", False),
    ],
)
def test_what_would_happen_again_is_not_retried(error: Exception, cause: str, retried: bool) -> None:
    failure = classify(error)
    assert failure.cause == cause
    assert is_retried(failure.cause, 1) == retried
    assert failure.hint or retried or isinstance(error, (DataError, UsageError, TrialFailure))


def raised_by(code: object) -> TrialFailure:
    """The failure of what a call raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever the library raises
        code()  # type: ignore[operator]
    return classify(caught.value)


def test_an_error_of_the_models_code_is_bad_config_and_says_what_to_set() -> None:
    gpt2, llama = small_model("gpt2"), small_model("llama")
    too_long = raised_by(lambda: gpt2(torch.zeros(1, POSITIONS + 1, dtype=torch.long)))
    no_embedding = raised_by(lambda: llama(torch.tensor([[VOCABULARY]])))
    for failure in (too_long, no_embedding):
        assert failure.cause is FailureCause.BAD_CONFIG
        assert failure.message == (
            "the model's code failed (transformers): IndexError: index out of range in self"
        )
        assert "tokenizer" in failure.hint
        assert "max_length" in failure.hint
    llama.model.norm = torch.nn.LayerNorm(31)
    shapes = raised_by(lambda: llama(torch.tensor([[1]])))
    assert shapes.cause is FailureCause.BAD_CONFIG
    assert shapes.hint == "another model"
    template = raised_by(jinja2.Environment().from_string("{{ 1 / 0 }}{{ x.y.z }}").render)
    assert template.cause is FailureCause.BAD_CONFIG
    assert "chat template" in template.hint


def test_an_error_of_our_code_inside_a_librarys_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("llama")
    module = importlib.import_module("kto_sweep.train.lora_targets")
    monkeypatch.setattr(module, "matches", None)  # a defect
    model.register_forward_pre_hook(lambda *_: find_targets(model, ("q_proj",)))
    assert raised_by(lambda: model(torch.tensor([[1]]))).cause is FailureCause.INTERNAL_ERROR
