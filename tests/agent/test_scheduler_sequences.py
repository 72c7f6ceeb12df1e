"""Any sequence of events: no trial is lost or duplicated, no run stays open, and every sequence ends."""

from agent_world import World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kto_sweep.agent.state import Settings

SEQUENCES = 400
LENGTHS = (30, 120)
"""Without a smallest one hypothesis's sequences have 5 events on average, fewer than a trial's way has."""


@settings(max_examples=SEQUENCES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    choices=st.lists(st.integers(0, 2**16), min_size=LENGTHS[0], max_size=LENGTHS[1]),
    devices=st.integers(1, 3),
    slots=st.integers(1, 3),
    orphans=st.integers(0, 2),
    count=st.sampled_from([None, None, 1, 3]),
    adjusts_slots=st.booleans(),
    timed=st.booleans(),
    deadly=st.booleans(),
)
def test_every_sequence_of_events_keeps_the_invariants_and_ends(
    choices: list[int],
    devices: int,
    slots: int,
    orphans: int,
    count: int | None,
    adjusts_slots: bool,
    timed: bool,
    deadly: bool,
) -> None:
    world = World(
        devices=devices, slots=slots, cells=4, orphans=orphans, timed=timed,
        deadly=deadly,
        settings=Settings(count, grace=60.0, patience=10.0, adjusts_slots=adjusts_slots),
    )  # fmt: skip
    for choice in choices:
        if world.state.outcome is not None:
            break
        world.choose(choice)
    world.calm_down()
