"""Storage in a bucket, with a real S3 server: what is set on objects, and every kind of trouble."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.request import urlopen

import pytest

from app.core.errors import Permanent, Transient
from app.core.names import Kind
from app.receive.listening import free_port
from app.storage.store import Storage
from tests.bucket import KEY, S3, SECRET, Asked, FaultyProxy, Refusal
from tests.serving import Answering, serving
from tests.storage.test_everywhere import manifest

NAME = "predictions/abc/output-0.png"


@pytest.fixture
def storage(s3_here: S3) -> Storage:
    return Storage(s3_here.url)


@pytest.fixture
def through(proxy: FaultyProxy) -> Storage:
    """A storage behind the proxy."""
    return Storage(proxy.s3.url)


@pytest.mark.parametrize("size", [1, 20 << 20])
def test_what_may_be_shown_has_its_type_and_what_may_run_is_an_attachment(
    storage: Storage, s3: S3, tmp_path: Path, size: int
) -> None:
    names = ("output-0.png", "output-1.svg", "output.txt")
    for name in names:
        path = tmp_path / name
        path.write_bytes(b"x" * size)
        storage.put_file(f"predictions/abc/{name}", path)

    shown = {
        name: s3.head(f"predictions/abc/{name}") for name in ("output-0.png", "output-1.svg", "output.txt")
    }
    assert {name: headers["content-type"] for name, headers in shown.items()} == {
        "output-0.png": "image/png",
        "output-1.svg": "image/svg+xml",
        "output.txt": "text/plain; charset=utf-8",
    }
    assert "content-disposition" not in shown["output-0.png"]
    assert shown["output-1.svg"]["content-disposition"] == 'attachment; filename="output-1.svg"'


def test_a_bucket_serves_a_coding_with_the_bytes_that_have_it(
    storage: Storage, s3: S3, tmp_path: Path
) -> None:
    for name, encoding in (("output-0.csv", "gzip"), ("output-1.csv", None)):
        path = tmp_path / name
        path.write_bytes(b"x")
        storage.put_file(f"predictions/abc/{name}", path, encoding=encoding)

    assert s3.head("predictions/abc/output-0.csv")["content-encoding"] == "gzip"
    assert s3.head("predictions/abc/output-0.csv")["content-type"] == "text/csv"
    assert "content-encoding" not in s3.head("predictions/abc/output-1.csv")
    assert storage.get("predictions/abc/output-0.csv") == b"x"


def test_manifests_have_their_type_too(storage: Storage, s3: S3) -> None:
    storage.commit(manifest())

    headers = s3.head("predictions/abc/prediction.json")
    assert headers["content-type"] == "application/json; charset=utf-8"
    assert headers["content-disposition"] == 'attachment; filename="prediction.json"'


def test_a_presigned_link_serves_a_plain_client_with_range_and_type(storage: Storage) -> None:
    storage.put_bytes(NAME, b"0123456789")
    link = storage.link(NAME)

    assert link is not None
    assert SECRET not in link
    with urlopen(link, timeout=30) as answer:
        assert (answer.read(), answer.headers["content-type"]) == (b"0123456789", "image/png")


def test_nothing_is_signed_where_requests_are_not(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")

    assert Storage(storage.url).link(NAME) is None


def test_a_store_that_overwrites_silently_keeps_the_better_manifest(
    through: Storage, proxy: FaultyProxy
) -> None:
    proxy.drops = frozenset({"if-none-match"})
    two, one, none = manifest("a", "b"), manifest("a"), manifest()

    assert through.commit(two) is two
    assert through.commit(none) is none
    assert through.commit(one) == none
    assert through.read_manifest(Kind.PREDICTION, "abc") == none


def test_where_two_write_at_once_and_silently_the_better_manifest_is_left(
    through: Storage, proxy: FaultyProxy
) -> None:
    # The other one writes between our look and our write, and again between our write and our second look.
    worse, better = manifest("a", "b"), manifest("a")
    intruder = Storage(proxy.target.url)
    proxy.drops = frozenset({"if-none-match"})

    def intrude(asked: Asked) -> None:
        if asked.method == "GET" and "prediction.json" in asked.path:
            proxy.mend()
            proxy.target.ask("PUT", asked.path, worse.to_json())

    proxy.rule = intrude
    assert through.commit(better) is better
    assert intruder.read_manifest(Kind.PREDICTION, "abc") == better


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(501, "NotImplemented"),
        Refusal(400, "InvalidArgument"),
        Refusal(405, "MethodNotAllowed"),
        Refusal(411, "MissingContentLength"),
        Refusal(403, "SignatureDoesNotMatch"),
    ],
    ids=str,
)
def test_where_conditions_are_refused_what_another_one_writes_meanwhile_is_not_taken_for_ours(
    through: Storage, proxy: FaultyProxy, refusal: Refusal
) -> None:
    def intrude(asked: Asked) -> Refusal | None:
        if asked.method == "GET" and "claim" in asked.path:
            proxy.target.ask("PUT", asked.path, b"theirs")
        return refusal if "if-none-match" in asked.headers else None

    proxy.rule = intrude
    assert through.create("claim", b"ours") is False
    assert through.get("claim") == b"theirs"


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (Refusal(403, "AccessDenied"), "storage_denied"),
        (Refusal(403, "SignatureDoesNotMatch"), "storage_denied"),
        (Refusal(403, "ExpiredToken"), "credentials_expired"),
        (Refusal(404, "NoSuchBucket"), "bucket_missing"),
    ],
)
def test_each_refusal_has_its_code_names_its_variable_and_heals_by_itself(
    through: Storage, proxy: FaultyProxy, tmp_path: Path, refusal: Refusal, code: str
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    proxy.rule = lambda _: refusal
    for act in (
        lambda: through.put_bytes(NAME, b"x"),
        lambda: through.create(NAME, b"x"),
        lambda: through.put_file(NAME, source),
        lambda: through.get(NAME),
        lambda: list(through.names("predictions")),
    ):
        with pytest.raises(Transient) as caught:
            act()
        assert caught.value.code == code
        assert KEY not in caught.value.message
        assert "\n" not in caught.value.message

    proxy.mend()
    through.put_file(NAME, source)
    assert through.get(NAME) == b"x"


def test_a_store_that_fails_once_is_asked_again_at_once(through: Storage, proxy: FaultyProxy) -> None:
    def once(_: Asked) -> Refusal:
        proxy.mend()
        return Refusal(503, "SlowDown")

    proxy.rule = once
    through.put_bytes(NAME, b"x")

    assert through.get(NAME) == b"x"
    assert [asked.method for asked in proxy.asked] == ["PUT", "PUT", "GET"]


def test_a_store_that_fails_on_is_left_for_later(through: Storage, proxy: FaultyProxy) -> None:
    proxy.refuse(500, "InternalError")
    with pytest.raises(Transient) as caught:
        through.put_bytes(NAME, b"x")

    assert caught.value.code == "storage_unavailable"
    assert "500 InternalError" in caught.value.message


def test_a_large_file_that_fails_midway_leaves_no_object(
    through: Storage, proxy: FaultyProxy, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(20 << 20))

    def fail(asked: Asked) -> Refusal | None:
        return Refusal(403, "AccessDenied") if "partNumber=2" in asked.path else None

    proxy.rule = fail
    with pytest.raises(Transient):
        through.put_file(NAME, source)

    assert through.head(NAME) is None
    assert source.exists()


def test_the_check_tells_mistakes_from_outages(through: Storage, proxy: FaultyProxy) -> None:
    for status, word in ((403, "InvalidAccessKeyId"), (404, "NoSuchBucket"), (403, "ExpiredToken")):
        proxy.refuse(status, word)
        with pytest.raises(Permanent):
            through.check_writable()
    for status, word in ((500, "InternalError"), (503, "SlowDown"), (403, "RequestTimeTooSkewed")):
        proxy.refuse(status, word)
        with pytest.raises(Transient):
            through.check_writable()
    proxy.mend()
    through.check_writable()


def test_the_check_gives_up_on_a_store_that_hangs(through: Storage, proxy: FaultyProxy) -> None:
    released = threading.Event()

    def hang(_: Asked) -> None:
        released.wait(60)

    proxy.rule = hang
    with pytest.raises(Transient) as caught:
        through.check_writable()
    released.set()

    assert "no answer from" in caught.value.message
    assert "AWS_ENDPOINT_URL" in caught.value.message


def test_a_missing_bucket_is_no_missing_object(s3_here: S3) -> None:
    elsewhere = Storage("s3://another-bucket/x")
    with pytest.raises(Transient) as caught:
        elsewhere.get(NAME)
    with pytest.raises(Permanent) as checked:
        elsewhere.check_writable()

    assert caught.value.code == checked.value.code == "bucket_missing"


def test_an_endpoint_that_is_no_url_is_refused(s3_here: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("localhost:9000", "not a url", "http://", "", "http://me:secret@localhost:9000"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", wrong)
        with pytest.raises(Permanent, match="AWS_ENDPOINT_URL"):
            Storage(s3_here.url)


def test_plain_http_has_to_be_allowed(s3_here: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(Permanent, match="AWS_ALLOW_HTTP"):
        Storage(s3_here.url).check_writable()


def test_half_a_pair_of_credentials_is_refused(s3_here: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(Permanent, match="AWS_SECRET_ACCESS_KEY"):
        Storage(s3_here.url)


def test_no_credentials_at_all_are_named(s3_here: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where a cloud would answer, nobody is.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(Permanent, match="no credentials are found; set AWS_ACCESS_KEY_ID"):
        Storage(s3_here.url).check_writable()


def test_a_place_where_nobody_answers_is_an_outage(s3_here: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Transient, match="no answer from http://127"):
        Storage(s3_here.url).check_writable()


class Roles(Answering):
    """Gives out credentials as the metadata service of a container does; each key is good for one request."""

    given = 0

    def do_GET(self) -> None:
        Roles.given += 1
        expires = datetime.now(UTC) + timedelta(hours=1 if Roles.given > 1 else 0, seconds=1)
        document = {
            "AccessKeyId": f"ROLE{Roles.given}",
            "SecretAccessKey": "s",
            "Token": "t",
            "Expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        self.answer(200, json.dumps(document).encode())


@pytest.fixture
def roles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, proxy: FaultyProxy) -> Iterator[None]:
    Roles.given = 0
    token = tmp_path / "token"
    token.write_text("let me in")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
    with serving(Roles) as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/role")
        yield


def test_credentials_that_expire_are_renewed_without_a_restart(proxy: FaultyProxy, roles: None) -> None:
    def only_the_first_has_expired(asked: Asked) -> Refusal | None:
        return Refusal(403, "ExpiredToken") if "ROLE1/" in asked.headers["authorization"] else None

    proxy.rule = only_the_first_has_expired
    storage = Storage(proxy.s3.url)
    with pytest.raises(Transient) as caught:
        storage.put_bytes(NAME, b"x")
    assert caught.value.code == "credentials_expired"

    deadline = time.monotonic() + 30
    stored = None
    while stored is None:
        assert time.monotonic() < deadline
        with suppress(Transient):
            storage.put_bytes(NAME, b"x")
            stored = storage.get(NAME)
    assert stored == b"x"
