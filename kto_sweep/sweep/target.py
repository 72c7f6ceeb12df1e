"""Which server a command talks to: W&B where there is a key, else the embedded server of this box."""

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kto_sweep.errors import UsageError
from kto_sweep.home import Home
from kto_sweep.sweep.ref import SweepRecord, SweepRef, parse_ref, recall

DEFAULT_PROJECT = "kto-sweep"
LOCAL_ENTITY = "local"


@dataclass(frozen=True)
class Target:
    """A W&B-compatible server."""

    base_url: str
    app_url: str
    """The address that people open."""
    local: bool
    """The embedded server of this box."""
    key: str = field(default="", repr=False)
    """The embedded server's key; empty where wandb finds its own."""

    def __str__(self) -> str:
        return f"embedded server at {self.app_url}" if self.local else f"W&B at {self.app_url}"

    def enter(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Make wandb use this server in this process and its children; to be called before wandb is used."""
        environ["WANDB_BASE_URL"] = self.base_url
        environ["WANDB_MODE"] = "online"  # also where `wandb offline` has set this folder's mode
        if self.local:
            environ["WANDB_API_KEY"] = self.key
            environ.pop("WANDB_IDENTITY_TOKEN_FILE", None)
            environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nobody but this box is to hear of its runs


@contextmanager
def other_server() -> Iterator[None]:
    """Undo at the end of the block what makes wandb use a server, which need not be the next one."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        import wandb

        wandb.teardown()


def load_env_file(directory: Path, environ: MutableMapping[str, str] = os.environ) -> None:
    """Take over what a `.env` file in `directory` sets and the environment does not."""
    from dotenv import dotenv_values

    for name, value in dotenv_values(directory / ".env").items():
        if value is not None:
            environ.setdefault(name, value)


def local_target(home: Home) -> Target:
    """The embedded server, started in the background if it is not running."""
    from kto_sweep.server.launch import ensure_server

    address = ensure_server(home)
    return Target(address.url, address.url, local=True, key=address.key)


def find_target(home: Home, *, local: bool) -> Target:
    """The embedded server with `local` or without a W&B key, else W&B as wandb's own rules find it.

    With W&B's mode offline or disabled, by which nothing leaves the box, it is the embedded server as well.
    Raises UsageError when WANDB_BASE_URL names a server for which there is no key.
    """
    if local:
        return local_target(home)
    from kto_sweep.agent.link import find_login

    load_env_file(Path.cwd())
    login = find_login()
    if login.mode in {"offline", "disabled"}:
        return local_target(home)
    if login.has_key:
        return Target(login.base_url, login.app_url, local=False)
    if os.environ.get("WANDB_BASE_URL"):
        raise UsageError(
            f"WANDB_BASE_URL is {login.base_url}, but there is no key for it",
            hint=f"set WANDB_API_KEY, or type: wandb login --host {login.base_url}   "
            "(or add --local for the embedded server)",
        )
    return local_target(home)


def find_remote(url: str | None) -> Target:
    """The W&B server at `url`, by default the one that wandb is logged in to; never the embedded one.

    Raises UsageError without a key for it.
    """
    from kto_sweep.agent.link import find_login

    load_env_file(Path.cwd())
    if url is not None:
        if not url.startswith(("https://", "http://")):
            raise UsageError(f"{url!r} is not the address of a server", hint="https://wandb.example.com")
        os.environ["WANDB_BASE_URL"] = url.rstrip("/")
    login = find_login()
    if not login.has_key:
        raise UsageError(
            f"there is no key for W&B at {login.base_url}",
            hint=f"wandb login --host {login.base_url}   (or set WANDB_API_KEY)",
        )
    return Target(login.base_url, login.app_url, local=False)


def find_sweep(home: Home, name: str | None, *, local: bool) -> tuple[Target, SweepRef]:
    """The sweep that `name` means and its server; without a name, the sweep created or run last on this box.

    Raises UsageError when there is none, or the name cannot be one.
    """
    entity, project, sweep_id = parse_ref(name) if name else (None, None, None)
    record = recall(home, sweep_id)
    if record is None and sweep_id is None:
        raise UsageError(
            "no sweep was created on this box yet",
            hint="kto-sweep create sweeps/lr_grid.yaml  (or kto-sweep demo, or name one: ENTITY/PROJECT/ID)",
        )
    if record is not None and (entity, project) in ((None, None), (None, record.project), record.ref_owner):
        return _target_of(home, record, local=local), record.ref
    assert sweep_id is not None
    target = find_target(home, local=local)
    if entity is None:
        entity = LOCAL_ENTITY if target.local else _default_entity(target)
    return target, SweepRef(entity, project or DEFAULT_PROJECT, sweep_id)


def _target_of(home: Home, record: SweepRecord, *, local: bool) -> Target:
    if record.local or local:
        return local_target(home)
    os.environ.setdefault("WANDB_BASE_URL", record.base_url)
    return find_target(home, local=False)


def _default_entity(target: Target) -> str:
    target.enter()
    import wandb

    return str(wandb.Api().default_entity)
