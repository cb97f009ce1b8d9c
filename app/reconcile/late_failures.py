"""Failures of the storage that end nothing: what comes behind is done first, and then they are raised."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from app.core.errors import StorageFailure

Later = Callable[[], AbstractContextManager[None]]
"""A block in it may fail for the storage alone, and what comes behind it goes on."""


@contextmanager
def raised_at_the_end() -> Iterator[Later]:
    """Only large objects meet a storage that fails: the hour of the others does not wait."""
    failures: list[StorageFailure] = []

    @contextmanager
    def later() -> Iterator[None]:
        try:
            yield
        except StorageFailure as error:
            failures.append(error)

    yield later
    if failures:
        raise failures[0]
