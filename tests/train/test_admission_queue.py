from pathlib import Path

from cotrainer_cases import Recorder, make_trial
from hypothesis import given
from hypothesis import strategies as st

from kto_sweep.train.trial.request import TrialRequest
from kto_sweep.train.worker.admission_queue import AdmissionQueue, PendingTrial


def queue_of(names: str, patience: int = 3) -> AdmissionQueue:
    queue = AdmissionQueue(patience)
    for name in names:
        queue.put(request(name))
    return queue


def request(name: str, *, stopped: bool = False) -> TrialRequest:
    return TrialRequest(name, make_trial(), Path(name), Recorder(), lambda: stopped)


def is_lower(pending: PendingTrial) -> bool:
    return pending.request.run_id.islower()


def admitted(queue: AdmissionQueue) -> list[str]:
    """The names that fit, taken one after another."""
    names = []
    while queue.has_next(is_lower):
        pending = queue.next(is_lower)
        assert pending is not None
        names.append(pending.request.run_id)
    assert queue.next(is_lower) is None
    return names


def first(queue: AdmissionQueue) -> str | None:
    pending = queue.first()
    return None if pending is None else pending.request.run_id


def test_trials_that_fit_are_admitted_in_order() -> None:
    queue = queue_of("aBcd")
    assert queue.count(is_lower) == 3
    assert admitted(queue) == ["a", "c", "d"]
    assert len(queue) == 1
    assert first(queue) == "B"
    assert first(queue) is None


def test_a_pending_trial_is_passed_by_as_many_others_as_patience_allows() -> None:
    queue = queue_of("Aaaaaa", patience=3)
    assert admitted(queue) == ["a", "a", "a"]
    assert admitted(queue) == []
    assert first(queue) == "A"
    assert admitted(queue) == ["a", "a"]


def test_stopped_trials_leave_the_queue() -> None:
    queue = queue_of("a")
    queue.put(request("b", stopped=True))
    queue.put(request("c"))
    assert [pending.request.run_id for pending in queue.take_stopped()] == ["b"]
    assert [first(queue), first(queue)] == ["a", "c"]


def test_a_trial_that_is_put_first_is_next() -> None:
    queue = queue_of("ab")
    queue.put_first(request("c"))
    assert admitted(queue) == ["c", "a", "b"]


def test_a_closed_queue_does_not_block() -> None:
    queue = queue_of("")
    queue.close()
    queue.wait()


@given(st.lists(st.sampled_from("abcX"), max_size=60), st.integers(0, 5))
def test_no_pending_trial_is_passed_by_more_others_than_patience_allows(
    arrivals: list[str], patience: int
) -> None:
    """A worker that always has lower-case trials to admit still gets to the oldest pending X."""
    queue = AdmissionQueue(patience)
    passed: dict[int, int] = {}
    pending: list[int] = []
    for at, name in enumerate(arrivals):
        queue.put(request(f"{name.lower() if name != 'X' else 'X'}{at}"))
        if name == "X":
            pending.append(at)
        for admitted_name in admitted(queue):
            for other in pending:
                passed[other] = passed.get(other, 0) + (other < int(admitted_name[1:]))
    assert all(count <= patience for count in passed.values())
    remaining = [first(queue) for _ in range(len(queue))]
    assert [int(name[1:]) for name in remaining if name is not None and name[0] == "X"] == pending
