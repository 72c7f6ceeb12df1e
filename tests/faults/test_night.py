"""A sweep goes through accidents at random moments and ends as if nothing had happened."""

import pytest
from accidents import DISK, SERVER, SUPERVISOR, WORKER, Accident
from arena import TWO_BY_TWO, Arena, Losses, seeded


def by_name(*names: str) -> list[Accident]:
    found = {accident.name: accident for accident in (*WORKER, *SUPERVISOR, *SERVER, *DISK)}
    return [found[name] for name in names]


def go_through(arena: Arena, accidents: list[Accident], undisturbed: Losses) -> None:
    rng = seeded()
    try:
        arena.create()
        arena.start_agent()
        for accident in accidents:
            arena.wait_for_progress(rng.randint(2, 16))
            print(f"after {arena.steps()} steps: {accident.name}", flush=True)
            accident.happen(arena, rng)
        arena.finish()
        arena.check(undisturbed)
    finally:
        arena.close()


def test_a_sweep_outlives_what_happens_most(tmp_path, undisturbed):
    arena = Arena(tmp_path, TWO_BY_TWO, options=("--trials-per-gpu", "2"))
    names = ("worker gets SIGKILL", "server is killed", "agent is killed", "power is cut")
    go_through(arena, by_name(*names), undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("accidents", [WORKER, SUPERVISOR, SERVER, DISK], ids=lambda them: them[0].part)
def test_a_sweep_outlives_all_accidents_of_a_part(tmp_path, undisturbed, accidents):
    arena = Arena(tmp_path, TWO_BY_TWO, options=("--trials-per-gpu", "2"))
    go_through(arena, accidents, undisturbed)


def test_an_agent_starts_again_when_wandbs_service_is_killed(tmp_path, undisturbed):
    arena = Arena(tmp_path, TWO_BY_TWO, options=("--trials-per-gpu", "4"))
    go_through(arena, by_name("wandb's service is killed"), undisturbed)
    assert "starting again" in arena.said()
    assert len(arena.agents) == 1
