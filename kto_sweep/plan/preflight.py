"""Before a sweep is registered: its file and data checked, and its cells against the GPU of this box."""

from collections.abc import Callable
from pathlib import Path

from kto_sweep.data.files import find_data
from kto_sweep.errors import UsageError
from kto_sweep.home import Home
from kto_sweep.plan.gpus import Gpu, find_gpu
from kto_sweep.plan.plan import Planner
from kto_sweep.rates import read_rates
from kto_sweep.sweep_file.spec import SweepSpec
from kto_sweep.sweep_file.validate import validate
from kto_sweep.text import counted
from kto_sweep.trial import parameter_name

CPU = "cpu"
"""What rates call a box without a GPU."""


def planner(gpu: Gpu | None, home: Home, *, this_box: bool, exact: bool = True) -> Planner:
    """A planner for `gpu`; `this_box`: rates measured here count; `exact`: with the models' tokenizers."""
    device = (gpu.name if gpu else CPU) if this_box else ""
    return Planner(gpu, device, read_rates(home.root) if device else [], exact=exact)


def dataset_names(spec: SweepSpec) -> list[str]:
    """The data files and hub ids that the sweep names."""
    named = [p for p in spec.space.parameters if parameter_name(p.path) == "dataset"]
    return [str(source) for parameter in named for source in parameter.distribution.extremes()]


def check(file: Path, home: Home, *, force: bool, say: Callable[[str], None]) -> SweepSpec:
    """The sweep of a file that can run here, as far as can be known; warnings and the plan go to `say`.

    Raises SpecError with every error, UsageError when cells do not fit on this box's GPU; with `force` only
    what a server would refuse. Without a GPU the plan only informs.
    """
    found = validate(file)
    for warning in found.warnings:
        say(f"Note: {warning.where}: {warning.what}")
    if found.spec is None or not force:
        found.checked()
    assert found.spec is not None
    if found.errors:
        for problem in found.errors:
            say(f"Error, registered all the same: {problem}")
        return found.spec
    absent = [name for name in dataset_names(found.spec) if find_data(name) is None]
    if absent:  # nothing is downloaded to register a sweep
        say(f"Plan: not made, as {absent[0]} is not on this box; kto-sweep plan {file} fetches it")
        return found.spec
    gpu = find_gpu()
    try:
        plan = planner(gpu, home, this_box=True, exact=False).plan(found.spec)
    except UsageError as error:  # such as a model's folder that only the GPU box has
        say(f"Plan: not made: {error.message}")
        return found.spec
    say(f"Plan: {plan.summary()}")
    if plan.impossible and not force:
        first = plan.impossible[0]
        cells = ", ".join(f"{name}={value}" for name, value in first.cell.varied.items()) or "every trial"
        others = len(plan.impossible) - 1
        more = f" (and {counted(others, 'other cell')})" if others else ""
        room = f"{gpu.name} has {gpu.room:.1f} for tensors" if gpu else ""
        raise UsageError(
            f"{file}: {cells}{more} cannot run here: {first.least_gib:.1f} GiB at the least, and {room}",
            hint=f"{first.remedy}; kto-sweep plan {file} shows all cells, --force registers it all the same",
        )
    return found.spec
