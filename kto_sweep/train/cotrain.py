"""Trials trained together on one base model: they join, step, and leave, each as if it were alone.

    line --> slots of the engine --> one optimizer step of all --> rows, evaluations, checkpoints --> endings

What goes wrong in one trial ends that trial. When memory runs out, the batch is split (by the engine), then
layers are recomputed, then the trial that joined last waits in line; all with the same numbers.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from kto_sweep.data.dataset import TrainingData
from kto_sweep.train.checkpoint import fingerprint_rows
from kto_sweep.train.course import Course, Ground, ground_of
from kto_sweep.train.device import (
    Moment,
    gpu_memory,
    is_broken,
    is_out_of_memory,
    out_of_memory,
    read_memory,
)
from kto_sweep.train.engine import UNSPLIT, Engine
from kto_sweep.train.farewell import Ending, Farewells
from kto_sweep.train.keeper import Clock
from kto_sweep.train.limit import Limit
from kto_sweep.train.measured import StepResult
from kto_sweep.train.models import LoadedBase
from kto_sweep.train.pace import Pace
from kto_sweep.train.referenced import References
from kto_sweep.train.request import Request, ToldToStopError
from kto_sweep.train.result import TrainResult
from kto_sweep.train.room import Growth, Room
from kto_sweep.train.support import packed_decoder
from kto_sweep.trial import Trial

PATIENCE = 20
"""Steps that an empty slot waits for the next trial before it is given up."""


@dataclass(frozen=True)
class Launched:
    """A step that the engine has begun, and whose it is by slot."""

    result: StepResult
    courses: Mapping[int, Course]
    done: Moment


class CoTrainer:
    """Trains any number of trials that name the same model and data.

    Raises NotPackableError for a model or rows that only the trl trainer can train. With `overlap`, rows come
    one step late, so that the host works while the device does; by default on CUDA. `growth`: what is known
    of how many trials are worth training at once; `pace` is told of every step.
    """

    def __init__(
        self,
        base: LoadedBase,
        data: TrainingData,
        trial: Trial,
        *,
        cache: Path,
        limit: Limit = UNSPLIT,
        recompute: bool = False,
        overlap: bool | None = None,
        clock: Clock = time.monotonic,
        growth: Growth | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._ground_of = ground_of(trial)
        self._clock = clock
        self._decoder = packed_decoder(base.model)
        try:
            self._references = References(self._decoder, base, data, trial.max_length, cache)
        except Exception:
            self._decoder.release()
            raise
        rows, held_out = self._references.train, self._references.held_out
        self._ground = Ground(
            base, data, self._references.base.fingerprint, fingerprint_rows(rows.rows, held_out.rows)
        )
        self._engine = Engine(self._decoder, rows, held_out, limit=limit)
        self._decoder.set_recompute(recompute)
        self._unpressed = (limit, recompute)
        self._recompute = recompute
        self._most: int | None = None
        """Trials that fit at once, as far as is known."""
        self._overlap = self._decoder.device.type == "cuda" if overlap is None else overlap
        self._line: deque[Request | Course] = deque()
        self._seated: list[Course] = []
        """In the order in which they joined."""
        self._leaving = Farewells()
        self._ahead: Launched | None = None
        """The step whose numbers nobody has read yet."""
        self._mark = self._moment()
        """When the step whose numbers are read next began, as far as the device could begin it."""
        self._gaps = 0
        """Steps since every slot had a trial."""
        self._endings: list[Ending] = []
        self._growth = growth or Growth()
        self._pace = pace
        if self._decoder.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._decoder.device)  # another base model's peak is not ours
        self._growth.empty = read_memory(self._decoder.device).used

    @property
    def room(self) -> Room:
        """How many trials are to be here at once, as far as is known."""
        return self._growth.room

    @property
    def idle(self) -> bool:
        """No trial is here."""
        return not (self._seated or self._line or self._leaving)

    @property
    def running(self) -> list[str]:
        """The trials in slots, in the order in which they joined."""
        return [course.request.run_id for course in self._seated]

    def fits(self, trial: Trial) -> bool:
        """Whether `trial` can be trained beside those that are here."""
        return not trial.full_finetune and ground_of(trial) == self._ground_of

    def start(self, request: Request) -> None:
        """Train a trial that fits, from the next step on."""
        self._line.append(request)

    def step(self) -> list[Ending]:
        """One optimizer step of every trial here; those that ended.

        Raises what is not the fault of one trial: this process had better end.
        """
        self._end_stopped()
        self._seat()
        self._close_gaps_in_time()
        launched = self._launch()
        self._collect()  # the step before this one, while the device computes
        self._ahead = launched
        if launched is not None and (not self._overlap or self._is_due(launched)):
            self._collect()
            self._attend()
        endings = self._endings + self._leaving.ended(waits=not self._seated and not self._line)
        self._endings = []
        return endings

    def close(self) -> None:
        """Leave the base model as it was before; trials that are here end where their last checkpoint is."""
        for course in (*self._seated, *self._line, *self._leaving):
            if isinstance(course, Course):
                course.close()
        self._engine.close()

    # Trials come and go.

    def _end_stopped(self) -> None:
        for waiting in list(self._line):
            request = waiting.request if isinstance(waiting, Course) else waiting
            if request.should_stop():
                self._line.remove(waiting)
                if isinstance(waiting, Course):
                    with self._alone(waiting):
                        self._end(waiting, waiting.stop(self._engine))
                else:
                    self._endings.append(Ending(request.run_id, TrainResult({}, 0, stopped=True)))
        stopped = [course for course in self._seated if course.request.should_stop()]
        if stopped:
            self._collect()
        for course in stopped:
            if course.slot is not None:  # its last row may have ended it
                with self._alone(course):
                    self._end(course, course.stop(self._engine))

    def _seat(self) -> None:
        """Let in those who wait, as far as there is room."""
        if not self._seated and not any(isinstance(waiting, Course) for waiting in self._line):
            self._forget_pressure()
        while self._line and (self._most is None or len(self._seated) < self._most):
            self._collect()  # what follows may take its time
            waiting = self._line.popleft()
            if isinstance(waiting, Course):
                self._seat_one(waiting)
                continue
            try:
                course = Course(waiting, self._ground, self._clock)
            except Exception as error:
                self._endings.append(Ending(waiting.run_id, error))
            else:
                self._seat_one(course)

    def _seat_one(self, course: Course) -> None:
        with self._alone(course):
            if course.finished:
                self._end(course, course.finish_again())
                return
            try:
                self._references.fill(course.trial, course.request.reference_progress, course.report.note)
                slot = self._free_slot()
                self._engine.join(slot, course.trial, course.state)
            except ToldToStopError:
                self._end(course, course.stop(self._engine))
                return
            except torch.OutOfMemoryError:
                if not self._seated:
                    raise
                self._wait_for_room(course)
                return
            self._seated.append(course)
            course.sit_down(self._engine, slot)
            if self._engine.done(slot):
                self._end(course, course.finish(self._engine))

    def _free_slot(self) -> int:
        """An empty slot, made if there is none. Raises torch.OutOfMemoryError."""
        taken = {course.slot for course in self._seated}
        engine = self._engine
        if len(taken) == engine.slots:
            try:
                engine.resize(len(taken) + 1 + len(self._line))  # at once for all who wait
            except torch.OutOfMemoryError:
                engine.resize(len(taken) + 1)
        return next(slot for slot in range(engine.slots) if slot not in taken)

    def _end(self, course: Course, outcome: Future[TrainResult] | Exception) -> None:
        if course.slot is not None:
            self._engine.leave(course.slot)
            self._seated.remove(course)
            course.leave()
        self._leaving.add(course, outcome)

    @contextmanager
    def _alone(self, course: Course) -> Iterator[None]:
        """What goes wrong in here ends this trial and no other."""
        try:
            yield
        except Exception as error:
            if is_broken(error):
                raise
            self._end(course, out_of_memory(str(error)) if is_out_of_memory(error) else error)

    # Steps.

    def _launch(self) -> Launched | None:
        """Have the engine begin a step; None when no trial is left to take one."""
        if self._ahead is None:
            self._mark = self._moment()
        while self._seated:
            limit = self._engine.limit
            try:
                result = self._engine.step()
            except torch.OutOfMemoryError as error:
                problem = str(error)
            except Exception as error:
                if is_broken(error) or len(self._seated) > 1:
                    raise
                self._collect()
                for course in self._seated[:1]:
                    self._end(course, error)
                break
            else:
                return self._launched(result, limit)
            self._collect()
            if self._seated and not self._make_room():
                self._end(self._seated[0], out_of_memory(problem))
        return None

    def _launched(self, result: StepResult, limit: Limit) -> Launched:
        if self._engine.limit != limit:
            self._growth.press(len(self._seated))
            self._say(f"memory is short: at most {self._engine.limit.tokens} tokens in one forward")
        courses = {course.slot: course for course in self._seated if course.slot is not None}
        for course in courses.values():
            course.launched += 1
        return Launched(result, courses, self._moment())

    def _moment(self) -> Moment:
        return Moment(self._decoder.device, self._clock)

    def _is_due(self, launched: Launched) -> bool:
        return any(course.is_due(course.launched) for course in launched.courses.values())

    def _collect(self) -> None:
        """Write the rows of the step that was launched last, with evaluations where they are due."""
        launched, self._ahead = self._ahead, None
        if launched is None:
            return
        measured = launched.result.read()
        seconds = launched.done.seconds_since(self._mark)
        self._mark = launched.done
        memory = gpu_memory(self._decoder.device)
        self._measure(launched, seconds)
        found = [(course, measured[slot]) for slot, course in launched.courses.items() if course.slot == slot]
        # Those to be evaluated come last: when that needs room, the others can stand up.
        for course, step in sorted(found, key=lambda pair: pair[0].evaluates(pair[1].known.step)):
            row = {**step.values, "tokens_per_second": step.known.tokens / seconds, **memory}
            with self._alone(course):
                if course.evaluates(step.known.step):
                    row |= self._evaluation(course)
                course.write(step.known.step, row, self._engine)

    def _measure(self, launched: Launched, seconds: float) -> None:
        """Find out how many trials are worth training at once, and tell those that are here."""
        before = self.room
        tokens = sum(known.tokens for known in launched.result.known.values())
        device = self._decoder.device
        self._growth.see(len(launched.courses), tokens, seconds, lambda: read_memory(device))
        if self._pace is not None:
            self._pace.see(len(launched.courses), tokens, seconds)
        if self.room != before and self.room.reason:
            for course in launched.courses.values():
                course.report.note(self.room.reason)

    def _evaluation(self, course: Course) -> dict[str, float]:
        while True:
            try:
                return course.evaluation(self._engine)
            except torch.OutOfMemoryError as error:
                problem = str(error)
            if not self._make_room(beside=course):
                raise out_of_memory(problem)

    def _attend(self) -> None:
        """Do what is due after a step whose rows are written."""
        for course in list(self._seated):
            with self._alone(course):
                assert course.slot is not None
                if self._engine.done(course.slot):
                    self._end(course, course.finish(self._engine))
                else:
                    course.keep(self._engine)

    # Memory.

    def _make_room(self, beside: Course | None = None) -> bool:
        """Need less memory from here on; False when there is nothing left to give up.

        The engine, which has come down to single examples, then finds anew how many fit at once.
        `beside`: for an evaluation of this trial, which recomputing layers does not help.
        """
        self._growth.press(len(self._seated))
        if self._engine.slots > len(self._seated):
            self._close_gaps()
            return True
        if beside is None and not self._recompute:
            self._set_recompute(True)
            self._engine.limit, _ = self._unpressed
            self._say("memory is short: layers are recomputed in backward passes")
            return True
        ready = [
            course for course in self._seated if course is not beside and course.steps == course.launched
        ]
        if len(self._seated) == 1 or not ready:
            return False
        self._stand_up(ready[-1])
        self._engine.limit, _ = self._unpressed
        return True

    def _stand_up(self, course: Course) -> None:
        slot = course.slot
        assert slot is not None
        with self._alone(course):
            course.stand_up(self._engine)
            self._engine.leave(slot)
            self._seated.remove(course)
            self._wait_for_room(course)
        self._close_gaps()

    def _wait_for_room(self, course: Course) -> None:
        self._most = len(self._seated)
        self._growth.press(self._most)
        self._line.appendleft(course)
        course.report.note("memory is short: the trial waits until another one has ended, then goes on")

    def _close_gaps_in_time(self) -> None:
        self._gaps = self._gaps + 1 if self._engine.slots > len(self._seated) > 0 else 0
        if self._gaps > PATIENCE:
            self._collect()
            self._close_gaps()

    def _close_gaps(self) -> None:
        """Have no empty slots: they cost memory, and grouped kernels want neighbours."""
        engine, wanted = self._engine, len(self._seated)
        free = iter(set(range(wanted)) - {course.slot for course in self._seated})
        for course in self._seated:
            if course.slot is not None and course.slot >= wanted:
                state = engine.state(course.slot)
                engine.leave(course.slot)
                course.slot = next(free)
                engine.join(course.slot, course.trial, state)
        engine.resize(wanted)
        self._gaps = 0

    def _forget_pressure(self) -> None:
        """The next trials may be smaller: begin without what memory made necessary."""
        self._engine.limit, recompute = self._unpressed
        self._most = None
        self._set_recompute(recompute)

    def _set_recompute(self, on: bool) -> None:
        if on != self._recompute:
            self._recompute = on
            self._decoder.set_recompute(on)

    def _say(self, text: str) -> None:
        for course in self._seated:
            course.report.note(f"step {course.launched + 1}: {text}; the numbers stay the same")
