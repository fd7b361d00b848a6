"""Annotators: known by the hash of their cookie, or of those with which they have signed in (`sign_ins.py`); some of
them have signed in under a name.
"""

import hashlib
import json
import time
from collections.abc import Collection

from playground.store.database import Database, Row, now

NOBODY = 0  # an id that no annotator has
# what annotator `a` is called: the name of the sign-in, else that of the keys, which is empty once it is forgotten
NAME = """coalesce(a.name, (select k.name from api_key k where k.annotator = a.id and k.name != '' limit 1))"""


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class People(Database):
    """Part of `Store`."""

    def annotator(self, token: str, kind: str = "anonymous") -> int:
        """The id of the annotator whose cookie is `token`, made on the first visit. NOBODY where all is read-only."""
        digest = _digest(token)
        known = self.row(
            """select id from annotator where token_hash = ?1
               union all select annotator from sign_in where token_hash = ?1""",
            digest,
        )
        if known:
            return known["id"]
        if self.read_only:
            return NOBODY
        with self.writing() as db:
            db.execute(
                "insert or ignore into annotator (token_hash, kind, created) values (?, ?, ?)", [digest, kind, now()]
            )
        return self.one("select id from annotator where token_hash = ?", digest)["id"]

    def person(self, annotator: int) -> Row | None:
        """The columns of an annotator, None if unknown."""
        return self.row("select * from annotator where id = ?", annotator)

    def renew(self, annotator: int, token: str) -> None:
        """Make `token` this annotator's cookie. Whoever knows the earlier one becomes another person."""
        with self.writing() as db:
            db.table("annotator").update(annotator, {"token_hash": _digest(token)})

    def sign_in(self, annotator: int, name: str, until: float) -> None:
        """Sign this person in as `name` until the time `until`, in unix seconds."""
        with self.writing() as db:
            db.table("annotator").update(annotator, {"name": name, "signed_in_until": until})

    def sign_out(self, annotator: int) -> None:
        with self.writing() as db:
            db.table("annotator").update(annotator, {"name": None, "signed_in_until": None})

    def signed_in(self, annotator: int) -> str | None:
        """The name that this person has signed in under, or None, also once the sign-in has expired."""
        row = self.person(annotator)
        if row is None or not row["name"]:
            return None
        return row["name"] if (row["signed_in_until"] or 0) > time.time() else None

    # -- what people are called

    def known_as(self, annotators: Collection[int]) -> list[Row]:
        """Those of these people who have an account or a name. Keys: id, account (the id of a user), name (of the last
        sign-in, else of the keys for programs).
        """
        return self.rows(
            f"""select a.id, a.account, {NAME} as name from annotator a
                where a.id in (select value from json_each(?)) and (a.account is not null or {NAME} is not null)""",
            json.dumps(sorted(annotators)),
        )

    def person_known_as(self, account: str | None, name: str) -> int | None:
        """The id of whoever has this account, else of the last one with this name; None where it is nobody."""
        row = self.row(
            f"""select a.id from annotator a 
                where a.account = ?1 or ((a.account is null or a.provider_role is not null) and {NAME} = ?2)
                order by a.account is not ?1, a.id desc limit 1""",
            account,
            name,
        )
        return row["id"] if row else None
