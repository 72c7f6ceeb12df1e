from hypothesis import given
from hypothesis import strategies as st

from kto_sweep.train.line import Line


def line_of(names: str, patience: int = 3) -> Line[str]:
    line: Line[str] = Line(patience)
    for name in names:
        line.add(name)
    return line


def test_those_who_fit_go_in_together_in_their_order() -> None:
    line = line_of("aBcd")
    assert line.fitting(str.islower) == ["a", "c", "d"]
    assert len(line) == 1
    assert line.first() == "B"
    assert not line


def test_nobody_passes_one_who_has_waited_for_enough() -> None:
    line = line_of("Aaaaaa", patience=3)
    assert line.fitting(str.islower) == ["a", "a", "a"]
    assert line.fitting(str.islower) == []
    assert line.first() == "A"
    assert line.fitting(str.islower) == ["a", "a"]


def test_those_who_give_up_leave() -> None:
    line = line_of("abc")
    assert line.leaving(lambda name: name == "b") == ["b"]
    assert [line.first(), line.first()] == ["a", "c"]


@given(st.lists(st.sampled_from("abcX"), max_size=60), st.integers(0, 5))
def test_whoever_waits_gets_in_after_a_bounded_number_of_others(arrivals: list[str], patience: int) -> None:
    """A worker that is always busy with small letters still comes to the X that waits longest."""
    line: Line[tuple[int, str]] = Line(patience)
    passed: dict[int, int] = {}
    waiting: list[int] = []
    for at, name in enumerate(arrivals):
        line.add((at, name))
        if name == "X":
            waiting.append(at)
        for gone, _ in line.fitting(lambda each: each[1] != "X"):
            for other in waiting:
                passed[other] = passed.get(other, 0) + (other < gone)
    assert all(count <= patience for count in passed.values())
    assert [at for at in (line.first()[0] for _ in range(len(line))) if at in waiting] == waiting
