"""Hostile requests drawn from a seed: bytes, headers, signature lists and bodies, genuine ones among them."""

import json
import random
import socket
from contextlib import suppress
from typing import Any

from app.core.names import COG_PATH
from tests.receive.web import WEBHOOK, Web, prediction, signed

GOOD = frozenset({200, 202, 400, 401, 404, 405, 408, 413, 415, 429, 431, 503})
"""The statuses that the contract knows; 503 only while something is away or too much comes at once."""

COG_TOKEN = "a-token-of-cog-workers"
COG_SHARE = 0.2
SETTINGS = {"OUTKEEP_COG_TOKEN": COG_TOKEN, "LOG_LEVEL": "warning"}
"""What the receiver under attack needs."""

_PIECES = [
    b"",
    b" ",
    b"\x00",
    b"\xff\xfe",
    b"\r\n",
    b"\r\n\r\n",
    b":",
    b",",
    b"v1,",
    b"v1a,",
    b"v2,x",
    b"=",
    b"%00",
    b"..",
    b"9" * 30,
    b"-1",
    b"nan",
    b"1e9",
    b"{",
    b"[" * 200,
    b'"',
    b"\\ud800",
    b"null",
    b"A" * 5000,
    "é".encode(),
]
_HEADERS = [
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "content-length",
    "transfer-encoding",
    "host",
    "expect",
    "content-encoding",
    "content-type",
    "connection",
    "upgrade",
    "x-forwarded-for",
    "cookie",
    "te",
    "forwarded",
    "authorization",
]
_VALUES = [
    b"",
    b"chunked",
    b"gzip",
    b"identity",
    b"0",
    b"5",
    b"-1",
    b"100-continue",
    b"close",
    b"upgrade",
    b"h2c",
    b"\xff",
    b"keep-alive",
    b"1, 2",
    b"gzip, chunked",
    b"websocket",
    b"127.0.0.1",
    b"::1",
    b"x" * 300,
    b"\t",
    b"a\x00b",
]
_LINES = [
    b"POST %s HTTP/1.1",
    b"POST %s HTTP/1.0",
    b"POST %s/ HTTP/1.1",
    b"GET %s HTTP/1.1",
    b"PUT %s HTTP/1.1",
    b"POST %s?a=%%ff&a=b&=&&%%00 HTTP/1.1",
    b"POST http://x%s HTTP/1.1",
    b"POST //%s HTTP/1.1",
    b"OPTIONS * HTTP/1.1%.0s",
    b"POST /files/predictions/a/%%2e%%2e%.0s HTTP/1.1",
    b"POST %s/trainings HTTP/1.1",
    b"HEAD /readyz%.0s HTTP/1.1",
]

_ODD: list[Any] = [
    None,
    [],
    {},
    "x" * 99,
    -1,
    1e308,
    True,
    "2026-02-30T00:00:00Z",
    "9999-12-31T23:59:59-23:59",
]


def attack(web: Web, seed: int) -> int:
    """Send one request; the status of the answer, 0 when the connection was closed without one."""
    draw = random.Random(seed)
    with socket.create_connection(("127.0.0.1", web.port), timeout=20) as connection:
        try:
            connection.sendall(_request(draw))
            # Nothing more comes: what is cut short is answered as such, without waiting for a deadline.
            connection.shutdown(socket.SHUT_WR)
        except TimeoutError:
            raise
        except OSError:
            pass  # it was closed before all was sent; on which step that shows is chance
        answer = b""
        with suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                answer += piece
    while answer.startswith(b"HTTP/1.1 100 "):
        answer = answer.partition(b"\r\n\r\n")[2]
    return int(answer.split(b" ", 2)[1]) if answer else 0


def crowd(web: Web, seed: int, count: int) -> list[socket.socket]:
    """Connections that ask for nothing, and such that promise a large body and send a little of it."""
    draw, held = random.Random(seed), list[socket.socket]()
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", web.port), timeout=20)
        held.append(connection)
        begun = f"POST {draw.choice([WEBHOOK, '/nowhere'])} HTTP/1.1\r\nhost: x\r\n".encode()
        promise = draw.choice([b"content-length: 33554432", b"transfer-encoding: chunked"])
        some = b"x" * draw.choice([1, 1000, 100_000]) if promise[:1] == b"c" else b"1\r\nx\r\n" * 1000
        with suppress(OSError):  # it was closed meanwhile, in favour of others
            connection.sendall(draw.choice([b"", begun, begun + promise + b"\r\n\r\n" + some]))
    return held


def _request(draw: random.Random) -> bytes:
    body = _body(draw)
    if draw.random() < COG_SHARE:
        path, proof = COG_PATH, {"authorization": f"Bearer {COG_TOKEN}"}
    else:
        path, proof = WEBHOOK, signed(body, webhook_id=f"m{draw.getrandbits(60)}")
    headers = [(name, value.encode()) for name, value in proof.items()]
    headers += [("host", b"x"), ("content-length", b"%d" % len(body))]
    if draw.random() < 0.1:
        headers += [("connection", b"upgrade"), ("upgrade", draw.choice([b"h2c", b"websocket", b"x"]))]
    for _ in range(draw.choice([0, 0, 0, 1, 2, 5])):
        _spoil(draw, headers)
    line = draw.choice(_LINES if draw.random() < 0.3 else _LINES[:1]) % path.encode()
    lines = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in headers)
    raw = line + b"\r\n" + lines + b"\r\n" + body
    return _mutated(draw, raw) if draw.random() < 0.3 else raw


def _body(draw: random.Random) -> bytes:
    body = prediction(f"f{draw.getrandbits(60)}", logs="x" * draw.choice([0, 10, 70_000]))
    kind = draw.random()
    if kind < 0.02:
        return _large(draw)
    if kind < 0.3:
        return body
    if kind < 0.4:
        return draw.randbytes(draw.randrange(200))
    if kind < 0.6:
        keys = draw.sample(["id", "status", "output", "completed_at", "input", "logs"], draw.randrange(1, 5))
        return json.dumps(json.loads(body) | {key: draw.choice(_ODD) for key in keys}).encode()
    return _mutated(draw, body)


def _large(draw: random.Random) -> bytes:
    """What is long in one way: keys, fields of records, texts full of URLs, or no JSON at all."""
    size, url = draw.choice([70_000, 300_000, 1_500_000]), "https://replicate.delivery/a"
    identity = f"l{draw.getrandbits(60)}"
    shapes: list[dict[str, Any]] = [
        {"output": {"k" * (size // 2): [url] * (size // 60)}},
        {"model": "m" * size, "version": "v" * size},
        {"model": "m" * size, "status": "processing", "logs": "x" * size},
        {"output": "see " + f"{url})=" * (size // 30)},
        {"input": {"a" * size: "b" * size}, "metrics": {"c" * size: 1}},
        {"output": [[[{}]]] * (size // 10)},
    ]
    unusable = [
        b"\xff" * size,
        b"{" * size,
        b'{"id":"' + b"a" * size + b'","status":"succeeded"}',
        b"[]" + b" " * size,
    ]
    if draw.random() < 0.3:
        return draw.choice(unusable)
    return prediction(identity, **draw.choice(shapes))


def _spoil(draw: random.Random, headers: list[tuple[str, bytes]]) -> None:
    place = draw.randrange(len(headers) + 1)
    if draw.random() < 0.5 and place < len(headers):
        name, value = headers[place]
        headers[place] = (
            name,
            draw.choice([b"", value + value, value[:-1], value + b"\xff", draw.choice(_VALUES)]),
        )
    elif draw.random() < 0.2:
        headers.insert(
            place, ("webhook-signature", b" ".join([draw.choice(_PIECES)] * draw.choice([1, 40, 3000])))
        )
    else:
        headers.insert(place, (draw.choice(_HEADERS), draw.choice(_VALUES)))


def _mutated(draw: random.Random, raw: bytes) -> bytes:
    for _ in range(draw.randrange(1, 6)):
        place = draw.randrange(len(raw) + 1)
        cut = place + draw.choice([0, 0, 1, 1, 10, 500])
        raw = raw[:place] + draw.choice([draw.choice(_PIECES), draw.randbytes(3)]) + raw[cut:]
    return raw
