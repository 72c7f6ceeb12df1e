"""wandb's service process exits: the agent restarts, unless it was told to end too."""

import sys

import pytest
from agent_harness import REF, AgentHarness, FakeWorker, Grid, later

from kto_sweep.agent import shutdown
from kto_sweep.agent.events import ServiceGone
from kto_sweep.agent.run_agent import ServiceGoneError
from kto_sweep.agent.state import AgentOutcome, AgentState, Settings
from kto_sweep.cli import run
from kto_sweep.errors import KtoSweepError
from kto_sweep.protocol import Done, Order, StartTrial, StopTrial
from kto_sweep.train_command import run as train_run
from kto_sweep.trial import Trial
from kto_sweep.wandb_client.connection import Target


def put_away(stopped: list[str]):
    """A worker that saves each trial that it is told to stop."""

    def on_order(worker: FakeWorker, order: Order) -> None:
        if isinstance(order, StopTrial):
            stopped.append(order.run_id)
            worker.say(Done(order.run_id, {}, steps=3, stopped=True))

    return on_order


def test_a_signal_to_agent_and_service_ends_the_agent_once_trials_are_saved(
    harness: AgentHarness,
) -> None:
    stopped: list[str] = []

    def signal_all() -> None:
        harness.happens(ServiceGone())
        harness.interrupt()

    harness.beat, harness.on_order = Grid(2).beat, put_away(stopped)
    later(lambda: len(harness.started()) == 2, signal_all)
    state = harness.perform(slots=2)
    assert sorted(stopped) == ["cell0", "cell1"]
    assert (state.outcome, state.stats.interrupted) == (AgentOutcome.KILLED, 2)
    assert not harness.ends, "nothing can be told to the server"


def test_a_service_that_exits_during_shutdown_does_not_restart_the_agent(
    harness: AgentHarness,
) -> None:
    def on_order(worker: FakeWorker, order: Order) -> None:
        if isinstance(order, StopTrial):
            harness.happens(ServiceGone())
            worker.say(Done(order.run_id, {}, steps=3, stopped=True))

    harness.beat, harness.on_order = Grid(1).beat, on_order
    later(harness.started, harness.interrupt)
    state = harness.perform()
    assert (state.outcome, state.stats.interrupted) == (AgentOutcome.KILLED, 2)


def test_a_service_that_exits_alone_restarts_the_agent(
    harness: AgentHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutdown, "SIGNAL_SECONDS", 0.1)
    harness.beat = Grid(1).beat
    later(harness.started, lambda: harness.happens(ServiceGone()))
    state = harness.perform(count=3)
    assert (state.outcome, state.trials_left) == (AgentOutcome.RESTART, 3)
    assert "wandb-core" in str(state.error)
    assert all(isinstance(order, StartTrial) for order in harness.orders)


@pytest.mark.parametrize("named", ["", "ab12cd34"])
def test_it_restarts_with_the_same_sweep_even_if_another_was_used_since(
    monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    def run_agent(*args: object, **options: object) -> int:
        error = ServiceGoneError("it has ended")
        error.count, error.time_left, error.sweep = 2, ["--budget", "30s"], str(REF)
        raise error

    def execve(path: str, words: list[str], environ: dict[str, str]) -> None:
        executed.append(words)

    executed: list[list[str]] = []
    words = ["agent", "--cpu", "--count", "3", *named.split()]
    monkeypatch.setattr("kto_sweep.agent.run_agent.run_agent", run_agent)
    monkeypatch.setattr("kto_sweep.cli.agent.MIN_UPTIME", 0.0)
    monkeypatch.setattr("os.execve", execve)
    started = ["python", "-X", "dev", "-m", "kto_sweep", *words]
    monkeypatch.setattr("sys.orig_argv", started)
    run(words)
    rest = ["--count", "2", "--budget", "30s", *([] if named else [str(REF)])]
    assert executed == [[sys.executable, *started[1:], *rest]]


@pytest.mark.parametrize(
    ("begun", "hint"), [(True, "--resume-from-checkpoint run1"), (False, "run the same command")]
)
def test_a_run_without_a_sweep_says_how_to_resume_after_the_service_exits(
    harness: AgentHarness, monkeypatch: pytest.MonkeyPatch, begun: bool, hint: str
) -> None:
    lost = AgentState({}, {}, Settings(), outcome=AgentOutcome.RESTART, error=KtoSweepError("it has ended"))
    monkeypatch.setattr(train_run, "supervise", lambda state, executor: lost)
    trial = Trial.from_config({"model_size": "tiny", "dataset": "data.jsonl"})
    if begun:
        (harness.home.runs / "run1").mkdir()
        (harness.home.runs / "run1" / "trial.json").touch()
    with pytest.raises(KtoSweepError, match="it has ended") as gone:
        train_run.train_one(
            harness.home, train_run.Job("run1", trial, "", "kto", None),
            Target("http://127.0.0.1:9", "http://127.0.0.1:9", local=True), offline=True, gpus=1, cpu=True,
        )  # fmt: skip
    assert hint in gone.value.hint
    assert "kto-sweep agent" not in gone.value.hint
