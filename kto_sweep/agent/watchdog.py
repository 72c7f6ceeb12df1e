"""Workers that hang: a warning after 10 minutes of silence, a kill after an hour. Pure."""

from collections.abc import Collection

from kto_sweep.agent.actions import KillWorker
from kto_sweep.agent.state import DeviceState
from kto_sweep.agent.transition import Transition
from kto_sweep.protocol import Done, Failed, Message, Metrics, Preparing
from kto_sweep.text import duration

WARN_SECONDS = 600.0
"""A worker with something to do that sends nothing for so long is reported."""
START_SECONDS = 1800.0
"""A worker that is not ready after so long is killed: loading libraries takes a minute on a slow disk."""
KILL_SECONDS = 3600.0
"""A worker that takes steps and then sends nothing for so long hangs, unless it was as silent before."""
EXIT_SECONDS = 60.0
"""A worker that is still there so long after it was killed will not go."""
LONGEST_FACTOR = 20.0
"""It hangs only in a silence so many times as long as the longest before."""


def heard(t: Transition, name: str, message: Message) -> None:
    """A worker has sent a message."""
    device = t.devices[name]
    longest = max(device.longest_silence, device.silence) if device.stepping else device.longest_silence
    stepping = device.stepping
    if isinstance(message, Metrics):
        stepping = True
    elif isinstance(message, Preparing | Done | Failed):
        stepping = False
    t.set_device(name, silence=0.0, longest_silence=longest, stepping=stepping, warned=False)


def watch(t: Transition, elapsed: float, held: Collection[str]) -> list[tuple[str, str]]:
    """Look at all workers; the devices whose worker cannot even be killed, each with a sentence that says so.

    `elapsed`: seconds since the last look. `held`: devices whose worker was stopped by a signal.
    """
    given_up = []
    for name, device in list(t.devices.items()):
        waited_for = device.killed or not device.ready or bool(t.running(name))
        if not device.worker or not waited_for:
            t.set_device(name, silence=0.0)
            continue
        silent = t.set_device(name, silence=device.silence + elapsed)
        if not silent.killed:
            _judge(t, name, silent, held=name in held)
        elif silent.silence > EXIT_SECONDS:
            given_up.append((name, f"the worker on {name} does not end, although it was killed"))
    return given_up


def _judge(t: Transition, name: str, device: DeviceState, *, held: bool) -> None:
    if device.silence > WARN_SECONDS and not device.warned:
        runs = ", ".join(slot.trial.run_id for slot in t.running(name) if slot.trial is not None)
        whose = f"the worker of {runs}" if runs else "the worker, which is not ready yet,"
        state = "was stopped by a signal" if held else f"has sent nothing for {duration(device.silence)}"
        device = t.set_device(name, warned=True)
        t.say(f"{name}: {whose} {state}; its log: {device.log}")
    limit = max(KILL_SECONDS, LONGEST_FACTOR * device.longest_silence)
    hangs = device.stepping and device.silence > limit
    if (hangs or (not device.ready and device.silence > START_SECONDS)) and not held:
        how = f"has hung for {duration(device.silence)}" if device.ready else "does not get ready"
        t.say(f"{name}: the worker {how}: killing it")
        t.set_device(name, silence=0.0, killed=True)
        t.do(KillWorker(name))
