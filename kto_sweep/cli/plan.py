"""kto-sweep plan: memory, time and disk of a sweep before it runs."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kto_sweep.cli.output import console, json_option, print_json
from kto_sweep.cli.path_option import UserPath

if TYPE_CHECKING:
    from kto_sweep.plan.gpus import Gpu


@click.command()
@click.argument("file", type=UserPath())
@click.option(
    "--gpu", help="h200, rtx3090, ...; a size such as 24GB; or this. Default: this box's GPU, if any."
)
@json_option
def plan(file: Path, gpu: str | None, as_json: bool) -> int:
    """Estimate for each cell of a sweep: whether it fits on a GPU, its time, and how many fit together.

    Loads no model: sizes come from its configuration, tokens from the data. For a search that is not a grid,
    shows the ends of its ranges. Exit code 1: some trials cannot fit.

    \b
    kto-sweep plan sweeps/model_size_grid.yaml --gpu h200
    kto-sweep plan my.yaml --gpu 24GB
    kto-sweep plan my.yaml --gpu this --json
    """
    from kto_sweep.cli.plan_text import as_object, print_plan
    from kto_sweep.home import Home
    from kto_sweep.plan.planner import planner_for
    from kto_sweep.sweep_file.validate import validate

    sweep = validate(file).checked()
    estimate = planner_for(pick_gpu(gpu), Home.from_environment(), this_box=gpu in (None, "this")).plan(sweep)
    if as_json:
        print_json({"file": str(file), "method": sweep.method, **as_object(estimate)})
    else:
        print_plan(console(), estimate, sweep.method, str(file), f" --gpu {gpu}" if gpu else "")
    return 1 if estimate.impossible else 0


def pick_gpu(named: str | None) -> "Gpu | None":
    """The GPU that `--gpu` names; by default the smallest GPU of this box, or None without a GPU.

    Raises UsageError for an unknown name, and for `this` on a box without a GPU.
    """
    from kto_sweep.errors import UsageError
    from kto_sweep.plan.gpus import find_gpu, named_gpu, present_gpu

    if named is None:
        return find_gpu()
    if named.lower() != "this":
        return named_gpu(named)
    from kto_sweep.train.device import this_gpu  # torch takes seconds to import

    gpu = this_gpu()
    if gpu is None:
        raise UsageError(
            "--gpu this: torch found no GPU on this box", hint="name one: --gpu h200, or a size: --gpu 24GB"
        )
    return present_gpu(*gpu)
