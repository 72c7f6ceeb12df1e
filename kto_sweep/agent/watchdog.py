"""Watchdog for workers that hang: warns after 10 minutes of silence, kills after an hour. Pure."""

from collections.abc import Collection

from kto_sweep.agent.actions import KillWorker
from kto_sweep.agent.state import DeviceState
from kto_sweep.agent.transition import Transition
from kto_sweep.protocol import Done, Failed, Message, Metrics, Preparing
from kto_sweep.text import duration

WARN_SECONDS = 600.0
"""A worker that has work to do and sends nothing for this long is reported."""
START_SECONDS = 1800.0
"""A worker that is not ready after this time is killed; loading libraries takes a minute on a slow disk."""
KILL_SECONDS = 3600.0
"""A worker that was taking steps and sends nothing for this long hangs; but see LONGEST_FACTOR."""
EXIT_SECONDS = 60.0
"""A killed worker that still exists after this time cannot be killed."""
LONGEST_FACTOR = 20.0
"""A silence counts as a hang only if it is this many times as long as the longest earlier one."""


def record_message(t: Transition, name: str, message: Message) -> None:
    """Reset a worker's silence when it sends a message."""
    device = t.devices[name]
    longest = max(device.longest_silence, device.silence) if device.stepping else device.longest_silence
    stepping = device.stepping
    if isinstance(message, Metrics):
        stepping = True
    elif isinstance(message, Preparing | Done | Failed):
        stepping = False
    t.set_device(name, silence=0.0, longest_silence=longest, stepping=stepping, warned=False)


def watch(t: Transition, elapsed: float, held: Collection[str]) -> list[tuple[str, str]]:
    """Check all workers; returns the devices whose worker cannot be killed, each with an error message.

    `elapsed`: seconds since the last check. `held`: devices whose worker is suspended by SIGSTOP.
    """
    given_up = []
    for name, device in list(t.devices.items()):
        has_work = device.killed or not device.ready or bool(t.running(name))
        if not device.worker or not has_work:
            t.set_device(name, silence=0.0)
            continue
        silent = t.set_device(name, silence=device.silence + elapsed)
        if not silent.killed:
            _check_worker(t, name, silent, held=name in held)
        elif silent.silence > EXIT_SECONDS:
            given_up.append((name, f"the worker on {name} was killed but does not exit"))
    return given_up


def _check_worker(t: Transition, name: str, device: DeviceState, *, held: bool) -> None:
    if device.silence > WARN_SECONDS and not device.warned:
        runs = ", ".join(slot.trial.run_id for slot in t.running(name) if slot.trial is not None)
        worker = f"the worker of {runs}" if runs else "the worker, which is not ready yet,"
        state = "is suspended" if held else f"has sent nothing for {duration(device.silence)}"
        device = t.set_device(name, warned=True)
        t.say(f"{name}: {worker} {state}; log: {device.log}")
    limit = max(KILL_SECONDS, LONGEST_FACTOR * device.longest_silence)
    hangs = device.stepping and device.silence > limit
    if (hangs or (not device.ready and device.silence > START_SECONDS)) and not held:
        state = f"has hung for {duration(device.silence)}" if device.ready else "did not start"
        t.say(f"{name}: the worker {state}; killing it")
        t.set_device(name, silence=0.0, killed=True)
        t.do(KillWorker(name))
