"""The file host and the files it is given."""

import hashlib
import io
import tarfile
import time
import wave
import zipfile
from collections.abc import Callable
from urllib.parse import unquote

import httpx
import pytest
from PIL import Image
from replicate.client import Client

from app.core.errors import Rejected
from app.core.media import extension, media_type
from app.core.names import Kind
from app.simulator import Simulator
from app.simulator.film import mp4
from app.simulator.models import tar_archive, zip_archive
from app.simulator.music import samples, wav
from app.simulator.pictures import animation, png, waveform

CONTENT = bytes(range(256)) * 4


def test_a_file_carries_the_recorded_headers(simulator: Simulator, http: httpx.Client) -> None:
    answer = http.get(simulator.add_file("out-0.png", CONTENT))
    assert answer.content == CONTENT
    assert answer.headers["content-length"] == "1024"
    assert answer.headers["etag"] == f'"{hashlib.md5(CONTENT).hexdigest()}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["cache-control"] == "public,max-age=3600"
    assert answer.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=1000-", 1000, 1023),
        ("bytes=-24", 1000, 1023),
        ("bytes=-9999", 0, 1023),
        ("bytes=1000-9999", 1000, 1023),
    ],
)
def test_a_range_is_answered_with_206(
    asked: str, first: int, last: int, simulator: Simulator, http: httpx.Client
) -> None:
    answer = http.get(simulator.add_file("a.bin", CONTENT), headers={"range": asked})
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {first}-{last}/1024"
    assert answer.content == CONTENT[first : last + 1]


@pytest.mark.parametrize("asked", ["bytes=-", "bytes=5-4", "bytes=0-1,3-4", "lines=0-1", "bytes=a-b"])
def test_a_range_that_is_none_gets_the_whole(asked: str, simulator: Simulator, http: httpx.Client) -> None:
    answer = http.get(simulator.add_file("a.bin", CONTENT), headers={"range": asked})
    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=5000-6000", "bytes=-0"])
def test_a_range_outside_is_416(asked: str, simulator: Simulator, http: httpx.Client) -> None:
    assert http.get(simulator.add_file("a.bin", CONTENT), headers={"range": asked}).status_code == 416


@pytest.mark.parametrize("name", ["a (1) ~ é.png", "no-extension", "100%.png", "a/b.png", "a?b#c", "%2F"])
def test_odd_names_are_found_again(name: str, simulator: Simulator, http: httpx.Client) -> None:
    url = simulator.add_file(name, CONTENT)
    assert unquote(url).endswith(f"/{name}")
    assert http.get(url).content == CONTENT


def test_downloads_are_counted_and_removed_files_are_gone(simulator: Simulator, http: httpx.Client) -> None:
    url = simulator.add_file("a.bin", CONTENT, content_type="application/x-odd")
    assert http.head(url).headers["content-type"] == "application/x-odd"
    assert simulator.downloads(url) == 0
    http.get(url)
    assert simulator.downloads(url) == 1
    simulator.remove_file(url)
    assert http.get(url).status_code == 404
    with pytest.raises(Rejected):
        simulator.downloads(url)


def test_data_goes_when_the_hour_is_over(client: Client, simulator: Simulator, http: httpx.Client) -> None:
    prediction = client.predictions.create(model="outkeep/files", input={"prompt": "secret"})
    prediction.wait()
    urls = [item["file"] for item in prediction.output or []]
    assert [http.get(url).status_code for url in urls] == [200, 200]
    simulator.remove_data(Kind.PREDICTION, prediction.id)
    prediction.reload()
    assert (prediction.status, prediction.input, prediction.output) == ("succeeded", {}, None)
    assert simulator.object(Kind.PREDICTION, prediction.id)["data_removed"] is True
    assert [http.get(url).status_code for url in urls] == [404, 404]


def test_the_hour_is_a_parameter() -> None:
    with Simulator(keep=0.0) as own, httpx.Client(base_url=own.url, timeout=60) as plain:
        url = own.add_file("a.bin", b"x")
        own.finish(
            Kind.PREDICTION,
            {"id": "a", "status": "succeeded", "created_at": "2026-01-01T00:00:00Z", "output": {"x": [url]}},
        )
        while not own.object(Kind.PREDICTION, "a").get("data_removed"):
            pass
        assert plain.get(url).status_code == 404


MADE: dict[str, tuple[Callable[[str], bytes], str]] = {
    "picture": (png, "image/png"),
    "animation": (animation, "image/png"),
    "waveform": (lambda text: waveform(samples(text), text), "image/png"),
    "music": (lambda text: wav(samples(text)), "audio/wav"),
    "film": (mp4, "video/mp4"),
}


@pytest.mark.parametrize("name", MADE)
def test_the_same_words_make_the_same_small_file_of_its_type(name: str) -> None:
    make, kind = MADE[name]
    spent = time.thread_time()
    files = [make(f"a river at night {number}") for number in range(8)]
    assert time.thread_time() - spent < 8 * 0.4, (
        "CPU seconds; a fourth of it on a machine with nothing else to do"
    )
    assert len(set(files)) == len(files)
    getattr(make, "cache_clear", lambda: None)()
    assert make("a river at night 0") == files[0]
    for content in files:
        assert len(content) < 200_000
        assert media_type(extension(content)) == kind


@pytest.mark.parametrize(("content", "size", "frames"), [
    (png("a"), (512, 512), 1),
    (png("a", side=16), (16, 16), 1),
    (animation("a"), (240, 240), 16),
    (waveform(samples("a"), "a"), (640, 160), 1),
])  # fmt: skip
def test_a_picture_opens_whole(content: bytes, size: tuple[int, int], frames: int) -> None:
    with Image.open(io.BytesIO(content)) as picture:
        assert (picture.size, getattr(picture, "n_frames", 1)) == (size, frames)
        for number in range(frames):
            picture.seek(number)
            picture.load()  # checks every checksum


def test_a_sound_can_be_opened() -> None:
    with wave.open(io.BytesIO(wav(samples("a", seconds=0.5)))) as sound:
        assert (sound.getnchannels(), sound.getframerate(), sound.getnframes()) == (1, 11025, 5512)


def test_archives_can_be_opened() -> None:
    files = {"a.txt": b"a", "b.bin": b"\0" * 2000}
    with zipfile.ZipFile(io.BytesIO(zip_archive(files))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files
    with tarfile.open(fileobj=io.BytesIO(tar_archive(files))) as tar:
        assert [(member.name, member.size) for member in tar] == [("a.txt", 1), ("b.bin", 2000)]
