"""Where a trial's weights come from: one JSON file beside them, written at the start and at the end.

It has the model and its weights' hash, all parameters, the data's counts and content hash, package versions,
hardware and results.
"""

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kto_sweep.data.dataset import TrainingData
from kto_sweep.data.table import RowTable
from kto_sweep.train.base_model import LoadedBase
from kto_sweep.train.device import describe_device
from kto_sweep.train.failures import classify
from kto_sweep.train.trial.request import TrainResult
from kto_sweep.trial import Trial

_PACKAGES = (
    *("kto-sweep", "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "safetensors"),
    *("tokenizers", "numpy"),
)


class Lineage:
    """One trial's lineage file."""

    def __init__(
        self, path: Path, trial: Trial, base: LoadedBase, data: TrainingData, fingerprints: Mapping[str, str]
    ) -> None:
        """`fingerprints`: content hashes of the `model` and the `rows`."""
        self._path = path
        self._about: dict[str, Any] = {
            "format": "kto-sweep lineage 1",
            "started": _now(),
            "working_directory": str(Path.cwd()),  # relative paths in `trial` start here
            "model": {
                "name": base.name,
                # Of the weights in memory: a folder or hub id can change what it holds.
                "fingerprint": fingerprints.get("model"),
                "quantization": base.quantization,
                "dtype": str(base.dtype).removeprefix("torch."),
                "parameters": base.model.num_parameters(),
            },
            # Enough to load the trial again: chat, merge and `train --from` read it.
            "trial": trial.to_config(),
            "data": {
                "path": data.path,
                "fingerprint": fingerprints.get("rows"),
                "train": _counts(data.train),
                "held_out": _counts(data.eval),
            },
            "software": _software(),
            "hardware": {
                "device": describe_device(),
                "cpus": os.cpu_count(),
                "machine": platform.machine(),
                "cuda": torch.version.cuda,
            },
        }

    def write(self, outcome: TrainResult | Exception | None = None) -> None:
        """Replace the file; `outcome`: how the trial ended, if it has."""
        about = (
            self._about if outcome is None else {**self._about, "ended": _now(), "result": _result(outcome)}
        )
        # Replaced atomically: the next process of this run compares its fingerprints.
        new = self._path.with_name(f"{self._path.name}.new")
        new.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        new.replace(self._path)


def earlier_fingerprints(path: Path) -> dict[str, str]:
    """The fingerprints of `model` and `rows` in a lineage file; empty for a missing or damaged one."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        fingerprints = {"model": about["model"]["fingerprint"], "rows": about["data"]["fingerprint"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: value for name, value in fingerprints.items() if isinstance(value, str)}


def _counts(table: RowTable) -> dict[str, int]:
    desirable, undesirable = table.counts
    return {
        "rows": len(table),
        "desirable": desirable,
        "undesirable": undesirable,
        "tokens": table.tokens,
    }


def _software() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # bitsandbytes, for one, is optional
    return versions


def _result(outcome: TrainResult | Exception) -> dict[str, Any]:
    if isinstance(outcome, TrainResult):
        # The words of the JSON file, which users' scripts read.
        end = "stopped" if outcome.stopped else "finished"
        return {"end": end, "steps": outcome.steps, "summary": dict(outcome.summary)}
    failure = classify(outcome)
    return {"end": "failed", "cause": str(failure.cause), "message": failure.message}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
