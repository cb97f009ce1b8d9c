"""Stores that are not Amazon's: what they refuse, or pass over without a word, is done in another way."""

import asyncio
import http.client
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from app.core.bucket_faults import Lack
from app.core.errors import Permanent, StorageFailure, Transient
from app.core.findings import Level
from app.core.links import file_path, link_keys, sign_path
from app.core.names import Kind
from app.health.doctor import diagnose
from app.maintain.removal import erase
from app.receive.listening import free_port
from app.storage.store import Storage
from tests.bucket import Refusal
from tests.receive.web import SECRET_KEY, in_process
from tests.small_s3 import IGNORED, Held, SmallS3, small_s3
from tests.storage.test_bucket_start import settings
from tests.storage.test_everywhere import NOW, manifest

NAME = "predictions/abc/output-0.png"
ATTEMPTS = 3
"""The library tries a call again that is answered 501."""
LARGE = os.urandom((9 << 20) + 7)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallS3]:
    """A store that lacks nothing yet; the usual variables lead there."""
    with small_s3() as running:
        for name, value in running.s3.variables().items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def storage(store: SmallS3) -> Storage:
    return Storage(store.s3.url)


def lacks(storage: Storage) -> set[Lack]:
    return set(storage.lacks)


CONDITIONAL = [
    Refusal(501, "NotImplemented"),
    Refusal(400, "InvalidArgument"),
    Refusal(405, "MethodNotAllowed"),
    Refusal(400),
    Refusal(404),
    Refusal(411, "MissingContentLength"),
    Refusal(412, "PreconditionFailed"),
    Refusal(409, "OperationAborted"),
    Refusal(304),
    Refusal(403, "AccessDenied"),
    Refusal(403, "SignatureDoesNotMatch"),
    Refusal(403),
    Refusal(401),
    Refusal(413, "EntityTooLarge"),
    Refusal(426),
    Refusal(451),
    Refusal(400, "MalformedXML"),
    Refusal(500, "NotImplemented"),
    Refusal(200, "NotImplemented"),
    Refusal(204),
]


@pytest.mark.parametrize("refusal", CONDITIONAL, ids=str)
def test_a_manifest_is_committed_where_conditions_are_refused(
    store: SmallS3, storage: Storage, refusal: Refusal
) -> None:
    store.lacks["create"] = refusal
    two, one, other, none = manifest("a", "b"), manifest("a"), manifest("c"), manifest()

    assert storage.commit(two) is two
    assert storage.commit(one) is one
    assert storage.commit(other) == one
    assert storage.commit(none) is none
    assert storage.commit(one) == none
    assert storage.read_manifest(Kind.PREDICTION, "abc") == none
    assert lacks(storage) == {Lack.CREATE}


@pytest.mark.parametrize("refusal", CONDITIONAL, ids=str)
def test_a_refused_condition_is_tried_once_and_nothing_there_is_overwritten(
    store: SmallS3, storage: Storage, refusal: Refusal
) -> None:
    store.lacks["create"] = refusal

    assert storage.create("one", b"first") is True
    assert storage.create("two", b"first") is True
    assert storage.create("two", b"second") is False
    assert (storage.get("one"), storage.get("two")) == (b"first", b"first")
    assert sum("if-none-match" in asked.headers for asked in store.asked) <= ATTEMPTS


def test_a_condition_that_is_passed_over_overwrites_nothing(store: SmallS3, storage: Storage) -> None:
    store.lacks["create"] = IGNORED

    assert storage.create("one", b"first") is True
    assert storage.create("one", b"second") is False
    assert storage.get("one") == b"first"


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(500, "InternalError"),
        Refusal(503, "SlowDown"),
        Refusal(429, "TooManyRequests"),
        Refusal(400, "RequestTimeout"),
        Refusal(400, "ExpiredToken"),
        Refusal(403, "InvalidAccessKeyId"),
        Refusal(408),
    ],
    ids=str,
)
def test_an_outage_and_a_mistake_with_a_name_are_no_lack(
    store: SmallS3, storage: Storage, refusal: Refusal
) -> None:
    store.lacks |= {"create": refusal, "bulk": refusal, "range": refusal, "parts": refusal}
    storage.put_bytes(NAME, b"0123456789")
    for act in (
        lambda: storage.create("new", b"x"),
        lambda: storage.remove([NAME]),
        lambda: read(storage, NAME, 1, 2),
    ):
        with pytest.raises(StorageFailure):
            act()

    assert lacks(storage) == set()
    store.lacks.clear()
    assert storage.create("new", b"x") is True
    assert read(storage, NAME, 1, 2) == b"1"
    storage.remove([NAME, "new"])
    assert [name for name in store.names() if not name.startswith("checks/")] == []


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(400, "MissingContentMD5"),
        Refusal(501, "NotImplemented"),
        Refusal(405, "MethodNotAllowed"),
        Refusal(400, "MalformedXML"),
        Refusal(404),
        Refusal(404, "NoSuchKey"),
        Refusal(200),
        Refusal(204),
        Refusal(403, "AccessDenied"),
        Refusal(403, "SignatureDoesNotMatch"),
        Refusal(411, "MissingContentLength"),
        Refusal(500, "NotImplemented"),
        IGNORED,
    ],
    ids=str,
)
def test_everything_is_removed_where_bulk_deletion_is_refused(
    store: SmallS3, storage: Storage, refusal: Refusal | None
) -> None:
    store.lacks["bulk"] = refusal
    storage.commit(manifest())
    for number in range(5):
        storage.put_bytes(f"predictions/abc/output-{number}.png", b"x")

    storage.remove([NAME, "predictions/abc/never-there.png"])
    assert NAME not in store.names()
    erase(storage, Kind.PREDICTION, "abc", NOW)
    assert store.names() == []
    assert store.count("POST", "delete") <= ATTEMPTS
    assert lacks(storage) == {Lack.BULK}


def read(storage: Storage, name: str, start: int, end: int, *, size: int | None = None) -> bytes:
    async def pieces() -> bytes:
        return b"".join([piece async for piece in storage.stream(name, start, end, size=size)])

    return asyncio.run(pieces())


@pytest.mark.parametrize(
    "refusal",
    [
        IGNORED,
        Refusal(501, "NotImplemented"),
        Refusal(400, "InvalidArgument"),
        Refusal(416, "InvalidRange"),
        Refusal(405, "MethodNotAllowed"),
        Refusal(206),
        Refusal(403, "AccessDenied"),
        Refusal(403, "SignatureDoesNotMatch"),
        Refusal(411),
        Refusal(204),
    ],
    ids=str,
)
def test_parts_are_served_from_the_whole_where_there_are_no_ranges(
    store: SmallS3, storage: Storage, refusal: Refusal | None
) -> None:
    store.lacks["range"] = refusal
    for content in (LARGE, b"0123456789"):
        storage.put_bytes(NAME, content)
        size = len(content)
        for start, end in [(0, size), (0, 1), (3, 7), (size // 2, size), (size - 1, size)]:
            assert read(storage, NAME, start, end) == content[start:end]

    assert lacks(storage) == {Lack.RANGE}
    assert sum("range" in asked.headers for asked in store.asked) <= ATTEMPTS


def test_a_whole_file_is_asked_for_as_a_whole(store: SmallS3, storage: Storage) -> None:
    storage.put_bytes(NAME, LARGE)

    assert read(storage, NAME, 0, len(LARGE), size=len(LARGE)) == LARGE
    assert [asked.method for asked in store.asked].count("GET") == 1
    assert "range" not in store.asked[-1].headers


@pytest.mark.parametrize("lacking", [{}, {"range": IGNORED}], ids=["ranges", "no ranges"])
def test_an_object_that_became_shorter_is_an_error(
    store: SmallS3, storage: Storage, lacking: dict[str, None]
) -> None:
    store.lacks |= lacking
    for content, size in ((b"short", 10), (LARGE[: 5 << 20], len(LARGE))):
        storage.put_bytes(NAME, content)
        for known in (None, size):
            with pytest.raises(StorageFailure):
                read(storage, NAME, 0, size, size=known)


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
@pytest.mark.parametrize("page", [1000, 7])
def test_everything_is_listed_page_by_page(store: SmallS3, storage: Storage, count: int, page: int) -> None:
    store.page = page
    fill(store, count)

    assert sum(1 for _ in storage.names("predictions")) == count


@pytest.mark.parametrize("count", [0, 1, 999, 1000])
def test_the_list_of_2006_is_enough_where_it_is_whole(store: SmallS3, storage: Storage, count: int) -> None:
    store.lacks["list"] = IGNORED
    fill(store, count)
    if count < 1000:
        assert sum(1 for _ in storage.names("predictions")) == count
    else:  # nobody knows whether there is more
        with pytest.raises(StorageFailure):
            list(storage.names("predictions"))


@pytest.mark.parametrize("count", [1001, 2500])
def test_a_list_that_ends_early_is_an_error(store: SmallS3, storage: Storage, count: int) -> None:
    store.lacks["list"] = IGNORED
    fill(store, count)
    with pytest.raises(StorageFailure, match="lists only the first 1000 objects of predictions/"):
        list(storage.names("predictions"))


@pytest.mark.parametrize(
    "spelled",
    [
        lambda key: quote(key, safe=""),
        quote,
        lambda key: quote(key).replace("-", "%2D").replace(".", "%2e"),
        lambda key: f"<![CDATA[{key}]]>",
        lambda key: key.replace("/", "&#x2F;"),
        lambda key: f"/{key}",
    ],
)
def test_names_are_read_as_stores_spell_them_in_lists(
    store: SmallS3, storage: Storage, spelled: Callable[[str], str]
) -> None:
    store.spelled = spelled
    storage.prove()
    storage.commit(manifest("a-b"))
    storage.put_bytes("predictions/abc/output-0.tar.gz", b"x")
    known = ["predictions/abc/output-0.tar.gz", "predictions/abc/prediction.json"]
    assert [name for name in storage.names("predictions") if "abc" in name] == known
    erase(storage, Kind.PREDICTION, "abc", NOW)
    assert store.names() == ["outkeep.txt"]


def test_nothing_else_is_removed_where_a_store_lists_all_that_it_has(
    store: SmallS3, storage: Storage
) -> None:
    store.lacks["prefix"] = IGNORED
    store.objects["of-others/x"] = Held(b"x")
    store.objects["below/here/predictions/"] = Held(b"")
    for name in (
        "predictions/abc/output-0.png",
        "predictions/abcd/output-0.png",
        "trainings/abc/output-0.tar",
    ):
        storage.put_bytes(name, b"x")
    assert list(storage.names("predictions/abc")) == [NAME]
    assert list(storage.names("trainings")) == ["trainings/abc/output-0.tar"]
    erase(storage, Kind.PREDICTION, "abc", NOW)
    assert sorted(store.objects) == [
        "below/here/predictions/",
        "below/here/predictions/abcd/output-0.png",
        "below/here/trainings/abc/output-0.tar",
        "of-others/x",
    ]


@pytest.mark.parametrize("body", [Refusal(200, "InternalError"), Refusal(200), Refusal(204)], ids=str)
def test_the_check_notices_a_list_without_what_was_just_stored(
    store: SmallS3, storage: Storage, body: Refusal
) -> None:
    store.lacks["list"] = body
    with pytest.raises(Transient):
        storage.prove()


def fill(store: SmallS3, count: int) -> None:
    """Put objects there that have always been there."""
    store.objects = {f"below/here/predictions/p-{number:05d}/x": Held(b"x") for number in range(count)}


def test_an_upload_that_goes_wrong_once_says_nothing_of_the_next(
    store: SmallS3, storage: Storage, tmp_path: Path
) -> None:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    store.lacks["part"] = Refusal(404, "NoSuchUpload")
    with pytest.raises(StorageFailure):
        storage.put_file(NAME, path)
    store.lacks.clear()
    storage.put_file(NAME, path)

    assert store.body(NAME) == LARGE
    assert lacks(storage) == set()


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(501, "NotImplemented"),
        Refusal(405, "MethodNotAllowed"),
        Refusal(400, "InvalidRequest"),
        Refusal(404),
        Refusal(411, "MissingContentLength"),
        Refusal(403, "AccessDenied"),
        Refusal(403, "SignatureDoesNotMatch"),
        Refusal(200, "NotImplemented"),
        Refusal(200),
        Refusal(500, "NotImplemented"),
    ],
    ids=str,
)
def test_a_large_file_is_sent_whole_where_parts_are_refused(
    store: SmallS3, storage: Storage, tmp_path: Path, refusal: Refusal
) -> None:
    store.lacks["parts"] = refusal
    for number in range(2):
        path = tmp_path / "large"
        path.write_bytes(LARGE)
        storage.put_file(f"predictions/abc/output-{number}.png", path)
        assert store.body(f"predictions/abc/output-{number}.png") == LARGE
        assert not path.exists()

    assert lacks(storage) == {Lack.PARTS}
    assert store.count("POST", "uploads") <= ATTEMPTS


def test_what_is_too_large_to_be_sent_whole_is_refused_and_kept(
    store: SmallS3, storage: Storage, tmp_path: Path
) -> None:
    store.lacks["parts"] = Refusal(501, "NotImplemented")
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(129 << 20)
    with pytest.raises(StorageFailure) as caught:
        storage.put_file(NAME, path)

    assert caught.value.code == "storage_no_parts"
    assert path.exists()


@pytest.mark.parametrize("status", [400, 403, 405, 406, 501])
def test_a_store_without_head_tells_by_get(store: SmallS3, storage: Storage, status: int) -> None:
    store.lacks["head"] = Refusal(status)
    storage.put_bytes(NAME, b"12345")
    found = storage.head(NAME)

    assert found is not None
    assert found.size == 5
    assert storage.head("predictions/abc/other.png") is None
    assert storage.commit(manifest()).lost == ()
    assert lacks(storage) == {Lack.HEAD}


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_head_that_fails_for_a_while_is_no_lack(store: SmallS3, storage: Storage, status: int) -> None:
    storage.put_bytes(NAME, b"12345")
    store.lacks["head"] = Refusal(status)
    with pytest.raises(StorageFailure):
        storage.head(NAME)
    assert lacks(storage) == set()


@pytest.mark.parametrize("status", [400, 401, 403, 405, 501])
def test_no_link_is_given_that_the_store_does_not_honour(
    store: SmallS3, storage: Storage, status: int
) -> None:
    store.lacks["link"] = Refusal(status)
    storage.put_bytes(NAME, b"12345")

    assert storage.link(NAME) is None
    assert storage.link(NAME) is None
    assert lacks(storage) == {Lack.LINK}
    assert store.count("GET", "X-Amz-Signature") == 1


@pytest.mark.parametrize("status", [404, 429, 500, 503])
def test_a_store_that_is_unwell_keeps_its_links(store: SmallS3, storage: Storage, status: int) -> None:
    store.lacks["link"] = Refusal(status)

    assert storage.link(NAME) is not None
    assert lacks(storage) == set()


EVERYTHING: dict[str, tuple[Refusal | None, Lack]] = {
    "create": (Refusal(501, "NotImplemented"), Lack.CREATE),
    "bulk": (Refusal(400, "MissingContentMD5"), Lack.BULK),
    "range": (IGNORED, Lack.RANGE),
    "parts": (Refusal(405, "MethodNotAllowed"), Lack.PARTS),
    "head": (Refusal(405), Lack.HEAD),
    "link": (Refusal(403, "AccessDenied"), Lack.LINK),
}


@pytest.mark.parametrize("feature", EVERYTHING)
def test_the_check_finds_what_a_store_lacks_and_leaves_nothing(
    store: SmallS3, storage: Storage, feature: str
) -> None:
    store.lacks[feature] = EVERYTHING[feature][0]
    storage.prove()

    assert lacks(storage) == {EVERYTHING[feature][1]}
    assert store.names() == ["outkeep.txt"]


def test_the_check_finds_nothing_wrong_with_a_whole_store_and_removes_what_others_left(
    store: SmallS3, storage: Storage
) -> None:
    storage.put_bytes("checks/left", b"x")
    storage.put_bytes("checks/just-begun", b"x")
    old = store.objects["below/here/checks/left"]
    store.objects["below/here/checks/left"] = type(old)(old.body, {}, NOW)
    storage.prove()

    assert lacks(storage) == set()
    assert store.names() == ["checks/just-begun", "outkeep.txt"]


@pytest.mark.parametrize("refusal", [Refusal(403, "AccessDenied"), Refusal(401), Refusal(403)], ids=str)
@pytest.mark.parametrize(
    ("features", "words"),
    [
        (["list"], "cannot list: access is denied"),
        (["get"], "access is denied"),
        (["create", "put"], "access is denied"),
        (["bulk", "delete"], "cannot delete: access is denied"),
    ],
)
def test_the_check_names_what_is_denied_in_every_way(
    store: SmallS3, storage: Storage, features: list[str], words: str, refusal: Refusal
) -> None:
    store.lacks |= dict.fromkeys(features, refusal)
    with pytest.raises(Permanent, match=words):
        storage.prove()
    assert lacks(storage) == set()


@pytest.mark.parametrize("feature", ["list", "get", "delete"])
def test_the_check_tells_of_what_cannot_be_done_otherwise(
    store: SmallS3, storage: Storage, feature: str
) -> None:
    store.lacks = {"bulk": IGNORED, feature: Refusal(501, "NotImplemented")}
    with pytest.raises(Transient, match="it answers 501 NotImplemented"):
        storage.prove()


def test_doctor_says_once_what_a_store_lacks(store: SmallS3, tmp_path: Path) -> None:
    own = settings(tmp_path)
    (fine,) = [found for found in diagnose(own, tmp_path) if found.check == "storage"]
    store.lacks |= {feature: refusal for feature, (refusal, _) in EVERYTHING.items()}
    (told,) = [found for found in diagnose(own, tmp_path) if found.check == "storage"]

    assert (fine.level, told.level) == (Level.OK, Level.WARN)
    for words in ("If-None-Match", "one by one", "ranges", "in parts", "HEAD", "signed links"):
        assert words in told.detail


PATH = file_path(Kind.PREDICTION, "abc", "output-0.png")


def link() -> str:
    return sign_path(PATH, int(time.time()) + 600, link_keys([SECRET_KEY.encode()]))


@pytest.mark.parametrize(
    "missing",
    [
        {"range": IGNORED},
        {"range": IGNORED, "link": Refusal(403)},
        {"range": Refusal(501), "head": Refusal(405)},
        {feature: refusal for feature, (refusal, _) in EVERYTHING.items()},
        {},
    ],
    ids=str,
)
def test_files_of_such_stores_are_served_whole_and_in_parts(
    store: SmallS3, tmp_path: Path, missing: dict[str, Refusal | None]
) -> None:
    store.lacks |= missing
    Storage(store.s3.url).put_bytes(NAME, LARGE)
    own = {"OUTKEEP_STORAGE": store.s3.url, "OUTKEEP_PUBLIC_URL": "https://outkeep.example.com"}
    with in_process(f"redis://127.0.0.1:{free_port()}", tmp_path, **own) as (web, _):
        whole = web.ask("GET", link())
        part = web.ask("GET", link(), headers={"range": f"bytes=5-{6 << 20}"})

    assert (whole.status, whole.body == LARGE) == (200, True)
    assert (part.status, part.body == LARGE[5 : (6 << 20) + 1]) == (206, True)
    assert "Traceback" not in (tmp_path / "serve.log").read_text()


def test_a_store_that_fails_at_or_in_a_file_is_named_in_the_log(store: SmallS3, tmp_path: Path) -> None:
    Storage(store.s3.url).put_bytes(NAME, LARGE)
    own = {"OUTKEEP_STORAGE": store.s3.url, "OUTKEEP_PUBLIC_URL": "https://outkeep.example.com"}
    with in_process(f"redis://127.0.0.1:{free_port()}", tmp_path, **own) as (web, _):
        store.lacks["get"] = Refusal(500, "InternalError")
        refused = web.ask("GET", link())
        store.lacks.clear()
        store.cut = 3 << 20
        store.lacks["range"] = Refusal(500, "InternalError")
        with pytest.raises(http.client.IncompleteRead):
            web.ask("GET", link())
        store.cut = None
        store.lacks.clear()
        again = web.ask("GET", link())
    log = (tmp_path / "serve.log").read_text()
    events = {json.loads(line).get("event") for line in log.splitlines() if line.startswith("{")}

    assert refused.status == 503
    assert again.body == LARGE
    assert {"file_not_served", "file_broken_off"} <= events
    assert "Traceback" not in log
