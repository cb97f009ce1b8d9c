import base64
import os
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import Permanent
from app.core.signature import (
    PrivateKey,
    PublicKey,
    SharedKey,
    decode_base64,
    generate_secret,
    parse_signing_keys,
    parse_verifying_keys,
)

SHARED = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
_PAIR = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_PUBLIC_BYTES = _PAIR.public_key().public_bytes_raw()
PUBLIC = "whpk_" + base64.b64encode(_PUBLIC_BYTES).decode()
PRIVATE = "whsk_" + base64.b64encode(bytes(range(32))).decode()
PRIVATE_WITH_PUBLIC = "whsk_" + base64.b64encode(bytes(range(32)) + _PUBLIC_BYTES).decode()


def written(prefix: str, raw: bytes) -> str:
    return prefix + base64.b64encode(raw).decode()


def test_one_secret_is_one_key() -> None:
    (key,) = parse_verifying_keys(SHARED)
    assert isinstance(key, SharedKey)
    assert key.secret == base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")


@pytest.mark.parametrize("separator", [" ", "\n", "\t ", " \r\n "])
def test_several_secrets_are_separated_by_any_white_space_and_keep_their_order(separator: str) -> None:
    second = written("whsec_", b"x" * 24)
    keys = parse_verifying_keys(f" {SHARED}{separator}{PUBLIC}{separator}{second}\n")
    assert [type(key) for key in keys] == [SharedKey, PublicKey, SharedKey]
    assert [type(key) for key in parse_signing_keys(f"{SHARED}{separator}{PRIVATE}")] == [
        SharedKey,
        PrivateKey,
    ]


def test_a_private_key_may_be_the_seed_or_the_seed_and_its_public_key() -> None:
    message = b"the same"
    (short,) = parse_signing_keys(PRIVATE)
    (long,) = parse_signing_keys(PRIVATE_WITH_PUBLIC)
    assert short.sign(message) == long.sign(message)
    (public,) = parse_verifying_keys(PUBLIC)
    assert public.matches(message, [short.sign(message)])


@pytest.mark.parametrize("size", [24, 32, 64])
def test_a_shared_secret_may_have_24_to_64_bytes(size: int) -> None:
    assert parse_verifying_keys(generate_secret(b"k" * size)) == (SharedKey(b"k" * size),)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no secret given"),
        (" \n\t", "no secret given"),
        ("whsec_", "nothing follows whsec_"),
        ("whpk_", "nothing follows whpk_"),
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "does not start with whsec_"),
        ("WHSEC_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "does not start with whsec_"),
        ('"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"', "does not start with whsec_"),
        ("r8_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "does not start with whsec_"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS!", "base64"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS", "base64"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS_", "base64"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSé", "base64"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS\ud800", "base64"),
        ("whsec_" + "A" * 42 + "B=", "base64"),
        ("whsec_" + "A" * 43, "base64"),
        (written("whsec_", b"k" * 23), "24 to 64 bytes, this one 23"),
        (written("whsec_", b"k" * 65), "24 to 64 bytes, this one 65"),
        (written("whpk_", b"k" * 31), "32 bytes, this one 31"),
        (written("whpk_", b"k" * 64), "32 bytes, this one 64"),
        (PRIVATE, "private key (whsk_…) cannot verify"),
        (f"{SHARED} {PRIVATE}", "secret 2 of 2"),
        (f"{SHARED},{SHARED}", "base64"),
    ],
)
def test_a_bad_verifying_secret_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(Permanent) as refusal:
        parse_verifying_keys(text)
    assert refusal.value.code == "bad_secret"
    assert reason in refusal.value.message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no secret given; expected whsec_… or whsk_…"),
        ("whsk_", "nothing follows whsk_"),
        (PUBLIC, "public key (whpk_…) cannot sign"),
        (written("whsk_", b"k" * 31), "32 or 64 bytes, this one 31"),
        (written("whsk_", b"k" * 33), "32 or 64 bytes, this one 33"),
        (written("whsk_", b"k" * 64), "do not belong together"),
    ],
)
def test_a_bad_signing_secret_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(Permanent) as refusal:
        parse_signing_keys(text)
    assert refusal.value.code == "bad_secret"
    assert reason in refusal.value.message


@pytest.mark.parametrize("prefix", ["whsec_", "whpk_", "whsk_", ""])
@pytest.mark.parametrize(
    "value", ["canary+secret/value", "Y2FuYXJ5", "canary!" * 20, "cänäry\ud800", "c" * 92]
)
def test_no_refusal_repeats_the_value(prefix: str, value: str) -> None:
    for parse in (parse_verifying_keys, parse_signing_keys):
        with pytest.raises(Permanent) as refusal:
            parse(f"{SHARED} {prefix}{value}")
        problem: BaseException | None = refusal.value
        while problem is not None:
            assert value not in repr(problem)
            assert SHARED not in repr(problem)
            problem = problem.__context__


def test_keys_hide_in_repr() -> None:
    keys = [*parse_verifying_keys(f"{SHARED} {PUBLIC}"), *parse_signing_keys(f"{SHARED} {PRIVATE}")]
    assert [repr(key) for key in keys] == ["SharedKey()", "PublicKey()", "SharedKey()", "PrivateKey()"]
    assert str(keys[0]) == "SharedKey()"


@given(st.binary(min_size=24, max_size=64))
def test_a_generated_secret_is_read_back_as_the_same_bytes(random_bytes: bytes) -> None:
    secret = generate_secret(random_bytes)
    assert parse_verifying_keys(secret) == parse_signing_keys(secret) == (SharedKey(random_bytes),)


@pytest.mark.parametrize("size", [0, 23, 65])
def test_no_secret_is_generated_of_too_few_or_too_many_bytes(size: int) -> None:
    with pytest.raises(Permanent, match="24 to 64 bytes"):
        generate_secret(os.urandom(size))


@given(st.text(st.characters(exclude_categories=())))
def test_parsing_any_text_gives_keys_or_a_bad_secret(text: str) -> None:
    for candidate in (text, f"whsec_{text}", f"whpk_{text}", f"whsk_{text}"):
        for parse in (parse_verifying_keys, parse_signing_keys):
            with suppress(Permanent):
                assert parse(candidate)


@given(st.binary(max_size=80))
def test_strict_base64_reads_what_is_written_in_the_standard_way(raw: bytes) -> None:
    assert decode_base64(base64.b64encode(raw)) == raw


@pytest.mark.parametrize(
    "text", [b"AA", b"AAA", b"AB==", b"AA==\n", b" AA==", b"A-_A", b"AA==AA==", b"=", b"A\xff=="]
)
def test_strict_base64_refuses_every_other_spelling(text: bytes) -> None:
    assert decode_base64(text) is None
