"""The environment variables of a command: those that users may set, and those that are ignored.

A shell or a `.env` file may have variables that name another run, sweep, folder or wandb service, left by
another tool or written by another person. `prepare` runs once, at the start of a command, so that neither
wandb nor a process that the command starts sees them.
"""

import os
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from pathlib import Path

from kto_sweep.errors import UsageError

PROJECT, ENTITY, NAME = "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_NAME"
NEW_NAMES: Mapping[str, Collection[str]] = {"create": (PROJECT, ENTITY), "train": (PROJECT, ENTITY, NAME)}
"""Variables that name what a command creates. For other commands, the sweep's own names apply."""

VARIABLES: Mapping[str, str] = {
    "KTO_SWEEP_HOME": "folder of kto-sweep's files on this box; default `~/.kto-sweep`",
    "WANDB_API_KEY": "key for W&B or for another box's embedded server; with a key, commands use W&B",
    "WANDB_BASE_URL": "URL of the server, if it is not W&B's cloud",
    "WANDB_MODE": "`offline` or `disabled`: nothing leaves the box, and commands use its embedded server; "
    "with `offline`, `train` writes its run for `wandb sync`",
    PROJECT: "project of `create` and `train`, unless an option or the sweep file names one",
    ENTITY: "user or team of `create` and `train` on W&B, unless an option or the sweep file names one",
    NAME: "name of the run of `train` without `--name`",
    "WANDB_IDENTITY_TOKEN_FILE": "W&B login with an identity token instead of a key",
    "WANDB_LOG_MODEL": "`end`: log each trial's final adapters as an artifact of its run; `checkpoint`: its "
    "checkpoints too, each as a version; default `false`",
    "WANDB_DISABLE_GIT": "`true`: do not record the git commit",
    "WANDB_SAVE_CODE": "`true`: upload the program and the changes since the git commit to W&B",
    "HF_TOKEN": "Hugging Face token, for gated models and private data",
    "HF_HUB_OFFLINE": "`1`: use only models and data in the hub's cache on this box",
    "HF_HOME": "folder of the hub's cache; default `~/.cache/huggingface`",
    "CUDA_VISIBLE_DEVICES": "GPUs that an agent uses without `--gpus`; default all",
    "PYTORCH_ALLOC_CONF": "torch's allocator settings; `expandable_segments:True` is added if unset",
    "OMP_NUM_THREADS": "CPU threads of a worker; default 4 with a GPU, else one per core",
    "NO_COLOR": "any value: no colours",
}
"""Every variable that users may set, with its effect."""

_WANDB = "WANDB_"
CONNECTION = frozenset(
    _WANDB + name
    for name in (
        "APP_URL CREDENTIALS_FILE HTTP_PROXY HTTPS_PROXY INSECURE_DISABLE_SSL HTTP_TIMEOUT INIT_TIMEOUT "
        "FILE_PUSHER_TIMEOUT AZURE_ACCOUNT_URL_TO_ACCESS_KEY ARTIFACT_FETCH_FILE_URL_BATCH_SIZE _PROXIES "
        "X_EXTRA_HTTP_HEADERS X_PROXIES X_SERVICE_WAIT X_FILE_STREAM_MAX_BYTES X_FILE_STREAM_MAX_LINE_BYTES "
        "X_FILE_STREAM_NO_GZIP X_FILE_STREAM_RETRY_MAX X_FILE_STREAM_RETRY_WAIT_MIN_SECONDS "
        "X_FILE_STREAM_RETRY_WAIT_MAX_SECONDS X_FILE_STREAM_TIMEOUT_SECONDS X_FILE_STREAM_TRANSMIT_INTERVAL "
        "X_FILE_TRANSFER_RETRY_MAX X_FILE_TRANSFER_RETRY_WAIT_MIN_SECONDS "
        "X_FILE_TRANSFER_RETRY_WAIT_MAX_SECONDS X_FILE_TRANSFER_TIMEOUT_SECONDS X_GRAPHQL_RETRY_MAX "
        "X_GRAPHQL_RETRY_WAIT_MIN_SECONDS X_GRAPHQL_RETRY_WAIT_MAX_SECONDS X_GRAPHQL_TIMEOUT_SECONDS "
    ).split()
)
"""Variables of wandb for login and connection, besides the documented ones."""
OTHER_WANDB = CONNECTION | frozenset(
    _WANDB + name
    for name in (
        # wandb's own caches and settings
        "CACHE_DIR DATA_DIR CONFIG_DIR ARTIFACT_DIR "
        # labels of a run
        "NOTES TAGS RUN_GROUP JOB_TYPE RUN_NOTES RUN_TAGS RUN_JOB_TYPE HOST USERNAME USER_EMAIL EMAIL "
        # what is uploaded, besides the documented ones
        "DISABLE_CODE DISABLE_GIT_FORK_POINT DISABLE_JOB_CREATION IGNORE_GLOBS X_DISABLE_META "
        "X_DISABLE_STATS X_DISABLE_MACHINE_INFO X_SAVE_REQUIREMENTS "
        # system metrics
        "ENABLE_DCGM_PROFILING X_STATS_SAMPLING_INTERVAL X_STATS_NEURON_MONITOR_CONFIG_PATH "
        "X_STATS_DCGM_EXPORTER X_STATS_OPEN_METRICS_ENDPOINTS X_STATS_OPEN_METRICS_FILTERS "
        "X_STATS_OPEN_METRICS_HTTP_HEADERS X_STATS_DISK_PATHS X_STATS_CPU_COUNT X_STATS_CPU_LOGICAL_COUNT "
        "X_STATS_GPU_COUNT X_STATS_GPU_TYPE X_STATS_NO_CGROUP "
        "X_STATS_COREWEAVE_METADATA_BASE_URL X_STATS_COREWEAVE_METADATA_ENDPOINT "
        # what wandb itself prints and reports
        "SILENT QUIET DEBUG CORE_DEBUG X_LOG_LEVEL ERROR_REPORTING"
    ).split()
)
"""Further variables of wandb that keep their effect; all others are removed."""

KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
"""Keys that wandb sends to any server; those in netrc are for one server each."""
_ENV_FILE = {name for name in VARIABLES if name.startswith((_WANDB, "HF_", "KTO_SWEEP_"))} - {KEYS[1]}
"""What a `.env` file may set: nothing that makes a process load code, changes its connections, or names a
file whose content is sent."""


def prepare(
    environ: MutableMapping[str, str] = os.environ,
    env_file: Path = Path(".env"),
    *,
    keep: Collection[str] = (),
) -> Iterator[str]:
    """Load a `.env` file, then remove wandb's variables that would change a trial; yields notices.

    `keep`: those of NEW_NAMES that the command reads.
    Raises UsageError for WANDB_DISABLED, and for a timeout that wandb cannot read.
    """
    yield from load_env_file(environ, env_file)
    yield from _remove_ignored(environ, keep)


def load_env_file(environ: MutableMapping[str, str] = os.environ, file: Path = Path(".env")) -> Iterator[str]:
    """Set the variables of a `.env` file that are not set; yields a notice of those taken and ignored."""
    if not file.is_file():
        return
    from dotenv import dotenv_values

    try:
        # Without interpolation, which could put any variable of the shell into a URL.
        values = {name: value for name, value in dotenv_values(file, interpolate=False).items() if value}
    except (OSError, UnicodeDecodeError) as error:
        yield f"{file} ignored: {error}"
        return
    accepted = set(_ENV_FILE & values.keys())
    if not environ.keys().isdisjoint(KEYS):
        accepted.discard("WANDB_BASE_URL")  # the shell's key must not be sent to a server that a file names
    taken = sorted(name for name in accepted if name not in environ)
    ignored = sorted(values.keys() - accepted)
    environ.update({name: values[name] for name in taken})
    texts = [f"{file} sets {', '.join(taken)}"] if taken else []
    texts += [f"ignored in {file}: {', '.join(ignored)}"] if ignored else []
    if texts:
        yield "; ".join(texts)


def _remove_ignored(environ: MutableMapping[str, str], keep: Collection[str]) -> Iterator[str]:
    if environ.get("WANDB_DISABLED", "").lower() not in {"", "0", "false"}:
        # wandb does not read it, so ignoring it would upload what the user wants to keep.
        raise UsageError(
            "WANDB_DISABLED is set, which W&B does not read",
            hint="unset WANDB_DISABLED; to upload nothing: export WANDB_MODE=disabled",
        )
    if not environ.get("WANDB_HTTP_TIMEOUT", "0").isdecimal():  # importing wandb's API would fail
        raise UsageError("WANDB_HTTP_TIMEOUT: not a whole number of seconds", hint="unset WANDB_HTTP_TIMEOUT")
    for name in {PROJECT, ENTITY, NAME}.difference(keep):
        environ.pop(name, None)
    known = {*VARIABLES, *OTHER_WANDB}
    ignored = sorted(name for name in environ if name.startswith(_WANDB) and name not in known)
    for name in ignored:
        del environ[name]
    if ignored:
        yield f"Ignored variables of the shell: {', '.join(ignored)}"
