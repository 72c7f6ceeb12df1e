"""From a sweep file to a sweep on a server."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.home import Home
from kto_sweep.remote import connect
from kto_sweep.spec import load_spec
from kto_sweep.sweep_ref import SweepRef, remember
from kto_sweep.target import DEFAULT_PROJECT, find_target


@dataclass(frozen=True)
class Registered:
    """A sweep that the server has taken."""

    ref: SweepRef
    url: str
    method: str
    expected_trials: int | None
    """None when it has no end of its own."""


def register(
    home: Home,
    file: Path,
    *,
    project: str | None,
    entity: str | None,
    local: bool,
    say: Callable[[str], None],
) -> Registered:
    """Check a sweep file, register it, and remember it as the sweep used last on this box.

    Raises SpecError with all the file's problems, ServerError when the server cannot be had.
    """
    from kto_sweep.agent.link import create_sweep

    spec = load_spec(file)
    for notice in spec.notices:
        say(f"Note: {notice}")
    target = find_target(home, local=local)
    say(f"Talking to the {target}" if target.local else f"Talking to {target}")
    api = connect(target)
    ref, warnings = create_sweep(
        api,
        spec.config,
        project=project or spec.config.get("project") or DEFAULT_PROJECT,
        entity=entity or spec.config.get("entity"),
    )
    for warning in warnings:
        say(f"Note from the server: {warning}")
    remember(home, ref, local=target.local, base_url=target.base_url, file=str(file))
    return Registered(ref, ref.url(target.app_url), spec.method, spec.expected_trials)
