"""wandb's service process ends: the agent starts again, unless it was to end itself."""

from typing import NoReturn

import pytest
from stage import REF, Grid, Stage, Worker, later

from kto_sweep.agent import supervisor
from kto_sweep.agent.events import ServiceGone
from kto_sweep.agent.runs import ServiceGoneError
from kto_sweep.cli import run
from kto_sweep.protocol import Done, Order, Start, Stop
from kto_sweep.train_command import run as train_run
from kto_sweep.trial import Trial
from kto_sweep.wandb_client.connection import Target


def put_away(stopped: list[str]):
    """A worker that puts away what it is told to stop."""

    def on_order(worker: Worker, order: Order) -> None:
        if isinstance(order, Stop):
            stopped.append(order.run_id)
            worker.say(Done(order.run_id, {}, steps=3, stopped=True))

    return on_order


def test_a_signal_that_reaches_the_service_as_well_ends_the_agent_when_the_trials_are_put_away(
    stage: Stage,
) -> None:
    stopped: list[str] = []

    def signal_all() -> None:
        stage.happens(ServiceGone())
        stage.interrupt()

    stage.beat, stage.on_order = Grid(2).beat, put_away(stopped)
    later(lambda: len(stage.started()) == 2, signal_all)
    with pytest.raises(KeyboardInterrupt):
        stage.perform(trials_per_device=2)
    assert sorted(stopped) == ["cell0", "cell1"]
    assert stage.agent is not None
    assert stage.agent.tally.interrupted == 2
    assert not stage.ends, "nothing can be told to the server"


def test_a_service_that_ends_while_the_agent_leaves_does_not_start_it_again(stage: Stage) -> None:
    def on_order(worker: Worker, order: Order) -> None:
        if isinstance(order, Stop):
            stage.happens(ServiceGone())
            worker.say(Done(order.run_id, {}, steps=3, stopped=True))

    stage.beat, stage.on_order = Grid(1).beat, on_order
    later(stage.started, stage.interrupt)
    with pytest.raises(KeyboardInterrupt):
        stage.perform()
    assert stage.agent is not None
    assert stage.agent.tally.interrupted == 2


def test_a_service_that_ends_alone_is_replaced_by_starting_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "SIGNAL_SECONDS", 0.1)
    stage.beat = Grid(1).beat
    later(stage.started, lambda: stage.happens(ServiceGone()))
    with pytest.raises(ServiceGoneError) as gone:
        stage.perform(count=3)
    assert (gone.value.count, gone.value.sweep) == (3, str(REF))
    assert all(isinstance(order, Start) for order in stage.orders)


@pytest.mark.parametrize("named", ["", "ab12cd34"])
def test_it_starts_again_with_the_same_sweep_whichever_is_used_last_by_then(
    monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    def work_on(*args: object, **options: object) -> int:
        error = ServiceGoneError()
        error.count, error.time_left, error.sweep = 2, ["--budget", "30s"], str(REF)
        raise error

    def execve(path: str, words: list[str], environ: dict[str, str]) -> None:
        executed.append(words[3:])

    executed: list[list[str]] = []
    words = ["agent", "--cpu", "--count", "3", *named.split()]
    monkeypatch.setattr("kto_sweep.agent.session.work_on", work_on)
    monkeypatch.setattr("kto_sweep.cli.agent.MIN_UPTIME", 0.0)
    monkeypatch.setattr("os.execve", execve)
    monkeypatch.setattr("sys.argv", ["kto-sweep", *words])
    run(words)
    assert executed == [[*words, "--count", "2", "--budget", "30s", *([] if named else [str(REF)])]]


@pytest.mark.parametrize(
    ("begun", "hint"), [(True, "--resume-from-checkpoint run1"), (False, "the same command")]
)
def test_a_run_of_no_sweep_says_how_it_goes_on_without_the_service(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, begun: bool, hint: str
) -> None:
    class Ending:
        def __init__(self, *args: object, **options: object) -> None:
            pass

        def run(self) -> NoReturn:
            raise ServiceGoneError

    monkeypatch.setattr(train_run, "Supervisor", Ending)
    trial = Trial.from_config({"model_size": "tiny", "dataset": "data.jsonl"})
    if begun:
        (stage.home.runs / "run1").mkdir()
        (stage.home.runs / "run1" / "trial.json").touch()
    with pytest.raises(ServiceGoneError) as gone:
        train_run.train_one(
            stage.home, train_run.Job("run1", trial, "", "kto", None),
            Target("http://127.0.0.1:9", "http://127.0.0.1:9", local=True), offline=True, gpus=1, cpu=True,
        )  # fmt: skip
    assert hint in gone.value.hint
    assert "kto-sweep agent" not in gone.value.hint
