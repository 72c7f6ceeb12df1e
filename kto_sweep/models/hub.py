"""A model's config and download size from the hub or its local cache, without downloading weights."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from kto_sweep.errors import UsageError
from kto_sweep.http import Answer, NoAnswerError, get
from kto_sweep.json_file import parse_json

TIMEOUT_SECONDS = 5.0
"""Timeout of a request to the hub. The hub's own client retries for half a minute without a network."""
MAX_ANSWER = 1 << 26
"""Bytes."""
_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def read_json(model: str, file: str) -> Mapping[str, Any] | None:
    """A JSON file of a model on the hub, from the cache or with one request.

    Empty: the hub has no such file for this account. None: the hub could not be reached.
    """
    import huggingface_hub as hub

    cached = cached_file(model, file)
    if cached is not None:
        return as_object(cached.read_bytes())
    return None if hub.constants.HF_HUB_OFFLINE else _requested(hub.constants.ENDPOINT, model, file)


def cached_file(model: str, file: str) -> Path | None:
    """A file of a model in the hub's local cache."""
    import huggingface_hub as hub

    try:
        cached = hub.try_to_load_from_cache(model, file)
    except hub.errors.HFValidationError:  # not a hub id
        return None
    return Path(cached) if isinstance(cached, str) else None


@lru_cache  # also of failures: the cells of a sweep ask for the same files, and each would wait again
def _requested(endpoint: str, model: str, file: str) -> Mapping[str, Any] | None:
    try:
        answer = _request(f"{model}/resolve/main/{file}")
        return as_object(answer.body) if answer.ok else {}
    except (NoAnswerError, ValueError):
        return None


def bytes_to_download(model: str) -> int | None:
    """Bytes of weights that training would download: 0 if they are cached, None if unknown.

    Raises UsageError if they are not available.
    """
    import huggingface_hub as hub

    if _are_cached(model):
        return 0
    hint = "connect to the network, or use a local folder or a .gguf file"
    if hub.constants.HF_HUB_OFFLINE:
        raise UsageError(
            f"{model}: some of its weights are not on this box, and HF_HUB_OFFLINE is set", hint=hint
        )
    try:
        answer = _request(f"api/models/{model}?blobs=true")
    except NoAnswerError as error:
        raise UsageError(
            f"{model}: some of its weights are not on this box, and the hub could not be reached", hint=hint
        ) from error
    if answer.status in {401, 403, 404}:
        raise UsageError(
            f"{model}: not a local folder, and not a model that you can access on the hub",
            hint="check the name; for a gated or private model, request access and set HF_TOKEN",
        )
    if not answer.ok:
        return None
    try:
        siblings = as_object(answer.body).get("siblings", ())
    except ValueError:
        return None
    files = [file for file in siblings if str(file.get("rfilename")).endswith(".safetensors")]
    if not files:
        raise no_safetensors_error(model)
    sizes = [file.get("size") for file in files]
    return sum(sizes) if all(isinstance(size, int) for size in sizes) else None


def no_safetensors_error(model: str) -> UsageError:
    """The error for a folder or hub id whose weights are in another format."""
    return UsageError(
        f"{model}: has no safetensors weights",
        hint="convert them with save_pretrained; formats that can contain code are not loaded",
    )


def _are_cached(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(model, _ONE_FILE), str):
        return True
    index = try_to_load_from_cache(model, _INDEX)
    if not isinstance(index, str):
        return False
    try:
        shards = set(as_object(Path(index).read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        return False
    return all(isinstance(try_to_load_from_cache(model, shard), str) for shard in shards)


def _request(path: str) -> Answer:
    """The hub's answer. Raises NoAnswerError."""
    import huggingface_hub as hub

    token = hub.get_token()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return get(f"{hub.constants.ENDPOINT}/{path}", timeout=TIMEOUT_SECONDS, limit=MAX_ANSWER, headers=headers)


def as_object(text: bytes) -> Mapping[str, Any]:
    """The JSON object in `text`; empty for other JSON. Raises ValueError."""
    value = parse_json(text)
    return value if isinstance(value, Mapping) else {}
