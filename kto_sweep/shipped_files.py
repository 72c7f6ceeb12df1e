"""Finds the sweep files and example data shipped with the package, installed or in a checkout."""

from pathlib import Path

from kto_sweep.paths import user_path

PACKAGE = Path(__file__).parent
SHIPPED_FOLDERS = ("sweeps", "examples")


def shipped_root() -> Path:
    """The folder of `sweeps` and `examples`: kto_sweep/shipped in a wheel, else the checkout."""
    installed = PACKAGE / "shipped"
    return installed if installed.is_dir() else PACKAGE.parent


def find_file(name: str, cwd: Path | None = None) -> Path | None:
    """The file `name` below `cwd` (default: the current folder), else the shipped file, else None.

    A shipped file is named by its path in a checkout: sweeps/demo.yaml, examples/support_replies.jsonl.
    """
    path = user_path(name)
    here = path if cwd is None else cwd / path
    if here.is_file():
        return here
    shipped = shipped_root() / path
    is_shipped = path.parts[:1] in [(folder,) for folder in SHIPPED_FOLDERS] and ".." not in path.parts
    return shipped if is_shipped and shipped.is_file() else None


def shipped_names() -> tuple[str, ...]:
    """The names of all shipped sweep files and examples, for `find_file`."""
    root = shipped_root()
    files = [path for folder in SHIPPED_FOLDERS for path in (root / folder).glob("*") if path.is_file()]
    return tuple(sorted(str(path.relative_to(root)) for path in files))
