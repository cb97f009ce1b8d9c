"""Faults that the kernel makes for the rest of this process: a filter of its calls (seccomp). Linux only.

It takes no privileges, holds for threads that begin later, and cannot be undone: use it in a process apart.
"""

import ctypes
import errno
import os
import struct

LARGE = 4096
"""Bytes in one write from which the disk is full."""

_NUMBERS = {
    "x86_64": {
        "write": 1,
        "pwrite64": 18,
        "fsync": 74,
        "fdatasync": 75,
        "openat": 257,
        "mkdirat": 258,
        "mkdir": 83,
        "unlinkat": 263,
        "unlink": 87,
        "linkat": 265,
        "link": 86,
    },
    "aarch64": {
        "write": 64,
        "pwrite64": 68,
        "fsync": 82,
        "fdatasync": 83,
        "openat": 56,
        "mkdirat": 34,
        "unlinkat": 35,
        "linkat": 37,
    },
}  # fmt: skip
_LOAD, _IS, _AT_LEAST, _HAS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _THIRD = 0, 32
"""Where a filter finds the number of the call, and its third argument."""
_NEW = os.O_CREAT | (os.O_TMPFILE & ~os.O_DIRECTORY)
"""Flags of openat that make a file."""
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000


def forbid_fsync() -> None:
    """Let fsync and fdatasync fail with EIO."""
    _install(
        _Step(_LOAD, _NUMBER),
        _Step(_IS, _number("fsync"), then=1),
        _Step(_IS, _number("fdatasync"), otherwise=1),
        _Step(_RETURN, _ERROR | errno.EIO),
        _Step(_RETURN, _ALLOW),
    )


def fill_the_disk() -> None:
    """Let each write of `LARGE` bytes or more fail with ENOSPC, on any disk; what is printed is shorter."""
    _install(
        _Step(_LOAD, _NUMBER),
        _Step(_IS, _number("write"), then=1),
        _Step(_IS, _number("pwrite64"), otherwise=3),
        _Step(_LOAD, _THIRD),
        _Step(_AT_LEAST, LARGE, otherwise=1),
        _Step(_RETURN, _ERROR | errno.ENOSPC),
        _Step(_RETURN, _ALLOW),
    )


def forbid_new_files(error: int) -> None:
    """Let all that would make a file or folder fail with `error`: no inode is left, the disk is read-only."""
    _install(
        _Step(_LOAD, _NUMBER),
        _Step(_IS, _number("mkdirat"), then=4),
        # There is no mkdir on some machines.
        _Step(_IS, _NUMBERS[os.uname().machine].get("mkdir", _number("mkdirat")), then=3),
        _Step(_IS, _number("openat"), otherwise=3),
        _Step(_LOAD, _THIRD),
        _Step(_HAS, _NEW, otherwise=1),
        _Step(_RETURN, _ERROR | error),
        _Step(_RETURN, _ALLOW),
    )


def forbid_removals() -> None:
    """Let no file be removed: the disk is read-only."""
    _install(
        _Step(_LOAD, _NUMBER),
        _Step(_IS, _number("unlinkat"), then=1),
        # There is no unlink on some machines.
        _Step(_IS, _NUMBERS[os.uname().machine].get("unlink", _number("unlinkat")), otherwise=1),
        _Step(_RETURN, _ERROR | errno.EROFS),
        _Step(_RETURN, _ALLOW),
    )


def forbid_links() -> None:
    """Let no file get a second name: some disks know of none."""
    _install(
        _Step(_LOAD, _NUMBER),
        _Step(_IS, _number("linkat"), then=1),
        # There is no link on some machines.
        _Step(_IS, _NUMBERS[os.uname().machine].get("link", _number("linkat")), otherwise=1),
        _Step(_RETURN, _ERROR | errno.EPERM),
        _Step(_RETURN, _ALLOW),
    )


class _Step(bytes):
    """One instruction of a filter: where to go on, counted from the next one, when it holds and when not."""

    def __new__(cls, code: int, value: int, *, then: int = 0, otherwise: int = 0) -> "_Step":
        return super().__new__(cls, struct.pack("HBBI", code, then, otherwise, value))


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _number(call: str) -> int:
    return _NUMBERS[os.uname().machine][call]


def _install(*steps: _Step) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(b"".join(steps))
    program = _Program(len(steps), ctypes.cast(buffer, ctypes.c_void_p))
    assert libc.prctl(38, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS"
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, "PR_SET_SECCOMP"
