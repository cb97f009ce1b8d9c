import re
from dataclasses import astuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import Permanent, Rejected
from app.core.links import (
    LinkKeys,
    check_path,
    file_path,
    fingerprint,
    link_keys,
    parse_secret_keys,
    sign_path,
)
from app.core.names import Kind

NOW = 1_750_000_000.0
EXPIRES = 1_750_604_800
OLD, NEW = b"old key of 32 bytes or more, really", b"new key of 32 bytes or more, really"
KEYS = link_keys([OLD])
PATH = file_path(Kind.PREDICTION, "ype2b3w02xrme0cqadzrms82nm", "output-0.png")


def parts(link: str) -> tuple[str, str, str]:
    """Path, `expires` and `signature` of a signed link."""
    match = re.fullmatch(r"(/[^?]+)\?expires=(\d+)&signature=([A-Za-z0-9_-]{43})", link)
    assert match is not None
    return match[1], match[2], match[3]


def refusal(path: str, expires: str, signature: str, keys: LinkKeys = KEYS, now: float = NOW) -> Rejected:
    with pytest.raises(Rejected) as caught:
        check_path(path, expires, signature, keys, now=now)
    assert caught.value.status == 403
    return caught.value


def test_a_link_that_we_signed_is_accepted_until_it_expires() -> None:
    path, expires, signature = parts(sign_path(PATH, EXPIRES, KEYS))
    assert (path, expires) == (PATH, str(EXPIRES))
    check_path(path, expires, signature, KEYS, now=NOW)
    check_path(path, expires, signature, KEYS, now=EXPIRES)
    assert refusal(path, expires, signature, now=EXPIRES + 0.5).code == "link_expired"


def test_a_link_made_by_an_earlier_version_stays_good() -> None:
    link = "/files/predictions/ype2b3w02xrme0cqadzrms82nm/output-0.png?expires=1750604800&signature="
    assert sign_path(PATH, EXPIRES, KEYS) == link + "bEtj-jddou4eNycALl8taqsejF4WHVnODp4OCqBhb7M"
    assert fingerprint(OLD) == "0ef02b547cbbafac"


def test_the_paths_are_those_of_the_contract() -> None:
    assert PATH == "/files/predictions/ype2b3w02xrme0cqadzrms82nm/output-0.png"
    assert file_path(Kind.TRAINING, "a", "prediction.json") == "/files/trainings/a/prediction.json"


def test_after_a_rotation_old_links_stay_good_and_new_ones_are_signed_anew() -> None:
    both = link_keys([NEW, OLD])
    check_path(*parts(sign_path(PATH, EXPIRES, KEYS)), both, now=NOW)
    assert sign_path(PATH, EXPIRES, both) == sign_path(PATH, EXPIRES, link_keys([NEW]))
    assert refusal(*parts(sign_path(PATH, EXPIRES, both))).code == "link_refused"


def test_a_link_is_good_for_one_file_only() -> None:
    _, expires, signature = parts(sign_path(PATH, EXPIRES, KEYS))
    for other in (
        file_path(Kind.PREDICTION, "ype2b3w02xrme0cqadzrms82nm", "output-1.png"),
        file_path(Kind.TRAINING, "ype2b3w02xrme0cqadzrms82nm", "output-0.png"),
        file_path(Kind.PREDICTION, "ype2b3w02xrme0cqadzrms82nn", "output-0.png"),
        PATH.upper(), PATH + "/", PATH + "\n", PATH[:-1], "", "/",
    ):  # fmt: skip
        assert refusal(other, expires, signature).code == "link_refused"


@pytest.mark.parametrize(
    "expires",
    ["", "0", "1750604801", "01750604800", " 1750604800", "1750604800 ", "1750604800\n", "+1750604800",
     "1_750_604_800", "1.7506048e9", "9" * 5000, "nan", "inf", "-1", "\u0661", "soon", "\ud800"],
)  # fmt: skip
def test_the_time_of_a_link_cannot_be_changed(expires: str) -> None:
    path, _, signature = parts(sign_path(PATH, EXPIRES, KEYS))
    assert refusal(path, expires, signature).code == "link_refused"


def test_a_forged_link_that_has_also_expired_does_not_say_so() -> None:
    path, expires, signature = parts(sign_path(PATH, 5, KEYS))
    assert refusal(path, expires, signature).code == "link_expired"
    assert refusal(path, expires, signature[:-1]).code == "link_refused"


def test_no_letter_of_a_signature_can_be_changed() -> None:
    path, expires, signature = parts(sign_path(PATH, EXPIRES, KEYS))
    for number, letter in enumerate(signature):
        other = "B" if letter == "A" else "A"
        assert refusal(path, expires, signature[:number] + other + signature[number + 1 :]), number


@pytest.mark.parametrize("junk", ["", "=", "A" * 43, "A" * 100_000, "\0", "é", "\ud800", "\n"])
def test_junk_in_place_of_a_signature_is_refused(junk: str) -> None:
    path, expires, signature = parts(sign_path(PATH, EXPIRES, KEYS))
    assert refusal(path, expires, junk)
    if junk:
        assert refusal(path, expires, signature + junk)


@settings(deadline=None)
@given(
    st.text(st.characters(codec=None)), st.text(st.characters(codec=None)), st.text(st.characters(codec=None))
)
def test_nothing_random_is_accepted_or_crashes(path: str, expires: str, signature: str) -> None:
    assert refusal(path, expires, signature).code == "link_refused"


def test_text_cannot_move_between_path_and_time() -> None:
    path, expires, signature = parts(sign_path("/files/1", 23, KEYS))
    assert refusal(path + expires[0], expires[1:], signature)
    assert refusal(path[:-1], path[-1] + expires, signature)


def test_each_purpose_has_its_own_key() -> None:
    (derived,) = astuple(link_keys([OLD]))[0]
    assert derived != OLD
    assert len(derived) == 32
    assert fingerprint(OLD) not in derived.hex()
    assert fingerprint(OLD) != fingerprint(NEW)


def test_keys_are_hidden() -> None:
    assert "key" not in repr(KEYS).removeprefix("LinkKeys")


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("k" * 32, (b"k" * 32,)),
        (f"  {'k' * 32}\n", (b"k" * 32,)),
        (f"{'k' * 32} {'l' * 40}", (b"k" * 32, b"l" * 40)),
        ("é" * 16, ("é".encode() * 16,)),
    ],
)
def test_keys_are_separated_by_blanks(text: str, keys: tuple[bytes, ...]) -> None:
    assert parse_secret_keys(text) == keys


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "openssl rand -hex 32"),
        (" \n", "openssl rand -hex 32"),
        ("canary", "key 1 has 6 bytes; 32"),
        ("k" * 31, "key 1 has 31 bytes; 32"),
        (f"{'k' * 32} canary", "key 2 has 6 bytes; 32"),
    ],
)
def test_a_short_key_is_refused_without_showing_it(text: str, words: str) -> None:
    with pytest.raises(Permanent) as caught:
        parse_secret_keys(text)
    assert words in caught.value.message
    assert "canary" not in caught.value.message
