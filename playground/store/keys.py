"""Keys by which other programs chat and vote for a person, known by their hashes.

A person who has a key needs no cookie: `Keys.add_key` makes the annotator. What a key looks like is
`playground/people/keys.py`'s.
"""

import hashlib
from typing import Any

from playground.store.database import Database, Row, insert, now


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Keys(Database):
    """Part of `Store`."""

    def add_key(self, name: str, key: str) -> int:
        """Give the person of this name a key, and make that person where there is none; returns the annotator's id."""
        with self.writing() as db:
            row = db.execute("select annotator from api_key where name = ?", [name]).fetchone()
            created = now()
            annotator: int = row[0] if row else insert(db, "annotator", {"kind": "local", "created": created})
            columns: dict[str, Any] = {"annotator": annotator, "name": name, "key_hash": digest(key)}
            db.table("api_key").insert({**columns, "created": created})
            return annotator

    def person_of_key(self, key: str) -> int | None:
        """The id of the annotator whose key this is; None where it is nobody's (any more)."""
        row = self.row("select annotator from api_key where key_hash = ?", digest(key))
        return row["annotator"] if row else None

    def has_key(self, annotator: int) -> bool:
        """Whether a person has a key that works."""
        row = self.row("select 1 from api_key where annotator = ? and key_hash is not null limit 1", annotator)
        return row is not None

    def person_named(self, name: str) -> int | None:
        """The id of the annotator who has, or had, a key under this name."""
        row = self.row("select annotator from api_key where name = ? and name != ''", name)
        return row["annotator"] if row else None

    def keys(self) -> list[Row]:
        """All people with keys, by name. Keys: name, annotator, n (of the keys that work), created (of the last)."""
        return self.rows(
            """select name, annotator, sum(key_hash is not null) as n, max(created) as created from api_key
               where name != '' group by name, annotator order by name"""
        )

    def revoke_keys(self, annotator: int) -> int:
        """End all keys of a person; returns how many worked until now. Chats and votes stay."""
        with self.writing() as db:
            return db.execute(
                "update api_key set key_hash = null, revoked = ? where annotator = ? and key_hash is not null",
                [now(), annotator],
            ).rowcount
