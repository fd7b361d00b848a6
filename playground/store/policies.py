"""Policy versions: reserved by a round, published or refused, live or rolled back. Exactly one is live."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlite_utils

from playground.store.checks import check_lease
from playground.store.database import Database, Row, now
from playground.store.errors import StoreError
from playground.system.messages import Message


class Policies(Database):
    """Part of `Store`. A policy's row has the columns of its table (`migrations.py`)."""

    def policies(self) -> list[Row]:
        """All versions, newest first."""
        return self.rows("select * from policy order by version desc")

    def live_policy(self) -> Row:
        """The version that answers now."""
        return self.one("select * from policy where status = 'live'")

    def policy(self, version: int) -> Row | None:
        return self.row("select * from policy where version = ?", version)

    def round_policy(self, round_id: int) -> Row | None:
        """The version that a round made, or None."""
        return self.row("select * from policy where round = ?", round_id)

    # -- a round's version

    def add_policy(self, round_id: int, owner: str, parent: int) -> int:
        """Reserve the next version number for a round. A number is never used twice.

        Called again for the same round, it returns the same number. LeaseLost when `owner` no longer holds the round.
        """
        with self.writing() as db:
            check_lease(db, round_id, owner)
            row = db.execute("select version from policy where round = ?", [round_id]).fetchone()
            if row:
                return row[0]
            version: int = db.execute("select max(version) + 1 from policy").fetchone()[0]
            db.table("policy").insert(
                {"version": version, "parent": parent, "status": "candidate", "round": round_id, "created": now()}
            )
            return version

    def publish(
        self,
        round_id: int,
        owner: str,
        version: int,
        path: str | Path,
        sha256: str,
        report: Mapping[str, Any],
        trial: bool = False,
    ) -> None:
        """Make a complete version live, retire the one before it and end the round, in one transaction.

        `sha256` is that of the whole version, as `adapters.write` returns it. With `trial` it is on trial against the
        one that was live. LeaseLost when `owner` no longer holds the round.
        """
        with self.writing() as db:
            check_lease(db, round_id, owner)
            columns = {"path": str(path), "sha256": sha256, "gate_report": json.dumps(report)}
            db.table("policy").update(version, columns)
            against = db.execute("select version from policy where status = 'live'").fetchone()[0]
            make_live(db, version, old_status="retired")
            if trial:
                db.execute(
                    """insert into trial (version, against, state, after_vote, started)
                       select ?, ?, 'open', coalesce(max(id), 0), ? from vote""",
                    [version, against, now()],
                )
            db.table("round").update(round_id, {"state": "published", "phase": "publish", "ended": now()})

    def refuse(
        self,
        round_id: int,
        owner: str,
        version: int,
        path: str | Path,
        sha256: str,
        report: Mapping[str, Any],
        reason: Message,
    ) -> None:
        """End a round whose version did not pass the gate: the version is kept, marked as rejected with the reason.

        LeaseLost when `owner` no longer holds the round.
        """
        with self.writing() as db:
            check_lease(db, round_id, owner)
            columns = {
                "status": "rejected",
                "path": str(path),
                "sha256": sha256,
                "gate_report": json.dumps(report),
                "reason": str(reason),
            }
            db.table("policy").update(version, columns)
            db.table("round").update(round_id, {"state": "refused", "reason": reason.dumps(), "ended": now()})

    # -- another version than the newest

    def reject_live(self, version: int, reason: str, fallback: int, weights_sha256: str | None = None) -> None:
        """Where the server cannot load the live version: mark it as rejected and make `fallback` live again.

        `weights_sha256` is the hash of its weights, where they could be read. A version that is not live stays as it
        is.
        """
        with self.writing() as db:
            if db.table("policy").get(version)["status"] == "live":
                make_live(db, fallback, old_status="rejected")
                db.table("policy").update(version, {"reason": reason, "weights_sha256": weights_sha256})

    def quarantined(self, version: int, weights_sha256: str) -> Row | None:
        """Another version with the same weights that a server has rejected (keys: version, reason), or None.

        A version that the gate refused does not count: its weights may come again.
        """
        return self.row(
            """select p.version, p.reason from policy p join round r on r.id = p.round
               where p.weights_sha256 = ? and p.version != ? and p.status = 'rejected' and r.state = 'published'""",
            weights_sha256,
            version,
        )

    def last_good_before(self, version: int) -> int:
        """The nearest ancestor of `version` that is not rejected; 0, the base, where there is no other."""
        policies = {row["version"]: row for row in self.policies()}
        seen = {version}
        while version:
            version = policies[version]["parent"] or 0
            if version in seen or policies[version]["status"] != "rejected":
                break
            seen.add(version)
        return version

    def roll_back(self, version: int) -> None:
        """Make an older version live again; the one that was live is marked as rolled back."""
        with self.writing() as db:
            if db.table("policy").get(version)["status"] == "rejected":
                raise StoreError("Version v{n} was rejected and cannot go live.", n=version)
            make_live(db, version, old_status="rolled_back")


def make_live(db: sqlite_utils.Database, version: int, old_status: str) -> None:
    """Make `version` live within a transaction; the one that was live gets the status `old_status`."""
    db.execute("update policy set status = ? where status = 'live' and version != ?", [old_status, version])
    db.table("policy").update(version, {"status": "live"})
