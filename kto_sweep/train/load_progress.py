"""Reports a base model's loading, which is silent for minutes: its start, its download, its end."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kto_sweep.errors import UsageError
from kto_sweep.home import users_umask
from kto_sweep.models.hub import bytes_to_download
from kto_sweep.models.presets import names_a_path

LoadProgress = Callable[[str, int, int], None]
"""Gets what is done, how much of it, and how much in all; nothing done yet: it starts now."""
POLL_SECONDS = 5.0
"""Interval of the download's progress."""


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


@contextmanager
def reported_loading(name: str, progress: LoadProgress) -> Iterator[None]:
    """Report the loading of the model `name` in this block to `progress`, also from another thread."""
    megabytes = 0
    if not names_a_path(name):
        with suppress(UsageError):  # the loading itself says what is wrong
            megabytes = (bytes_to_download(name) or 0) >> 20
    what, total = (f"downloading {name} (MB)", megabytes) if megabytes else (f"loading {name}", 1)
    progress(what, 0, total)
    over = threading.Event()
    if megabytes:
        threading.Thread(target=_watch, args=(name, what, total, progress, over), daemon=True).start()
    try:
        with users_umask():
            yield
    finally:
        over.set()
    progress(what, total, total)


def _watch(name: str, what: str, total: int, progress: LoadProgress, over: threading.Event) -> None:
    while not over.wait(POLL_SECONDS):
        progress(what, min(max(1, _downloaded(name) >> 20), total - 1), total)


def _downloaded(name: str) -> int:
    """Bytes of the model in the hub's cache, with those of incomplete files."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "blobs"
    total = 0
    for file in folder.glob("*"):
        with suppress(OSError):  # it has just been renamed
            total += file.stat().st_size
    return total
