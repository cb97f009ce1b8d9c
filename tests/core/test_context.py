"""Contexts that we sign into webhook URLs: what comes back, and what nobody can make."""

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.context import (
    MAX_BYTES,
    PARAMETER,
    Lineage,
    context_keys,
    followed,
    lineage,
    parent,
    seal,
    split_query,
    unseal,
    webhook_url,
)
from app.core.errors import Permanent
from app.core.names import Kind

KEYS = context_keys((b"a" * 32,))
OTHERS = context_keys((b"b" * 32,))
LINEAGE = Lineage(Kind.TRAINING, "ype2b3w02xrme0cqadzrms82nm", "upscale", 2)

contexts = st.dictionaries(
    st.text(max_size=20), st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=20), max_size=5
)


@given(contexts)
def test_what_is_sealed_comes_back(context: dict[str, Any]) -> None:
    assert unseal(seal(context, KEYS), KEYS) == context


@given(contexts)
def test_another_key_opens_nothing(context: dict[str, Any]) -> None:
    assert unseal(seal(context, OTHERS), KEYS) is None


@given(st.text())
def test_no_text_is_taken_for_a_token_of_ours(text: str) -> None:
    assert unseal(text, KEYS) is None


def test_every_changed_character_is_noticed() -> None:
    token = seal({"order": "42"}, KEYS)
    for at, letter in enumerate(token):
        changed = token[:at] + ("A" if letter != "A" else "B") + token[at + 1 :]
        assert unseal(changed, KEYS) is None


def test_an_old_key_still_opens_what_it_sealed() -> None:
    both = context_keys((b"b" * 32, b"a" * 32))
    assert unseal(seal({"order": "42"}, KEYS), both) == {"order": "42"}
    assert seal({"order": "42"}, both) == seal({"order": "42"}, OTHERS)


def test_a_token_made_by_an_earlier_version_stays_good_and_has_one_spelling() -> None:
    token = "eyJvcmRlciI6IjQyIn0.eL-XCHBv9SHNCe1p_kerhzPZ73AyFIf2VgYquIXjb8Y"
    assert unseal(token, KEYS) == {"order": "42"}
    for last in "Zab":  # they end in the same bits as Y, save those that mean nothing
        assert unseal(f"{token[:-1]}{last}", KEYS) is None


def test_a_context_that_fits_into_no_url_is_refused() -> None:
    with pytest.raises(Permanent, match="1024 bytes at most"):
        seal({"order": "x" * MAX_BYTES}, KEYS)


def test_what_fits_for_the_first_prediction_fits_for_all_that_follow_it() -> None:
    first = {"order": "x" * (MAX_BYTES - len('{"order":""}'))}
    context = followed(first, Lineage(Kind.TRAINING, "p" * 64, "h" * 64, 10))
    assert unseal(seal(context, KEYS), KEYS) == context


def test_a_token_of_ours_leaves_the_query_and_becomes_the_context() -> None:
    query = {"customId": "123", PARAMETER: seal({"order": "42"}, KEYS)}
    assert split_query(query.items(), KEYS) == ({"customId": "123"}, {"order": "42"})


def test_a_token_that_is_not_ours_stays_what_it_is_an_unsigned_parameter() -> None:
    query = {PARAMETER: seal({"order": "42"}, OTHERS)}
    assert split_query(query.items(), KEYS) == (query, None)


def test_of_several_tokens_none_is_believed() -> None:
    token = seal({"order": "42"}, KEYS)
    for other in (token, seal({"order": "43"}, KEYS), "x", ""):
        pairs = [(PARAMETER, token), (PARAMETER, other)]
        assert split_query(pairs, KEYS) == ({PARAMETER: [token, other]}, None)


@pytest.mark.parametrize(
    ("kind", "path"),
    [(Kind.PREDICTION, "/webhooks/replicate"), (Kind.TRAINING, "/webhooks/replicate/trainings")],
)
def test_a_webhook_url_brings_its_context_back(kind: Kind, path: str) -> None:
    url = urlsplit(webhook_url("https://outkeep.example.com", kind, {"order": "4 & 2"}, KEYS))
    assert (url.netloc, url.path) == ("outkeep.example.com", path)
    assert split_query(parse_qsl(url.query), KEYS) == ({}, {"order": "4 & 2"})


def test_a_webhook_url_without_a_context_is_bare() -> None:
    assert webhook_url("http://h", Kind.PREDICTION, None, KEYS) == "http://h/webhooks/replicate"


def test_a_follow_up_names_its_parent_and_keeps_what_the_user_gave() -> None:
    context = followed({"order": "42"}, LINEAGE)
    assert context["order"] == "42"
    assert lineage(context) == LINEAGE
    assert parent(context) == LINEAGE.parent


@pytest.mark.parametrize(
    "context",
    [None, [], "x", {}, {"outkeep": None}, {"outkeep": {}}, {"outkeep": {"parent": "x"}},
     {"outkeep": {"kind": "cat", "parent": "x", "handler": "y", "depth": 1}},
     {"outkeep": {"kind": "prediction", "parent": "../x", "handler": "y", "depth": 1}},
     {"outkeep": {"kind": "prediction", "parent": 5, "handler": "y", "depth": 1}}],
)  # fmt: skip
def test_what_names_no_parent_follows_nothing(context: Any) -> None:
    assert lineage(context) is None
    assert parent(context) is None
