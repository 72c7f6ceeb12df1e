"""A slot whose server rejects or does not know its agent, or sends a malformed response."""

from collections.abc import Callable

import pytest
from agent_harness import CONFIG, AgentHarness, later, refuse_registration

from kto_sweep.errors import ServerError
from kto_sweep.protocol import Done, Order, SetConcurrency, StartTrial
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.wandb_client.connection import is_deleted
from kto_sweep.wandb_client.private_api import Command, KeyRejectedError, _command


def one_trial(
    until: Callable[[AgentHarness], object], harness: AgentHarness, then: Callable[[], object]
) -> list[str]:
    """A server with one trial, which ends when `until` holds, after `then`; returns the registered agents."""
    agents: list[str] = []
    sent: list[str] = []

    def register() -> str:
        agents.append(f"agent{len(agents)}")
        return agents[-1]

    def beat(agent: str, runs: list[str]) -> list[Command]:
        if runs:
            return []
        if sent:
            return [Command("exit")]
        sent.append("run1")
        return [Command("run", "run1", CONFIG)]

    def on_order(worker, order: Order) -> None:
        if isinstance(order, StartTrial):
            then()
            later(lambda: until(harness), lambda: worker.say(Done("run1", {}, steps=1, stopped=False)))
            worker.say(SetConcurrency(2, "there is room"))

    harness.register_agent, harness.beat, harness.on_order = register, beat, on_order
    return agents


def test_a_new_slot_that_the_server_rejects_registers_again_while_a_trial_runs(harness: AgentHarness) -> None:
    refused: list[int] = []
    agents = one_trial(lambda harness: len(agents) == 2, harness, lambda: None)
    register = harness.register_agent

    def refuse() -> str:
        if agents and len(refused) < 3:
            refused.append(1)
            raise ServerError("the server takes no agent")
        return register()

    harness.register_agent = refuse
    assert harness.perform(slots=None).stats.finished == 1
    assert len(refused) == 3
    assert harness.said().count("the server takes no agent; retrying") == 1


def test_a_404_for_an_existing_sweep_makes_the_slot_register_again_with_its_run(
    harness: AgentHarness,
) -> None:
    named: list[str] = []
    agents = one_trial(lambda harness: "agent1" in named, harness, lambda: None)
    beat, missed = harness.beat, []

    def miss(agent: str, runs: list[str]) -> list[Command]:
        if runs and not missed:
            missed.append(agent)
            raise ServerError("the sweep was deleted on the server")
        if runs:
            named.append(agent)
        return beat(agent, runs)

    harness.beat = miss
    assert harness.perform().stats.finished == 1
    assert agents == ["agent0", "agent1"]


def test_a_sweep_that_was_deleted_ends_the_agent(harness: AgentHarness) -> None:
    def gone(agent: str, runs: list[str]) -> list[Command]:
        harness.gone.append(True)
        raise ServerError("the sweep was deleted on the server")

    harness.beat = gone
    with pytest.raises(ServerError, match="deleted"):
        harness.perform()


def test_an_agent_whose_slots_are_all_rejected_ends_with_the_reason(
    harness: AgentHarness,
) -> None:
    harness.register_agent = refuse_registration("permission denied")
    with pytest.raises(ServerError, match="permission denied"):
        harness.perform()


def test_a_malformed_response_loses_nothing_else(harness: AgentHarness) -> None:
    answers = [{"type": "run", "run_id": "run1", "args": [1]}, {}, {"type": "exit"}]
    harness.beat = lambda agent, runs: [_command(answers.pop(0))]
    assert harness.perform().stats.started == 0
    assert harness.said().count("could not read the server's response") == 2


def test_a_sweep_is_deleted_when_the_server_confirms_it(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_server_that_rejects_the_key_counts_as_silent_until_it_accepts_it(
    harness: AgentHarness,
) -> None:
    seen: set[str] = set()
    agents = one_trial(lambda harness: seen and not harness.connectivity.key_rejected, harness, lambda: None)
    beat = harness.beat

    def refuse(agent: str, runs: list[str]) -> list[Command]:
        connectivity = harness.connectivity
        if runs and connectivity.key_rejected:
            seen.add(connectivity.trouble)
        elif runs and not seen:
            raise KeyRejectedError("the server rejects the key (HTTP 401)")
        return beat(agent, runs)

    harness.beat = refuse
    assert harness.perform(slots=None).stats.finished == 1
    assert seen == {"The server rejects the key"}
    assert len(agents) >= 2
    assert harness.connectivity.trouble == "No response from the server"
    assert harness.said().count("the server rejects the key (HTTP 401); retrying") == 1
