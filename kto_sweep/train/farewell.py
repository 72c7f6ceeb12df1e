"""Trials that have left their slots and end once their last files are on the disk."""

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from kto_sweep.train.course import Course
from kto_sweep.train.result import TrainResult

ORDERS_SECONDS = 0.5
"""How long a step that has only files to wait for may last: then there may be new trials."""


@dataclass(frozen=True)
class Ending:
    """How a trial ended."""

    run_id: str
    outcome: TrainResult | Exception


@dataclass(frozen=True)
class _Leaving:
    course: Course
    written: Future[Any]
    """Of its result, if it has one."""
    error: Exception | None = None
    """Why it could not go on."""


class Farewells:
    """Those that are leaving."""

    def __init__(self) -> None:
        self._leaving: list[_Leaving] = []

    def __iter__(self) -> Iterator[Course]:
        return (each.course for each in self._leaving)

    def __len__(self) -> int:
        return len(self._leaving)

    def add(self, course: Course, outcome: Future[TrainResult] | Exception) -> None:
        """A trial that has no slot any more, with its result to come or why it could not go on."""
        if isinstance(outcome, Exception):
            self._leaving.append(_Leaving(course, course.fail(outcome), outcome))
        else:
            self._leaving.append(_Leaving(course, outcome))

    def ended(self, *, waits: bool) -> list[Ending]:
        """Those whose files are written since the last call; `waits`: for one of them, not for long."""
        if waits and self._leaving:
            wait([each.written for each in self._leaving], ORDERS_SECONDS, return_when=FIRST_COMPLETED)
        endings = []
        for each in [each for each in self._leaving if each.written.done()]:
            self._leaving.remove(each)
            problem = each.written.exception()
            if isinstance(problem, Exception) and each.error is None:
                self.add(each.course, problem)  # what it learned could not be written
                continue
            each.course.close()
            endings.append(Ending(each.course.request.run_id, each.error or each.written.result()))
        return endings
