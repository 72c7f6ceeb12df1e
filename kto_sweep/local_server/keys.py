"""The server's API key: created once per home, in a file that only its owner can read (mode 0600)."""

import hashlib
import os
import secrets
from pathlib import Path

from kto_sweep.errors import ServerError
from kto_sweep.home import Home


def key_path(home: Home) -> Path:
    """Path of this home's key file."""
    return home.server / "key"


def read_key(home: Home) -> str:
    """This home's API key. Raises ServerError when the file is missing or wandb would reject the key."""
    path = key_path(home)
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise ServerError(f"cannot read the server's key {path}: {problem}") from problem
    if len(key) < 40:
        raise ServerError(f"{path} does not hold a valid key", hint=f"rm {path}, then start the server again")
    return key


def ensure_key(home: Home) -> str:
    """This home's API key, created if missing. Only the process that holds the home's lock may call this.

    The file is created with mode 0600 and moved into place when complete.
    """
    path = key_path(home)
    if path.exists():
        path.chmod(0o600)
        return read_key(home)
    fresh = path.with_name("key.new")
    fresh.unlink(missing_ok=True)
    # wandb accepts keys of the form PREFIX-<40 hex digits>.
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(f"local-{secrets.token_hex(20)}\n")
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(path)
    return read_key(home)


def home_id(key: str) -> str:
    """16 hex digits that identify this home's server without revealing its key."""
    return hashlib.sha256(f"home of {key}".encode()).hexdigest()[:16]
