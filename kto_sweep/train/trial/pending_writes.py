"""One trial's files, written in order on a thread: the trials beside it do not wait for the disk."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

MAX_JOBS = 2
"""Jobs that wait at once; each holds copies of the trial's weights."""


class PendingWrites:
    """Runs jobs one after another. After one that failed, `check` and all later jobs raise its error."""

    def __init__(self, *, inline: bool = False) -> None:
        """`inline`: each job runs to its end in `put`, without a thread."""
        self._pool = None if inline else ThreadPoolExecutor(1, thread_name_prefix="files of a trial")
        # One thread, so that jobs run in order: a checkpoint must not overtake the rows before it.
        self._jobs: list[Future[Any]] = []
        self._failure: Exception | None = None

    def put(self, job: Callable[[], T]) -> Future[T]:
        """Run `job` after the others; blocks while MAX_JOBS wait. Raises the error of a failed job."""
        self.check()
        return self._submit(lambda: self._checked(job))

    def put_last(self, job: Callable[[], T]) -> Future[T]:
        """Run `job` after the others, even if one of them failed."""
        return self._submit(job)

    def check(self) -> None:
        """Raise the error of a failed job, if any."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Wait for all jobs and end the thread."""
        if self._pool is not None:
            self._pool.shutdown()

    def _checked(self, job: Callable[[], T]) -> T:
        self.check()
        try:
            return job()
        except Exception as error:
            self._failure = error  # for `check`: the future may never be read
            raise

    def _submit(self, job: Callable[[], T]) -> Future[T]:
        future: Future[T]
        if self._pool is None:
            future = Future()
            try:
                future.set_result(job())
            except Exception as error:
                future.set_exception(error)
            return future
        self._jobs = [waiting for waiting in self._jobs if not waiting.done()]
        while len(self._jobs) >= MAX_JOBS:
            self._jobs.pop(0).exception()  # blocks until it is done; `check` raises its error
        future = self._pool.submit(job)
        self._jobs.append(future)
        return future
