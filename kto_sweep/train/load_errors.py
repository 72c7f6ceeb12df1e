"""Errors of loading a base model, in words that say what to do."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub
from transformers import PreTrainedModel

from kto_sweep.errors import (
    FailureCause,
    KtoSweepError,
    TrialFailure,
    UsageError,
    is_disk_full,
    is_transient,
)
from kto_sweep.models.hub import no_safetensors_error
from kto_sweep.models.model_checks import unknown_architecture
from kto_sweep.text import nearest
from kto_sweep.train.device import is_broken


def says_nothing_about_the_model(error: Exception) -> bool:
    """Whether memory or disk ran out, or a device or drive failed."""
    no_room = isinstance(error, torch.OutOfMemoryError | MemoryError) or is_disk_full(error)
    return no_room or is_broken(error) or is_transient(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def explained(name: str, error: Exception) -> KtoSweepError:
    """A failed load as an error that says what to do."""
    causes = tuple(_chain(error))
    first_line = str(error).strip().partition("\n")[0] or repr(error)
    from_hub = _of_the_hub(name, causes, first_line)
    if from_hub is not None:
        return from_hub
    if any(isinstance(cause, ImportError) for cause in causes):
        return UsageError(
            f"{name}: needs a package that is not installed: {first_line}",
            hint="install it, or choose another model or quantization",
        )
    if any(words in str(error) for words in ("trust_remote_code", "does not recognize this architecture")):
        return unknown_architecture(name, error)
    if "safetensors" in first_line and isinstance(error, OSError):
        return no_safetensors_error(name)
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    return UsageError(
        f"{name}: cannot be loaded: {kind}{first_line}",
        hint="download it again in case a file is damaged, or choose another model",
    )


def _of_the_hub(name: str, causes: Collection[BaseException], first_line: str) -> KtoSweepError | None:
    def among(*types: type[BaseException]) -> bool:
        return any(isinstance(cause, types) for cause in causes)

    elsewhere = "use a local folder or a .gguf file"
    if among(hub.GatedRepoError):
        return UsageError(
            f"{name}: gated model, and this account has no access",
            hint=f"request access at https://huggingface.co/{name} and set HF_TOKEN; or {elsewhere}",
        )
    if among(hub.RepositoryNotFoundError, hub.HFValidationError):
        return UsageError(
            f"{name}: no such local folder, and no such model on the hub",
            hint=f"check the name, set HF_TOKEN if it is private, or {elsewhere}",
        )
    unreachable = (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError, TimeoutError)
    if among(*unreachable) or "couldn't connect" in first_line:
        return TrialFailure(
            FailureCause.NETWORK,
            f"{name}: no such local folder, and the hub cannot be reached",
            hint=f"connect to the network, or {elsewhere}",
        )
    statuses = [cause.response.status_code for cause in causes if isinstance(cause, hub.HfHubHTTPError)]
    if any(status == 429 or status >= 500 for status in statuses):
        return TrialFailure(FailureCause.NETWORK, f"{name}: the hub answers with an error: {first_line}")
    return None


def nearest_path(path: Path) -> str:
    """A hint for a path that does not exist."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    names = [child.name for child in path.parent.iterdir() if child.is_dir() or child.suffix == ".gguf"]
    near = nearest(path.name, names)
    return f"did you mean {path.with_name(near)}?" if near else "check the path"


def require_all_weights(name: str, model: PreTrainedModel, report: Mapping[str, Collection[Any]]) -> None:
    """Raise UsageError for weights that the files do not have, or not in this shape.

    transformers makes them up at random.
    """
    kind = type(model).__name__
    if missing := sorted(report["missing_keys"]):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UsageError(
            f"{name}: its files lack weights of {kind}: {', '.join(missing[:3])}{more}",
            hint="download the model again; in place of an embedding or reward model, use the language model "
            "that it was made from",
        )
    for weight, stored, expected in report["mismatched_keys"]:
        raise UsageError(
            f"{name}: {weight} is {tuple(stored)} in its files and {tuple(expected)} in its config.json",
            hint="download the model again, or save it anew with save_pretrained",
        )
