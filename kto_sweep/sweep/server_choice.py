"""Chooses the server of a command: W&B if there is a key, else this box's embedded server."""

import os

from kto_sweep.errors import UsageError
from kto_sweep.home import Home
from kto_sweep.sweep.ref import (
    DEFAULT_PROJECT,
    LOCAL_ENTITY,
    SweepRecord,
    SweepRef,
    load_sweep_record,
    parse_ref,
)
from kto_sweep.wandb_client.connection import Target, default_entity


def local_target(home: Home) -> Target:
    """The embedded server, started in the background if necessary."""
    from kto_sweep.local_server.start import ensure_server

    address = ensure_server(home)
    return Target(address.url, address.url, local=True, key=address.key)


def find_target(home: Home, *, local: bool) -> Target:
    """The server in wandb's own settings; the embedded server with `local` or without a W&B key.

    W&B's offline and disabled modes also use the embedded server, because nothing may leave the box.
    Raises UsageError if WANDB_BASE_URL names a server for which there is no key.
    """
    if local:
        return local_target(home)
    from kto_sweep.wandb_client.private_api import find_login

    login = find_login()
    if login.mode in {"offline", "disabled"}:
        return local_target(home)
    if login.has_key:
        return Target(login.base_url, login.app_url, local=False)
    if os.environ.get("WANDB_BASE_URL"):
        raise UsageError(
            f"WANDB_BASE_URL is {login.base_url}, but there is no key for that server",
            hint=f"set WANDB_API_KEY, or run: wandb login --host {login.base_url}   "
            "(or add --local to use the embedded server)",
        )
    return local_target(home)


def find_remote(url: str | None) -> Target:
    """The W&B server at `url`, by default the one that wandb is logged in to; never the embedded server.

    Raises UsageError for an invalid URL or if there is no key for the server.
    """
    from kto_sweep.wandb_client.private_api import find_login

    if url is not None:
        if not url.startswith(("https://", "http://")):
            raise UsageError(f"{url!r} is not the URL of a server", hint="https://wandb.example.com")
        os.environ["WANDB_BASE_URL"] = url.rstrip("/")
    login = find_login()
    if not login.has_key:
        raise UsageError(
            f"no key for W&B at {login.base_url}",
            hint=f"wandb login --host {login.base_url}   (or set WANDB_API_KEY)",
        )
    return Target(login.base_url, login.app_url, local=False)


def find_sweep(home: Home, name: str | None, *, local: bool) -> tuple[Target, SweepRef]:
    """The sweep `name` and its server; without a name, the last sweep created or run on this box.

    Raises UsageError if there is none or `name` is not a valid name.
    """
    entity, project, sweep_id = parse_ref(name) if name else (None, None, None)
    record = load_sweep_record(home, sweep_id)
    if record is None and sweep_id is None:
        raise UsageError(
            "no sweep has been created on this box yet",
            hint="kto-sweep create sweeps/lr_grid.yaml  (or kto-sweep demo, or name one: ENTITY/PROJECT/ID)",
        )
    if record is not None and (entity, project) in ((None, None), (None, record.project), record.owner):
        return _target_of(home, record, local=local), record.ref
    assert sweep_id is not None
    target = find_target(home, local=local)
    if entity is None:
        entity = LOCAL_ENTITY if target.local else default_entity(target)
    return target, SweepRef(entity, project or DEFAULT_PROJECT, sweep_id)


def _target_of(home: Home, record: SweepRecord, *, local: bool) -> Target:
    if record.local or local:
        return local_target(home)
    os.environ.setdefault("WANDB_BASE_URL", record.base_url)
    return find_target(home, local=False)
