"""Keeps the errors of the storage library behind `app.storage.store`, and says what they mean."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from app.core.bucket_faults import Fault, bucket_fault
from app.core.errors import Permanent, StorageFailure

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)", re.ASCII)
_CODES = {
    errno.ENOSPC: "storage_full",
    errno.EDQUOT: "storage_full",
    errno.EACCES: "storage_denied",
    errno.EPERM: "storage_denied",
    errno.EROFS: "storage_denied",
}


Small = tuple[str, bytes, str | None]
"""Name, bytes and `Content-Encoding` of a small object."""


class Large(Exception):
    """An object has more bytes than whoever asks for it wants in memory at once."""


def is_remote(url: str) -> bool:
    """Whether a storage URL leads away from this host."""
    return urlsplit(url).scheme != "file"


def fault_of(url: str, error: Exception) -> Fault:
    """What an error of a remote store means."""
    return bucket_fault(urlsplit(url).scheme, str(error))


@contextmanager
def translated(url: str, name: str) -> Iterator[None]:
    """Turn the library's errors about the object `name` into ours.

    All but those about the name itself are `StorageFailure`: what an operator must mend is tried again until
    then.
    """
    try:
        yield
    except (InvalidPathError, ValueError) as error:
        raise Permanent("storage_name", f"the storage takes no such name: {first_line(error)}") from error
    except (BaseError, OSError) as error:
        # Those of the system have a number; obstore uses some of the same classes without.
        if is_remote(url) and getattr(error, "errno", None) is None:
            fault = fault_of(url, error)
            raise StorageFailure(fault.code, f"the storage failed on {name}: {fault.message}") from None
        if isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError):
            message = f"the storage refuses {name}: {first_line(error)}"
            raise StorageFailure("storage_denied", message) from error
        raise StorageFailure(_code(error), f"the storage failed on {name}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What the library says, without the pages that it appends."""
    return str(error).partition("\n")[0]


def _code(error: BaseException) -> str:
    """The code for what the system said; obstore hides its number in the text."""
    hidden = _SYSTEM_ERROR.search(str(error))
    number = int(hidden[1]) if hidden else getattr(error, "errno", None)
    return _CODES.get(number or 0, "storage_unavailable")
