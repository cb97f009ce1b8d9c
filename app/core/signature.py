"""Whether a delivery is from who it says, and how we sign our own (Standard Webhooks).

What is signed is `<webhook-id>.<webhook-timestamp>.<raw body>`. Id and timestamp cannot contain a dot, so
that this text has exactly one way to be split. Our keys choose the algorithm, never the request.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from app.core.errors import Rejected
from app.core.keys import SIGNATURE_SIZES, SigningKey, VerifyingKey, decode_base64

ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"

TOLERANCE: Final = 300
"""Seconds that the sender's clock and the way here may take, both ways."""

MISMATCH: Final = "signature_mismatch"
"""The code of a refusal whose signature was made with another key, or over something else."""

OUT_OF_TIME: Final = "timestamp_out_of_range"
"""The code of a refusal whose signature was good."""

MAX_SIGNATURE_HEADER: Final = 4096
MAX_SIGNATURES: Final = 32

_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
# One spelling per number: the other verifiers sign the number again, not the text.
_TIMESTAMP = re.compile(rb"0|[1-9][0-9]{0,11}")


@dataclass(frozen=True, slots=True)
class Delivery:
    """A body that was signed with one of our keys, lately. Only `verify` makes one."""

    webhook_id: str
    timestamp: int
    body: bytes = field(repr=False)


def verify(
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
    keys: Sequence[VerifyingKey],
    *,
    now: float,
    tolerance: int = TOLERANCE,
) -> Delivery:
    """Make a `Delivery` of raw ASGI headers (names in lower case) and the raw body, or refuse.

    `now` is Unix time; its fraction is dropped before the age is taken, so that with a tolerance of 300 s a
    timestamp 300 s off passes and one 301 s off does not, at any moment of the second, both ways.

    Raises `Rejected` and nothing else, whatever the bytes. Status 400: `header_missing` (or blank),
    `header_doubled`, `header_malformed` (the id), `timestamp_malformed`, `signature_malformed` (no entry of a
    known version has the right form). Status 401: `signature_mismatch`, `timestamp_out_of_range`.
    """
    webhook_id = _only(headers, ID_HEADER)
    timestamp = _only(headers, TIMESTAMP_HEADER)
    signature = _only(headers, SIGNATURE_HEADER)
    if not _ID.fullmatch(webhook_id):
        raise Rejected("header_malformed", f"{ID_HEADER} must be 1 to 64 of A-Z a-z 0-9 _ -")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise Rejected("timestamp_malformed", f"{TIMESTAMP_HEADER} must be whole seconds in digits")
    signatures = _parse_signatures(signature)
    message = b".".join((webhook_id, timestamp, body))
    if not any(key.matches(message, signatures[key.version]) for key in keys):
        raise Rejected(MISMATCH, f"no entry of {SIGNATURE_HEADER} fits this delivery", status=401)
    _check_age(int(now) - int(timestamp), tolerance)
    return Delivery(webhook_id=webhook_id.decode(), timestamp=int(timestamp), body=body)


def sign(webhook_id: str, timestamp: int, body: bytes, keys: Sequence[SigningKey]) -> str:
    """The value of `webhook-signature`: one entry per key, in their order, separated by spaces.

    `timestamp` is Unix time. Raises `ValueError` for an id or a timestamp that no one would accept, and
    without a key: nothing leaves unsigned.
    """
    spelled_id, spelled_timestamp = webhook_id.encode(), str(timestamp).encode()
    if not _ID.fullmatch(spelled_id) or not _TIMESTAMP.fullmatch(spelled_timestamp):
        raise ValueError("a webhook id or timestamp of ours has the wrong form")
    if not keys:
        raise ValueError("no key to sign with")
    message = b".".join((spelled_id, spelled_timestamp, body))
    return " ".join(f"{key.version},{base64.b64encode(key.sign(message)).decode()}" for key in keys)


def signed_headers(
    webhook_id: str, timestamp: int, body: bytes, keys: Sequence[SigningKey]
) -> dict[str, str]:
    """The three headers that go with `body`; arguments and errors as for `sign`."""
    return {
        ID_HEADER: webhook_id,
        TIMESTAMP_HEADER: str(timestamp),
        SIGNATURE_HEADER: sign(webhook_id, timestamp, body, keys),
    }


def _only(headers: Sequence[tuple[bytes, bytes]], name: str) -> bytes:
    values = [value for header, value in headers if header == name.encode()]
    if len(values) > 1:
        raise Rejected("header_doubled", f"the header {name} appears more than once")
    if not values or not values[0].strip():
        raise Rejected("header_missing", f"the header {name} is missing or empty")
    return values[0]


def _parse_signatures(header: bytes) -> dict[str, list[bytes]]:
    """Version → the well-formed signatures of that version. Everything else in the list is passed over."""
    entries = header.split(b" ", MAX_SIGNATURES)
    if len(header) > MAX_SIGNATURE_HEADER or len(entries) > MAX_SIGNATURES:
        raise Rejected("signature_malformed", f"{SIGNATURE_HEADER} is too long")
    found: dict[str, list[bytes]] = {version: [] for version in SIGNATURE_SIZES}
    for entry in entries:
        version, _, value = entry.partition(b",")
        decoded = decode_base64(value)
        for known, size in SIGNATURE_SIZES.items():
            if version == known.encode() and decoded is not None and len(decoded) == size:
                found[known].append(decoded)
    if not any(found.values()):
        raise Rejected("signature_malformed", f"{SIGNATURE_HEADER} has no entry of a form that we know")
    return found


def _check_age(age: int, tolerance: int) -> None:
    """`age` in seconds; below zero when the sender's clock is ahead."""
    if abs(age) > tolerance:
        when = f"{age} s in the past" if age > 0 else f"{-age} s in the future"
        raise Rejected(
            OUT_OF_TIME,
            f"{TIMESTAMP_HEADER} lies {when}, the limit is {tolerance} s: sent again, or a clock is wrong",
            status=401,
        )
