"""Thumbnails of what strangers made: real pictures, and files that would hurt whoever decodes them."""

import asyncio
import io
import resource
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from redis import Redis
from starlette.requests import Request
from starlette.responses import Response

from app.core import manifest
from app.core.manifest import KeptFile, Receipt
from app.core.names import Kind, object_name, thumb_name
from app.core.outputs import OutputFile
from app.core.prediction import parse
from app.core.secret import SecretStr
from app.simulator.film import mp4
from app.simulator.pictures import animation, png
from app.storage.store import Storage
from app.web.session import Sessions
from app.web.thumbnail import MEMORY, SIDE
from app.web.thumbs import CHILDREN, PLACEHOLDER, Thumbs
from tests.receive.web import Answer, Web, in_thread, prediction, wait_until

TOKEN = "the-token-of-the-admin"
BEARER = {"authorization": f"Bearer {TOKEN}"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def keep(storage: Storage, prediction_id: str, files: Mapping[str, bytes]) -> None:
    """Store files under their names, with a manifest."""
    kept = []
    for number, (name, content) in enumerate(files.items()):
        storage.put_bytes(object_name(Kind.PREDICTION, prediction_id, name), content)
        pointer, digest = f"/output/{number}", sha256(content).hexdigest()
        file = KeptFile(pointer, "http://x/", name, "image/png", len(content), digest)
        kept.append((OutputFile(pointer, ""), file))
    described = parse(prediction(prediction_id, output=["http://x/"] * len(files)), Kind.PREDICTION)
    storage.commit(manifest.build(described, kept, None, Receipt(NOW, "msg"), NOW))


def drawn(mode: str, size: tuple[int, int], kind: str, **how: Any) -> bytes:
    target = io.BytesIO()
    Image.new(mode, size, how.pop("colour", None)).save(target, kind, **how)
    return target.getvalue()


def sideways() -> bytes:
    exif = Image.Exif()
    exif[274] = 6  # turned by 90°, as phones do
    return drawn("RGB", (600, 300), "JPEG", exif=exif)


def bomb() -> bytes:
    """50,000 by 50,000 pixels in some hundred kilobytes."""
    squeezed = zlib.compressobj(9)
    data = b"".join(squeezed.compress(bytes(6251 * 500)) for _ in range(100)) + squeezed.flush()
    parts = {b"IHDR": struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0), b"IDAT": data, b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(each)) + name + each + struct.pack(">I", zlib.crc32(name + each))
        for name, each in parts.items()
    )


PICTURES: dict[str, tuple[Callable[[], bytes], tuple[int, int], str]] = {
    "square.png": (lambda: png("a"), (SIDE, SIDE), "RGB"),
    "animated.png": (lambda: animation("a"), (240, 240), "RGB"),
    "wide.jpg": (lambda: drawn("RGB", (3000, 1000), "JPEG"), (SIDE, SIDE // 3), "RGB"),
    "sideways.jpg": (sideways, (SIDE // 2, SIDE), "RGB"),
    "print.jpg": (lambda: drawn("CMYK", (500, 250), "JPEG"), (SIDE, SIDE // 2), "RGB"),
    "clear.png": (lambda: drawn("RGBA", (20, 10), "PNG", colour=(9, 9, 9, 90)), (20, 10), "RGBA"),
    "deep.png": (lambda: drawn("I;16", (960, 480), "PNG"), (SIDE, SIDE // 2), "RGB"),
    "few.gif": (lambda: drawn("P", (960, 960), "GIF"), (SIDE, SIDE), "RGB"),
    "new.webp": (lambda: drawn("RGB", (64, 64), "WEBP"), (64, 64), "RGB"),
    "newer.avif": (lambda: drawn("RGB", (64, 64), "AVIF"), (64, 64), "RGB"),
    "huge.png": (lambda: drawn("RGB", (6000, 6000), "PNG"), (SIDE, SIDE), "RGB"),
}  # fmt: skip

NONE: dict[str, Callable[[], bytes]] = {
    "bomb.png": bomb,
    "half-a-bomb.png": lambda: bomb()[:100_000],
    "bomb.gif": lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + bytes(6),
    "truncated.png": lambda: png("a")[:9000],
    "truncated.jpg": lambda: drawn("RGB", (3000, 1000), "JPEG")[:2000],
    "page.png": lambda: b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "postscript.png": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "nothing.png": bytes,
    "large.png": lambda: png("a") + bytes(33 << 20),
    "film.mp4": lambda: mp4("a"),
    "drawing.svg": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.fixture(scope="module")
def web(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("thumbs")
    files = {name: make() for name, (make, *_) in PICTURES.items()}
    files |= {name: make() for name, make in NONE.items()}
    with in_thread(valkey_url, folder, OUTKEEP_ADMIN_TOKEN=TOKEN, OUTKEEP_DISK_FLOOR="0") as running:
        keep(Storage((folder / "outputs").as_uri()), "abc", files)
        yield running


def ask(web: Web, name: str, **headers: str) -> Answer:
    return web.ask("GET", f"/thumbs/predictions/abc/{name}", headers={**BEARER, **headers}, timeout=60)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_becomes_a_small_one_that_is_made_once(web: Web, name: str) -> None:
    make, size, mode = PICTURES[name]
    answer = ask(web, name)

    assert (answer.status, answer.headers["content-type"]) == (200, "image/webp")
    with Image.open(io.BytesIO(answer.body)) as shown:
        assert (shown.format, shown.size, shown.mode) == ("WEBP", size, mode)
        assert not shown.getexif()
    digest = sha256(make()).hexdigest()
    kept = web.folder / "thumbs" / thumb_name(Kind.PREDICTION, "abc", digest)
    assert kept.read_bytes() == answer.body
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.write_bytes(b"made before")
    assert ask(web, name).body == b"made before"
    assert ask(web, name, **{"if-none-match": answer.headers["etag"]}).status == 304


@pytest.mark.parametrize("name", NONE)
def test_a_file_that_has_none_costs_a_placeholder_and_one_try(web: Web, name: str) -> None:
    spent, largest = time.process_time(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    answer = ask(web, name)

    assert (answer.status, answer.headers["content-type"]) == (200, "image/svg+xml")
    assert answer.body == PLACEHOLDER
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    mark = web.folder / "thumbs" / thumb_name(Kind.PREDICTION, "abc", sha256(NONE[name]()).hexdigest())
    assert mark.read_bytes() == b""
    mark.write_bytes(b"looked at again")
    assert ask(web, name).body == b"looked at again"
    # Of all children that this process ever had, those of other tests among them.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(largest, MEMORY // 1024)
    assert time.process_time() - spent < 10, "CPU seconds of this process, where the receiver runs"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("predictions/abc/square.png", {}, 401),
        ("predictions/abc/square.png", {"authorization": "Bearer wrong"}, 401),
        ("predictions/abc/square.png?expires=9999999999&signature=x", {}, 401),
        ("predictions/abc/other.png", BEARER, 404),
        ("predictions/abc/prediction.json", BEARER, 404),
        ("predictions/other/square.png", BEARER, 404),
        ("quarantine/abc/square.png", BEARER, 404),
        ("predictions/..%2Fabc/square.png", BEARER, 404),
    ],
)
def test_nobody_else_gets_one_and_nothing_else_is_read(
    web: Web, path: str, headers: dict[str, str], status: int
) -> None:
    assert web.ask("GET", f"/thumbs/{path}", headers=headers).status == status


def thumbs_of(redis: Redis, folder: Path, **bounds: int) -> Thumbs:
    sessions = Sessions(SecretStr(TOKEN), [b"k" * 32], redis, time.time)
    return Thumbs(Storage((folder / "outputs").as_uri()), folder / "thumbs", sessions, 0, **bounds)


async def served(thumbs: Thumbs, prediction_id: str, name: str) -> Response:
    return await thumbs.serve(Request({
        "type": "http", "method": "GET", "headers": [(b"authorization", f"Bearer {TOKEN}".encode())],
        "path_params": {"folder": "predictions", "id": prediction_id, "name": name},
    }))  # fmt: skip


def test_the_folder_is_bounded_and_what_was_shown_longest_ago_goes(redis: Redis, tmp_path: Path) -> None:
    thumbs = thumbs_of(redis, tmp_path, room=4 * 4096)
    names = [f"{number}.png" for number in range(6)]
    keep(thumbs.storage, "abc", {name: png(name, side=8) for name in names})

    async def show() -> None:
        for name in names:
            await served(thumbs, "abc", names[0])
            await served(thumbs, "abc", name)

    asyncio.run(show())
    lying = {path.name for path in (tmp_path / "thumbs").iterdir()}
    kept = [
        name
        for name in names
        if thumb_name(Kind.PREDICTION, "abc", sha256(png(name, side=8)).hexdigest()) in lying
    ]
    assert len(lying) == len(kept) <= 4
    assert {names[0], names[-1]} <= set(kept)


def test_two_are_made_at_a_time_few_wait_and_one_is_made_once(redis: Redis, tmp_path: Path) -> None:
    thumbs = thumbs_of(redis, tmp_path, waiting=2)
    names = [f"{number}.png" for number in range(40)]
    keep(thumbs.storage, "abc", {name: png(name, side=8) for name in names})

    async def all_at_once() -> list[Response]:
        return await asyncio.gather(*(served(thumbs, "abc", name) for name in names))

    answers = asyncio.run(all_at_once())
    later = [answer for answer in answers if answer.headers["cache-control"] == "no-store"]
    assert all(answer.body == PLACEHOLDER for answer in later)
    made = list((tmp_path / "thumbs").iterdir())
    assert CHILDREN + 2 <= len(made) == len(names) - len(later) < len(names)

    async def the_same() -> list[Response]:
        return await asyncio.gather(*(served(thumbs, "abc", names[-1]) for _ in range(20)))

    assert {answer.media_type for answer in asyncio.run(the_same())} == {None}
    assert len(list((tmp_path / "thumbs").iterdir())) == len(made) + 1


def test_nothing_is_kept_of_what_is_removed_while_it_is_made(redis: Redis, tmp_path: Path) -> None:
    thumbs = thumbs_of(redis, tmp_path)
    keep(thumbs.storage, "abc", {"a.png": png("a")})
    asyncio.run(served(thumbs, "abc", "a.png"))
    assert len(list((tmp_path / "thumbs").iterdir())) == 1
    thumbs.forget(Kind.PREDICTION, "ab")
    assert len(list((tmp_path / "thumbs").iterdir())) == 1
    thumbs.forget(Kind.PREDICTION, "abc")
    assert list((tmp_path / "thumbs").iterdir()) == []
    # What begins before the removal and ends after it:
    thumbs.storage.remove([object_name(Kind.PREDICTION, "abc", "a.png")])
    place = tmp_path / "thumbs" / thumb_name(Kind.PREDICTION, "abc", "0" * 64)
    assert thumbs._make(place, Kind.PREDICTION, "abc", "a.png") == b""
    assert list((tmp_path / "thumbs").iterdir()) == []


def test_the_end_of_the_receiver_does_not_wait_for_a_child(redis: Redis, tmp_path: Path) -> None:
    thumbs = thumbs_of(redis, tmp_path)
    keep(thumbs.storage, "abc", {"huge.png": PICTURES["huge.png"][0](), "a.png": png("a")})

    async def end_meanwhile() -> Response:
        showing = asyncio.create_task(served(thumbs, "abc", "huge.png"))
        await asyncio.to_thread(wait_until, lambda: bool(thumbs._running))
        await asyncio.to_thread(thumbs.close)
        return await showing

    assert asyncio.run(end_meanwhile()).headers["cache-control"] == "no-store"
