"""Data from elsewhere: pairs that other people judged, replies to imitate, and prompts. They are nobody's votes."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import sqlite_utils

from playground.store.database import Database, Row, now

KINDS = ("pair", "demonstration", "prompt")
PAGE = 200  # rows

# by the field of a record: finds what this very database recorded. Rows of deleted chats stay, without their texts, so
# that what was deleted does not come back
KNOWN = {
    name: f"select 1 from {name} where id = ? and created = ?"
    for name in ("vote", "demonstration", "rating", "message")
}

IMPORTED = """
    select imported.id, source, weight, imported.created, record, url, split, license
    from imported left join origin on origin.id = imported.origin"""


class ImportedRow(NamedTuple):
    """A row to import. `sha256`: the hash of its content. `record`: a dict that JSON takes; one that Nudge exported has
    its `vote`, `demonstration`, `rating` or `message` (ids) and `created`.
    """

    sha256: str
    kind: str
    weight: float
    record: dict[str, Any]
    source: str | None = None  # where it is another name than that of the whole import
    origin: "Origin | None" = None  # likewise


class Origin(NamedTuple):
    """Where rows come from that others publish: an address that always means the same (with a commit), the split, and
    the licence, where one is named.
    """

    url: str
    split: str
    license: str | None


class Imported(Database):
    """Part of `Store`."""

    def add_imported(self, source: str, rows: Iterable[ImportedRow], origin: Origin | None = None) -> int:
        """Keep rows in one transaction; returns how many of them are new. A row is known where one of the same hash is
        here, or where this very database recorded it.
        """
        added = 0
        with self.writing() as db:
            for row in rows:
                if _is_ours(db, row.record):
                    continue
                published = row.origin or origin
                origin_id = _id_of(db, published) if published else None
                added += db.execute(
                    """insert or ignore into imported (sha256, kind, source, weight, record, created, origin)
                       values (?, ?, ?, ?, ?, ?, ?)""",
                    [
                        *(row.sha256, row.kind, row.source or source, row.weight),
                        *(json.dumps(row.record, ensure_ascii=False), now(), origin_id),
                    ],
                ).rowcount
        return added

    def reweigh_imported(self, hashes: Iterable[str], weight: float) -> int:
        """Give the pairs of these hashes, whatever they were imported as, another weight; returns how many changed."""
        with self.writing() as db:
            return db.execute(
                """update imported set weight = ? where sha256 in (select value from json_each(?)) and kind = 'pair'
                   and weight != ?""",
                [weight, json.dumps(list(hashes)), weight],
            ).rowcount

    def recorded_here(self, record: dict[str, Any]) -> bool:
        """Whether this very database recorded what a record says (by its marks), be it deleted by now or not."""
        return _is_ours(self.db, record)

    def remove_imported(self, source: str) -> int:
        """Delete what was imported under this name; returns how many rows that were."""
        with self.writing() as db:
            removed = db.execute("delete from imported where source = ?", [source]).rowcount
            db.execute("delete from origin where not exists (select 1 from imported where origin = origin.id)")
            return removed

    def imported_sources(self) -> list[Row]:
        """What was imported. Keys: source, kind, rows, weight (the mean), created (the first time); of rows that others
        publish url, split and license, as `Origin`.
        """
        return self.rows(
            """select source, kind, count(*) as rows, avg(weight) as weight, min(imported.created) as created,
                      url, split, license
               from imported left join origin on origin.id = imported.origin
               group by source, kind, origin.id order by source, kind, origin.id"""
        )

    def origins(self) -> list[Origin]:
        """Where imported rows were published."""
        return [Origin(**row) for row in self.rows("select url, split, license from origin order by id")]

    def imported_counts(self) -> dict[str, int]:
        """How many rows of each kind were imported; kinds without any are left out. It reads an index alone."""
        rows = self.rows("select kind, count(*) as n from imported group by kind order by kind")
        return {row["kind"]: row["n"] for row in rows}

    def imported_sample(self, kind: str, limit: int) -> Iterator[Row]:
        """At most `limit` imported rows of a kind, drawn by their hash: the same ones as long as nothing new comes.
        They are read one by one, since each may have megabytes.

        Keys: id, source, weight, created; url, split and license of those that others publish, else None; record: the
        texts, a dict.
        """
        drawn = self.rows("select id from imported where kind = ? order by sha256 limit ?", kind, limit)
        for row in drawn:
            yield from _decoded(self.rows(f"{IMPORTED} where imported.id = ?", row["id"]))

    def imported(self, kind: str) -> Iterator[Row]:
        """All imported rows of a kind in the order in which they came, as `imported_sample` returns them."""
        after = 0
        while page := self.rows(
            # by id, which the plus sign says to SQLite: in the order of `imported_kind` each page would sort all rows
            f"{IMPORTED} where +kind = ? and imported.id > ? order by imported.id limit {PAGE}",
            kind,
            after,
        ):
            after = page[-1]["id"]
            yield from _decoded(page)

    def imported_of(self, source: str) -> Iterator[dict[str, Any]]:
        """The texts (`record`) of all rows that were imported under a name, in the order in which they came."""
        after = 0
        while page := self.rows(
            f"select id, record from imported where source = ? and id > ? order by id limit {PAGE}", source, after
        ):
            after = page[-1]["id"]
            for row in _decoded(page):
                yield row["record"]


def _id_of(db: sqlite_utils.Database, origin: Origin) -> int:
    """The id of an origin, which gets a row the first time."""
    db.execute(
        "insert or ignore into origin (url, split, license, created) values (?, ?, ?, ?)",
        [origin.url, origin.split, origin.license, now()],
    )
    found = db.execute("select id from origin where url = ? and split = ?", [origin.url, origin.split]).fetchone()
    return int(found[0])


def _is_ours(db: sqlite_utils.Database, record: dict[str, Any]) -> bool:
    """Whether this database recorded what the record says."""
    ids = {name: record.get(name) for name in KNOWN}
    created = record.get("created")
    return any(number and db.execute(KNOWN[name], [number, created]).fetchone() for name, number in ids.items())


def _decoded(rows: list[Row]) -> list[Row]:
    return [{**row, "record": json.loads(row["record"])} for row in rows]
