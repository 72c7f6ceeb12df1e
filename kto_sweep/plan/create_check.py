"""Checks before a sweep is registered: its file and data, and whether its cells fit on this machine's GPU."""

from collections.abc import Callable
from pathlib import Path

from kto_sweep.data.sources import find_local
from kto_sweep.errors import UsageError
from kto_sweep.home import Home
from kto_sweep.parameter_types import source_names
from kto_sweep.plan.gpus import NoFp8Error, find_gpu
from kto_sweep.plan.planner import planner_for
from kto_sweep.sweep_file.sweep_config import SweepConfig
from kto_sweep.sweep_file.validate import validate
from kto_sweep.trial import DATA_PARAMETERS, parameter_name


def check_before_create(file: Path, home: Home, *, force: bool, say: Callable[[str], None]) -> SweepConfig:
    """The sweep in a file, if it can run here; warnings and the plan's summary go to `say`.

    Raises SweepFileError with every error, UsageError if cells do not fit on this machine's GPU; with `force`
    only for errors that a server would reject. Without a GPU, the plan is only printed.
    """
    validation = validate(file)
    for warning in validation.warnings:
        say(warning.labelled)
    if validation.sweep is None or not force:
        validation.checked()
    sweep = validation.sweep
    assert sweep is not None
    if validation.errors:
        for problem in validation.errors:
            say(f"Error, ignored because of --force: {problem}")
        return sweep
    missing = [name for name in dataset_names(sweep) if not find_local(name)]
    if missing:  # creating a sweep downloads nothing
        say(f"Plan: skipped, {missing[0]} is not on this box; to download it: kto-sweep plan {file}")
        return sweep
    gpu = find_gpu()
    try:
        plan = planner_for(gpu, home, this_box=True, exact=False).plan(sweep)
    except NoFp8Error:
        if not force:
            raise
        return sweep
    except UsageError as error:  # such as a model folder that exists only on the GPU machine
        say(f"Plan: skipped: {error.message}")
        return sweep
    say(f"Plan: {plan.summary()}")
    if plan.impossible and not force:
        first = plan.impossible[0]
        cell = ", ".join(f"{name}={value}" for name, value in first.cell.varied.items()) or "every trial"
        more = f" (in all {plan.misfits})" if len(plan.impossible) > 1 else ""
        available = f"{gpu.name} has {gpu.usable_gib:.1f} for tensors" if gpu else ""
        raise UsageError(
            f"{file}: {cell}{more} needs at least {first.least_gib:.1f} GiB, but {available}",
            hint=f"{first.remedy}; all cells: kto-sweep plan {file}   (--force registers the sweep anyway)",
        )
    return sweep


def dataset_names(sweep: SweepConfig) -> list[str]:
    """The sources of data that the sweep names."""
    return [
        name
        for parameter in sweep.space.parameters
        if parameter_name(parameter.path) in DATA_PARAMETERS
        for value in parameter.distribution.extremes()
        for name in source_names(value)
    ]
