"""The catalog: SQLite with full text over what is stored, derived from storage and never a ledger.

One process of a host writes it (`app.web.feed`), every process reads. The key of a row holds when it was
received, so that every list, and every search, is read in its order and stops where the page is full.
"""

import hashlib
import json
import os
import re
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.accept.changes import Notified
from app.core.errors import Transient
from app.core.lifecycle import State
from app.core.names import Kind
from app.web import models
from app.web.entries import SHOWN, Entry, is_untold, notified

VERSION = 3
"""Of the tables below: another one is built anew."""

COUNTED = 10_000
"""Rows that are counted to find out what leaves fewest to look at."""

LOOK = 5
"""How much longer it takes to look for words in one row than to look at a row that has them."""

SHOWN_AT_ONCE = 50

_SHIFT = 4096
"""Rows of one millisecond that keep apart."""

_TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
  key INTEGER PRIMARY KEY, kind TEXT NOT NULL, id TEXT NOT NULL, state TEXT NOT NULL, status TEXT NOT NULL,
  model TEXT, version TEXT, source TEXT NOT NULL, parent TEXT,
  received_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, created_at INTEGER, completed_at INTEGER,
  stored_at INTEGER, told_at INTEGER,
  files INTEGER NOT NULL, bytes INTEGER NOT NULL, lost INTEGER NOT NULL, untold INTEGER NOT NULL,
  picture TEXT, picture_type TEXT, prompt TEXT, text TEXT, error TEXT, predict_seconds REAL,
  told TEXT NOT NULL, digest TEXT NOT NULL, round INTEGER NOT NULL,
  UNIQUE (kind, id)
);
CREATE INDEX by_kind ON entries (kind, key);
CREATE INDEX by_state ON entries (state, key);
CREATE INDEX by_status ON entries (status, key);
CREATE INDEX by_model ON entries (model, key);
CREATE INDEX by_parent ON entries (parent, key) WHERE parent IS NOT NULL;
CREATE INDEX by_loss ON entries (key) WHERE lost > 0;
CREATE INDEX by_untold ON entries (key) WHERE untold > 0;
CREATE INDEX unstored ON entries (updated_at) WHERE stored_at IS NULL;
CREATE INDEX summed ON entries (
  received_at, model, status, lost, untold, files, bytes, predict_seconds, completed_at, stored_at, told_at
);
CREATE TABLE tells (
  handler TEXT NOT NULL, key INTEGER NOT NULL, outcome TEXT NOT NULL, at INTEGER, PRIMARY KEY (handler, key)
) WITHOUT ROWID;
CREATE INDEX tells_of ON tells (key);
CREATE INDEX latest ON tells (handler, at);
CREATE VIRTUAL TABLE words USING fts5 (
  names, inputs, output, error, tokenize = "unicode61 remove_diacritics 2"
);
"""


@dataclass(frozen=True)
class Filters:
    """What a list is narrowed to; None and False: not by that."""

    kind: Kind | None = None
    q: str | None = None
    status: str | None = None
    state: State | None = None
    model: str | None = None
    handler: str | None = None
    lost: bool = False
    untold: bool = False
    parent: str | None = None
    since: datetime | None = None
    until: datetime | None = None


_Ref = tuple[Kind, str]


class Catalog:
    """The file at `path`. Reads may come from any thread; writes come from one process, in one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._here = threading.local()

    # Writing

    def open(self) -> sqlite3.Connection:
        """A connection for writing, to tables of this version; makes them. Raises `sqlite3.Error`, `OSError`.

        What is no database, or has other tables, is thrown away.
        """
        try:
            connection = self._connect()
            if connection.execute("PRAGMA user_version").fetchone()[0] == VERSION:
                connection.execute("SELECT count(*) FROM facts").fetchone()
                return connection
            connection.close()
        except sqlite3.DatabaseError:
            pass
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        connection = self._connect()
        connection.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
        if sqlite3.sqlite_version_info >= _FORGETS_AT_ONCE:
            connection.execute("INSERT INTO words (words, rank) VALUES ('secure-delete', 1)")
        return connection

    def _connect(self) -> sqlite3.Connection:
        descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600)  # prompts are in it
        os.close(descriptor)
        connection = sqlite3.connect(self.path, timeout=5.0, isolation_level=None, check_same_thread=False)
        connection.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA secure_delete = ON;"
            "PRAGMA cache_size = -8000; PRAGMA journal_size_limit = 4194304;"
        )
        return connection

    @staticmethod
    def fact(connection: sqlite3.Connection, name: str) -> str | None:
        """What is remembered under a name."""
        row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    @staticmethod
    def note(connection: sqlite3.Connection, name: str, value: object) -> None:
        """Remember something."""
        connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, str(value)))

    @staticmethod
    def put(connection: sqlite3.Connection, entry: Entry, round_: int) -> None:
        """Write a row; what is searched is written only when it has changed."""
        known = connection.execute(
            "SELECT key, digest, received_at, told FROM entries WHERE kind = ? AND id = ?", entry.ref
        ).fetchone()
        received, digest = _ms(entry.received_at) or 0, ""
        searched = (
            f"{entry.id} {entry.model or ''}",
            entry.inputs,
            entry.output,
            (entry.error or "")[:10_000],
        )
        if entry.stored_at is not None or entry.error is not None:
            digest = hashlib.sha256("\0".join(searched).encode(errors="replace")).hexdigest()[:32]
        elif known:
            received = known[2]  # what runs keeps its place, however often it is heard of
        if known:
            entry = replace(entry, told=_merged(entry.told, known[3]))
        key: int
        if known and known[2] == received:
            key = known[0]
            if known[1] not in {digest, ""}:
                connection.execute("DELETE FROM words WHERE rowid = ?", (key,))
        else:
            if known:
                _drop(connection, known[0])
            key = _free_key(connection, received)
        told = [one.model_dump(mode="json") for one in entry.told]
        told_at = [one.at for one in entry.told if one.outcome == "delivered" and one.at]
        values = (
            key, entry.kind, entry.id, entry.state, entry.status, entry.model, entry.version, entry.source,
            entry.parent, received, _ms(entry.updated_at), _ms(entry.created_at), _ms(entry.completed_at),
            _ms(entry.stored_at), _ms(max(told_at, default=None)), entry.files, entry.bytes, entry.lost,
            sum(map(is_untold, entry.told)), entry.picture, entry.picture_type, _cut(entry.prompt),
            _cut(entry.output), _cut(entry.error), entry.predict_seconds, json.dumps(told), digest, round_,
        )  # fmt: skip
        marks = ",".join("?" * len(values))
        connection.execute(f"INSERT OR REPLACE INTO entries VALUES ({marks})", values)  # noqa: S608
        if digest and (not known or key != known[0] or known[1] != digest):
            connection.execute("INSERT INTO words (rowid, names, inputs, output, error) VALUES (?,?,?,?,?)",
                               (key, *map(_clean, searched)))  # fmt: skip
        _put_tells(connection, key, entry.told)

    @staticmethod
    def tell(connection: sqlite3.Connection, ref: _Ref, news: Iterable[Notified]) -> bool:
        """Note attempts to tell handlers of a row; whether there is one."""
        row = connection.execute("SELECT key, told FROM entries WHERE kind = ? AND id = ?", ref).fetchone()
        if row is None:
            return False
        told = [models.Told(**one) for one in json.loads(row[1])]
        for one in news:
            told = notified(told, one)
        told_at = [one.at for one in told if one.outcome == "delivered" and one.at]
        connection.execute(
            "UPDATE entries SET told = ?, untold = ?, told_at = ? WHERE key = ?",
            (
                json.dumps([one.model_dump(mode="json") for one in told]),
                sum(map(is_untold, told)), _ms(max(told_at, default=None)), row[0],
            ),
        )  # fmt: skip
        _put_tells(connection, row[0], told)
        return True

    @staticmethod
    def drop(connection: sqlite3.Connection, refs: Collection[_Ref]) -> int:
        """Remove rows with their text; how many there were."""
        dropped = 0
        for ref in refs:
            row = connection.execute("SELECT key FROM entries WHERE kind = ? AND id = ?", ref).fetchone()
            if row is not None:
                _drop(connection, row[0])
                dropped += 1
        return dropped

    @staticmethod
    def forget(connection: sqlite3.Connection) -> None:
        """Let nothing of what was dropped be left in the file, after the transaction that dropped it."""
        if sqlite3.sqlite_version_info < _FORGETS_AT_ONCE:
            connection.execute(
                "INSERT INTO words (words) VALUES ('optimize')"
            )  # what was deleted stays till then
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # Reading

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection of this thread. Raises `Transient` (`catalog_unavailable`)."""
        try:
            inode = self.path.stat().st_ino
            known = getattr(self._here, "connection", None)
            if known is None or known[0] != inode:
                connection = sqlite3.connect(self.path, timeout=2.0, isolation_level=None)
                connection.executescript("PRAGMA query_only = ON; PRAGMA cache_size = -4000;")
                known = self._here.connection = (inode, connection)
            if known[1].execute("PRAGMA user_version").fetchone()[0] != VERSION:
                raise sqlite3.OperationalError("tables of another version")
            yield known[1]
        except (sqlite3.Error, FileNotFoundError) as error:
            self._here.connection = None
            reason = f"the catalog cannot be read ({type(error).__name__}); it is built by the receiver"
            raise Transient("catalog_unavailable", reason, retry_after=2) from error

    def page(
        self, filters: Filters, limit: int, before: int | None
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Rows, the newest first, below the key `before`; and the key below which the next page begins."""
        with self.reading() as connection:
            sql, values = _query(connection, filters, before)
            cursor = connection.execute(f"{sql} LIMIT ?", (*values, limit + 1))
            names = [column[0] for column in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor]
        return rows[:limit], rows[limit - 1]["key"] if len(rows) > limit else None

    def refs(self, filters: Filters) -> list[_Ref]:
        """All that a list would show, the oldest first."""
        with self.reading() as connection:
            sql, values = _query(connection, filters, None)
            return [(Kind(row[1]), row[2]) for row in connection.execute(sql, values)][::-1]

    def rows(self, refs: Iterable[_Ref]) -> dict[_Ref, dict[str, Any]]:
        """What there is of these."""
        found = {}
        with self.reading() as connection:
            for ref in refs:
                cursor = connection.execute("SELECT * FROM entries WHERE kind = ? AND id = ?", ref)
                row = cursor.fetchone()
                if row is not None:
                    names = [column[0] for column in cursor.description]
                    found[ref] = dict(zip(names, row, strict=True))
        return found

    def models(self) -> list[str]:
        """The names of all models, in order."""
        with self.reading() as connection:
            return [row[0] for row in connection.execute(_MODELS)]

    def results(self, handler: str, limit: int, since: datetime) -> tuple[list[dict[str, Any]], int]:
        """The latest results of a handler, and how many it was told since then."""
        with self.reading() as connection:
            rows = connection.execute(
                "SELECT e.kind, e.id, e.told FROM tells t JOIN entries e ON e.key = t.key"
                " WHERE t.handler = ? AND t.at IS NOT NULL ORDER BY t.at DESC LIMIT ?",
                (handler, limit),
            ).fetchall()
            told = connection.execute(
                "SELECT count(*) FROM tells WHERE handler = ? AND at >= ? AND outcome = 'delivered'",
                (handler, _ms(since)),
            ).fetchone()[0]
        found = [
            {"kind": kind, "id": identity, "told": one}
            for kind, identity, text in rows
            for one in json.loads(text)
            if one["handler"] == handler
        ]
        return found, told

    def sums(self, since: datetime, by: str) -> list[dict[str, Any]]:
        """The sums of each group since then, the largest first; that of all of them has no `key` at all."""
        group = {"model": "model", "day": "strftime('%Y-%m-%d', received_at / 1000, 'unixepoch')"}[by]
        low = _ms(since)
        with self.reading() as connection:
            found = []
            for sql, grouped in ((group, True), ("NULL", False)):
                cursor = connection.execute(_SUMS.format(group=sql), {"low": low})
                names = [column[0] for column in cursor.description]
                rows = [dict(zip(names, row, strict=True)) for row in cursor]
                waits = {
                    wait: {key: (p50, p95) for key, p50, p95 in
                           connection.execute(_WAITS[wait].format(group=sql), {"low": low})}
                    for wait in _WAITS
                }  # fmt: skip
                for row in rows:
                    row["waits"] = {wait: waits[wait].get(row["key"], (None, None)) for wait in waits}
                    row["total"] = not grouped
                found += rows
        return found

    def state(self) -> tuple[str, int, int]:
        """`ready`, `building` or `waiting`; how many the building has read; how many rows there are."""
        with self.reading() as connection:
            building = self.fact(connection, "building")
            entries = connection.execute("SELECT count(*) FROM entries").fetchone()[0]
            if building is None:
                return ("ready" if self.fact(connection, "position") else "waiting"), entries, entries
            return "building", int(building), entries


_FORGETS_AT_ONCE = (3, 42)
"""From this version of SQLite full text can be told to leave nothing of what is deleted."""

_MODELS = """
WITH RECURSIVE names (model) AS (
  SELECT min(model) FROM entries UNION ALL
  SELECT (SELECT min(model) FROM entries WHERE model > names.model) FROM names WHERE names.model IS NOT NULL
) SELECT model FROM names WHERE model IS NOT NULL
"""

_SUMS = """
SELECT {group} AS key, count(*) AS count, sum(status = 'succeeded') AS succeeded,
  sum(status NOT IN ('succeeded', 'starting', 'processing')) AS failed, sum(lost) AS lost,
  sum(untold > 0) AS untold, sum(files) AS files, sum(bytes) AS bytes,
  total(predict_seconds) AS predict_seconds
FROM entries INDEXED BY summed WHERE received_at >= :low GROUP BY 1 ORDER BY 2 DESC
"""

_WAIT = """
WITH waits AS (
  SELECT {{group}} AS key, ({later} - {earlier}) / 1000.0 AS wait FROM entries INDEXED BY summed
  WHERE received_at >= :low AND {later} >= {earlier}
), ranked AS (
  SELECT key, wait, row_number() OVER (PARTITION BY key ORDER BY wait) AS rank,
    count(*) OVER (PARTITION BY key) AS count FROM waits
)
SELECT key, max(CASE WHEN rank = (count + 1) / 2 THEN wait END),
  max(CASE WHEN rank = (count * 95 + 99) / 100 THEN wait END)
FROM ranked GROUP BY key
"""
_WAITS = {
    "completed_to_stored": _WAIT.format(later="stored_at", earlier="completed_at"),
    "stored_to_told": _WAIT.format(later="told_at", earlier="stored_at"),
}


def match_expression(q: str) -> str:
    """What FTS5 takes for a search: words joined by *and*, quotes make a phrase, all else is text.

    Empty when nothing in it can be searched for.
    """
    terms = []
    for phrase, word in _TERMS.findall(q):
        text = re.sub(r"[^\w]+", " ", phrase or word).strip()
        if text:
            # A word such as `flux-pro` is two to the tokenizer: then they stand side by side.
            terms.append(f'"{text}"')
    return " ".join(terms)


_TELLS = "tells t CROSS JOIN entries e ON e.key = t.key"
_WORDS = "words w CROSS JOIN entries e ON e.key = w.rowid"
_TOLD_BY = "EXISTS (SELECT 1 FROM tells t WHERE t.handler = ? AND t.key = e.key)"
_HAS_WORDS = "EXISTS (SELECT 1 FROM words WHERE words MATCH ? AND rowid = e.key)"
_TERMS = re.compile(r'"([^"]*)"?|([^\s"]+)')


def _query(connection: sqlite3.Connection, filters: Filters, before: int | None) -> tuple[str, list[Any]]:
    """A select without its limit. It is led by what leaves fewest rows to look at."""
    low = (_ms(filters.since) or 0) * _SHIFT
    high = min(
        before if before is not None else 1 << 62,
        1 << 62 if filters.until is None else (_ms(filters.until) or 0) * _SHIFT,
    )
    conditions = _conditions(filters)
    leaders = []
    for sql, given, index in conditions:
        if "GLOB" not in sql:
            led = f"entries e INDEXED BY {index}"
            span = f"{sql} AND e.key >= ? AND e.key < ?"
            leaders.append((_count(connection, led, span, [*given, low, high]), led))
    if filters.handler is not None:
        span = "t.handler = ? AND t.key >= ? AND t.key < ?"
        leaders.append((_count(connection, "tells t", span, [filters.handler, low, high]), _TELLS))
    least, source = min(leaders, default=(0, "entries e"))
    words = match_expression(filters.q) if filters.q else ""
    if words and (not leaders or _words_lead(connection, words, least)):
        source = _WORDS
    order = {_TELLS: "t.key", _WORDS: "w.rowid"}.get(source, "e.key")
    if filters.handler is not None:
        told = "t.handler = ?" if source == _TELLS else _TOLD_BY
        conditions.append((told, [filters.handler], ""))
    if words:
        conditions.append(("w.words MATCH ?" if source == _WORDS else _HAS_WORDS, [words], ""))
    elif filters.q:
        conditions.append(("FALSE", [], ""))
    conditions.append((f"{order} >= ? AND {order} < ?", [low, high], ""))
    where = " AND ".join(sql for sql, _, _ in conditions)
    values = [value for _, given, _ in conditions for value in given]
    return f"SELECT e.* FROM {source} WHERE {where} ORDER BY {order} DESC", values  # noqa: S608


def _words_lead(connection: sqlite3.Connection, words: str, others: int) -> bool:
    """Whether a page is full sooner by what has the words than by the `others` rows that a filter leaves."""
    with_words = _count(connection, "words", "words MATCH ?", [words])
    every = connection.execute("SELECT count(*) FROM entries INDEXED BY by_kind").fetchone()[0]
    by_filter = min(others, SHOWN_AT_ONCE * every / max(with_words, 1))
    return bool(min(with_words, SHOWN_AT_ONCE * every / max(others, 1)) < LOOK * by_filter)


def _conditions(filters: Filters) -> list[tuple[str, list[Any], str]]:
    """What each filter asks of a row, with the values for that and the index that finds such rows."""
    conditions: list[tuple[str, list[Any], str]] = [
        (f"e.{column} = ?", [value], index)
        for column, value, index in (
            ("kind", filters.kind, "by_kind"),
            ("state", filters.state, "by_state"),
            ("status", filters.status, "by_status"),
            ("parent", filters.parent, "by_parent"),
        )
        if value is not None
    ]
    if filters.model is not None:
        conditions.append(
            ("e.model GLOB ?" if "*" in filters.model else "e.model = ?", [filters.model], "by_model")
        )
    if filters.lost:
        conditions.append(("e.lost > 0", [], "by_loss"))
    if filters.untold:
        conditions.append(("e.untold > 0", [], "by_untold"))
    return conditions


def _count(connection: sqlite3.Connection, source: str, where: str, values: Sequence[Any]) -> int:
    """How many rows there are, as far as it matters."""
    sql = f"SELECT count(*) FROM (SELECT 1 FROM {source} WHERE {where} LIMIT {COUNTED})"  # noqa: S608
    return int(connection.execute(sql, values).fetchone()[0])


def _put_tells(connection: sqlite3.Connection, key: int, told: Sequence[models.Told]) -> None:
    connection.execute("DELETE FROM tells WHERE key = ?", (key,))
    connection.executemany(
        "INSERT OR REPLACE INTO tells VALUES (?, ?, ?, ?)",
        [(one.handler, key, one.outcome, _ms(one.at)) for one in told],
    )


def _merged(told: Sequence[models.Told], before: str) -> list[models.Told]:
    """An attempt is noted a little earlier than its outcome file, and counts until then."""
    known = {one["handler"]: models.Told(**one) for one in json.loads(before)}
    return [known.get(one.handler, one) if one.outcome == "pending" else one for one in told]


def _drop(connection: sqlite3.Connection, key: int) -> None:
    for table, column in (("entries", "key"), ("words", "rowid"), ("tells", "key")):
        connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (key,))  # noqa: S608


def _free_key(connection: sqlite3.Connection, received: int) -> int:
    taken = connection.execute(
        "SELECT max(key) FROM entries WHERE key >= ? AND key < ?",
        (received * _SHIFT, (received + 1) * _SHIFT),
    ).fetchone()[0]
    return received * _SHIFT if taken is None else int(taken) + 1


def _ms(time: datetime | None) -> int | None:
    return None if time is None else round(time.timestamp() * 1000)


def time_of(ms: int | None) -> datetime | None:
    """The reverse of how times are written."""
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)


def _cut(text: str | None) -> str | None:
    return _clean(text[:SHOWN]) if text else None


def _clean(text: str) -> str:
    """What SQLite takes: no lone surrogate."""
    return text.encode(errors="replace").decode()


def filled(row: Mapping[str, Any]) -> Entry:
    """A row as an entry again, but for what is searched."""
    return Entry(
        kind=Kind(row["kind"]), id=row["id"], state=State(row["state"]), status=row["status"],
        source=row["source"], received_at=_time(row["received_at"]), updated_at=_time(row["updated_at"]),
        model=row["model"], version=row["version"], parent=row["parent"],
        created_at=time_of(row["created_at"]), completed_at=time_of(row["completed_at"]),
        stored_at=time_of(row["stored_at"]), files=row["files"], bytes=row["bytes"], lost=row["lost"],
        picture=row["picture"], picture_type=row["picture_type"], prompt=row["prompt"], error=row["error"],
        predict_seconds=row["predict_seconds"], output=row["text"] or "",
        told=[models.Told(**one) for one in json.loads(row["told"])],
    )  # fmt: skip


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
