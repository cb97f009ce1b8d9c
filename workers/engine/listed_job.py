"""A job of the user's: only functions that the handlers file names run, each within its memory."""

import importlib
import logging
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from rq import Retry
from rq.exceptions import DeserializationError
from rq.utils import now

from app.core.errors import Permanent
from app.core.names import split_handle_job_id
from app.core.policy import UNKNOWN_PATIENCE, UNKNOWN_WAIT
from app.maintain.user_jobs import facts
from workers.engine.guarded_job import GuardedJob

Listed = Mapping[str, int]
"""The functions that may run, by their dotted names, with the bytes of memory that each may take."""

log = logging.getLogger("outkeep.worker")


class ListedJob(GuardedJob):
    """A job that runs only functions of the list; whoever can write to Redis cannot add one."""

    listed: ClassVar[Listed] = {}
    when_over: Callable[[], None] | None = None
    """Called when the function has ended, however."""

    @property
    def func(self) -> Callable[..., Any]:
        """The function to run; raises `Permanent` when it is not on the list, and what its import raises."""
        if not self.is_listed:
            raise Permanent("job_refused", f"{self.func_name!r} is not a job of the handlers file")
        try:
            function: Callable[..., Any] = super().func
        except ValueError:
            raise _import_fault(str(self.func_name)) from None
        return function

    @property
    def is_listed(self) -> bool:
        """Whether its function may run."""
        try:
            return self.func_name in self.listed
        except (DeserializationError, TypeError):  # whoever can write to Redis can write anything
            return False

    @property
    def should_retry(self) -> bool:
        """Never for what is refused: the list is the same the next time."""
        return self.is_listed and super().should_retry

    def perform(self) -> Any:
        """Run it within its memory; leave one that another worker may know to that."""
        if self.is_listed:
            if self.meta.pop("unknown_since", None) is not None:
                self.save_meta()  # type: ignore[no-untyped-call]
        elif (again := self._until_known()) is not None:
            return again
        try:
            with _limited(self.listed.get(str(self.func_name))):
                return super().perform()
        finally:
            if self.when_over is not None:
                self.when_over()

    def _until_known(self) -> Retry | None:
        """The next run of a job of a handler's, as during a rolling restart; None once nobody knows it."""
        if split_handle_job_id(self.id) is None:
            return None
        at = now().timestamp()
        since = self.meta.get("unknown_since")
        if since is None:
            self.meta["unknown_since"] = since = at
            self.save_meta()  # type: ignore[no-untyped-call]
            log.warning(
                "a function that this worker does not know is left to another one, for %.0f min",
                UNKNOWN_PATIENCE.total_seconds() / 60,
                extra=facts(self.id),
            )
        if not isinstance(since, float) or not 0 <= at - since < UNKNOWN_PATIENCE.total_seconds():
            return None
        self.number_of_retries = (self.number_of_retries or 0) - 1  # it did not run
        return Retry(max=1_000_000, interval=int(UNKNOWN_WAIT))


def listed_jobs(listed: Listed) -> type[ListedJob]:
    """The class of the jobs of a worker that runs `listed`."""
    return type("ListedJob", (ListedJob,), {"listed": listed})


def _import_fault(name: str) -> ImportError | AttributeError:
    """What keeps a function from being found: RQ calls each such name invalid, whatever is missing."""
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(module)
    except ImportError as error:
        return error
    return AttributeError(f"module {module!r} has no function {attribute!r}")


@contextmanager
def _limited(size: int | None) -> Iterator[None]:
    """Let what this process allocates be `size` bytes at most; more raises MemoryError.

    Not the address space: libraries reserve much more of it than they ever use.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if size is not None:
        most = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        # RQ still has to write down what happened.
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
