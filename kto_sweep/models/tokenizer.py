"""Loads a base model's tokenizer without its weights."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from kto_sweep.errors import UsageError
from kto_sweep.home import users_umask
from kto_sweep.paths import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""Every folder with a tokenizer has at least one of these files."""


def load_tokenizer(name: str, *, download: bool = True) -> "PreTrainedTokenizerBase":
    """The tokenizer of `name`: `tiny`, a .gguf file, a local folder or a hub id.

    A folder may contain only a tokenizer. `download` False: use only the hub's local cache.
    Raises UsageError.
    """
    if name == "tiny":
        from kto_sweep.models.tiny import Recipe, make_tokenizer

        return make_tokenizer(Recipe())
    source, gguf_file = _find(name)
    from transformers import AutoTokenizer

    arguments = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        with users_umask():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                source, trust_remote_code=False, local_files_only=not download, **arguments
            )
    except Exception as error:  # a broken file can raise any exception
        reason = str(error).strip().partition("\n")[0] or repr(error)
        raise UsageError(
            f"{name}: could not load its tokenizer: {reason}",
            hint="check the name and the network, or use a local folder, a .gguf file, or tiny",
        ) from error
    return tokenizer


def find_tokenizer(model: str) -> "PreTrainedTokenizerBase | None":
    """The tokenizer of `model` if it is on this machine; downloads nothing."""
    if model.count("/") == 1 and not Path(model).exists():
        from huggingface_hub import try_to_load_from_cache  # transformers takes seconds to import

        if not any(isinstance(try_to_load_from_cache(model, file), str) for file in TOKENIZER_FILES):
            return None
    try:
        return load_tokenizer(model, download=False)
    except UsageError:
        return None


def _find(name: str) -> tuple[str, str | None]:
    """The folder or hub id, and the file in it for a .gguf file.

    Raises UsageError for a path that does not exist.
    """
    path = user_path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UsageError(f"{name}: no such model file", hint="check the path")
        if importlib.util.find_spec("gguf") is None:
            raise UsageError(
                f"{name}: .gguf files need a package that is not installed",
                hint="pip install 'kto-sweep[gguf]'",
            )
        return str(path.parent), path.name
    if path.is_dir():
        if not any((path / file).is_file() for file in TOKENIZER_FILES):
            raise UsageError(
                f"{name}: no tokenizer in this folder (it has no tokenizer.json)",
                hint="use the folder that save_pretrained wrote, or a .gguf file",
            )
        return str(path), None
    if path.is_file() or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UsageError(
            f"{name}: no such model folder", hint="check the path, or use a .gguf file or a hub id"
        )
    return name, None
