"""The server's API key: made once per home, kept in a file that only its owner can read."""

import hashlib
import os
import secrets
from pathlib import Path

from kto_sweep.errors import ServerError
from kto_sweep.home import Home


def key_path(home: Home) -> Path:
    """Where the key of this home lies."""
    return home.server / "key"


def read_key(home: Home) -> str:
    """The key of this home. Raises ServerError when there is none, or none that wandb would accept."""
    path = key_path(home)
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise ServerError(f"cannot read the server's key {path}: {problem}") from problem
    if len(key) < 40:
        raise ServerError(f"{path} holds no key", hint=f"rm {path}, then start the server again")
    return key


def ensure_key(home: Home) -> str:
    """The key of this home, made if there is none; only for the process that holds the home's lock.

    The file has mode 0600 from its first byte on, and is never seen half written.
    """
    path = key_path(home)
    if path.exists():
        path.chmod(0o600)
        return read_key(home)
    fresh = path.with_name("key.new")
    fresh.unlink(missing_ok=True)
    # 40 hex digits behind a short word: the form that wandb's own check takes for a key.
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(f"local-{secrets.token_hex(20)}\n")
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(path)
    return read_key(home)


def home_id(key: str) -> str:
    """What tells this home's server from any other; does not give the key away. 16 hex digits."""
    return hashlib.sha256(f"home of {key}".encode()).hexdigest()[:16]
