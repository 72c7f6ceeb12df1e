"""A slot's adapters as files that `PeftModel.from_pretrained` loads."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from kto_sweep.json_file import write_atomic
from kto_sweep.train.packed.lora import AdapterSpec
from kto_sweep.train.trial.checkpoint import write_tensors


def save_adapters(
    folder: Path, spec: AdapterSpec, tensors: Mapping[str, Tensor], base_model: str | None = None
) -> None:
    """Write `folder` in PEFT's format, in place of what was there; half-written folders are never seen.

    `tensors`, on the host, as AdapterStack.tensors names them; `base_model` is the hub id or folder that PEFT
    will load. Raises OSError when the disk is full.
    """
    layers = {name.rpartition(".")[0] for name in tensors}
    # Not by peft's own LoraConfig, whose import would hold up the other trials for two seconds.
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        # Last parts of names, as people write them; every layer of such a name has adapters.
        "target_modules": sorted({layer.rpartition(".")[2] for layer in layers}),
        "base_model_name_or_path": base_model,
        "inference_mode": True,
    }
    with replaced(folder) as new:
        write_atomic(new / "adapter_config.json", json.dumps(config, indent=2) + "\n")
        weights = {f"base_model.model.{name}.weight": tensor for name, tensor in tensors.items()}
        write_tensors(new / "adapter_model.safetensors", weights, {"format": "pt"})


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which then takes the place of `folder`; half-filled ones are never seen there."""
    new, old = (folder.with_name(f"{folder.name}.{which}") for which in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)  # a full disk needs the room
        raise
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
