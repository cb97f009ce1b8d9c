"""A small S3 of our own on a port: it refuses, or passes over, what stores that are not Amazon's do.

Signatures are not verified. What it lacks is set while it runs.
"""

import hashlib
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.bucket import NAME, PREFIX, S3, Asked, Refusal

IGNORED = None
"""In the place of a refusal: the feature is passed over without a word."""

FEATURES: Mapping[str, Callable[[str, Mapping[str, str], Mapping[str, list[str]], str], bool]] = {
    "create": lambda method, headers, query, key: method == "PUT" and "if-none-match" in headers,
    "put": lambda method, headers, query, key: method == "PUT" and not query,
    "bulk": lambda method, headers, query, key: method == "POST" and "delete" in query,
    "delete": lambda method, headers, query, key: method == "DELETE" and "uploadId" not in query,
    "range": lambda method, headers, query, key: method == "GET" and "range" in headers,
    "parts": lambda method, headers, query, key: "uploads" in query or "uploadId" in query,
    "part": lambda method, headers, query, key: "partNumber" in query,
    "head": lambda method, headers, query, key: method == "HEAD",
    "list": lambda method, headers, query, key: method == "GET" and not key,
    "prefix": lambda method, headers, query, key: method == "GET" and not key and "prefix" in query,
    "link": lambda method, headers, query, key: method == "GET" and "X-Amz-Signature" in query,
    "get": lambda method, headers, query, key: method == "GET" and bool(key),
}
"""How each is known among the requests."""


@dataclass(frozen=True)
class Held:
    """An object, or a part of one on its way."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    changed_at: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.body, usedforsecurity=False).hexdigest()}"'


class SmallS3:
    """`lacks` maps a feature to how it is refused, or to `IGNORED`; `page` is how much one list holds."""

    def __init__(self, endpoint: str) -> None:
        self.s3 = S3(endpoint)
        self.lacks: dict[str, Refusal | None] = {}
        self.page = 1000
        self.spelled: Callable[[str], str] = escape
        """How keys are written in lists."""
        self.cut: int | None = None
        """Bytes of a body after which the connection is closed; None: never."""
        self.asked: list[Asked] = []
        self.objects: dict[str, Held] = {}
        self.uploads: dict[str, tuple[str, Mapping[str, str], dict[int, bytes]]] = {}
        self.lock = threading.Lock()

    def names(self) -> list[str]:
        """What is stored, below the prefix of the storage."""
        return sorted(name.removeprefix(f"{PREFIX}/") for name in self.objects)

    def body(self, name: str) -> bytes:
        """The bytes of one object."""
        return self.objects[f"{PREFIX}/{name}"].body

    def overwrite(self, name: str, body: bytes) -> None:
        """Put something else there behind the back of the storage."""
        self.objects[f"{PREFIX}/{name}"] = Held(body)

    def count(self, method: str, text: str = "") -> int:
        """Requests so far of a method whose path holds `text`."""
        return sum(asked.method == method and text in asked.path for asked in self.asked)


@contextmanager
def small_s3(certificate: ssl.SSLContext | None = None) -> Iterator[SmallS3]:
    """Run one with an empty bucket until the end of the block; https with a `certificate`."""
    server = _Server(("127.0.0.1", 0), _Handler)
    if certificate is not None:
        server.socket = certificate.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    scheme = "https" if certificate else "http"
    store = SmallS3(f"{scheme}://127.0.0.1:{server.server_address[1]}")
    server.store = store
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    store: SmallS3

    def handle_error(self, *_: Any) -> None:
        """Clients that go away are no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    query: dict[str, list[str]]
    key: str
    body: bytes

    def handle_one_request(self) -> None:
        with suppress(OSError):
            super().handle_one_request()

    def answer(self) -> None:
        store, parts = self.server.store, urlsplit(self.path)
        self.query = parse_qs(parts.query, keep_blank_values=True)
        bucket, _, self.key = unquote(parts.path).lstrip("/").partition("/")
        self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        ignored = set()
        with store.lock:
            store.asked.append(Asked(self.command, self.path, headers))
            if bucket != NAME:
                self.refuse(Refusal(404, "NoSuchBucket"))
                return
            for feature, refusal in store.lacks.items():
                if FEATURES[feature](self.command, headers, self.query, self.key):
                    if refusal is not IGNORED:
                        self.refuse(refusal)
                        return
                    ignored.add(feature)
            getattr(self, f"on_{self.command.lower()}")(store, headers, ignored)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def on_put(self, store: SmallS3, headers: dict[str, str], ignored: set[str]) -> None:
        if "uploadId" in self.query:
            store.uploads[self.query["uploadId"][0]][2][int(self.query["partNumber"][0])] = self.body
            return self.tell(200, {"etag": Held(self.body).etag})
        if "if-none-match" in headers and "create" not in ignored and self.key in store.objects:
            return self.refuse(Refusal(412, "PreconditionFailed"))
        store.objects[self.key] = Held(self.body, _shown(headers))
        return self.tell(200, {"etag": store.objects[self.key].etag})

    def on_post(self, store: SmallS3, headers: dict[str, str], ignored: set[str]) -> None:
        if "delete" in self.query:
            keys = [] if "bulk" in ignored else re.findall(rb"<Key>(.*?)</Key>", self.body)
            for key in keys:
                store.objects.pop(key.decode(), None)
            deleted = b"".join(b"<Deleted><Key>%s</Key></Deleted>" % key for key in keys)
            return self.tell(200, {}, b"<DeleteResult>%s</DeleteResult>" % deleted)
        if "uploads" in self.query:
            upload = str(len(store.uploads))
            store.uploads[upload] = (self.key, _shown(headers), {})
            return self.tell(200, {}, _xml("InitiateMultipartUploadResult", UploadId=upload))
        key, shown, parts = store.uploads.pop(self.query["uploadId"][0])
        store.objects[key] = Held(b"".join(parts[number] for number in sorted(parts)), shown)
        return self.tell(200, {}, _xml("CompleteMultipartUploadResult", ETag=store.objects[key].etag))

    def on_delete(self, store: SmallS3, headers: dict[str, str], ignored: set[str]) -> None:
        if "uploadId" in self.query:
            store.uploads.pop(self.query["uploadId"][0], None)
        elif "delete" not in ignored:
            store.objects.pop(self.key, None)
        self.tell(204, {})

    def on_head(self, store: SmallS3, headers: dict[str, str], ignored: set[str]) -> None:
        self.on_get(store, headers, ignored)

    def on_get(self, store: SmallS3, headers: dict[str, str], ignored: set[str]) -> None:
        if not self.key:
            return self.tell(200, {"content-type": "application/xml"}, self.listed(store, ignored))
        held = store.objects.get(self.key)
        if held is None:
            return self.refuse(Refusal(404, "NoSuchKey"))
        known = {
            **held.headers,
            "etag": held.etag,
            "last-modified": format_datetime(held.changed_at, usegmt=True),
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        if wanted is None or "range" in ignored:
            return self.tell(200, known, held.body)
        start, end = int(wanted[1]), min(int(wanted[2] or len(held.body)) + 1, len(held.body))
        known["content-range"] = f"bytes {start}-{end - 1}/{len(held.body)}"
        return self.tell(206, known, held.body[start:end])

    def listed(self, store: SmallS3, ignored: set[str]) -> bytes:
        """One page; as S3 listed in 2006 where the second version is passed over."""
        prefix = "" if "prefix" in ignored else self.query.get("prefix", [""])[0]
        after = "marker" if "list" in ignored else "start-after"
        token = "marker" if "list" in ignored else "continuation-token"
        last = max(self.query.get(after, [""])[0], self.query.get(token, [""])[0])
        found = sorted(key for key in store.objects if key.startswith(prefix) and key > last)
        page = found[: store.page]
        contents = "".join(
            f"<Contents><Key>{store.spelled(key)}</Key><Size>{len(store.objects[key].body)}</Size>"
            f"<LastModified>{store.objects[key].changed_at:%Y-%m-%dT%H:%M:%S.000Z}</LastModified>"
            f"<ETag>{store.objects[key].etag}</ETag></Contents>"
            for key in page
        )
        more = len(found) > len(page)
        following = f"<NextContinuationToken>{page[-1]}</NextContinuationToken>" if more else ""
        following = following if "list" not in ignored else ""
        cut = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        return f"<ListBucketResult><Name>{NAME}</Name>{cut}{following}{contents}</ListBucketResult>".encode()

    def refuse(self, refusal: Refusal) -> None:
        self.tell(refusal.status, dict(refusal.headers), refusal.body)

    def tell(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.server.store.cut
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None and len(body) > cut:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def _shown(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: headers[name] for name in ("content-type", "content-disposition") if name in headers}


def _xml(root: str, **values: str) -> bytes:
    inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in values.items())
    return f"<{root}><Bucket>{NAME}</Bucket><Key>key</Key>{inner}</{root}>".encode()
