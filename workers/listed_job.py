"""A job of the user's: only functions that the handlers file names run, each within its memory."""

import importlib
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from rq.exceptions import DeserializationError

from app.core.errors import Permanent
from workers.guarded_job import GuardedJob

Listed = Mapping[str, int]
"""The functions that may run, by their dotted names, with the bytes of memory that each may take."""


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
        """Run it within its memory."""
        try:
            with _limited(self.listed.get(str(self.func_name))):
                return super().perform()
        finally:
            if self.when_over is not None:
                self.when_over()


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
