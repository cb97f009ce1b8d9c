"""The part of the storage that lies in a bucket (`s3://`, `gs://`, `az://`), reached over the network.

Credentials are read by obstore from the usual variables of each store. What it has fetched itself (from the
host's metadata, a role) it also renews.
"""

import os
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from app.core.errors import Permanent, Transient
from app.core.names import PROBE_NAME
from app.core.notation import base_url
from app.core.presentation import presentation
from app.storage_errors import fault_of, first_line

PART = 8 << 20
"""Bytes of one part of a large upload; stores want 5 MiB at least."""

PARTS = 9000
"""Most parts of one upload; stores allow 10,000."""

AT_ONCE = 2
"""Parts on their way at the same time: each is held in memory."""

LINK_LIVES = timedelta(minutes=5)
"""How long the store honours a link: it only has to be followed."""

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
_PROBING = {"connect_timeout": "2s", "timeout": "4s"}


class Bucket:
    """Objects in a bucket, below the prefix of its `url`. obstore's errors pass through, save where said."""

    def __init__(self, url: str, environment: Mapping[str, str] = os.environ) -> None:
        """Take `url`; nothing is asked yet. Raises `Permanent` when it, or a variable, cannot be right."""
        self.url = url
        self._prefix = _PREFIXES[urlsplit(url).scheme]
        self._environment = environment
        self._unsigned_until = 0.0
        self._check_endpoints()
        try:
            # An attempt is tried again by whoever made it, later: here only what a moment heals.
            self.store = self._open(_WORKING, retries=2, seconds=20)
        except (BaseError, OSError, ValueError) as error:
            fault = fault_of(url, error)
            message = fault.message if fault.needs_operator else first_line(error)
            raise Permanent("storage_unusable", f"cannot open {url}: {message}") from None

    def prepare(self) -> Any:
        """The store; a bucket is not ours to make."""
        return self.store

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
        content = b"Outkeep writes this to see whether it may.\n"
        try:
            obstore.put(self._hasty, PROBE_NAME, content, attributes=self.attributes(PROBE_NAME))
        except (BaseError, OSError) as error:
            fault = fault_of(self.url, error)
            message = f"{self.url}: {fault.message}"
            if fault.needs_operator:
                raise Permanent(fault.code, message) from None
            raise Transient(fault.code, message) from None

    def put_file(self, name: str, path: Path) -> None:
        """Send the file at `path`, in parts when it is large."""
        size = max(PART, path.stat().st_size // PARTS)
        obstore.put(
            self.store,
            name,
            path,
            attributes=self.attributes(name),
            chunk_size=size,
            max_concurrency=AT_ONCE,
        )

    def settle(self, name: str) -> None:
        """What a store acknowledged is durable."""

    def settle_removal(self, names: Sequence[str]) -> None:
        """Nor is there more to do for what it has removed."""

    def remove_folder(self, prefix: str) -> None:
        """Folders are but a part of names."""

    def attributes(self, name: str) -> dict[str, str]:
        """What the store says of an object to those who get it by a link: nothing may run in a browser."""
        return presentation(name)

    def link(self, name: str) -> str | None:
        """A URL under which the store itself serves an object for `LINK_LIVES`; None when it signs none."""
        if self._variable("SKIP_SIGNATURE") or time.monotonic() < self._unsigned_until:
            return None
        try:
            return str(obstore.sign(self._hasty, "GET", name, LINK_LIVES))
        except (BaseError, OSError, ValueError):
            self._unsigned_until = time.monotonic() + UNSIGNED_FOR
            return None

    @cached_property
    def _hasty(self) -> Any:
        """The store for questions that somebody waits for."""
        return self._open(_PROBING, retries=0, seconds=4)

    def _open(self, client: Mapping[str, str], *, retries: int, seconds: float) -> Any:
        options: Any = {**client}  # their types name each option, and durations apart from texts
        options |= {key: value for key in _CLIENT if (value := self._variable(key.upper()))}
        retry: Any = {"max_retries": retries, "retry_timeout": timedelta(seconds=seconds)}
        return from_url(self.url, client_options=options, retry_config=retry)

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
