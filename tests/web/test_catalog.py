"""The catalog: what is searched and listed, and how it is kept up."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis import Redis

from app.accept import changes
from app.accept.changes import Notified
from app.core.manifest import format_time
from app.core.names import CHANGES, Kind
from app.valkey.client import connect
from app.web.catalog import Catalog, Filters
from app.web.feed import LARGE, Feed
from tests.kept import TTL, Deployment
from tests.receive.web import wait_until
from tests.web.api import follow

NOW = datetime(2026, 3, 16, 12, 0, 0, tzinfo=UTC)


class Kept:
    """A deployment with a catalog beside it, and the feed that follows."""

    def __init__(self, redis: Redis, url: str, folder: Path) -> None:
        self.url = url
        self.past = Deployment(redis, folder, NOW, ("gallery", "mail"))
        self.redis = redis
        self.catalog = Catalog(folder / "catalog.db")
        self.feed = self.new_feed()

    def new_feed(self) -> Feed:
        redis = connect(self.url, timeout=5.0)
        return Feed(self.catalog, redis, self.past.storage, self.past.handlers, ttl=TTL, clock=lambda: NOW)

    def follow(self) -> None:
        """Until all that has changed so far is shown."""
        follow(self.catalog, self.redis)

    def ids(self, **filters: object) -> list[str]:
        rows, _ = self.catalog.page(Filters(**filters), 50, None)  # type: ignore[arg-type]
        return [row["id"] for row in rows]


@pytest.fixture
def kept(redis: Redis, valkey_url: str, tmp_path: Path) -> Iterator[Kept]:
    made = Kept(redis, valkey_url, tmp_path)
    yield made
    made.feed.stop()


def test_it_is_built_from_the_storage_and_follows_what_comes(kept: Kept) -> None:
    kept.past.keep("early", ago=60)
    kept.redis.flushall()  # what Redis has forgotten, storage has not
    kept.feed.start()
    kept.follow()
    assert kept.ids() == ["early"]
    kept.past.keep("late", told=False)
    kept.follow()
    assert kept.ids() == ["late", "early"]
    assert kept.ids(untold=True) == ["late"]
    for handler in ("gallery", "mail"):
        changes.note_attempt(
            kept.redis, Kind.PREDICTION, "late", Notified(handler, "delivered", 1, format_time(NOW), None)
        )
    kept.follow()
    assert kept.ids(untold=True) == []


def test_what_was_missed_is_built_anew(kept: Kept) -> None:
    kept.past.keep("stays", ago=60)
    kept.past.keep("goes", ago=50)
    kept.feed.start()
    kept.follow()
    kept.feed.stop()
    kept.past.storage.remove(list(kept.past.storage.names("predictions/goes")))
    kept.past.keep("comes")
    kept.redis.xtrim(CHANGES, maxlen=1, approximate=False)
    kept.feed = kept.new_feed()
    kept.feed.start()
    kept.follow()
    assert kept.ids() == ["comes", "stays"]
    changes.ask_for_rebuild(kept.redis)
    kept.follow()
    assert kept.ids() == ["comes", "stays"]


def test_what_is_no_catalog_of_this_version_is_thrown_away(kept: Kept) -> None:
    kept.past.keep("abc")
    kept.catalog.path.write_bytes(b"no database at all" * 1000)
    kept.feed.start()
    kept.follow()
    assert kept.ids() == ["abc"]
    assert kept.catalog.path.stat().st_mode & 0o077 == 0


def test_one_process_writes_and_the_next_takes_over(kept: Kept) -> None:
    heard: list[changes.Change] = []
    kept.feed.start()
    kept.follow()
    other = kept.new_feed()
    other.listen(heard.extend)
    other.start()
    numbers = itertools.count()

    def is_heard() -> bool:
        kept.past.keep(f"p{next(numbers)}")
        return bool(heard)

    wait_until(is_heard)
    kept.feed.stop()
    kept.past.keep("last")
    kept.follow()
    assert "last" in kept.ids()
    other.stop()


def test_a_manifest_too_large_to_be_parsed_beside_deliveries_is_listed(kept: Kept) -> None:
    document = kept.past.keep("large")
    document.prediction.raw["logs"] = "x" * LARGE
    kept.past.storage.put_bytes("predictions/large/prediction.json", document.to_json())
    kept.feed.start()
    kept.follow()
    [row] = kept.catalog.page(Filters(), 50, None)[0]
    assert (row["id"], row["status"], row["files"], row["bytes"]) == ("large", "succeeded", 1, 4)
