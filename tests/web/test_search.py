"""What a search is taken for, and that every way to answer it finds the same."""

import random
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from app.core.lifecycle import State
from app.core.names import Kind
from app.web import models
from app.web.catalog import Catalog, Filters, match_expression
from app.web.entries import Entry

NOW = datetime(2026, 3, 16, tzinfo=UTC)


@pytest.mark.parametrize(
    ("q", "expression"),
    [
        ("light house", '"light" "house"'),
        ('"light house" sea', '"light house" "sea"'),
        ('say "light house', '"say" "light house"'),
        ("flux-pro", '"flux pro"'),
        ('NEAR(a b) OR -c* col:d "', '"NEAR a" "b" "OR" "c" "col d"'),
        ("ünïcödé 灯台", '"ünïcödé" "灯台"'),
        ('"" \' ; -- \0 *', ""),
    ],
)
def test_words_are_joined_quotes_make_a_phrase_and_all_else_is_text(q: str, expression: str) -> None:
    assert match_expression(q) == expression


def entry(number: int) -> Entry:
    return Entry(
        kind=Kind.TRAINING if number % 7 == 0 else Kind.PREDICTION,
        id=f"p{number}",
        state=State.DISPATCHED,
        status="failed" if number % 5 == 0 else "succeeded",
        source="webhook",
        received_at=NOW - timedelta(milliseconds=number // 3),
        updated_at=NOW,
        stored_at=NOW,
        model=f"owner/m{number % 3}",
        lost=int(number % 11 == 0),
        parent="p0" if number % 13 == 0 else None,
        inputs="a light house" if number % 2 else "a house light \ud800",
        output='half "quoted"',
        told=[models.Told(handler="mail", outcome="dead" if number % 17 == 0 else "delivered", at=NOW)]
        if number % 4
        else [],
    )


def is_wanted(one: Entry, filters: Filters) -> bool:
    return (
        filters.kind in {None, one.kind}
        and filters.status in {None, one.status}
        and filters.model in {None, one.model, "owner/*"}
        and filters.parent in {None, one.parent}
        and (not filters.lost or one.lost > 0)
        and (not filters.untold or any(told.outcome == "dead" for told in one.told))
        and (filters.handler is None or bool(one.told))
        and (filters.q is None or filters.q == "light" or "light house" in one.inputs)
    )


def test_every_way_to_answer_finds_the_same(tmp_path: Path) -> None:
    catalog, entries = Catalog(tmp_path / "catalog.db"), [entry(number) for number in range(1000)]
    connection = catalog.open()
    for one in entries:
        catalog.put(connection, one, 1)
    choices: dict[str, list[Any]] = {
        "kind": [None, Kind.PREDICTION, Kind.TRAINING],
        "status": [None, "failed"],
        "model": [None, "owner/m1", "owner/*"],
        "handler": [None, "mail"],
        "lost": [False, True],
        "untold": [False, True],
        "parent": [None, "p0"],
        "q": [None, "light", '"light house"'],
    }
    every = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
    for chosen in random.Random(1).sample(every, 150):
        filters = Filters(**chosen)
        found: list[str] = []
        before: int | None = None
        while True:
            rows, before = catalog.page(filters, 180, before)
            found += [row["id"] for row in rows]
            if before is None:
                break
        wanted = {one.id for one in entries if is_wanted(one, filters)}
        assert (len(found), set(found)) == (len(wanted), wanted), chosen
    connection.close()
