"""(state, worker exit) --> another worker, a retry, a culprit, or a quarantined device."""

from dataclasses import replace

import pytest
from agent_world import GPU_0, GPU_1, exited, lines, of_kind, play, ready, running, said, trial

from kto_sweep.agent import actions as do
from kto_sweep.agent import events
from kto_sweep.agent.devices import CPU
from kto_sweep.agent.state import AgentOutcome, AgentState, Phase, TrialEndKind, TrialStatus
from kto_sweep.agent.transition import RESTART_SECONDS
from kto_sweep.agent.worker_exits import MAX_IDLE_EXITS
from kto_sweep.protocol import Done, Metrics, Ready, WorkerBroken

BOTH = [GPU_0, GPU_1]


def statuses(state: AgentState) -> dict[str, TrialStatus]:
    return {slot.trial.run_id: slot.trial.status for slot in state.slots.values() if slot.trial is not None}


def replaced(state: AgentState, device: str = "gpu 0", status: int = -9) -> AgentState:
    """The state after the device's worker exited and the next one is ready."""
    state, _ = play(state, exited(state, device, status))
    return play(state, said(state, device, Ready(device)))[0]


def test_a_dead_worker_is_replaced_and_its_trials_continue() -> None:
    state = running("a", "b")
    state, actions = play(state, exited(state, "gpu 0", -11))
    assert lines(actions) == ["gpu 0: the worker was killed by SIGSEGV; starting another"]
    assert of_kind(actions, do.StartWorker) == [do.StartWorker(GPU_0, 2)]
    assert statuses(state) == {"a": TrialStatus.READY, "b": TrialStatus.READY}
    _, actions = play(state, said(state, "gpu 0", Ready("GPU")))
    assert [dispatch.trial.run_id for dispatch in of_kind(actions, do.Dispatch)] == ["a", "b"]


def test_the_exit_of_an_earlier_worker_is_ignored() -> None:
    state = running("a")
    late = exited(state, "gpu 0")
    state = replaced(state)
    assert play(state, late) == (state, [])


def test_a_trial_that_keeps_killing_workers_fails_and_its_neighbours_do_not() -> None:
    state = replaced(replaced(running("a", "b")))
    held = state.slots[0].trial
    assert held is not None
    assert (held.isolated, held.failures) == (True, 2)
    assert statuses(state) == {"a": TrialStatus.RUNNING, "b": TrialStatus.READY}, "each alone"
    state, actions = play(state, exited(state, "gpu 0"))
    [close] = of_kind(actions, do.CloseRun)
    assert (close.run_id, close.ending.kind, close.ending.cause) == ("a", TrialEndKind.FAILED, "worker crash")
    assert "3 workers died running this trial; the last one was killed by SIGKILL" in close.ending.text
    assert state.culprits == {"a"}


ASSERTION = "AcceleratorError: CUDA error: device-side assert triggered"


@pytest.mark.parametrize(
    ("reported", "cause"),
    [
        (WorkerBroken(ASSERTION), "bad config"),
        (WorkerBroken("KeyError: 'x'", "internal error"), "internal error"),
    ],
)
def test_an_error_of_a_program_isolates_the_trials_at_once_and_ends_the_one_that_raises_it_again(
    reported: WorkerBroken, cause: str
) -> None:
    state = running("a", "b")
    state, _ = play(state, said(state, "gpu 0", reported), exited(state, "gpu 0", 1))
    state, _ = play(state, said(state, "gpu 0", Ready("GPU")))
    assert statuses(state) == {"a": TrialStatus.RUNNING, "b": TrialStatus.READY}, "each alone"
    state, actions = play(state, said(state, "gpu 0", reported), exited(state, "gpu 0", 1))
    [close] = of_kind(actions, do.CloseRun)
    assert (close.run_id, close.ending.kind, close.ending.cause) == ("a", TrialEndKind.FAILED, cause)
    assert reported.text in close.ending.text
    assert not state.worker_exits, "it says nothing about the device"


def test_an_error_of_a_program_does_not_quarantine_gpus() -> None:
    state = running("a", "b", devices=BOTH)
    for device in ("gpu 0", "gpu 1", "gpu 0", "gpu 1"):
        state, _ = play(state, said(state, device, WorkerBroken(ASSERTION)), exited(state, device, 1))
        state, _ = play(state, said(state, device, Ready("GPU")))
        assert not any(held.quarantined for held in state.devices.values())
    assert state.stats.failed == 2


def test_an_isolated_trial_that_gets_past_its_step_is_cleared() -> None:
    state = replaced(replaced(running("a", "b")))
    state, actions = play(state, said(state, "gpu 0", Metrics("a", 1, {"loss": 0.5})))
    assert [dispatch.trial.run_id for dispatch in of_kind(actions, do.Dispatch)] == ["b"]


def test_a_lost_gpu_is_quarantined_and_its_trials_move() -> None:
    state = running("a", "b", devices=BOTH)
    gone = "CUDA error: GPU is lost"
    state, _ = play(state, exited(state, "gpu 0", 1, gone))
    state, _ = play(state, said(state, "gpu 0", Ready("GPU")))
    state, actions = play(state, exited(state, "gpu 0", 1, gone))
    assert lines(actions)[0].startswith(
        f"gpu 0 is no longer used: the worker on gpu 0 exited with status 1:\n{gone}"
    )
    assert "Hint: nvidia-smi -i 0   (full log: gpu 0.log)" in lines(actions)[0]
    assert [waiting.run_id for waiting in state.requeued] == ["a"]
    state, _ = play(state, said(state, "gpu 1", Done("b", {}, 2, stopped=False)))
    state, actions = play(state, events.RunClosed(1, "b", sent=True))
    assert [(dispatch.device, dispatch.trial.run_id) for dispatch in of_kind(actions, do.Dispatch)] == [
        ("gpu 1", "a")
    ]


def test_a_device_that_had_nothing_left_to_do_takes_over() -> None:
    state = running("a", devices=BOTH)
    state, _ = play(state, events.Commands(1, exit=True))
    assert not state.devices["gpu 1"].worker
    state = replaced(state)
    state, actions = play(state, exited(state, "gpu 0"))
    assert of_kind(actions, do.StartWorker) == [do.StartWorker(GPU_1, 4)]
    _, actions = play(state, said(state, "gpu 1", Ready("GPU")))
    assert [dispatch.device for dispatch in of_kind(actions, do.Dispatch)] == ["gpu 1"]


def test_open_trials_move_before_those_of_dead_agents_even_while_draining() -> None:
    state = replace(running("a", devices=BOTH, count=1), requeued=(trial("left"),))
    state = replaced(state)
    state, _ = play(state, exited(state, "gpu 0"))
    state, _ = play(state, said(state, "gpu 1", Ready("GPU")))
    assert statuses(state) == {"a": TrialStatus.RUNNING}


def test_the_last_device_is_not_given_up_for_one_bad_trial() -> None:
    state = running("a")
    for _ in range(3):
        assert not state.devices["gpu 0"].quarantined
        state = replaced(state)
    assert state.outcome is None
    assert state.stats.failed == 1


def test_exits_before_a_trial_that_ends_normally_are_forgotten() -> None:
    state = running("a", "b", devices=BOTH)
    state = replaced(state)
    state, _ = play(state, said(state, "gpu 0", Done("a", {}, 2, stopped=False)))
    assert not state.worker_exits


def test_a_worker_that_cannot_start_is_restarted_after_a_delay_and_finally_given_up() -> None:
    state = replaced(running("a"))  # a worker was ready before
    for attempt in range(1, MAX_IDLE_EXITS):
        if attempt == 1:
            state, _ = play(state, exited(state, "gpu 0"))
        state, actions = play(state, exited(state, "gpu 0", 1), now=100.0 * attempt)
        assert lines(actions) == [
            f"gpu 0: the worker exited with status 1; starting another in {RESTART_SECONDS:.0f} s"
        ]
        due = 100.0 * attempt + RESTART_SECONDS
        assert not of_kind(play(state, events.Tick(), now=due - 1)[1], do.StartWorker)
        state, actions = play(state, events.Tick(), now=due)
        assert of_kind(actions, do.StartWorker)
    state, _ = play(state, exited(state, "gpu 0", 1))
    assert (state.phase, state.devices["gpu 0"].quarantined) == (Phase.ABORTING, True)


def test_a_device_on_which_no_worker_ever_starts_ends_the_agent_at_once() -> None:
    state = ready(devices=[CPU])
    state = replace(state, devices={"cpu": replace(state.devices["cpu"], ready=False, was_ready=False)})
    state, _ = play(state, exited(state, "cpu", 1, "ModuleNotFoundError"))
    assert state.outcome is AgentOutcome.ERROR
    assert "the worker on cpu exited with status 1:\nModuleNotFoundError" in str(state.error)


def test_a_worker_process_that_cannot_be_created_is_retried_with_one_message() -> None:
    state = running("a")
    state, _ = play(state, exited(state, "gpu 0"))
    said_then = []
    for attempt in range(1, 4):
        refused = events.WorkerNotStarted(
            "gpu 0", state.devices["gpu 0"].worker, "[Errno 28] No space left on device"
        )
        state, actions = play(state, refused, now=100.0 * attempt)
        said_then += lines(actions)
        state, actions = play(state, events.Tick(), now=100.0 * attempt + RESTART_SECONDS)
        assert of_kind(actions, do.StartWorker)
    assert said_then == [
        "gpu 0: could not start a worker ([Errno 28] No space left on device); retrying every 30 s"
    ]
    state, _ = play(state, said(state, "gpu 0", Ready("GPU")))
    assert statuses(state) == {"a": TrialStatus.RUNNING}


def test_the_reason_given_by_a_worker_is_shown() -> None:
    state = running("a")
    _, actions = play(
        state, said(state, "gpu 0", WorkerBroken("RuntimeError: no driver\nmore")), exited(state, "gpu 0", 1)
    )
    assert lines(actions) == [
        "gpu 0: the worker exited with status 1 (RuntimeError: no driver); starting another"
    ]


def test_a_signal_without_a_name_is_shown_by_its_number() -> None:
    state = running("a")
    _, actions = play(state, exited(state, "gpu 0", -40))
    assert "the worker was killed by signal 40" in lines(actions)[0]


@pytest.mark.parametrize("status", [-9, 1])
def test_a_worker_that_dies_during_the_shutdown_is_not_replaced(status: int) -> None:
    state, _ = play(running("a"), events.SignalReceived(2))
    state, actions = play(state, exited(state, "gpu 0", status))
    assert not of_kind(actions, do.StartWorker)
    assert of_kind(actions, do.CloseRun)[0].ending.kind is TrialEndKind.PREEMPTED
    state, _ = play(state, events.RunClosed(0, "a", sent=True))
    assert state.outcome is AgentOutcome.DONE
