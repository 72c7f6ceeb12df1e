"""A W&B-compatible server: how wandb is pointed at it, and whether it answers and takes the key."""

import logging
import os
import urllib.error
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kto_sweep.errors import ServerError
from kto_sweep.http import CONNECTION_ERRORS, opener_for
from kto_sweep.sweep.ref import SweepRef

if TYPE_CHECKING:
    import wandb

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 120
"""For a server that can be reached. A 429 may ask for a minute of waiting, which wandb's client keeps only as
long as its caller does: one that gives up earlier asks again too early."""


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


def connect(target: Target) -> "wandb.Api":
    """A wandb.Api that is known to get an answer and to have a good key.

    wandb itself would go on trying for minutes, silently.

    Raises ServerError when nobody answers or the key is refused.
    """
    target.enter()
    try:
        opener_for(target.base_url).open(target.base_url, timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # any answer will do
    except CONNECTION_ERRORS as error:
        reason = getattr(error, "reason", error)
        raise ServerError(
            f"no answer from {target}: {reason}",
            hint="check the address and the network, or add --local to work without W&B",
        ) from error
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.raiseExceptions = False  # on a full disk wandb's own log would fill the screen with tracebacks
    import wandb
    from wandb.errors import AuthenticationError, CommError

    try:
        # Named outright: what wandb has read of the environment once it does not read again.
        api = wandb.Api(
            overrides={"base_url": target.base_url},
            timeout=ANSWER_SECONDS,
            api_key=os.environ.get("WANDB_API_KEY"),
        )
        user = api.viewer
    except (AuthenticationError, CommError, ValueError) as error:
        raise ServerError(
            f"{target} refuses the key: {error}", hint=f"wandb login --host {target.base_url} --relogin"
        ) from error
    if user is None:
        raise ServerError(f"{target} refuses the key", hint=f"wandb login --host {target.base_url} --relogin")
    return api


def is_deleted(api: "wandb.Api", ref: SweepRef) -> bool:
    """Whether the server says that there is no such sweep; False as well when it says nothing."""
    try:
        api.sweep(str(ref)).load(force=True)  # wandb.Api remembers a sweep that it has read before
    except Exception as error:  # wandb has no one class for what can go wrong
        return is_unknown(error)
    return False


def is_unknown(error: Exception) -> bool:
    """Whether what wandb raised says that something was not found; the rest is trouble with the server."""
    return type(getattr(error, "exc", error)) is ValueError  # those of other kinds say that it was not read


def trouble(error: Exception) -> str:
    """What the server said, as far as wandb tells it."""
    response = getattr(getattr(error, "exc", error), "response", None)
    status = getattr(response, "http_status", 0)
    return f"{error} (HTTP {status})" if status else str(error)


def default_entity(target: Target) -> str:
    """The entity of the key that wandb finds for this server."""
    target.enter()
    import wandb

    return str(wandb.Api().default_entity)
