"""Secrets out of text: every spelling of each, and every one that a process may hold."""

import re
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import BaseError, UnknownConfigurationKeyError
from obstore.store import AzureStore, GCSStore, S3Store

from app.settings import load
from app.telemetry.redaction import HIDDEN, Redactor, secrets_of

OBSTORE = Path(obstore.__file__).parent
PREFIXES: dict[str, Callable[[Any], object]] = {
    "aws_": lambda config: S3Store("b", config=config),
    "azure_": lambda config: AzureStore("b", account_name="a", config=config),
    "google_": lambda config: GCSStore("b", config=config),
}
HARMLESS = {"aws_access_key_id", "aws_sse_kms_key_id", "aws_sse_bucket_key_enabled"}
"""Names of what is no secret, though they sound like one."""


def _sounds_secret(name: str) -> bool:
    return (
        re.search("key|secret|token|password|credential", name) is not None
        and not name.endswith(("_file", "_path", "_uri", "_url", "_credentials", "_type"))
        and name not in HARMLESS
    )


def _documented() -> set[str]:
    """What the stores read from the environment, as obstore's stubs say."""
    stubs = "".join(path.read_text() for path in OBSTORE.glob("_store/*.pyi"))
    return {name.lower() for name in re.findall(r"`((?:AWS|AZURE|GOOGLE)_[A-Z_0-9]+)`", stubs)}


def _accepted() -> set[str]:
    """What obstore takes for a key of a store, of all that stands in its library: more than is documented.

    The names lie there side by side without an end, so each beginning is tried with every length.
    """
    (library,) = OBSTORE.glob("*.so")
    runs = re.findall(rb"[a-z0-9_]*(?:aws|azure|google)_[a-z0-9_]+", library.read_bytes())
    text = b" ".join(run for run in runs if b"aws_lc" not in run).decode()
    starts = [(found.start(), found[0]) for found in re.finditer("aws_|azure_|google_", text)]
    tried = {(prefix, text[at : at + length]) for at, prefix in starts for length in range(8, 45)}
    return {name for prefix, name in tried if _sounds_secret(name) and _is_key(PREFIXES[prefix], name)}


def _is_key(make: Callable[[Any], object], name: str) -> bool:
    try:
        make({name: "1"})
    except BaseError as error:
        return not isinstance(error, UnknownConfigurationKeyError)
    return True


def test_every_secret_of_a_store_is_hidden_whatever_its_name() -> None:
    documented, accepted = {name for name in _documented() if _sounds_secret(name)}, _accepted()
    assert len(documented) >= 15
    assert len(accepted) >= 12
    for name in sorted(name.upper() for name in documented | accepted):
        secret = f"value of {name}"
        loaded = load({name: secret})
        assert Redactor(secrets_of(loaded)).text(f"it said {secret!r}") == f"it said '{HIDDEN}'", name
        assert secret not in repr(loaded), name


@pytest.mark.parametrize(
    ("written", "decoded"),
    [
        ("correct%20horse", "correct horse"),
        ("p%40ssw%2Frd%3A1", "p@ssw/rd:1"),
        ("%C3%A4%C3%B6%C3%BC-secret", "äöü-secret"),
        ("100%25-secret", "100%-secret"),
        ("a%22quoted%22one", 'a"quoted"one'),
        ("pa%2bss%2bword", "pa+ss+word"),
        ("nothing-encoded", "nothing-encoded"),
    ],
)
def test_the_password_of_redis_is_hidden_as_written_and_as_meant(written: str, decoded: str) -> None:
    redactor = Redactor(secrets_of(load({"REDIS_URL": f"redis://user:{written}@127.0.0.1:1/0"})))
    for spelling in (written, decoded):
        assert redactor.text(f"refused: {spelling}.") == f"refused: {HIDDEN}."


@pytest.mark.parametrize(
    ("secrets", "text"),
    [
        (("correct-horse", "correct-horse-battery"), "correct-horse-battery"),
        (("correct-horse", "the-correct-horse"), "the-correct-horse"),
        (("correct-horse", "a-correct-horse-b", "the-a-correct-horse-b"), "the-a-correct-horse-b"),
        (("12345678", "123456789", "1234567890"), "1234567890"),
        (("äöüäöüäöü", "äöüäöüäöü.rest"), "äöüäöüäöü.rest"),
    ],
)
def test_of_secrets_that_hold_each_other_nothing_is_left(secrets: tuple[str, ...], text: str) -> None:
    for order in permutations(secrets):
        told, learnt = Redactor(order), Redactor()
        for secret in order:
            learnt.learn([secret])
        assert {each.text(f"<{text}>") for each in (told, learnt)} == {f"<{HIDDEN}>"}
