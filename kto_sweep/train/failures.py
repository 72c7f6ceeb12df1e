"""The cause of an error in training: one function decides it, for workers, ranks and W&B's own agents.

error of ours                   has its cause
memory, disk, network, device   another attempt may succeed, or needs less
raised by the model's code      bad config: the model, or what it is trained with, would raise it again
anything else                   internal error: a bug, which would raise it again

torch is imported only to look at errors that torch may have raised.
"""

import traceback
from types import TracebackType

from kto_sweep.errors import (
    DataError,
    FailureCause,
    KtoSweepError,
    TrialFailure,
    UsageError,
    is_device_assert,
    is_disk_full,
    is_gpu_error,
    is_transient,
)

_LIBRARIES = {
    "bitsandbytes": "quantization: none, or another model",
    "peft": "other lora_targets: all-linear, or names of linear layers",
    "trl": "another model",
    "accelerate": "another model",
    "jinja2": "another model: the chat template of this one does not accept the rows",
    "tokenizers": "another model, or a tokenizer that fits it",
    "transformers": "another model",
}
"""What to set instead, by the package whose code raised an error."""

OUTSIDE_TABLE = (
    "a token id or a position is outside the model's tables: use the model's own tokenizer, and a max_length "
    "that it can hold"
)


def classify(error: BaseException) -> TrialFailure:
    """The failure of a trial that raised `error`."""
    if isinstance(error, TrialFailure):
        return error
    if isinstance(error, KtoSweepError):
        return TrialFailure(_cause_of_ours(error), error.message, hint=error.hint)
    return _of_the_machine(error) or _of_a_program(error)


def _cause_of_ours(error: KtoSweepError) -> FailureCause:
    if isinstance(error, DataError):
        return FailureCause.BAD_DATA
    return FailureCause.BAD_CONFIG if isinstance(error, UsageError) else FailureCause.WORKER_CRASH


def _of_the_machine(error: BaseException) -> TrialFailure | None:
    """The failure of an error that is not in any program."""
    from kto_sweep.train.device import is_broken, is_out_of_memory, out_of_memory

    text, cause = _shown(error), None
    if is_out_of_memory(error):
        return out_of_memory(str(error))
    if is_disk_full(error):
        hint = "free some disk space and run the agent again"
        return TrialFailure(FailureCause.DISK_FULL, str(error), hint=hint)
    if is_broken(error) and not is_device_assert(text):
        cause = FailureCause.SICK_GPU if is_gpu_error(text) else FailureCause.WORKER_CRASH
    elif isinstance(error, ConnectionError | TimeoutError):
        cause = FailureCause.NETWORK
    elif is_transient(error) or "can't start new thread" in text:
        cause = FailureCause.WORKER_CRASH
    return None if cause is None else TrialFailure(cause, text)


def _of_a_program(error: BaseException) -> TrialFailure:
    """The failure of an error that the same trial would raise again."""
    text, package = _shown(error), _raised_by(error.__traceback__)
    if isinstance(error, ImportError) and error.name and not error.name.startswith("kto_sweep"):
        hint = f"install {error.name.partition('.')[0]}, or choose another model, optimizer or quantization"
    elif is_device_assert(text):
        text, hint = text.partition("\n")[0], OUTSIDE_TABLE  # the rest is about debugging CUDA
    elif package in _LIBRARIES:
        text = f"the model's code failed ({package}): {text}"
        hint = OUTSIDE_TABLE if isinstance(error, IndexError) else _LIBRARIES[package]
    else:
        hint = "a bug of kto-sweep: report it with the traceback in the run's console log"
        return TrialFailure(FailureCause.INTERNAL_ERROR, text, hint=hint)
    return TrialFailure(FailureCause.BAD_CONFIG, text, hint=hint)


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _raised_by(trace: TracebackType | None) -> str:
    """The package of the innermost function that is kto-sweep's or a library's for models."""
    # torch and Python only do what they are told: the caller is to blame.
    names = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in traceback.walk_tb(trace)]
    return next((name for name in reversed(names) if name in {*_LIBRARIES, "kto_sweep"}), "kto_sweep")
