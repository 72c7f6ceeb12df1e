"""kto-sweep models: the base models with a short name and the memory that they need."""

from typing import Any

import click

from kto_sweep.cli.output import console, json_option, print_json
from kto_sweep.cli.plan import pick_gpu

ROWS = 8
"""Number of rows of max_length in the step whose memory is shown."""


@click.command()
@click.option(
    "--gpu", help="h200, rtx3090, ...; a size such as 24GB; or this. Default: this box's GPU, if any."
)
@json_option
def models(gpu: str | None, as_json: bool) -> None:
    """List the values of --model-size: model, quantization, LoRA rank, max_length and memory.

    GiB: for a step of 8 rows of max_length, half of it the completion. Min GiB: one such row at a time, to
    which training falls back automatically. Other models: --model-name takes a hub id, a folder or a .gguf
    file.

    \b
    kto-sweep models
    kto-sweep models --gpu 24GB --json
    """
    from kto_sweep.models.architecture import Recompute, find_architecture
    from kto_sweep.models.presets import PRESETS
    from kto_sweep.plan.memory import AdapterShape, StepLoad, peak_memory

    chosen = pick_gpu(gpu)
    rows: list[dict[str, Any]] = []
    for preset in PRESETS.values():
        sizes = find_architecture(preset.model)
        assert sizes is not None
        shape, length = AdapterShape(1, preset.lora_r), preset.max_length
        one = StepLoad(length, length // 2, length // 2)
        whole = StepLoad(*(ROWS * n for n in (one.tokens, one.targets, one.mismatched)))
        needed = peak_memory(sizes, preset.quantization, shape, whole).gib
        minimum = peak_memory(sizes, preset.quantization, shape, one, recompute=Recompute.LAYER).gib
        fits = None
        if chosen is not None:
            fits = "yes" if needed <= chosen.usable_gib else "split" if minimum <= chosen.usable_gib else "no"
        rows.append(
            {
                "size": preset.name,
                "model": preset.model,
                "quantization": preset.quantization,
                "lora_r": preset.lora_r,
                "max_length": length,
                "gib": round(needed, 1),
                "least_gib": round(minimum, 1),
                "fits": fits,
                "note": preset.doc,
            }
        )
    if as_json:
        print_json({"gpu": chosen.name if chosen else None, "models": rows})
        return
    from rich.table import Table

    screen = console()
    screen.print(
        f"{chosen.name}, {chosen.usable_gib:.1f} GiB for tensors"
        if chosen
        else "No GPU here: name one with --gpu"
    )
    table = Table(box=None, pad_edge=False)
    right = {"LoRA r", "max_length", "GiB", "min GiB"}
    for header in ("size", "model", "weights", "LoRA r", "max_length", "GiB", "min GiB", "fits", ""):
        table.add_column(header, justify="right" if header in right else "left")
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in row.values()))
    screen.print(table)
    screen.print("Next: kto-sweep train --model-size 7b --local-file rows.jsonl --dry-run", markup=False)
