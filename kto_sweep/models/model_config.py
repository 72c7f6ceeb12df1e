"""A model's configuration from a folder, a .gguf file or the hub, read without loading the model."""

import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from kto_sweep.errors import UsageError
from kto_sweep.models.hub import as_object, cached_file, read_json
from kto_sweep.models.presets import names_a_path
from kto_sweep.models.tokenizer import TOKENIZER_FILES
from kto_sweep.paths import user_path

CONFIG = "config.json"
ADAPTERS = "adapter_config.json"


def find_config(model: str) -> Mapping[str, Any]:
    """The configuration of `model`: a folder, a .gguf file or a hub id. Empty: it could not be read.

    Raises UsageError for a folder or file that is not a model.
    """
    path = user_path(model)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UsageError(f"{model}: no such model file", hint="check the path")
        return _read_gguf(path, path.stat().st_mtime_ns)
    if path.is_dir():
        check_folder(path)
        return read_object(path / CONFIG)
    if names_a_path(model):
        raise UsageError(f"{model}: no such model folder", hint="check the path, or use a hub id")
    config = read_json(model, CONFIG)
    if config is not None and not config and (adapters := read_json(model, ADAPTERS)):
        raise adapters_error(model, adapters)
    return config or {}


def find_generation_config(model: str) -> Mapping[str, Any]:
    """generation_config.json of `model`; empty if there is none, or it could not be read."""
    path = user_path(model)
    file = "generation_config.json"
    if path.is_dir():
        return read_object(path / file) if (path / file).is_file() else {}
    return {} if names_a_path(model) else read_json(model, file) or {}


def find_file(model: str, file: str) -> Path | None:
    """A file of `model`, if it is on this machine: in its folder or in the hub's cache."""
    path = user_path(model)
    if path.is_dir():
        return path / file if (path / file).is_file() else None
    return None if names_a_path(model) else cached_file(model, file)


def copy_processor(model: str, folder: Path) -> None:
    """Copy to `folder` what a vision-language model prepares images with, if it is on this machine."""
    for name in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        file = find_file(model, name)
        if file is not None:
            shutil.copyfile(file, folder / name)


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of a model's text decoder: vision-language models have it in `text_config`."""
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, Mapping) else config


def check_folder(folder: Path) -> None:
    """Raises UsageError for a folder that is not one of a whole language model."""
    if (folder / ADAPTERS).is_file():
        raise adapters_error(str(folder), read_object(folder / ADAPTERS))
    if (folder / "model_index.json").is_file():
        raise UsageError(f"{folder}: a diffusion pipeline, not a language model", hint=USE_CAUSAL)
    if (folder / "modules.json").is_file():
        raise UsageError(f"{folder}: an embedding model (sentence-transformers)", hint=USE_CAUSAL)
    if not (folder / CONFIG).is_file():
        what = "only a tokenizer" if _has_tokenizer(folder) else "no model"
        file = next(iter(sorted(folder.glob("*.gguf"))), "a .gguf file")
        raise UsageError(
            f"{folder}: {what} in this folder (it has no {CONFIG})",
            hint=f"use the folder that save_pretrained wrote, or {file}",
        )


USE_CAUSAL = "use a causal language model, such as Qwen/Qwen2.5-0.5B-Instruct"


def adapters_error(model: str, config: Mapping[str, Any]) -> UsageError:
    """The error for adapters in place of a model."""
    base = config.get("base_model_name_or_path") or "their base model"
    return UsageError(
        f"{model}: adapters (PEFT), not a model",
        hint=f"model: {base}; to continue from the adapters, merge them into it first: "
        "PeftModel.merge_and_unload, or for a run of this box: kto-sweep merge RUN",
    )


def is_only_tokenizer(model: str) -> bool:
    """Whether `model` is a folder with a tokenizer and no model."""
    folder = user_path(model)
    return _has_tokenizer(folder) and not any((folder / file).is_file() for file in (CONFIG, ADAPTERS))


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in TOKENIZER_FILES)


def read_object(file: Path) -> Mapping[str, Any]:
    """The JSON object in a file. Raises UsageError if it is not a JSON file."""
    try:
        return as_object(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: not a JSON file ({error})", hint="download the model again") from error


@lru_cache
def _read_gguf(file: Path, _changed: int) -> Mapping[str, Any]:
    """The header of a .gguf file with the keys of a config.json."""
    try:
        from gguf import GGUFReader
    except ImportError:
        return {}
    try:
        reader = GGUFReader(file)
        fields = {name: field.contents for name, field in reader.fields.items() if "ggml" not in name}
        family = fields["general.architecture"]()
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        vocabulary = int(tensors["token_embd.weight"].shape[1])
    except (KeyError, ValueError, IndexError, OSError):  # reported when it is loaded
        return {}
    names = {
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length",
        "max_position_embeddings": "context_length",
    }
    config = {
        field: fields[f"{family}.{name}"]() for field, name in names.items() if f"{family}.{name}" in fields
    }
    tied = "output.weight" not in tensors
    return {**config, "vocab_size": vocabulary, "model_type": family, "tie_word_embeddings": tied}
