"""Connects to a W&B-compatible server: points wandb at it, checks that it responds and accepts the key."""

import logging
import os
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kto_sweep.errors import ServerError
from kto_sweep.http import NoAnswerError, get
from kto_sweep.sweep.ref import SweepRef

if TYPE_CHECKING:
    import wandb

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 120
"""Timeout of a request. A 429 may require a minute's wait, which wandb's client respects only within this
timeout; with a shorter one it would retry too early."""


@dataclass(frozen=True)
class Target:
    """A W&B-compatible server."""

    base_url: str
    app_url: str
    """The URL for a browser."""
    local: bool
    """True for the embedded server of this box."""
    key: str = field(default="", repr=False)
    """The embedded server's key; empty if wandb finds its own."""

    def __str__(self) -> str:
        return f"the embedded server at {self.app_url}" if self.local else f"W&B at {self.app_url}"

    def export(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Set the variables that make wandb use this server; call it before wandb is used."""
        environ["WANDB_BASE_URL"] = self.base_url
        environ["WANDB_MODE"] = "online"  # overrides `wandb offline` in this folder
        if self.local:
            environ["WANDB_API_KEY"] = self.key
            environ.pop("WANDB_IDENTITY_TOKEN_FILE", None)
            environ.setdefault("WANDB_ERROR_REPORTING", "false")  # local runs must not be reported to W&B


@contextmanager
def restored_environment() -> Iterator[None]:
    """Restore the environment at the end of the block, so that wandb can connect to another server."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        import wandb

        wandb.teardown()


def connect(target: Target) -> "wandb.Api":
    """A wandb.Api whose server responds and accepts the key.

    wandb itself would retry silently for minutes.

    Raises ServerError if the server does not respond or rejects the key.
    """
    target.export()
    try:
        get(target.base_url, timeout=CONNECT_SECONDS)  # any HTTP status is a response
    except NoAnswerError as error:
        raise ServerError(
            f"could not reach {target}: {error}",
            hint="check the URL and the network, or add --local to work without W&B",
        ) from error
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.raiseExceptions = False  # on a full disk wandb's own log would print tracebacks
    import wandb
    from wandb.errors import AuthenticationError, CommError

    try:
        # Pass URL and key: wandb reads the environment only once per process.
        api = wandb.Api(
            overrides={"base_url": target.base_url},
            timeout=ANSWER_SECONDS,
            api_key=os.environ.get("WANDB_API_KEY"),
        )
        user = api.viewer
    except (AuthenticationError, CommError, ValueError) as error:
        raise ServerError(
            f"{target} rejects the key: {error}", hint=f"wandb login --host {target.base_url} --relogin"
        ) from error
    if user is None:
        raise ServerError(f"{target} rejects the key", hint=f"wandb login --host {target.base_url} --relogin")
    return api


def server_time(target: Target) -> float:
    """The server's clock in Unix seconds; this box's if the server does not say.

    Heartbeats are times of the server, and the clock of a laptop may be minutes off.
    """
    try:
        date = get(target.base_url, timeout=CONNECT_SECONDS).date
    except NoAnswerError:
        date = None
    return time.time() if date is None else date


def is_deleted(api: "wandb.Api", ref: SweepRef) -> bool:
    """Whether the server reports that the sweep does not exist; False if it does not respond."""
    try:
        api.sweep(str(ref)).load(force=True)  # without force wandb.Api returns a cached sweep
    except Exception as error:  # wandb has no common error class
        return is_not_found(error)
    return False


def is_not_found(error: Exception) -> bool:
    """Whether wandb's error means "not found" rather than a failed request."""
    return type(getattr(error, "exc", error)) is ValueError  # subclasses, such as JSON errors, mean a failure


def error_text(error: Exception) -> str:
    """The server's message, with its HTTP status if wandb provides it."""
    response = getattr(getattr(error, "exc", error), "response", None)
    status = getattr(response, "http_status", 0)
    return f"{error} (HTTP {status})" if status else str(error)


def default_entity(target: Target) -> str:
    """The entity of wandb's key for this server."""
    target.export()
    import wandb

    return str(wandb.Api().default_entity)
