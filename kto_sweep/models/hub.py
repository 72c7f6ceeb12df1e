"""What the model hub, or its cache on this box, tells of a model without downloading its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from kto_sweep.errors import UsageError

SECONDS = 5.0
"""For the hub's answer. Its own client tries again for half a minute where there is no network."""
_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def read_config(model: str) -> Mapping[str, Any]:
    """config.json of a model on the hub, from the cache or by one quick question; empty when it has none."""
    import huggingface_hub as hub

    cached = hub.try_to_load_from_cache(model, "config.json")
    if isinstance(cached, str):
        return as_object(Path(cached).read_bytes())
    if hub.constants.HF_HUB_OFFLINE:
        return {}
    try:
        return as_object(_ask(f"{model}/resolve/main/config.json"))
    except (OSError, ValueError):
        return {}


def bytes_to_download(model: str) -> int | None:
    """How much of a model's weights training would download: 0 when the cache has them; None: not known.

    Raises UsageError when they cannot be had.
    """
    import huggingface_hub as hub

    if _are_cached(model):
        return 0
    elsewhere = "connect to the network, or give a local folder or a .gguf file"
    if hub.constants.HF_HUB_OFFLINE:
        raise UsageError(
            f"{model}: its weights are not all on this box, and HF_HUB_OFFLINE is set", hint=elsewhere
        )
    try:
        answer = as_object(_ask(f"api/models/{model}?blobs=true"))
    except HTTPError as error:
        if error.code in {401, 403, 404}:
            raise UsageError(
                f"{model}: no such folder here, and no such model on the hub that you may have",
                hint="check the name, and set HF_TOKEN if it is private or gated",
            ) from error
        return None
    except OSError as error:
        raise UsageError(
            f"{model}: its weights are not all on this box, and the hub cannot be reached", hint=elsewhere
        ) from error
    except ValueError:
        return None
    files = [
        file for file in answer.get("siblings", ()) if str(file.get("rfilename")).endswith(".safetensors")
    ]
    if not files:
        raise without_safetensors(model)
    sizes = [file.get("size") for file in files]
    return sum(sizes) if all(isinstance(size, int) for size in sizes) else None


def without_safetensors(model: str) -> UsageError:
    """The error for a folder or hub id whose weights are in another format."""
    return UsageError(
        f"{model}: has no weights as safetensors",
        hint="convert them with save_pretrained; formats that can hold code are not read",
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


def _ask(path: str) -> bytes:
    """The hub's answer. Raises OSError."""
    import huggingface_hub as hub

    token = hub.get_token()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    with urlopen(Request(f"{hub.constants.ENDPOINT}/{path}", headers=headers), timeout=SECONDS) as answer:
        found: bytes = answer.read()
    return found


def as_object(text: bytes) -> Mapping[str, Any]:
    """The JSON object in `text`; empty for other JSON. Raises ValueError."""
    found = json.loads(text)
    return found if isinstance(found, Mapping) else {}
