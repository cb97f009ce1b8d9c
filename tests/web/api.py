"""A receiver with an admin token beside a deployment whose predictions have ended."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from redis import Redis

from app.accept import changes
from app.web.catalog import Catalog
from tests.kept import Deployment
from tests.receive.web import Answer, Web, in_thread, wait_until

TOKEN = "a token for the API, of some length"
AUTHORIZED = {"authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True)
class Api:
    """What asks, and what there is."""

    web: Web
    past: Deployment
    redis: Redis

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One authorised request below `/api/v1`."""
        given = {**AUTHORIZED, **(headers or {})}
        data = None
        if body is not None:
            data, given = json.dumps(body).encode(), {"content-type": "application/json", **given}
        return self.web.ask(method, f"/api/v1{path}", data, given)

    def get(self, path: str) -> Any:
        """The answer to a question that has one."""
        answer = self.ask("GET", path)
        assert answer.status == 200, answer
        return answer.json()

    def ids(self, query: str = "") -> list[str]:
        """What a list of predictions shows."""
        return [one["id"] for one in self.get(f"/predictions?{query}")["results"]]

    def follow(self) -> None:
        """Until the catalog shows all that has changed so far."""
        follow(Catalog(self.web.folder / "catalog.db"), self.redis)


def follow(catalog: Catalog, redis: Redis) -> None:
    """Until a catalog shows all that has changed so far."""
    last = changes.newest(redis)

    def is_there() -> bool:
        with catalog.reading() as connection:
            position = catalog.fact(connection, "position")
            is_built = catalog.fact(connection, "building") is None
        return is_built and position is not None and _order(position) >= _order(last)

    wait_until(is_there)


def _order(position: str) -> tuple[int, ...]:
    return tuple(map(int, position.split("-")))


@contextmanager
def serving(redis: Redis, url: str, folder: Path, **more: str | None) -> Iterator[Api]:
    """Run it for the length of the block; its handlers are `gallery` and `mail`."""
    past = Deployment(redis, folder, datetime.now(UTC), ("gallery", "mail"))
    settings = {"OUTKEEP_ADMIN_TOKEN": TOKEN, "OUTKEEP_HANDLERS": str(folder / "handlers.toml"), **more}
    with in_thread(url, folder, **settings) as web:
        yield Api(web, past, redis)
