"""Pauses, stops or cancels a sweep on its server."""

from typing import TYPE_CHECKING

from kto_sweep.errors import ServerError, UsageError
from kto_sweep.sweep.sweep_state import WIRE_STATES, Action, SweepStatus
from kto_sweep.sweep.trial_state import state_of
from kto_sweep.sweep.view import OVER

if TYPE_CHECKING:
    import wandb


def take_action(api: "wandb.Api", status: SweepStatus, action: Action) -> None:
    """Take an action on the sweep.

    Raises UsageError if it would change nothing, ServerError if the server rejects it.
    """
    from kto_sweep.wandb_client.private_api import set_sweep_state, stop_run

    view = status.view
    if refused := status.refusal(action):
        raise UsageError(f"{view.ref} is {status.state}: {refused.reason}", hint=refused.hint)
    try:
        set_sweep_state(api, view.ref, WIRE_STATES[action])
    except ServerError:
        if action is not Action.CANCEL or view.state not in OVER:
            raise
        # A server may keep a finished sweep finished: stop its last trials one by one.
        for trial in view.trials:
            if not trial.is_prior_run and not state_of(view, trial).has_ended:
                stop_run(api, view.ref, trial.run_id)
