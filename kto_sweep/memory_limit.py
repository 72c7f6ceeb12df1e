"""The limit of a process's address space (`ulimit -v`), below which some libraries end in a crash."""

import resource

from kto_sweep.errors import UsageError

WANDB_BYTES = 7 * 2**28
"""What wandb's service process reserves before it does anything: measured between 1.5 and 2.0 GB."""
TORCH_BYTES = 10**9
"""What torch needs to load and to work with a small model on a CPU: measured between 0.7 and 1.0 GB."""


def require_address_space(least: int, what: str) -> None:
    """Raises UsageError if this process may use fewer bytes of address space than `what` needs."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < least:
        raise UsageError(
            f"{what} needs {least / 1e9:.1f} GB of address space, and this shell allows {limit / 1e9:.1f} GB",
            hint="ulimit -v unlimited   (or ask who set the limit)",
        )
