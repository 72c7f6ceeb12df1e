"""One trial's files, written in order on a thread: the trials beside it do not wait for the disk."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

MOST = 2
"""Jobs that wait at once; each holds copies of the trial's weights."""


class Writer:
    """Runs jobs one after another; after one that failed, `check` and all later ones raise its error."""

    def __init__(self, *, inline: bool = False) -> None:
        """`inline`: each job runs to its end in `put`."""
        self._pool = None if inline else ThreadPoolExecutor(1, thread_name_prefix="files of a trial")
        self._jobs: list[Future[Any]] = []
        self._failure: Exception | None = None

    def put(self, job: Callable[[], T]) -> Future[T]:
        """Have `job` run after the others; wait while too many do. Raises the error of one that failed."""
        self.check()
        return self._submit(lambda: self._guarded(job))

    def put_last(self, job: Callable[[], T]) -> Future[T]:
        """The same whatever happened to those before it."""
        return self._submit(job)

    def check(self) -> None:
        """Raise the error of a job that failed, if one did."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Wait for all jobs and end the thread."""
        if self._pool is not None:
            self._pool.shutdown()

    def _guarded(self, job: Callable[[], T]) -> T:
        self.check()
        try:
            return job()
        except Exception as error:
            self._failure = error
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
        self._jobs = [each for each in self._jobs if not each.done()]
        while len(self._jobs) >= MOST:
            self._jobs.pop(0).exception()
        future = self._pool.submit(job)
        self._jobs.append(future)
        return future
