"""What a slot does when the server takes no agent, does not know it, or speaks in riddles."""

from collections.abc import Callable

import pytest
from stage import Stage, later

from kto_sweep.agent import heart, stations
from kto_sweep.errors import ServerError
from kto_sweep.protocol import Done, MakeRoom, Order, Start
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.wandb_client.connection import is_deleted
from kto_sweep.wandb_client.private_api import Command, KeyRejectedError, _command


@pytest.fixture(autouse=True)
def deleted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the sweep is, if there is anything in it."""
    found: list[bool] = []
    monkeypatch.setattr(stations, "is_deleted", lambda api, ref: bool(found))
    monkeypatch.setattr(heart, "MOST_SECONDS", 0.05)
    return found


def one_trial(until: Callable[[Stage], object], stage: Stage, then: Callable[[], object]) -> list[str]:
    """A server with one trial, which ends when `until` holds, after `then`; who has registered."""
    agents: list[str] = []
    handed_out: list[str] = []

    def register() -> str:
        agents.append(f"agent{len(agents)}")
        return agents[-1]

    def beat(agent: str, runs: list[str]) -> list[Command]:
        if runs:
            return []
        if handed_out:
            return [Command("exit")]
        handed_out.append("run1")
        return [Command("run", "run1", {})]

    def on_order(worker, order: Order) -> None:
        if isinstance(order, Start):
            then()
            later(lambda: until(stage), lambda: worker.say(Done("run1", {}, steps=1, stopped=False)))
            worker.say(MakeRoom(2, "there is room"))

    stage.register, stage.beat, stage.on_order = register, beat, on_order
    return agents


def test_a_new_slot_that_the_server_does_not_take_asks_again_beside_a_trial(stage: Stage) -> None:
    refused: list[int] = []
    agents = one_trial(lambda stage: len(agents) == 2, stage, lambda: None)
    register = stage.register

    def refuse() -> str:
        if agents and len(refused) < 3:
            refused.append(1)
            raise ServerError("the server takes no agent")
        return register()

    stage.register = refuse
    assert stage.perform(trials_per_device=None).finished == 1
    assert len(refused) == 3
    assert stage.said().count("the server takes no agent; it is asked again") == 1


def test_a_404_while_the_sweep_is_there_has_the_slot_register_anew_and_name_its_run(stage: Stage) -> None:
    named: list[str] = []
    agents = one_trial(lambda stage: "agent1" in named, stage, lambda: None)
    beat, missed = stage.beat, []

    def miss(agent: str, runs: list[str]) -> list[Command]:
        if runs and not missed:
            missed.append(agent)
            raise ServerError("the sweep was deleted on the server")
        if runs:
            named.append(agent)
        return beat(agent, runs)

    stage.beat = miss
    assert stage.perform().finished == 1
    assert agents == ["agent0", "agent1"]


def test_a_sweep_that_was_deleted_ends_the_agent(stage: Stage, deleted: list[bool]) -> None:
    def gone(agent: str, runs: list[str]) -> list[Command]:
        deleted.append(True)
        raise ServerError("the sweep was deleted on the server")

    stage.beat = gone
    with pytest.raises(ServerError, match="deleted"):
        stage.perform()


def test_an_agent_of_which_the_server_takes_no_slot_at_all_ends_with_the_reason(stage: Stage) -> None:
    def refuse() -> str:
        raise ServerError("permission denied")

    stage.register = refuse
    with pytest.raises(ServerError, match="permission denied"):
        stage.perform()


def test_an_answer_that_cannot_be_read_costs_no_more_than_itself(stage: Stage) -> None:
    answers = [{"type": "run", "run_id": "run1", "args": [1]}, {}, {"type": "exit"}]
    stage.beat = lambda agent, runs: [_command(answers.pop(0))]
    assert stage.perform().started == 0
    assert stage.said().count("an answer of the server was not understood") == 2


def test_a_sweep_is_deleted_when_the_server_says_so_now(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Exception | None] = [None, OSError("403"), ValueError("Could not find sweep")]

    class Sweep:
        def load(self, *, force: bool) -> None:
            assert force, "else wandb says what it knew before"
            if (error := answers.pop(0)) is not None:
                raise error

    class Api:
        def sweep(self, path: str) -> Sweep:
            return Sweep()

    ref = SweepRef("local", "kto-sweep", "ab12cd34")
    assert [is_deleted(Api(), ref) for _ in range(3)] == [False, False, True]


def test_a_server_that_refuses_the_key_counts_as_silent_until_it_takes_it_again(stage: Stage) -> None:
    seen: set[str] = set()
    agents = one_trial(lambda stage: seen and not stage.agent._lifeline.refused, stage, lambda: None)
    beat = stage.beat

    def refuse(agent: str, runs: list[str]) -> list[Command]:
        lifeline = stage.agent._lifeline
        if runs and lifeline.refused:
            seen.add(lifeline.trouble)
        elif runs and not seen:
            raise KeyRejectedError("the server refuses the key (HTTP 401)")
        return beat(agent, runs)

    stage.beat = refuse
    assert stage.perform(trials_per_device=None).finished == 1
    assert seen == {"the server has refused the key"}
    assert len(agents) >= 2
    assert stage.agent._lifeline.trouble == "no answer from the server"
    assert stage.said().count("the server refuses the key (HTTP 401); it is asked again") == 1
