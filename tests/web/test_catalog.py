"""The catalog: what is searched and listed, and how it is kept up."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis import Redis

from app.accept import changes
from app.accept.changes import Notified
from app.core.manifest import format_time
from app.core.names import Kind
from app.valkey.client import connect
from app.web.catalog import Catalog, Filters
from app.web.feed import Feed
from tests.kept import TTL, Deployment
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
