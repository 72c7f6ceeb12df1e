"""Where a trial's weights come from: one JSON file beside them, written at the start and at the end.

It has all parameters, the trial's provenance, and the results.
"""

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers.pytorch_utils import Conv1D

from kto_sweep.data.dataset import TrainingData
from kto_sweep.data.table import RowTable
from kto_sweep.errors import UsageError
from kto_sweep.json_file import parse_json
from kto_sweep.provenance import DataInfo, ModelInfo, Provenance, RowCounts
from kto_sweep.train.base_model import LoadedBase, class_name
from kto_sweep.train.failures import classify
from kto_sweep.train.lora_targets import find_targets, is_linear, text_decoder
from kto_sweep.train.trial.request import TrainResult
from kto_sweep.trial import Trial


class Lineage:
    """One trial's lineage file."""

    def __init__(self, path: Path, trial: Trial, provenance: Provenance) -> None:
        self._path = path
        self._about: dict[str, Any] = {
            "format": "kto-sweep lineage 2",
            "started": _now(),
            "working_directory": str(Path.cwd()),  # relative paths in `trial` start here
            # Enough to load the trial again: chat, merge and `train --from` read it.
            "trial": trial.to_config(),
            **provenance.to_json(),
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
        about = parse_json(path.read_text(encoding="utf-8"))
        fingerprints = {"model": about["model"]["fingerprint"], "rows": about["data"]["fingerprint"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: value for name, value in fingerprints.items() if isinstance(value, str)}


def model_info(base: LoadedBase, trial: Trial, fingerprint: str) -> ModelInfo:
    """The base model in a trial's provenance."""
    config: Any = base.model.config
    text: Any = config.get_text_config()
    return ModelInfo(
        name=base.name,
        type=str(config.model_type),
        architecture=class_name(base.model),
        parameters=base.model.num_parameters(),
        trainable_parameters=_trainable_parameters(base.model, trial),
        layers=getattr(text, "num_hidden_layers", None),
        hidden_size=getattr(text, "hidden_size", None),
        quantization=base.quantization,
        dtype=str(base.dtype).removeprefix("torch."),
        fingerprint=fingerprint,
    )


def _trainable_parameters(model: Any, trial: Trial) -> int | None:
    if trial.full_finetune:
        trained = (text_decoder(model), model.get_output_embeddings())
        # By identity: the output layer may be the input embeddings.
        return sum({id(weight): weight.numel() for part in trained for weight in part.parameters()}.values())
    with suppress(UsageError, AttributeError):  # the training itself reports a name that no layer has
        layers = find_targets(model, trial.lora_targets, accepts=is_linear).values()
        # A is (rank, in) and B is (out, rank).
        return sum(trial.lora_r * sum(_features(layer)) for layer in layers)
    return None


def _features(layer: Any) -> tuple[int, int]:
    """Input and output features; quantised weights have another shape."""
    if isinstance(layer, Conv1D):
        features_in, features_out = layer.weight.shape
        return features_in, features_out
    return layer.in_features, layer.out_features


def data_info(data: TrainingData, fingerprint: str) -> DataInfo:
    """The rows in a trial's provenance."""
    return DataInfo(data.path, fingerprint, train=_counts(data.train), held_out=_counts(data.eval))


def _counts(table: RowTable) -> RowCounts:
    desirable, undesirable = table.counts
    return RowCounts(len(table), desirable, undesirable, table.tokens)


def _result(outcome: TrainResult | Exception) -> dict[str, Any]:
    if isinstance(outcome, TrainResult):
        # The words of the JSON file, which users' scripts read.
        end = "stopped" if outcome.stopped else "finished"
        return {"end": end, "steps": outcome.steps, "summary": dict(outcome.summary)}
    failure = classify(outcome)
    return {"end": "failed", "cause": str(failure.cause), "message": failure.message}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
