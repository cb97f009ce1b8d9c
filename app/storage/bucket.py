"""The part of the storage that lies in a bucket (`s3://`, `gs://`, `az://`), reached over the network.

Credentials are read by obstore from the usual variables of each store. What it has fetched itself (from the
host's metadata, a role) it also renews.
"""

import copy
import os
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property, partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import from_url

from app.core.bucket_faults import WHOLE, Lack, is_refusal
from app.core.errors import Permanent, StorageFailure, Transient
from app.core.names import CHECKS, PROBE_NAME
from app.core.notation import base_url
from app.core.presentation import presentation
from app.storage.errors import Large, Small, fault_of, first_line

PART = 8 << 20
"""Bytes of one part of a large upload; stores want 5 MiB at least."""

PARTS = 9000
"""Most parts of one upload; stores allow 10,000."""

AT_ONCE = 2
"""Parts on their way at the same time: each is held in memory."""

LINK_LIVES = timedelta(minutes=5)
"""How long the store honours a link: it only has to be followed."""

WINDOW = 4 << 20
"""Bytes of a part that is asked for: no request is open for as long as a slow reader takes."""

PAGE = 1000
"""Objects that a store lists at a time, at most."""

CHECK_LIVES = timedelta(minutes=10)
"""Age of an object of a check that was cut off."""

UNSIGNED_FOR = 60.0
"""Seconds for which nothing is signed after that failed: asking for credentials can take long."""

_PREFIXES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
_ENDPOINTS = frozenset(
    {
        "AWS_ENDPOINT",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AZURE_ENDPOINT",
        "AZURE_STORAGE_ENDPOINT",
        "GOOGLE_BASE_URL",
    }
)
_CLIENT = (
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "http1_only",
    "http2_only",
    "pool_idle_timeout",
    "pool_max_idle_per_host",
    "proxy_ca_certificate",
    "proxy_excludes",
    "proxy_url",
    "randomize_addresses",
    "read_timeout",
    "timeout",
    "user_agent",
)
"""Options of its HTTP client, each read by obstore from a variable, but not beside options that are given."""

_WORKING = {"connect_timeout": "5s", "timeout": "60s"}
_READING = {"connect_timeout": "5s", "read_timeout": "60s", "timeout": "1d"}
_PROBING = {"connect_timeout": "2s", "timeout": "4s"}


MISSING = (FileNotFoundError, NotFoundError)

_NO_LINKS = frozenset({400, 401, 403, 405, 501})

_PROBE = b"Outkeep writes this to see whether it may.\n"


class Bucket:
    """Objects in a bucket, below the prefix of its `url`. obstore's errors pass through, save where said.

    `lacks` is what the store was found not to do; it is done in another way from then on.
    """

    def __init__(self, url: str, environment: Mapping[str, str] = os.environ) -> None:
        """Take `url`; nothing is asked yet. Raises `Permanent` when it, or a variable, cannot be right."""
        self.url = url
        self._prefix = _PREFIXES[urlsplit(url).scheme]
        self._environment = environment
        self._unsigned_until = 0.0
        self.lacks: set[Lack] = set()
        self._bulk_proven = False
        self._link_proven = False
        self._whole = threading.Lock()  # one file at a time is held in memory
        self._check_endpoints()
        try:
            # An attempt is tried again by whoever made it, later: here only what a moment heals.
            self.store = self._open(_WORKING, retries=2, seconds=20)
        except (BaseError, OSError, ValueError) as error:
            fault = fault_of(url, error)
            message = fault.message if fault.needs_operator else first_line(error)
            raise Permanent("storage_unusable", f"cannot open {url}: {message}") from None

    def is_absent(self) -> bool:
        """Never known without asking."""
        return False

    def is_linked(self, folder: str) -> bool:  # noqa: ARG002
        """There are no links."""
        return False

    def check(self) -> None:
        """Prove by a small object that it can be written, within some seconds.

        Raises `Permanent` for what an operator must mend, `Transient` for an outage.
        """
        with self._judged():
            obstore.put(self._hasty, PROBE_NAME, _PROBE, attributes=presentation(PROBE_NAME))

    def prove(self) -> None:
        """Try every call that we make, within some seconds for each; `lacks` knows then what it cannot do.

        Raises as `check` does.
        """
        self.check()
        hasty = copy.copy(self)  # it shares what it learns
        hasty.store = self._hasty
        name = f"{CHECKS}/{secrets.token_hex(8)}"
        with self._judged("create an object"):
            hasty.create(name, _PROBE)
        with self._judged("list"):
            known = list(hasty.listed(CHECKS))
        with self._judged("read"):
            found = obstore.get(hasty.store, name)
            if bytes(found.bytes()) != _PROBE:
                raise Transient(
                    "storage_unavailable", f"{self.url}: it gives back other bytes than it was given"
                )
        if name not in {meta["path"] for meta in known}:
            message = f"{self.url}: its list does not show an object that it has just taken"
            raise Transient("storage_unavailable", message)
        with self._judged("read a part"):
            hasty.prove_ranges(name)
        with self._judged("upload in parts"):
            hasty._put(f"{name}-parts", _PROBE, len(_PROBE), use_multipart=True)  # noqa: SLF001  one of us
        hasty.link(name)
        now = found.meta["last_modified"]  # by the clock of the store: ours may be wrong
        left = [meta["path"] for meta in known if now - meta["last_modified"] > CHECK_LIVES]
        with self._judged("delete"):
            hasty.remove([name, f"{name}-parts", *left])

    @contextmanager
    def _judged(self, what: str = "") -> Iterator[None]:
        """Try a call in this block, for `check` and `prove`."""
        try:
            yield
        except (BaseError, OSError) as error:
            fault = fault_of(self.url, error)
            message = f"{self.url}: {f'cannot {what}: ' if what else ''}{fault.message}"
            if fault.needs_operator:
                raise Permanent(fault.code, message) from None
            raise Transient(fault.code, message) from None

    def create(self, name: str, data: bytes) -> bool:
        """Store an object unless there is one; whether what stands there now is ours.

        A look before and a look after, since some stores overwrite silently, or know no conditions.
        """
        if self.head(name) is not None:
            return False
        if Lack.CREATE not in self.lacks:
            try:
                obstore.put(self.store, name, data, attributes=presentation(name), mode="create")
            except AlreadyExistsError:
                if self.head(name) is not None:
                    return False  # else it has no better word for what it does not know
            except (BaseError, OSError) as error:
                self._require_refusal(error)
            else:
                return self.get(name) == data
        self.put_bytes(name, data)
        self.lacks.add(Lack.CREATE)
        return self.get(name) == data

    def write(self, objects: Sequence[Small], last: tuple[str, bytes] | None = None) -> bool:
        """Send small objects, and `last` behind them unless there is one; whether it was stored."""
        for name, data, encoding in objects:
            self._put(name, data, len(data), encoding=encoding)
        return last is None or self.create(*last)

    def note(self, name: str, data: bytes) -> None:
        """Send a small object."""
        self.put_bytes(name, data)

    def get(self, name: str, most: int | None = None) -> bytes | None:
        """An object whole; None when there is none. Raises `Large` for one of more than `most` bytes."""
        try:
            found = obstore.get(self.store, name)
            if most is not None and found.meta["size"] > most:
                raise Large
            return bytes(found.bytes())
        except MISSING as error:
            _require_bucket(error)
            return None

    def head(self, name: str) -> Mapping[str, Any] | None:
        """What the store says of an object; None when there is none."""
        try:
            if Lack.HEAD not in self.lacks:
                return cast(Mapping[str, Any], obstore.head(self.store, name))
        except MISSING:
            return None
        except (BaseError, OSError) as error:
            if not isinstance(error, PermissionDeniedError | UnauthenticatedError):
                self._require_refusal(error)
        # What is denied is asked for, too: only an answer with a body says why.
        meta: Mapping[str, Any] | None
        try:
            meta = cast(Mapping[str, Any], obstore.get(self.store, name).meta)
        except MISSING as error:
            _require_bucket(error)
            meta = None
        self.lacks.add(Lack.HEAD)
        return meta

    def listed(self, prefix: str) -> Iterator[Any]:
        """What lies below a folder, in order, and nothing else: some stores list all that they have.

        Some stores know the list of 2006 only, and end every list with its first page: after a long one more
        is asked for, from its last name on. Raises `StorageFailure` when that begins anew.
        """
        last: str | None = None
        while True:
            after, count = last, 0
            pages = obstore.list(self.store, prefix=prefix, offset=after)
            for meta in (self._entry(meta) for page in pages for meta in page):
                if prefix and not meta["path"].startswith(f"{prefix}/"):
                    continue
                if after is not None and meta["path"] <= after:
                    message = f"the storage lists only the first {count or PAGE} objects of {prefix}/"
                    raise StorageFailure("storage_list_cut", message)
                yield meta
                last, count = meta["path"], count + 1
            if count < PAGE or "--x-s3" in self.url:  # which lists in no order
                return

    def _entry(self, meta: Any) -> Any:
        """One entry of a list: some stores write names there as URLs have them; ours need no such escapes."""
        if "%" not in meta["path"]:
            return meta
        below = urlsplit(self.url).path.strip("/")
        return {**meta, "path": unquote(meta["path"]).removeprefix(f"{below}/" if below else "")}

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects, one by one where need be; one that is gone already does not matter."""
        if Lack.BULK not in self.lacks and self._removes_in_bulk():
            try:
                obstore.delete(self.store, list(names))
            except MISSING as error:
                _require_bucket(error)
            else:
                return
        for name in names:
            try:
                obstore.delete(self._single, name)
            except MISSING as error:
                _require_bucket(error)

    def _removes_in_bulk(self) -> bool:
        """Whether it does, tried once on an object of our own: some refuse, some only say that they have."""
        if self._bulk_proven:
            return True
        name = f"{CHECKS}/{secrets.token_hex(8)}"
        try:
            self.put_bytes(name, _PROBE)
        except (BaseError, OSError):
            return False  # it is full, perhaps: to remove, one by one, is what makes room
        try:
            obstore.delete(self.store, [name])
        except MISSING as error:
            _require_bucket(error)
        except (BaseError, OSError) as error:
            self._require_refusal(error)
        self._bulk_proven = self.head(name) is None
        if not self._bulk_proven:
            obstore.delete(self._single, name)
            self.lacks.add(Lack.BULK)
        return self._bulk_proven

    def read(self, name: str) -> Iterator[bytes]:
        """An object whole, in pieces; raises as obstore does, `MISSING` when there is none."""
        try:
            answer = obstore.get(self._patient, name)
        except MISSING as error:
            _require_bucket(error)
            raise
        return map(bytes, answer.stream(min_chunk_size=1 << 20))

    async def stream(self, name: str, start: int, end: int, *, size: int | None) -> AsyncIterator[bytes]:
        """Bytes `start` up to but without `end`, as `Storage.stream` has it."""
        at = start
        if (start, end) == (0, size):
            try:
                async for piece in self._from_whole(name, at, end):
                    yield piece
                    at += len(piece)
            except BaseError:
                if at == start:
                    raise
                # It was broken off, perhaps since the reader is slow: the rest comes in parts.
        async for piece in self._in_parts(name, at, end):
            yield piece
            at += len(piece)
        async for piece in self._from_whole(name, at, end):
            self.lacks.add(Lack.RANGE)
            yield piece

    async def _in_parts(self, name: str, at: int, end: int) -> AsyncIterator[bytes]:
        """The same by ranges, as far as the store gives them."""
        while at < end and Lack.RANGE not in self.lacks:
            try:
                part = await obstore.get_range_async(self.store, name, start=at, end=min(at + WINDOW, end))
            except BaseError as error:
                self._require_refusal(error)
                return
            yield bytes(part)
            at += len(part)

    async def _from_whole(self, name: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The same from a plain GET, of which the rest is passed over."""
        if start >= end:
            return
        answer, at = await obstore.get_async(self._patient, name), 0
        async for chunk in answer.stream(min_chunk_size=64 << 10):
            piece = bytes(chunk)[max(start - at, 0) : max(end - at, 0)]
            at += len(chunk)
            if piece:
                yield piece
            if at >= end:
                return

    def prove_ranges(self, name: str) -> None:
        """Learn from an object of three bytes or more whether a part of it can be had."""
        try:
            obstore.get_range(self.store, name, start=1, end=2)
        except BaseError as error:
            self._require_refusal(error)
            self.lacks.add(Lack.RANGE)

    def put_file(self, name: str, path: Path, encoding: str | None) -> None:
        """Send the file at `path`, in parts when it is large."""
        self._put(name, path, path.stat().st_size, encoding=encoding)

    def put_bytes(self, name: str, data: bytes) -> None:
        """Send a small object, in parts when it is not that small."""
        self._put(name, data, len(data))

    def _put(
        self,
        name: str,
        source: Path | bytes,
        size: int,
        *,
        encoding: str | None = None,
        use_multipart: bool | None = None,
    ) -> None:
        """Send `size` bytes, in parts when they are many (`use_multipart` None) or in any case.

        Raises `StorageFailure` (`storage_no_parts`) for what is too large for a store that takes no parts.
        """
        # What shows in a browser, to whoever has a link of the store, must not run there.
        attributes = presentation(name) | ({"Content-Encoding": encoding} if encoding else {})
        put = partial(obstore.put, self.store, name, source, attributes=attributes)
        try:
            if Lack.PARTS not in self.lacks:
                chunk = max(PART, size // PARTS)
                put(chunk_size=chunk, max_concurrency=AT_ONCE, use_multipart=use_multipart)
                return
        except (BaseError, OSError) as error:
            if size <= PART and use_multipart is None:
                raise  # no part was sent
            self._require_refusal(error)
            if "?uploads" not in first_line(error) and "invalid multipart" not in first_line(error):
                raise  # parts can be begun here: it was this upload that went wrong
        if size > WHOLE << 20:
            message = f"the storage takes no uploads in parts, and {size >> 20} MiB are too much for one"
            raise StorageFailure("storage_no_parts", message)
        with self._whole:
            put(use_multipart=False)
        self.lacks.add(Lack.PARTS)

    def settle(self, name: str) -> None:
        """What a store acknowledged is durable."""

    def remove_folder(self, prefix: str) -> None:
        """Folders are but a part of names."""

    def link(self, name: str) -> str | None:
        """A URL under which the store itself serves an object for `LINK_LIVES`; None when it signs none."""
        if self._variable("SKIP_SIGNATURE") or time.monotonic() < self._unsigned_until:
            return None
        try:
            link = str(obstore.sign(self._hasty, "GET", name, LINK_LIVES))
        except (BaseError, OSError, ValueError):
            self._unsigned_until = time.monotonic() + UNSIGNED_FOR
            return None
        if not self._link_proven and Lack.LINK not in self.lacks:
            self._follow(link)
        return None if Lack.LINK in self.lacks else link

    def _follow(self, link: str) -> None:
        """Learn whether the store honours links; an outage says nothing of that."""
        try:
            with urlopen(Request(link, headers={"range": "bytes=0-0"}), timeout=4):  # noqa: S310  the store's own
                self._link_proven = True
        except HTTPError as error:
            error.close()
            if error.code in _NO_LINKS:
                self.lacks.add(Lack.LINK)
        except (OSError, HTTPException, ValueError):
            return

    def _require_refusal(self, error: Exception) -> None:
        """Raise `error` unless it says that the store does not know such a call."""
        if not is_refusal(urlsplit(self.url).scheme, str(error)):
            raise error

    @cached_property
    def _single(self) -> Any:
        """The store that removes object by object; S3 alone can be told to."""
        more = {"config": {"disable_bulk_delete": "true"}} if self.url.startswith("s3:") else {}
        return self._open(_WORKING, retries=2, seconds=20, **more)

    @cached_property
    def _patient(self) -> Any:
        """The store for whole objects: they come as fast as whoever reads them."""
        return self._open(_READING, retries=2, seconds=20)

    @cached_property
    def _hasty(self) -> Any:
        """The store for questions that somebody waits for."""
        return self._open(_PROBING, retries=0, seconds=4)

    def _open(self, client: Mapping[str, str], *, retries: int, seconds: float, **more: Any) -> Any:
        options: Any = {**client}  # their types name each option, and durations apart from texts
        options |= {key: value for key in _CLIENT if (value := self._variable(key.upper()))}
        retry: Any = {"max_retries": retries, "retry_timeout": timedelta(seconds=seconds)}
        return from_url(self.url, client_options=options, retry_config=retry, **more)

    def _variable(self, name: str) -> str | None:
        return self._environment.get(self._prefix + name)

    def _check_endpoints(self) -> None:
        # obstore panics when it uses one that is no URL.
        for name in sorted(_ENDPOINTS):
            value = self._environment.get(name)
            if value is not None and name.startswith(self._prefix):
                if not value:
                    raise Permanent("storage_unusable", f"{name}: it is set, and empty; unset it")
                try:
                    base_url(value)
                except Permanent as error:
                    raise Permanent("storage_unusable", f"{name}: {error.message}") from None


def _require_bucket(error: Exception) -> None:
    """Tell an object that is missing from a bucket that is; raises `error` for the latter."""
    if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
        raise error
