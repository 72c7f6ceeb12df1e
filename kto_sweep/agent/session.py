"""One call of `kto-sweep agent`: from the sweep's name to the exit code."""

import os

from rich.console import Console

from kto_sweep.agent.devices import find_devices
from kto_sweep.agent.display import Display
from kto_sweep.agent.supervisor import Supervisor
from kto_sweep.agent.tally import Tally
from kto_sweep.home import Home
from kto_sweep.remote import SweepView, connect, read_sweep
from kto_sweep.sweep_ref import remember
from kto_sweep.target import find_sweep


def work_on(
    home: Home,
    sweep: str | None,
    *,
    count: int | None,
    gpus: str | None,
    cpu: bool,
    local: bool,
    trials_per_device: int | None = None,
) -> int:
    """The exit code: 0 when the sweep has a trial that succeeded, 128 + the signal when interrupted, else 1.

    Raises KtoSweepError for anything that keeps the box from working at all.
    """
    console = Console(highlight=False)
    devices = find_devices(os.environ, gpus=gpus, cpu=cpu)
    target, ref = find_sweep(home, sweep, local=local)
    console.print(f"Talking to {'the ' if target.local else ''}{target}", soft_wrap=True)
    api = connect(target)
    view = read_sweep(api, target, ref)
    remember(home, ref, local=target.local, base_url=target.base_url)
    console.print(f"Sweep {ref} ({view.method}, {view.state.lower()}): {view.url}", soft_wrap=True)
    console.print(f"Starting a worker on {', '.join(device.name for device in devices)}")
    varied = tuple(".".join(parameter.path) for parameter in view.space.searched)
    with Display(console, varied, view.metric, view.expected) as display:
        supervisor = Supervisor(
            api, ref, home, devices, display,
            metric=view.metric, goal=view.goal, local=target.local,
            trials_per_device=trials_per_device, count=count,
        )  # fmt: skip
        tally = supervisor.run()
    after = read_sweep(api, target, ref)
    _say_end(console, tally, after)
    if tally.interrupted:
        return 128 + tally.interrupted
    return 0 if after.count("finished") else 1


def _say_end(console: Console, tally: Tally, view: SweepView) -> None:
    told = [f"{tally.finished} finished"]
    told += [f"{tally.stopped} stopped early"] if tally.stopped else []
    told += [f"{tally.failed} failed"] if tally.failed else []
    of = f" of {view.expected}" if view.expected is not None else ""
    console.print(f"Trials of this agent: {', '.join(told)}. Sweep: {view.count('finished')}{of} finished.")
    if not tally.started and view.state in {"FINISHED", "CANCELED"}:
        console.print(f"The sweep is {view.state.lower()}: there was nothing left to run.")
    if tally.interrupted:
        console.print("Next: kto-sweep agent   (goes on where this one ended)")
    else:
        console.print(f"Next: kto-sweep compare {view.ref.id}")
