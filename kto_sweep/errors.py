"""Every error that a user can see, and its exit code.

KtoSweepError                 exit 1: the work failed
|-- ServerError               a server is unreachable, rejects the key, or does not have what was requested
|-- TrialFailure              one trial failed; has the cause
`-- UsageError                exit 2: wrong command line, file or configuration
    |-- DataError             a data file that cannot be read or trained on
    `-- ProblemsError         several problems at once
        |-- SweepFileError    a sweep file that cannot be registered
        `-- TrialConfigError  a configuration that cannot be trained
"""

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

WORK_LEFT = 75
"""Exit code of an agent that ended before its sweep; sysexits.h's EX_TEMPFAIL, `try again later`."""

EXIT_CODES: Mapping[int, str] = {
    0: "done; of an agent: no trial is left for it, or `--count` trials have ended",
    1: "the work failed, in whole or in part",
    2: "wrong command line, file or configuration, or nothing to do for this command",
    WORK_LEFT: "an agent ended before its sweep, such as by `--budget` or `--until`: start it again",
    130: "interrupted by Ctrl-C",
    143: "ended by SIGTERM: an agent's trials were requeued",
}
"""Exit codes of a command; after other signals 128 + the signal's number."""


class KtoSweepError(Exception):
    """An error with what is wrong and where; `hint` says what to type instead."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ServerError(KtoSweepError):
    """A server is unreachable, rejects the key, or does not have what was requested."""


class FailureCause(StrEnum):
    """Why a trial failed: the value of `failure/cause` in its run's summary."""

    OUT_OF_MEMORY = "out of memory"
    DIVERGED = "diverged"
    BAD_CONFIG = "bad config"
    BAD_DATA = "bad data"
    INTERNAL_ERROR = "internal error"
    WORKER_CRASH = "worker crash"
    SICK_GPU = "sick GPU"
    PREEMPTED = "preempted"
    DISK_FULL = "disk full"
    NETWORK = "network"

    @property
    def is_the_trials_own(self) -> bool:
        """Whether the trial itself caused it; other causes are the machine, the network or a bug."""
        return self in _OWN

    @property
    def is_retried(self) -> bool:
        """Whether another attempt may succeed: the trial did nothing that it would do again."""
        return self in _RETRIED


_OWN = {
    FailureCause.OUT_OF_MEMORY,
    FailureCause.DIVERGED,
    FailureCause.BAD_CONFIG,
    FailureCause.BAD_DATA,
}
_RETRIED = {
    FailureCause.WORKER_CRASH,
    FailureCause.SICK_GPU,
    FailureCause.DISK_FULL,
    FailureCause.NETWORK,
}


class TrialFailure(KtoSweepError):
    """One trial failed; the sweep continues."""

    def __init__(self, cause: FailureCause, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.cause = cause


def is_disk_full(error: BaseException) -> bool:
    """Whether the error reports a full disk or an exceeded quota."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


_WRONG_PATH = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)


def is_transient(error: BaseException) -> bool:
    """Whether the operating system reports an error that may be gone later, such as of a network drive."""
    number = getattr(error, "errno", None)
    return isinstance(error, OSError) and number is not None and number not in _WRONG_PATH


def is_device_assert(text: str) -> bool:
    """Whether an error message means that a GPU's kernel got an index outside its table."""
    return "device-side assert" in text


_GPU_ERROR_WORDS = (
    *("CUDA error", "CUDA driver error", "Triton Error [CUDA]", "cuDNN error", "cuBLAS error"),
    *("CUBLAS_STATUS_", "CUDNN_STATUS_", "NVML_SUCCESS", "No CUDA GPUs are available"),
)
"""Text in the messages of torch, its libraries and Triton about errors of the GPU or its driver."""


def is_gpu_error(text: str) -> bool:
    """Whether an error message means that a process cannot use its GPU."""
    return any(words in text for words in _GPU_ERROR_WORDS)


class UsageError(KtoSweepError):
    """Wrong command line, file or configuration."""

    exit_code = 2


class DataError(UsageError):
    """A data file that cannot be read or trained on."""


class Severity(StrEnum):
    """How bad a problem is."""

    ERROR = "error"
    """A server or the trainer rejects it."""
    WARNING = "warning"
    """Allowed, but probably not intended."""
    NOTE = "note"
    """For information."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a file or a configuration."""

    path: tuple[str, ...]
    """Keys from the top of the file or configuration; list positions are text, starting at "0"."""
    what: str
    """What is wrong, with the value: `0 is not a batch size`."""
    why: str = ""
    """One sentence: the violated rule."""
    hint: str = ""
    """What to type instead."""
    severity: Severity = Severity.ERROR
    file: str = ""
    """Empty: the problem is not in a file."""
    line: int | None = None
    """Line in the file, counted from 1; None: the line of `path`."""

    @property
    def where(self) -> str:
        """The place for people: `sweeps/lr.yaml:14 parameters.batch_size`."""
        if not self.file:
            return ".".join(self.path)
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        keys = ".".join(key for key in self.path if not key.isdigit())  # the line shows the list position
        return f"{place} {keys}" if keys else place

    @property
    def one_line(self) -> str:
        """Place, what, why and hint as sentences on one line."""
        parts = (f"{self.where}: {self.what}", self.why.removesuffix("."), self.hint)
        return ". ".join(part for part in parts if part)

    @property
    def labelled(self) -> str:
        """Its severity and text, for people: `Warning: sweeps/lr.yaml:14 ...`."""
        return f"{self.severity.capitalize()}: {self}"

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}"]
        if self.why:
            lines.append(f"  {self.why}")
        if self.hint:
            lines.append(f"  Hint: {self.hint}")
        return "\n".join(lines)


class ProblemsError(UsageError):
    """Several problems at once; base of the errors from checking whole files."""

    def __init__(self, subject: str, problems: Sequence[Problem], *, hint: str = "") -> None:
        count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
        super().__init__("\n".join([f"{subject}: {count}", *map(str, problems)]), hint=hint)
        self.problems = tuple(problems)


class SweepFileError(ProblemsError):
    """A sweep file that cannot be registered."""


class TrialConfigError(ProblemsError):
    """A configuration that cannot be trained."""
