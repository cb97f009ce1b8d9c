"""Signatures of Standard Webhooks: how keys are written, how a delivery is signed and verified.

A shared secret (`whsec_`) signs and verifies with HMAC-SHA256, version `v1`. A private key (`whsk_`) signs
and its public key (`whpk_`) verifies with Ed25519, version `v1a`. After the prefix stands standard base64.
Source: the Standard Webhooks specification, "Signature scheme".

What is signed is `<webhook-id>.<webhook-timestamp>.<raw body>`. Id and timestamp cannot contain a dot, so
that this text has exactly one way to be split. Our keys choose the algorithm, never the request.
"""

import base64
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, TypeAlias, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.core.errors import Permanent, Rejected

HMAC_VERSION: Final = "v1"
ED25519_VERSION: Final = "v1a"
SIGNATURE_SIZES: Final[Mapping[str, int]] = {HMAC_VERSION: 32, ED25519_VERSION: 64}
"""Version of a signature → its size in bytes."""

_SHARED, _PUBLIC, _PRIVATE = "whsec_", "whpk_", "whsk_"
_KINDS: Final = {_SHARED: "shared secret", _PUBLIC: "public key", _PRIVATE: "private key"}
_SHARED_SIZES: Final = range(24, 65)
_ED25519_SIZE: Final = 32
# Each try hashes the whole body again: the sender must not be able to ask for thirty of them.
_ED25519_TRIES: Final = 8


@dataclass(frozen=True, slots=True)
class SharedKey:
    """HMAC-SHA256 with 24 to 64 secret bytes, known to both sides."""

    version: ClassVar[str] = HMAC_VERSION
    secret: bytes = field(repr=False)

    def sign(self, message: bytes) -> bytes:
        """The 32 bytes of the MAC."""
        return hmac.digest(self.secret, message, "sha256")

    def matches(self, message: bytes, signatures: Sequence[bytes]) -> bool:
        """Whether one of `signatures` is ours; the time does not tell how much of one is right."""
        expected = self.sign(message)
        return any(hmac.compare_digest(expected, signature) for signature in signatures)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Verifies Ed25519; not a secret, hidden all the same so that no one has to tell them apart in a log."""

    version: ClassVar[str] = ED25519_VERSION
    key: Ed25519PublicKey = field(repr=False)

    def matches(self, message: bytes, signatures: Sequence[bytes]) -> bool:
        """Whether one of the first eight `signatures` was made with our private key."""
        return any(self._made(signature, message) for signature in signatures[:_ED25519_TRIES])

    def _made(self, signature: bytes, message: bytes) -> bool:
        try:
            self.key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """Signs with Ed25519."""

    version: ClassVar[str] = ED25519_VERSION
    key: Ed25519PrivateKey = field(repr=False)

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the signature."""
        return self.key.sign(message)


VerifyingKey: TypeAlias = SharedKey | PublicKey
SigningKey: TypeAlias = SharedKey | PrivateKey
_Key = TypeVar("_Key", SharedKey, VerifyingKey, SigningKey)


def parse_verifying_keys(text: str) -> tuple[VerifyingKey, ...]:
    """One or more `whsec_…` or `whpk_…`, separated by white space: old and new side by side.

    Raises `Permanent("bad_secret")`; the message says which one and why, never its value.
    """
    return _parse(text, {_SHARED: _shared_key, _PUBLIC: _public_key}, purpose="verify")


def parse_signing_keys(text: str) -> tuple[SigningKey, ...]:
    """One or more `whsec_…` or `whsk_…`, separated by white space; each adds one signature.

    Raises `Permanent("bad_secret")`; the message says which one and why, never its value.
    """
    return _parse(text, {_SHARED: _shared_key, _PRIVATE: _private_key}, purpose="sign")


def generate_secret(random_bytes: bytes) -> str:
    """A new `whsec_…` out of 24 to 64 random bytes. Raises `Permanent("bad_secret")` for another size."""
    _shared_key(random_bytes)
    return _SHARED + base64.b64encode(random_bytes).decode()


def decode_base64(text: bytes) -> bytes | None:
    """The bytes behind strict, padded, standard base64, or None.

    Each value has exactly one spelling here. Lenient decoders skip junk and ignore the unused bits of the
    last character, so that several texts would pass for one signature.
    """
    try:
        decoded = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return decoded if base64.b64encode(decoded) == text else None


def _parse(text: str, makers: Mapping[str, Callable[[bytes], _Key]], *, purpose: str) -> tuple[_Key, ...]:
    words = text.split()
    if not words:
        raise _bad(f"no secret given; expected {_either(makers)}")
    keys = []
    for number, word in enumerate(words, 1):
        try:
            keys.append(_parse_one(word, makers, purpose=purpose))
        except Permanent as problem:
            raise _bad(f"secret {number} of {len(words)}: {problem.message}") from None
    return tuple(keys)


def _parse_one(word: str, makers: Mapping[str, Callable[[bytes], _Key]], *, purpose: str) -> _Key:
    prefix = next((prefix for prefix in _KINDS if word.startswith(prefix)), None)
    if prefix is None:
        raise _bad(f"does not start with {_either(makers)}")
    if prefix not in makers:
        raise _bad(f"a {_KINDS[prefix]} ({prefix}…) cannot {purpose}; expected {_either(makers)}")
    encoded = word.removeprefix(prefix)
    if not encoded:
        raise _bad(f"nothing follows {prefix}")
    decoded = decode_base64(encoded.encode("ascii", errors="replace"))
    if decoded is None:
        raise _bad(f"what follows {prefix} is not standard base64 with padding")
    return makers[prefix](decoded)


def _shared_key(secret: bytes) -> SharedKey:
    if len(secret) not in _SHARED_SIZES:
        raise _bad(f"a shared secret has 24 to 64 bytes, this one {len(secret)}")
    return SharedKey(secret)


def _public_key(raw: bytes) -> PublicKey:
    if len(raw) != _ED25519_SIZE:
        raise _bad(f"a public key has 32 bytes, this one {len(raw)}")
    return PublicKey(Ed25519PublicKey.from_public_bytes(raw))


def _private_key(raw: bytes) -> PrivateKey:
    """The seed alone, or as other tools write it: the seed, then its public key."""
    seed, public = raw[:_ED25519_SIZE], raw[_ED25519_SIZE:]
    if len(seed) != _ED25519_SIZE or len(public) not in (0, _ED25519_SIZE):
        raise _bad(f"a private key has 32 or 64 bytes, this one {len(raw)}")
    key = Ed25519PrivateKey.from_private_bytes(seed)
    if public and public != key.public_key().public_bytes_raw():
        raise _bad("the two halves of the private key do not belong together")
    return PrivateKey(key)


def _either(prefixes: Mapping[str, object]) -> str:
    return " or ".join(f"{prefix}…" for prefix in prefixes)


def _bad(message: str) -> Permanent:
    return Permanent("bad_secret", message)


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
    ours = [header for header in headers if header[0].startswith(b"webhook-")]
    webhook_id = _only(ours, ID_HEADER)
    timestamp = _only(ours, TIMESTAMP_HEADER)
    signature = _only(ours, SIGNATURE_HEADER)
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
