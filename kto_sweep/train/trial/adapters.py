"""A trial's adapters as files that `PeftModel.from_pretrained` loads."""

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
    """Replace `folder` by adapters in PEFT's format; it is never incomplete.

    `spec.targets` names the layers of `tensors` and no others (see shortest_names). `tensors` on the host,
    named as by AdapterStack.tensors. `base_model`: the hub id or folder for PEFT to load.
    Raises OSError, for example on a full disk.
    """
    # Not with peft's LoraConfig: its import would stop the other trials for two seconds.
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "target_modules": list(spec.targets),
        "base_model_name_or_path": base_model,
        "inference_mode": True,
    }
    with replaced(folder) as new:
        write_atomic(new / "adapter_config.json", json.dumps(config, indent=2) + "\n")
        weights = {f"base_model.model.{name}.weight": tensor for name, tensor in tensors.items()}
        write_tensors(new / "adapter_model.safetensors", weights, {"format": "pt"})


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder to fill. At the end of the block it replaces `folder`, which is never incomplete."""
    new, old = (folder.with_name(f"{folder.name}.{which}") for which in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)  # a full disk needs the space
        raise
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        # A folder cannot be replaced by another one that is not empty: two renames.
        folder.replace(old)
    new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
