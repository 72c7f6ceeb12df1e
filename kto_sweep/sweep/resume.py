"""Going on with a sweep that has holes: what is missing, and what failed for no fault of its own."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kto_sweep.errors import ServerError
from kto_sweep.home import Home
from kto_sweep.sweep.grid_status import Cell, CellState, Ledger, missing, read_ledger
from kto_sweep.sweep.ref import SweepRef, recall
from kto_sweep.wandb_client.connection import Target
from kto_sweep.wandb_client.reader import read_sweep

if TYPE_CHECKING:
    import wandb


@dataclass(frozen=True)
class Reopened:
    """What became of a sweep that was to go on."""

    was: str
    """Its state before."""
    state: str
    again: tuple[str, ...]
    """Runs that are handed out again."""
    refused: tuple[str, ...]
    """Runs that the server does not hand out again."""
    missing: int | None
    """Trials that have still to be begun; None when the sweep has no end of its own."""
    advice: tuple[str, ...] = ()
    """Lines that say what to type for the refused ones."""

    def summary(self) -> str:
        """One line for people."""
        if self.state != "RUNNING":
            return f"{self.was.lower()}; nothing is left to run"
        parts = [] if self.missing is None else [f"{self.missing} missing"]
        parts += [f"{len(self.again)} to be tried again"] if self.again else []
        return f"{self.was.lower()} -> running" + (f", {', '.join(parts)}" if parts else "")


def reopen(
    home: Home, api: "wandb.Api", target: Target, ref: SweepRef, *, failed: bool, stopped: bool
) -> Reopened:
    """Hand out again what can be retried, and set the sweep running if there is anything to run.

    `failed`: all failed trials, whatever the cause; `stopped`: those too that were told to stop.
    Raises ServerError when the server does not open the sweep again.
    """
    from kto_sweep.wandb_client.private_api import set_run_state, set_sweep_state

    view = read_sweep(api, target, ref)
    ledger = read_ledger(view)
    left = missing(view, ledger)
    wanted = [cell.trial.run_id for cell in _wanted(ledger, failed=failed, stopped=stopped) if cell.trial]
    again = tuple(run_id for run_id in wanted if set_run_state(api, ref, run_id, "pending"))
    refused = tuple(run_id for run_id in wanted if run_id not in again)
    known = recall(home, ref.id)
    way = f"kto-sweep create {known.file if known and known.file else 'FILE'} --reuse {ref}"
    advice = (
        (
            f"The server takes no run of a sweep back: {', '.join(refused)}",
            f"  a sweep of what is left: {way}",
        )
        if refused
        else ()
    )
    if left == 0 and not again and view.state in {"FINISHED", "CANCELED"}:
        return Reopened(view.state, view.state, again, refused, left, advice)
    try:
        set_sweep_state(api, ref, "RUNNING")
    except ServerError as error:
        raise ServerError(error.message, hint=error.hint or f"a sweep of what is left: {way}") from error
    after = read_sweep(api, target, ref)
    if after.state != "RUNNING":
        raise ServerError(
            f"{ref}: the server leaves the sweep {after.state.lower()}",
            hint=f"a sweep of what is left: {way}",
        )
    return Reopened(view.state, after.state, again, refused, left, advice)


def _wanted(ledger: Ledger, *, failed: bool, stopped: bool) -> list[Cell]:
    """The cells to be tried again."""
    return [
        *(ledger.of(CellState.FAILED) if failed else ledger.retryable),
        *(ledger.stopped if stopped else ()),
    ]
