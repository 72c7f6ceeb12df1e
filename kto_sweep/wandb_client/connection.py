"""Connects to a W&B-compatible server: points wandb at it, checks that it responds and accepts the key."""

import logging
import os
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from kto_sweep.errors import ServerError
from kto_sweep.http import Answer, NoAnswerError, get
from kto_sweep.json_file import parse_json
from kto_sweep.local_server.login_tokens import page_link
from kto_sweep.memory_limit import WANDB_BYTES, require_address_space
from kto_sweep.sweep.ref import SweepRef

if TYPE_CHECKING:
    import wandb

CONNECT_SECONDS = 10.0
MAX_READY = 10_000
"""Bytes of the answer to /ready."""
SERVICE = "kto-sweep"
"""What an embedded server calls itself there."""
PROXIES = ("WANDB_HTTP_PROXY", "WANDB_HTTPS_PROXY", "WANDB_X_PROXIES", "WANDB__PROXIES")
"""Proxies for W&B, which do not reach the embedded server on the loopback address."""
ANSWER_SECONDS = 120
"""Timeout of a request. A 429 may require a minute's wait, which wandb's client respects only within this
timeout; with a shorter one it would retry too early."""


@dataclass
class Target:
    """A W&B-compatible server."""

    base_url: str
    app_url: str
    """The URL for a browser."""
    local: bool
    """True for the embedded server of this box."""
    key: str = field(default="", repr=False)
    """An embedded server's key; of another box: known once `connect` returned. Empty for W&B."""
    is_embedded: bool = False
    """Whether it is an embedded server, of this box or another; of another: known once `connect` returned."""

    def __post_init__(self) -> None:
        self.is_embedded = self.is_embedded or self.local

    def __str__(self) -> str:
        if self.local:
            return f"the embedded server at {self.app_url}"
        return f"the kto-sweep server at {self.app_url}" if self.is_embedded else f"W&B at {self.app_url}"

    @property
    def key_hint(self) -> str:
        """What to do when the server rejects the key: it depends on where wandb has it from."""
        key = os.environ.get("WANDB_API_KEY")
        file = Path.cwd() / ".env"
        if key and not self.local:
            from dotenv import dotenv_values

            where = (
                f" in {file}" if dotenv_values(file).get("WANDB_API_KEY") == key else " in the environment"
            )
            return f"correct or remove WANDB_API_KEY{where}: the key comes from there"
        return f"wandb login --host {self.base_url} --relogin"

    def page_link(self, url: str, stream: IO[str]) -> str:
        """The address of one of its pages as it is printed to `stream`.

        On a terminal a link to an embedded server also logs the browser in, once.
        """
        return page_link(url, self.key, stream) if self.is_embedded and self.key else url

    def export(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Set the variables that make wandb use this server; call it before wandb is used."""
        environ["WANDB_BASE_URL"] = self.base_url
        environ["WANDB_MODE"] = "online"  # overrides `wandb offline` in this folder
        if self.local:
            environ["WANDB_API_KEY"] = self.key
            for name in ("WANDB_IDENTITY_TOKEN_FILE", *PROXIES):
                environ.pop(name, None)
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
    """A wandb.Api whose server responds and accepts the key; sets whether `target` is an embedded server.

    wandb itself would retry silently for minutes.

    Raises ServerError if the server does not respond or rejects the key, UsageError for an invalid variable
    or too little address space.
    """
    from kto_sweep.wandb_client.private_api import read_settings

    require_address_space(WANDB_BYTES, "wandb")
    target.export()
    read_settings()  # wandb.Api reports an invalid variable as if the key were wrong
    try:
        # Any HTTP status is a response; only an embedded server says what it is.
        answer = get(f"{target.base_url}/ready", timeout=CONNECT_SECONDS, limit=MAX_READY)
    except NoAnswerError as error:
        raise ServerError(
            f"could not reach {target}: {error}",
            hint="check the URL and the network, or add --local to work without W&B",
        ) from error
    target.is_embedded = target.local or _is_kto_sweep(answer)
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
        if "wandb-core exited" in str(error):
            raise ServerError(
                "wandb's service process could not start; its own messages are above",
                hint="free memory or raise the shell's limits (ulimit -a), then try again",
            ) from error
        raise ServerError(f"{target} rejects the key: {error}", hint=target.key_hint) from error
    if user is None:
        raise ServerError(f"{target} rejects the key", hint=target.key_hint)
    if target.is_embedded:
        target.key = target.key or api.api_key or ""  # from the environment or netrc
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


def _is_kto_sweep(answer: Answer) -> bool:
    """Whether an embedded server gave this answer to /ready."""
    try:
        ready = parse_json(answer.body)
    except ValueError:
        return False
    return answer.ok and isinstance(ready, dict) and ready.get("service") == SERVICE


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
