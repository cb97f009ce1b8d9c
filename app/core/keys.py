"""Keys of the Standard Webhooks scheme: how each is written, and what each can do.

A shared secret (`whsec_`) signs and verifies with HMAC-SHA256, version `v1`. A private key (`whsk_`) signs
and its public key (`whpk_`) verifies with Ed25519, version `v1a`. After the prefix stands standard base64.
Source: the Standard Webhooks specification, "Signature scheme".
"""

import base64
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, TypeAlias, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.core.errors import Permanent

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
