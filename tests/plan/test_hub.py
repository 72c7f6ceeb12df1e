"""Whether a model's weights are available, before anything is downloaded."""

import json
from pathlib import Path

import pytest

from kto_sweep.errors import UsageError
from kto_sweep.models.hub import bytes_to_download

COMMIT = "0" * 40


def put_in_cache(cache: Path, model: str, files: dict[str, str]) -> None:
    """Write files in the layout of huggingface_hub's cache."""
    folder = cache / f"models--{model.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs/main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / "snapshots" / COMMIT / name).write_text(text)


def test_size_of_the_download(hub: list[str]) -> None:
    assert bytes_to_download("org/model") == 3 * 10**9


def test_cached_weights_need_no_request(hub: list[str], tmp_path: Path) -> None:
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = {"model.safetensors.index.json": json.dumps({"weight_map": shards})}
    put_in_cache(tmp_path / "cache", "org/model", {**index, "model-1.safetensors": ""})
    assert bytes_to_download("org/model") == 3 * 10**9  # a shard is missing
    put_in_cache(tmp_path / "cache", "org/model", {"model-2.safetensors": ""})
    put_in_cache(tmp_path / "cache", "org/small", {"model.safetensors": ""})
    hub.clear()
    assert bytes_to_download("org/model") == bytes_to_download("org/small") == 0
    assert hub == []


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("org/absent", "not a model that you can access on the hub"),
        ("org/pickled", "has no safetensors weights"),
    ],
)
def test_unavailable_weights_are_an_error(hub: list[str], model: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        bytes_to_download(model)


def test_without_a_network(hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match="the hub could not be reached") as caught:
        bytes_to_download("org/model")
    assert "local folder" in str(caught.value.hint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        bytes_to_download("org/model")
