"""Albums: what a link shows to whoever has it, for how long, and what it never shows."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.core.manifest import KeptFile
from app.core.names import Kind, manifest_name
from app.maintain.albums import Albums
from app.maintain.removal import Removal
from app.web.signing import album_url
from tests.cli.test_cli import complaints, outkeep
from tests.receive.web import SECRET_KEY, Answer, environment
from tests.web.api import AUTHORIZED, Api, serving

OTHER_KEY = "f" * 32
OURS = {**AUTHORIZED, "content-type": "application/x-www-form-urlencoded"}


@pytest.fixture
def api(redis: Redis, valkey_url: str, tmp_path: Path) -> Iterator[Api]:
    with serving(redis, valkey_url, tmp_path) as running:
        for number in range(3):
            running.past.keep(f"p{number}")
        running.follow()
        yield running


def made(api: Api, **body: Any) -> dict[str, Any]:
    answer = api.ask("POST", "/albums", {"predictions": ["p1", "p0"], **body})
    assert answer.status == 201, answer
    found: dict[str, Any] = answer.json()
    return found


def visit(api: Api, url: str) -> Answer:
    """As somebody without an account here."""
    return api.web.ask("GET", url[url.index("/album/") :])


def files(answer: Answer) -> list[str]:
    found = re.findall(r'<img src="([^"]+)"', answer.body.decode())
    return [path.replace("&amp;", "&") for path in found if path.startswith("/files/")]


def test_an_album_shows_its_outputs_in_their_order_and_nothing_else(api: Api) -> None:
    stored = api.past.keep("p1")
    given = KeptFile("/input/image", "http://x/1.png", "input-image-0.png", "image/png", 4, "cd" * 32)
    with_input = replace(stored, files=(*stored.files, given))
    api.past.storage.put_bytes(manifest_name(Kind.PREDICTION, "p1"), with_input.to_json())
    answer = visit(api, made(api)["url"])
    text = answer.body.decode()

    assert answer.status == 200
    assert [path.split("/")[3] for path in files(answer)] == ["p1", "p0"]
    assert api.web.ask("GET", files(answer)[0]).body == b"\x89PNG"
    for hidden in ("secret of", "owner/model", "p2", '"/predictions', "gallery", "order", "input-image"):
        assert hidden not in text, hidden
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert "<script" not in text
    assert '<meta name="robots" content="noindex">' in text
    shown = visit(api, made(api, prompts=True)["url"]).body.decode()
    assert "secret of p0" in shown


def test_links_in_an_album_are_soon_over(api: Api) -> None:
    expires = [int(re.findall(r"expires=(\d+)", path)[0]) for path in files(visit(api, made(api)["url"]))]
    left = [each - datetime.now(UTC).timestamp() for each in expires]
    assert all(3000 < seconds <= 7200 for seconds in left)


def test_it_ends_when_it_is_revoked_or_over_and_with_another_key(api: Api, redis: Redis) -> None:
    first, second = made(api), made(api, days=1)
    now = datetime.now(UTC)
    assert 0 < redis.ttl(f"outkeep:album:{second['id']}") <= 86400
    assert [one["id"] for one in api.get("/albums")["results"]] == [second["id"], first["id"]]
    left = api.ask("DELETE", f"/albums/{first['id']}")
    assert [one["id"] for one in left.json()["results"]] == [second["id"]]
    assert api.ask("DELETE", f"/albums/{first['id']}").status == 404
    over = album_url("", [SECRET_KEY.encode()], second["id"], until=now - timedelta(seconds=1), prompts=False)
    foreign = album_url("", [OTHER_KEY.encode()], second["id"], until=now + timedelta(days=1), prompts=True)
    for url in (first["url"], over, foreign, "/album/x", "/album/", f"{second['url']}x"):
        answer = visit(api, url)
        assert answer.status == 404, url
        assert not files(answer)
    assert len(files(visit(api, second["url"]))) == 2


def test_what_is_removed_leaves_all_albums(api: Api, redis: Redis) -> None:
    both, one = made(api), made(api, predictions=["p0"])
    removal = Removal(redis, api.past.storage, ttl=60, clock=lambda: datetime.now(UTC))
    removal.remove(removal.search(Kind.PREDICTION, "p0"))

    assert [path.split("/")[3] for path in files(visit(api, both["url"]))] == ["p1"]
    assert visit(api, one["url"]).status == 404
    assert Albums(redis).members(both["id"]) == [(Kind.PREDICTION, "p1")]
    assert Albums(redis).members(one["id"]) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"predictions": []}, 409),
        ({"predictions": ["../x"]}, 400),
        ({"days": 0}, 400),
        ({"days": 366}, 400),
        ({"predictions": ["p"] * 201}, 400),
        ({"predictions": [f"p{n}" for n in range(150)], "trainings": [f"t{n}" for n in range(150)]}, 409),
    ],
)
def test_an_album_that_cannot_be_is_refused(api: Api, body: dict[str, Any], status: int) -> None:
    assert api.ask("POST", "/albums", {"predictions": ["p0"], **body}).status == status


def test_it_is_made_and_taken_back_on_a_page(api: Api) -> None:
    chosen = "ref=predictions/p0&ref=predictions/p2"
    ask = api.web.ask("POST", "/albums", chosen.encode(), OURS)
    assert b"Share 2 predictions" in ask.body
    done = api.web.ask("POST", "/albums", f"{chosen}&sure=yes&days=30&prompts=true".encode(), OURS)
    url = re.findall(r"http://127\.0\.0\.1:\d+(/album/[^\"<\s]+)", done.body.decode())[0]
    assert b"secret of p2" in visit(api, url).body
    [album] = api.get("/albums")["results"]
    assert api.web.ask("GET", "/albums", headers=AUTHORIZED).body.count(album["id"].encode()) >= 2
    assert api.web.ask("POST", f"/albums/{album['id']}/revoke", b"", OURS).status == 303
    assert visit(api, url).status == 404
    for path in ("/albums", f"/albums/{album['id']}/revoke"):
        assert api.web.ask("POST", path, b"").status == 401
    for wrong in (
        b"",
        b"ref=quarantine/x",
        b"ref=predictions/..%2Fx",
        chosen.encode() + b"&sure=yes&days=999",
    ):
        assert api.web.ask("POST", "/albums", wrong, OURS).status == 400, wrong


def test_it_is_made_listed_and_revoked_by_a_command(api: Api, valkey_url: str) -> None:
    settings = environment(valkey_url, api.past.folder)
    link = outkeep("album", "p0", "p2", "--prompts", settings=settings)
    assert b"secret of p2" in visit(api, link.stdout.strip()).body
    assert "--revoke" in link.stderr
    listed = json.loads(outkeep("album", "--json", settings=settings).stdout)
    assert listed["count"] == 2
    assert outkeep("album", "--revoke", listed["id"], settings=settings).returncode == 0
    assert visit(api, link.stdout.strip()).status == 404
    assert outkeep("album", settings=settings).stdout == ""
    assert complaints(outkeep("album", "p0", "none", settings=settings), 1) == ["nothing is stored of none"]
    assert complaints(outkeep("album", "--revoke", "none", settings=settings), 1) == ["no album none is open"]
