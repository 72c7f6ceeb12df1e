"""Copies the files and artifacts of a run to its copy on another server."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb

from kto_sweep.text import size_text
from kto_sweep.wandb_client.private_api import new_artifact

_OF_WANDB = {
    "config.yaml",
    "diff.patch",
    "output.log",
    "requirements.txt",
    "wandb-metadata.json",
    "wandb-summary.json",
}
"""Files that the SDK writes for each run; those of the copy describe this box."""
_PATHS_OF_SERVER = {"artifact_path", "_latest_artifact_path"}
"""Keys of a table or a medium in a row: artifacts by ids of the source. `path` names the run's file."""


def row_to_copy(values: Mapping[str, Any]) -> dict[str, Any]:
    """A row or summary without the source's ids of artifacts."""
    return {
        name: {key: item for key, item in value.items() if key not in _PATHS_OF_SERVER}
        if isinstance(value, Mapping) and "_type" in value
        else value
        for name, value in values.items()
    }


def copy_files(run: Any, copy: wandb.Run, folder: Path) -> None:
    """Upload the run's files, tables and media among them, which `folder` keeps until `copy` has ended."""
    for file in run.files():
        if file.name not in _OF_WANDB:
            file.download(root=str(folder), replace=True)
            copy.save(str(folder / file.name), base_path=str(folder), policy="now", glob=False)


def copy_artifacts(
    api: wandb.Api, run: Any, copy: wandb.Run, folder: Path, say: Callable[[str], None]
) -> None:
    """Log and use what the run logged and used; the same content again gives no new version.

    `folder` gets their files, of one artifact at a time. Raises wandb.Error when the server rejects one.
    """
    for artifact in run.logged_artifacts():
        if not _is_of_server(artifact):
            say(f"  artifact {artifact.name}: {size_text(artifact.size)}")
            with _rebuilt(artifact, folder) as rebuilt:
                copy.log_artifact(rebuilt, aliases=list(artifact.aliases), tags=artifact.tags)
    for artifact in run.used_artifacts():
        if not _is_of_server(artifact):
            say(f"  used artifact {artifact.name}: {size_text(artifact.size)}")
            name = f"{copy.entity}/{copy.project}/{artifact.name.partition(':')[0]}"
            there = _version_with(api, artifact.type, name, artifact.digest)
            if there is not None:  # to log it again would make it the latest version
                copy.use_artifact(there)
                continue
            with _rebuilt(artifact, folder) as rebuilt:
                copy.use_artifact(rebuilt)


def _version_with(api: wandb.Api, kind: str, name: str, digest: str) -> "wandb.Artifact | None":
    """The version with this content; None if the server has none."""
    try:
        return next((each for each in api.artifacts(kind, name) if each.digest == digest), None)
    except (wandb.Error, ValueError):  # no such artifact yet
        return None


def _is_of_server(artifact: Any) -> bool:
    """Whether a server makes it itself: exports of histories, jobs of launch."""
    return str(artifact.type) == "job" or str(artifact.type).startswith("wandb-")


@contextmanager
def _rebuilt(artifact: Any, folder: Path) -> Iterator[wandb.Artifact]:
    """A new artifact with the same content, which the block logs; its files go when the server has them."""
    name = artifact.name.partition(":")[0]
    rebuilt = new_artifact(name, artifact.type, artifact.description, artifact.metadata)
    root = folder / artifact.id
    for path, entry in artifact.manifest.entries.items():
        if entry.ref is not None:
            rebuilt.add_reference(entry.ref, name=path, checksum=False)
        else:
            file = artifact.get_entry(path).download(root=str(root), skip_cache=True)
            rebuilt.add_file(file, name=path, policy="immutable", skip_cache=True)
    yield rebuilt
    try:
        rebuilt.wait()  # one after the other: versions are numbered in the order of their commits
    except ValueError as error:  # what the server said
        raise wandb.Error(f"artifact {artifact.name}: {error}") from error
    shutil.rmtree(root, ignore_errors=True)
