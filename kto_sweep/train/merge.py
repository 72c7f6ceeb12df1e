"""Trained adapters made part of the base model's weights."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from kto_sweep.errors import UsageError
from kto_sweep.home import Home
from kto_sweep.model_card import write_card
from kto_sweep.train.base_model import LoadedBase, load_base
from kto_sweep.train.trial.adapters import replaced


def tuned(base: LoadedBase, adapters: Path) -> PeftModel:
    """The base model with the adapters of a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, to peft
        return PeftModel.from_pretrained(base.model, str(adapters))


def where_else(run: Path) -> str:
    """What to do about a run without the weights of its last step, such as one that was cut off."""
    return "add --best: it was cut off" if (run / "best").is_dir() else f"look into {run}"


def merge(home: Home, run: Path, output: Path | None, *, best: bool, say: Callable[[str], None]) -> Path:
    """The folder with the merged model of a run, its tokenizer and its card, as safetensors.

    Of a quantised base model the unquantised weights are taken, in the type that training computed in: they
    differ a little from those that it saw.

    Raises UsageError when there are no adapters or the folder has something in it; as load_base does.
    """
    lineage = run / "lineage.json"
    adapters = run / ("best" if best else "adapter")
    if (run / "model").is_dir():
        raise UsageError(f"run {run.name} trained all weights", hint=f"they are merged: {run / 'model'}")
    if not (adapters / "adapter_config.json").is_file() or not lineage.is_file():
        raise UsageError(f"run {run.name} has no trained adapters", hint=where_else(run))
    folder = (run / "merged" if output is None else output.expanduser()).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already", hint="name another with --output, or remove it")
    about = json.loads(lineage.read_text(encoding="utf-8"))["model"]
    if about["quantization"] != "none":
        say(f"Trained on {about['quantization']} weights; merged into the whole ones")
    base = load_base(
        about["name"],
        quantization="none",
        device=torch.device("cpu"),
        home=home,
        dtype=getattr(torch, about["dtype"]),
    )
    merged: Any = tuned(base, adapters).merge_and_unload()
    with replaced(folder) as new:
        merged.save_pretrained(str(new), safe_serialization=True)
        base.tokenizer.save_pretrained(str(new))
    write_card(run, merged=folder)
    return folder
