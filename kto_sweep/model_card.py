"""Writes the model card of a trained run from its lineage file."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kto_sweep.json_file import parse_json
from kto_sweep.text import number

RESULTS = (
    *("loss", "rewards/margins", "kl", "eval/common_loss", "eval/loss", "eval/auc", "eval/margins"),
    *("eval/dprime", "eval/desirable_below_ref", "eval/kl_raw", "trial/seconds"),
)
"""Metrics on a card, if the run has them."""


def write_card(folder: Path, merged: Path | None = None) -> None:
    """Write README.md into the run's folder and next to its weights, ready to upload to the hub.

    `merged`: the folder of the run's merged model; the card is written only there.
    """
    about = parse_json((folder / "lineage.json").read_text(encoding="utf-8"))
    text = "\n".join(card_lines(about, merged=merged is not None)) + "\n"
    places = (folder, folder / "adapter", folder / "model", folder / "best")
    for place in places if merged is None else (merged,):
        if place.is_dir():
            (place / "README.md").write_text(text, encoding="utf-8")


def card_lines(about: Mapping[str, Any], *, merged: bool = False) -> Iterator[str]:
    """The card's lines; `about` is the content of lineage.json."""
    model, data, trial = about["model"], about["data"], about["trial"]
    result = about.get("result", {})
    full = merged or bool(trial.get("full_finetune"))
    yield from ("---", f"library_name: {'transformers' if full else 'peft'}")
    if "/" in model["name"] and not Path(model["name"]).exists():  # the hub links the base model
        yield f"base_model: {json.dumps(model['name'])}"
    yield from ("pipeline_tag: text-generation", "tags:", "- kto", "- kto-sweep")
    if not full:
        yield "- lora"
    yield from ("---", "", f"# {model['name']}, tuned with KTO", "")
    kind = "These are LoRA adapters for the base model."
    if full:
        kind = "LoRA adapters, merged into the base model." if merged else "All weights were trained."
    end = f"{result.get('end', 'not ended')} {about.get('ended', '')}".rstrip()
    yield f"{kind} Started {about['started']}, {end}."
    yield from (
        "",
        "## Data",
        "",
        f"`{_file_names(trial['dataset'])}`, content hash `{data['fingerprint']}`",
        "",
    )
    yield from ("| | rows | desirable | undesirable | tokens |", "|---|---:|---:|---:|---:|")
    for name, title in (("train", "trained on"), ("held_out", "held out")):
        counts = data[name]
        cells = (counts[key] for key in ("rows", "desirable", "undesirable", "tokens"))
        yield f"| {title} | " + " | ".join(f"{count:,}" for count in cells) + " |"
    yield from ("", "## Results", "", "| | |", "|---|---:|")
    summary = result.get("summary", {})
    yield f"| optimizer steps | {result.get('steps', 0):,} |"
    for name in RESULTS:
        if isinstance(summary.get(name), int | float):
            yield f"| `{name}` | {number(summary[name])} |"
    yield from ("", "`eval/*` is measured on the held-out rows; `eval/common_loss` is 0.5 before training.")
    yield from ("", "## Parameters", "", "| | |", "|---|---|")
    for name, value in trial.items():
        shown = _file_names(value) if name in {"dataset", "eval_dataset"} else value
        yield f"| `{name}` | {shown} |"
    yield from ("", "## Lineage", "", "| | |", "|---|---|")
    yield f"| base weights | `{model['fingerprint']}`, {model['quantization']}, {model['dtype']} |"
    yield from (f"| {name} | {text} |" for name, text in _origin(about))


def _origin(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Sizes of the model, code and environment, as far as the lineage has them: names and texts."""
    model, code, environment = (about.get(name, {}) for name in ("model", "code", "environment"))
    sizes = [
        f"{model[name]:,} {name.replace('_', ' ')}"
        for name in ("parameters", "trainable_parameters")
        if name in model
    ]
    yield "size", ", ".join(sizes)
    if code:
        yield "code", f"commit `{code['commit']}`{', with changes' if code.get('dirty') else ''}"
    if environment:
        shown = (f"{name} {value}" for name, value in environment.items() if name != "host")
        yield "environment", ", ".join(shown)


def _file_names(dataset: object) -> str:
    """The names of a trial's data without their folders, which are private."""
    files = dataset if isinstance(dataset, list) else [dataset]
    return ", ".join(Path(str(file)).name for file in files)
