"""Resumes a sweep: runs its missing trials, and retries those that failed without causing it themselves."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kto_sweep.errors import ServerError
from kto_sweep.home import Home
from kto_sweep.sweep.grid_status import CellState, GridCell, GridStatus, count_missing, read_grid_status
from kto_sweep.sweep.ref import SweepRef, load_sweep_record
from kto_sweep.wandb_client.connection import Target
from kto_sweep.wandb_client.reader import read_sweep

if TYPE_CHECKING:
    import wandb


@dataclass(frozen=True)
class ResumedSweep:
    """A sweep after `resume`."""

    previous_state: str
    state: str
    """RUNNING, or the previous state if nothing is left to run."""
    retried: tuple[str, ...]
    """Runs that the server will hand out again."""
    refused: tuple[str, ...]
    """Runs that the server will not hand out again."""
    missing: int | None
    """Number of trials that have not started; None for an unlimited sweep."""
    advice: tuple[str, ...] = ()
    """Lines with the command to type for the refused runs."""

    def summary(self) -> str:
        """One line for people."""
        if self.state != "RUNNING":
            return f"{self.previous_state.lower()}; nothing is left to run"
        parts = [] if self.missing is None else [f"{self.missing} missing"]
        parts += [f"{len(self.retried)} to retry"] if self.retried else []
        return f"{self.previous_state.lower()} -> running" + (f", {', '.join(parts)}" if parts else "")


def resume_sweep(
    home: Home, api: "wandb.Api", target: Target, ref: SweepRef, *, failed: bool, stopped: bool
) -> ResumedSweep:
    """The resumed sweep: running, with its retryable trials handed out again, if anything is left to run.

    `failed` retries all failed trials, whatever the cause; `stopped` retries those that were stopped early.
    Raises ServerError if the server does not resume the sweep.
    """
    from kto_sweep.wandb_client.private_api import set_run_state, set_sweep_state

    view = read_sweep(api, target, ref)
    status = read_grid_status(view)
    missing = count_missing(view, status)
    run_ids = [
        cell.trial.run_id for cell in _cells_to_retry(status, failed=failed, stopped=stopped) if cell.trial
    ]
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
    if missing == 0 and not retried and view.state in {"FINISHED", "CANCELED"}:
        return ResumedSweep(view.state, view.state, retried, refused, missing, advice)
    try:
        set_sweep_state(api, ref, "RUNNING")
    except ServerError as error:
        hint = error.hint or f"to train the rest in a new sweep: {create_rest}"
        raise ServerError(error.message, hint=hint) from error
    after = read_sweep(api, target, ref)
    if after.state != "RUNNING":
        raise ServerError(
            f"{ref}: the server did not resume the sweep, which is still {after.state.lower()}",
            hint=f"to train the rest in a new sweep: {create_rest}",
        )
    return ResumedSweep(view.state, after.state, retried, refused, missing, advice)


def _cells_to_retry(status: GridStatus, *, failed: bool, stopped: bool) -> list[GridCell]:
    return [
        *(status.in_state(CellState.FAILED) if failed else status.retryable),
        *(status.stopped if stopped else ()),
    ]
