"""What processes say of themselves, and in what they differ."""

from dataclasses import replace
from typing import Any

import pytest

from app.core import fleet, handlers
from app.core.findings import Level
from app.core.fleet import Process

OWN = Process("persist", "a", 1, "1", ("old", "new"), {"gallery": "1", "mail": "2"}, "s")
OTHER = replace(OWN, host="b", pid=2)
SECRET = "whsec_Z2FsbGVyeS1nYWxsZXJ5LWdhbGxlcnkh"
FILE = f"""
[[handler]]
name = "gallery"
on = ["succeeded", "failed", "canceled"]
url = "https://example.com/hook"
secret = "{SECRET}"

[[handler]]
name = "thumbs"
job = "mine.thumbs"

[[handler]]
name = "upscale"
predict = "owner/model"
input = {{ image = "{{files[0].url}}", scale = 2 }}
"""


def test_a_process_is_read_as_it_was_written() -> None:
    assert fleet.read(OWN.to_json().encode()) == OWN


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"7", b"null", b"{}", OWN.to_json().replace("1", '"x"', 1).encode()[:40], b"\xff"],
)
def test_what_somebody_else_wrote_is_no_process(data: bytes) -> None:
    assert fleet.read(data) is None


def marks(text: str) -> dict[str, str]:
    return fleet.fingerprints(handlers.parse(text, lambda secret: secret))


def test_the_same_file_has_the_same_fingerprints_and_they_hold_no_secret() -> None:
    assert marks(FILE) == marks(FILE.replace('"succeeded", "failed"', '"failed", "succeeded"'))
    assert set(marks(FILE)) == {"gallery", "thumbs", "upscale"}
    assert not any(mark in SECRET or SECRET[6:20] in mark for mark in marks(FILE).values())


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("example.com/hook", "example.com/other", "gallery"),
        ('"failed", ', "", "gallery"),
        ("Z2FsbGVyeS1n", "Z2FsbGVyeS1m", "gallery"),
        ("mine.thumbs", "mine.others", "thumbs"),
        ("scale = 2", "scale = 4", "upscale"),
        ("owner/model", "owner/another", "upscale"),
        ("files[0]", "files[1]", "upscale"),
    ],
)
def test_each_change_of_a_handler_changes_its_own_fingerprint(old: str, new: str, changed: str) -> None:
    before, after = marks(FILE), marks(FILE.replace(old, new))
    assert {name for name in before if before[name] != after[name]} == {changed}


@pytest.mark.parametrize(
    ("other", "check", "level", "said"),
    [
        (replace(OTHER, keys=("new",)), "secret key", Level.OK, "the same"),
        (replace(OTHER, keys=("x", "old")), "secret key", Level.OK, "the same"),
        (replace(OTHER, keys=("x",)), "secret key", Level.FAIL, "persist:b:2"),
        (replace(OTHER, storage="t"), "storage id", Level.FAIL, "persist:b:2"),
        (replace(OTHER, version="2"), "version", Level.WARN, "2 in persist:b:2"),
        (replace(OTHER, handlers={"gallery": "1"}), "handlers file", Level.WARN, "does not know mail"),
        (
            replace(OTHER, handlers={**OWN.handlers, "new": "3"}), "handlers file", Level.WARN,
            "alone knows new",
        ),
        (
            replace(OTHER, handlers={**OWN.handlers, "mail": "3"}), "handlers file", Level.WARN,
            "has another mail",
        ),
    ],
)  # fmt: skip
def test_it_is_said_who_differs_and_in_what(other: Process, check: str, level: Level, said: str) -> None:
    [found] = [one for one in fleet.compared(OWN, [other]) if one.check == check]
    assert found.level is level
    assert said in found.detail


@pytest.mark.parametrize("storage", [None, "s"])
def test_who_agrees_or_does_not_know_yet_is_not_named(storage: Any) -> None:
    found = fleet.compared(OWN, [replace(OTHER, storage=storage)])
    assert [(one.level, one.check) for one in found] == [(Level.OK, "secret key")]
