"""Resumes a sweep: runs its missing trials, and retries those that failed without causing it themselves."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kto_sweep.errors import ServerError
from kto_sweep.home import Home
from kto_sweep.sweep.grid_status import count_missing
from kto_sweep.sweep.ref import SweepRef, load_sweep_record
from kto_sweep.sweep.sweep_state import SweepStatus, read_sweep_status
from kto_sweep.sweep.trial_state import TrialState
from kto_sweep.sweep.view import OVER
from kto_sweep.wandb_client.connection import Target
from kto_sweep.wandb_client.reader import read_sweep

if TYPE_CHECKING:
    import wandb


@dataclass(frozen=True)
class ResumedSweep:
    """A sweep after `resume`."""

    before: SweepStatus
    after: SweepStatus
    """The same as `before` if nothing is left to run."""
    retried: tuple[str, ...]
    """Runs that the server will hand out again."""
    refused: tuple[str, ...]
    """Runs that the server will not hand out again."""
    advice: tuple[str, ...] = ()
    """Lines with the command to type for the refused runs."""

    @property
    def missing(self) -> int | None:
        """Number of trials that have not started; None for an unlimited sweep."""
        return count_missing(self.before.view, self.before.grid)

    def summary(self) -> str:
        """One line for people."""
        if self.before is self.after:
            open_already = self.before.view.state not in OVER and self.before.left != 0
            return f"{self.before.state}; nothing {'to resume' if open_already else 'is left to run'}"
        waiting = len(self.before.grid.in_state(TrialState.INTERRUPTED, TrialState.QUEUED))
        counts = {"not started": self.missing, "to continue": waiting, "to retry": len(self.retried)}
        parts = [f"{count} {what}" for what, count in counts.items() if count]
        return f"{self.before.state}, now resumed" + (f": {', '.join(parts)}" if parts else "")


def resume_sweep(
    home: Home, api: "wandb.Api", target: Target, ref: SweepRef, *, failed: bool, stopped: bool
) -> ResumedSweep:
    """The resumed sweep: running, with its retryable trials handed out again, if anything is left to run.

    `failed` retries all failed trials, whatever the cause; `stopped` retries those that were stopped early.
    Trials that a cancel ended are always retried.
    Raises ServerError if the server does not resume the sweep.
    """
    from kto_sweep.wandb_client.private_api import set_run_state, set_sweep_state

    before = read_sweep_status(read_sweep(api, target, ref))
    run_ids = before.grid.retried_by_resume(failed=failed, stopped=stopped)
    retried = tuple(run_id for run_id in run_ids if set_run_state(api, ref, run_id, "pending"))
    refused = tuple(run_id for run_id in run_ids if run_id not in retried)
    record = load_sweep_record(home, ref.id)
    create_rest = f"kto-sweep create {record.file if record and record.file else 'FILE'} --reuse {ref}"
    advice = (
        (
            f"The server cannot retry these runs: {', '.join(refused)}",
            f"  to train the rest in a new sweep: {create_rest}",
        )
        if refused
        else ()
    )
    asked = [cell for cell in before.grid.in_state(TrialState.INTERRUPTED) if cell.is_retryable]
    nothing_left = before.left is not None and before.left <= len(asked)
    if not retried and (nothing_left or before.view.state in {"PENDING", "RUNNING"}):
        return ResumedSweep(before, before, retried, refused, advice)
    try:
        set_sweep_state(api, ref, "RUNNING")
    except ServerError as error:
        hint = error.hint or f"to train the rest in a new sweep: {create_rest}"
        raise ServerError(error.message, hint=hint) from error
    after = read_sweep_status(read_sweep(api, target, ref))
    if after.view.state != "RUNNING":
        raise ServerError(
            f"{ref}: the server did not resume the sweep, which is still {after.state}",
            hint=f"to train the rest in a new sweep: {create_rest}",
        )
    return ResumedSweep(before, after, retried, refused, advice)
