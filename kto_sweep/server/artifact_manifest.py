"""Manifests: which files an artifact has, as clients send and receive them."""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from kto_sweep.server.errors import RequestError

MAX_MANIFEST = 128 * 2**20
"""Maximum bytes of an uploaded manifest: about 500,000 files."""
MAX_PATH = 1024
DIGEST_BYTES = 16
_OWN_KEYS = frozenset({"digest", "size", "ref", "local_path"})


@dataclass(frozen=True)
class Entry:
    """One file of an artifact."""

    path: str
    digest: str
    """Base64 of the MD5 of a stored file; any text for a reference."""
    size: int
    """Bytes."""
    ref: str | None
    """URI of a reference; None for a stored file."""
    other: str
    """The entry's other values, as JSON."""


@dataclass(frozen=True)
class Manifest:
    """An uploaded manifest."""

    head: str
    """The manifest without its contents, as JSON."""
    entries: list[Entry]


def check_digest(body: bytes, announced: str) -> None:
    """Raises RequestError for a manifest that is not the announced one; an empty digest announces none."""
    digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    if announced and digest != announced:
        raise RequestError(f"the manifest has the digest {digest}, but {announced} was announced")


def parse(body: bytes) -> Manifest:
    """The manifest in an upload. Raises RequestError."""
    try:
        manifest = json.loads(body)
        contents = manifest.pop("contents")
        entries = [_entry(path, values) for path, values in contents.items()]
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError) as problem:
        raise RequestError(f"this is not an artifact's manifest: {problem!r}") from problem
    return Manifest(json.dumps(manifest), entries)


def _entry(path: str, values: dict[str, Any]) -> Entry:
    check_path(path)
    digest, ref, size = values["digest"], values.get("ref"), values.get("size") or 0
    if not isinstance(digest, str) or not isinstance(size, int) or size < 0:
        raise RequestError(f"the entry {path!r} has no valid digest or size")
    if ref is None:
        hex_digest(digest)
    elif not isinstance(ref, str):
        raise RequestError(f"the reference of the entry {path!r} is not a text")
    # `local_path` is a file of the machine that logged the artifact: of no use elsewhere.
    other = {key: value for key, value in values.items() if key not in _OWN_KEYS}
    return Entry(path, digest, size, ref, json.dumps(other))


def check_path(path: str) -> None:
    """Raises RequestError for a path that would leave the folder into which a client downloads."""
    parts = re.split(r"[/\\]", path)  # on Windows both separate
    if not path or len(path) > MAX_PATH or "\0" in path or not {"", ".", ".."}.isdisjoint(parts):
        raise RequestError(
            f"{path[:80]!r} is not a valid path in an artifact: use a relative path of at most {MAX_PATH}"
            " characters, without '..', '.' and empty parts"
        )


def hex_digest(digest: str) -> str:
    """A stored file's digest in hexadecimal, which names its content on disk. Raises RequestError."""
    try:
        raw = base64.b64decode(digest, validate=True)
    except (binascii.Error, ValueError) as problem:
        raise RequestError(f"{digest[:80]!r} is not an MD5 in base64") from problem
    # Only the canonical form: two texts for one digest would be two records of one file.
    if len(raw) != DIGEST_BYTES or base64.b64encode(raw).decode() != digest:
        raise RequestError(f"{digest[:80]!r} is not an MD5 in base64")
    return raw.hex()


def from_hex(text: str) -> str:
    """The digest of its hexadecimal form. Raises RequestError."""
    try:
        digest = base64.b64encode(bytes.fromhex(text)).decode()
    except ValueError as problem:
        raise RequestError(f"{text[:80]!r} is not an MD5") from problem
    hex_digest(digest)
    return digest


def digest_of(entries: Iterable[Entry]) -> str:
    """The digest of an artifact with these entries, as the client computes it."""
    hasher = hashlib.md5(b"wandb-artifact-manifest-v1\n", usedforsecurity=False)
    for entry in sorted(entries, key=lambda entry: entry.path):
        hasher.update(f"{entry.path}:{entry.digest}\n".encode())
    return hasher.hexdigest()


def as_json(head: str, entries: Iterable[Entry]) -> Iterator[bytes]:
    """The manifest as clients download it, in pieces: it may have very many entries."""
    # The head is a JSON object: its closing brace moves behind the contents.
    start = head.rstrip()[:-1].rstrip()
    yield (start + ("" if start == "{" else ", ") + '"contents": {').encode()
    separator = ""
    for entry in entries:
        values: dict[str, Any] = {"digest": entry.digest, "size": entry.size}
        if entry.ref is not None:
            values["ref"] = entry.ref
        values |= json.loads(entry.other)
        yield f"{separator}{json.dumps(entry.path)}: {json.dumps(values)}".encode()
        separator = ", "
    yield b"}}"
