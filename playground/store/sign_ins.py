"""Sign-ins of users: which cookie stands for whom, until it is ended. Names, roles and passwords are in the users file
(`playground/people/users_file.py`); here users are known by their ids there. Of people whom a provider signs in, name
and role are here, as it said them last.
"""

import hashlib
import secrets
from dataclasses import dataclass

from playground.store.database import Database, Row, insert, now

MOST_SIGN_INS = 50  # of one person; the one that was used longest ago ends first


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True)
class ProviderSays:
    """What a provider says of somebody whom it signs in, and until when that holds, in unix seconds."""

    name: str
    role: str
    until: float


class SignIns(Database):
    """Part of `Store`."""

    def begin_sign_in(
        self, account: str, token: str, stamp: str, used: float, provider: ProviderSays | None = None
    ) -> int:
        """Let `token` stand for the user with this id, and make that annotator where there is none; returns the
        annotator's id. `stamp`: what the password's hash was; `used`: now, in unix seconds. `provider`: of a sign-in
        by one, whose name and role count on all devices.
        """
        with self.writing() as db:
            row = db.execute("select id from annotator where account = ?", [account]).fetchone()
            # nobody has the cookie of this hash; without any, the person would count as forgotten
            nobody = _digest(secrets.token_urlsafe())
            columns = {"token_hash": nobody, "kind": "local", "account": account, "created": now()}
            annotator: int = row[0] if row else insert(db, "annotator", columns)
            if provider:
                db.execute(
                    "update annotator set name = ?, provider_role = ? where id = ?",
                    [provider.name, provider.role, annotator],
                )
            db.execute(
                "insert into sign_in (token_hash, annotator, stamp, used, until, created) values (?, ?, ?, ?, ?, ?)",
                [_digest(token), annotator, stamp, used, provider.until if provider else None, now()],
            )
            db.execute(
                """delete from sign_in where annotator = ?1 and token_hash not in (
                     select token_hash from sign_in where annotator = ?1 order by used desc, created desc limit ?2)""",
                [annotator, MOST_SIGN_INS],
            )
            return annotator

    def sign_in_of(self, token: str) -> Row | None:
        """Who a cookie stands for. Keys: annotator, account, stamp, used and until (in unix seconds)."""
        return self.row(
            """select s.annotator, a.account, s.stamp, s.used, s.until
               from sign_in s join annotator a on a.id = s.annotator where s.token_hash = ?""",
            _digest(token),
        )

    def sign_ins(self) -> list[Row]:
        """All of them, with the same keys; some may have ended."""
        return self.rows(
            """select s.annotator, a.account, s.stamp, s.used, s.until
               from sign_in s join annotator a on a.id = s.annotator order by s.used"""
        )

    def use_sign_in(self, token: str, used: float) -> None:
        """Note that a sign-in was used, at a time in unix seconds."""
        with self.writing() as db:
            db.execute("update sign_in set used = ? where token_hash = ?", [used, _digest(token)])

    def end_sign_in(self, token: str) -> None:
        with self.writing() as db:
            db.execute("delete from sign_in where token_hash = ?", [_digest(token)])

    def end_sign_ins(self, annotator: int) -> None:
        """End all sign-ins of a person, on every device."""
        with self.writing() as db:
            db.execute("delete from sign_in where annotator = ?", [annotator])

    def end_sign_ins_of(self, account: str) -> None:
        """End all sign-ins of the user with this id."""
        with self.writing() as db:
            db.execute("delete from sign_in where annotator in (select id from annotator where account = ?)", [account])

    def end_old_sign_ins(self, before: float, today: float) -> None:
        """End the sign-ins that were last used before a time, and those whose end has come; in unix seconds."""
        with self.writing() as db:
            db.execute("delete from sign_in where used < ? or until < ?", [before, today])

    def account(self, annotator: int) -> str | None:
        """The id of the user whom an annotator is; None where it is a visitor, or a person with keys."""
        row = self.row("select account from annotator where id = ?", annotator)
        return row["account"] if row else None

    def provider_says(self, account: str) -> Row | None:
        """What a provider last said of the user with this id. Keys: name, role. None where none has said anything."""
        return self.row(
            """select name, provider_role as role from annotator
               where account = ? and provider_role is not null and name is not null""",
            account,
        )
