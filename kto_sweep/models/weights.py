"""The names and shapes of a model's weights, from the headers of its safetensors files."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from kto_sweep.errors import UsageError
from kto_sweep.models.hub import no_safetensors_error
from kto_sweep.models.model_config import find_file, read_object
from kto_sweep.paths import user_path

_OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings")

Shapes = Mapping[str, tuple[int, ...]]


def weight_shapes(model: str) -> Shapes:
    """The shape of each weight by name; empty if the files are not on this machine."""
    folder = user_path(model)
    if not folder.is_dir():
        first = find_file(model, _ONE_FILE) or find_file(model, _INDEX)
        if first is None:
            return {}
        folder = first.parent
    return _read(tuple((file, file.stat().st_mtime_ns) for file in sorted(folder.glob("*.safetensors"))))


@lru_cache
def _read(files: tuple[tuple[Path, int], ...]) -> Shapes:
    """`files` with their times of change, so that one that is written anew is read again."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path, _ in files:
        try:
            with safe_open(path, framework="numpy") as file:
                names = file.keys()
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError):  # reported when it is loaded
            return {}
    return shapes


def check_files(model: str) -> None:
    """Raise UsageError for a folder whose weights are incomplete, or only in another format."""
    folder = user_path(model)
    if not folder.is_dir():
        return
    stored = {file.name for file in folder.glob("*.safetensors")}
    if not stored and any(any(folder.glob(f"*{suffix}")) for suffix in _OTHER_FORMATS):
        raise no_safetensors_error(model)
    named = read_object(folder / _INDEX).get("weight_map") if (folder / _INDEX).is_file() else None
    missing = sorted(set(named.values()) - stored) if isinstance(named, Mapping) else []
    if missing:
        raise UsageError(
            f"{model}: {len(missing)} of its files of weights are missing, such as {missing[0]}",
            hint="download the model again",
        )


def is_embedding(name: str) -> bool:
    """Whether a weight, or its layer, is a token embedding."""
    return name.removesuffix(".weight").rpartition(".")[2] in _EMBEDDINGS


def embedding_rows(shapes: Shapes) -> int | None:
    """The rows of the token embedding; None: no weight has a name that tells."""
    rows = [shape[0] for name, shape in shapes.items() if len(shape) == 2 and is_embedding(name)]
    return max(rows, default=None)
