"""Merges trained adapters into the base model's weights."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from kto_sweep.errors import UsageError
from kto_sweep.home import Home, users_umask
from kto_sweep.json_file import parse_json
from kto_sweep.model_card import write_card
from kto_sweep.models.model_config import copy_processor
from kto_sweep.train.base_model import LoadedBase, load_base
from kto_sweep.train.trial.adapters import replaced


def tuned(base: LoadedBase, adapters: Path) -> PeftModel:
    """The base model with the adapters of a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, to peft
        return PeftModel.from_pretrained(base.model, str(adapters))


def where_else(run: Path) -> str:
    """A hint for a run without the weights of its last step, for example an interrupted one."""
    return "it was interrupted: add --best" if (run / "best").is_dir() else f"see {run}"


def merge(home: Home, run: Path, output: Path | None, *, best: bool, say: Callable[[str], None]) -> Path:
    """Write a run's merged model, tokenizer and model card as safetensors; the folder.

    For a quantised base model the unquantised weights are used, in the precision of training: they differ
    slightly from those in training.

    Raises UsageError without adapters and for a folder that is not empty, and as load_base does.
    """
    lineage = run / "lineage.json"
    adapters = run / ("best" if best else "adapter")
    if (run / "model").is_dir():
        raise UsageError(f"run {run.name} trained all weights", hint=f"nothing to merge: use {run / 'model'}")
    if not (adapters / "adapter_config.json").is_file() or not lineage.is_file():
        raise UsageError(f"run {run.name} has no trained adapters", hint=where_else(run))
    folder = run / "merged" if output is None else output
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already", hint="choose another folder with --output, or remove it")
    try:
        about = parse_json(lineage.read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{lineage}: damaged ({error})", hint="choose another run") from error
    if about["quantization"] != "none":
        say(f"Trained on {about['quantization']} weights; merged into the unquantised ones")
    say(f"Loading {about['name']}")
    base = load_base(
        about["name"],
        quantization="none",
        device=torch.device("cpu"),
        home=home,
        dtype=getattr(torch, about["dtype"]),
    )
    say("Merging the adapters, and writing the model")
    merged: Any = tuned(base, adapters).merge_and_unload()
    with users_umask() if output else nullcontext(), replaced(folder) as new:
        merged.save_pretrained(str(new), safe_serialization=True)
        base.tokenizer.save_pretrained(str(new))
        copy_processor(base.name, new)
    write_card(run, merged=folder)
    return folder
