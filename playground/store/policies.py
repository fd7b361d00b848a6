"""Policy versions: reserved by a round, published or refused, live or rolled back. Exactly one is live.

Each change of a version's status is also a row of `policy_event`: what, when, why, and who where a person did it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlite_utils

from playground.store import reasons
from playground.store.checks import check_lease, is_key
from playground.store.database import Database, Row, now
from playground.store.errors import StoreError
from playground.system.messages import Message, plain

NOT_GOOD = (
    "(status = 'rejected' or withdrawn is not null)"  # SQL condition on a policy: it must not become live by itself
)


# what became of a version, the base and unfinished ones aside: it answers or may do so again, the gate refused it, it
# could not be loaded, people's votes rolled it back, an admin withdrew it
VERSION_STATES = ("published", "refused", "rejected", "rolled_back", "withdrawn")


class Policies(Database):
    """Part of `Store`. A policy's row has the columns of its table (`migrations.py`)."""

    def policies(self) -> list[Row]:
        """All versions, newest first."""
        return self.rows("select * from policy order by version desc")

    def live_policy(self) -> Row:
        """The version that answers now."""
        return self.one("select * from policy where status = 'live'")

    def policy(self, version: int) -> Row | None:
        """One version, or None where there is none of this number, whatever number a request may hold."""
        if not is_key(version):
            return None
        return self.row("select * from policy where version = ?", version)

    def round_policy(self, round_id: int) -> Row | None:
        """The version that a round made, or None."""
        return self.row("select * from policy where round = ?", round_id)

    def versions_by_state(self) -> dict[str, int]:
        """How many versions there are of each of VERSION_STATES; those that no version has are left out."""
        rows = self.rows(
            """select count(*) as n, case when p.withdrawn is not null then 'withdrawn'
                 when p.status in ('live', 'retired') then 'published'
                 when p.status = 'rejected' and r.state = 'refused' then 'refused' else p.status end as became
               from policy p left join round r on r.id = p.round
               where p.version > 0 and p.status != 'candidate' group by became"""
        )
        return {row["became"]: row["n"] for row in rows}

    def lost_versions(self, after: int) -> list[Row]:
        """When a version that answered was rolled back, or rejected since it could not be loaded, after the event with
        this id; oldest first. Keys: id (of the event), version, what, created, live (the version that answers now).
        """
        return self.rows(
            """select id, version, what, created, (select version from policy where status = 'live') as live
               from policy_event where id > ? and what in ('rolled_back', 'rejected') order by id""",
            after,
        )

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
            record(db, version, "refused", reason)
            db.table("round").update(round_id, {"state": "refused", "reason": reason.dumps(), "ended": now()})

    # -- another version than the newest

    def reject_live(self, version: int, reason: str, fallback: int, weights_sha256: str | None = None) -> None:
        """Where the server cannot load the live version: mark it as rejected and make `fallback` live again, or where
        that was withdrawn, the nearest good ancestor of `version`.

        `weights_sha256` is the hash of its weights, where they could be read. A version that is not live stays as it
        is.
        """
        with self.writing() as db:
            if db.table("policy").get(version)["status"] == "live":
                if db.table("policy").get(fallback)["withdrawn"]:
                    fallback = last_good_before(db, version)
                make_live(db, fallback, old_status="rejected", reason=plain(reason))
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
        """The nearest ancestor of `version` that is neither rejected nor withdrawn; 0, the base, where there is no
        other.
        """
        return last_good_before(self.db, version)

    # -- what an admin does

    def answered_before(self) -> int | None:
        """The version to which an admin rolls the live one back: of those that another one has replaced, and that were
        neither rolled back, rejected nor withdrawn, the one that answered last. Where there is none, the base; None
        where the base is live.
        """
        row = self.row(
            """select e.version from policy_event e join policy p on p.version = e.version
               where e.what = 'live' and p.status = 'retired' and p.withdrawn is null order by e.id desc limit 1"""
        )
        if row is not None:
            return int(row["version"])
        return 0 if self.live_policy()["version"] else None

    def promote(self, version: int, annotator: int, reason: str) -> None:
        """Make another version live. The trial of the one that was live ends undecided.

        StoreError where the version was refused or rejected, or is not complete. One that was withdrawn may come back.
        """
        with self.writing() as db:
            _check_may_answer(db, version)
            why = plain(reason)
            db.table("policy").update(version, {"withdrawn": None})
            _end_trials(
                db, "version = (select version from policy where status = 'live' and version != ?)", version, why
            )
            make_live(db, version, "retired", why, annotator)

    def roll_back(self, version: int, annotator: int | None = None, reason: str = "", live: int | None = None) -> None:
        """Make an older version live again; the one that was live is marked as rolled back, and its trial ends
        undecided.

        `live`: the version from which somebody wants to go back. StoreError where another one is live by now, where
        `version` was refused or rejected, and where an admin has withdrawn it.
        """
        with self.writing() as db:
            _check_may_answer(db, version)
            if db.table("policy").get(version)["withdrawn"]:
                raise StoreError("Version v{n} was withdrawn and cannot go live.", n=version)
            now_live: int = db.execute("select version from policy where status = 'live'").fetchone()[0]
            if live not in (None, now_live):
                raise StoreError("Version v{n} is not live any more. Nothing was changed.", n=live)
            if now_live == version:
                return
            why = plain(reason) if reason else None
            _end_trials(db, "version = ?", now_live, why)
            make_live(db, version, "rolled_back" if now_live else "retired", why, annotator)  # the base is never bad
            if reason and now_live:
                db.table("policy").update(now_live, {"reason": reason})

    def withdraw(self, version: int, annotator: int, reason: str) -> None:
        """Take a version out of use: it never becomes live again by itself. Where it is live, its nearest good ancestor
        answers from now on. Its trials, and those of versions that are compared with it, end undecided.

        StoreError for the base, and for a version that never was in use.
        """
        with self.writing() as db:
            if version == 0:
                raise StoreError("The base model cannot be withdrawn.")
            _check_may_answer(db, version)
            why = plain(reason)
            row = db.table("policy").get(version)
            if row["withdrawn"]:
                return
            db.table("policy").update(version, {"withdrawn": now(), "reason": reason})
            _end_trials(db, "? in (version, against)", version, why)
            if row["status"] == "live":
                make_live(db, last_good_before(db, version), "rolled_back", why, annotator)
            record(db, version, "withdrawn", why, annotator)


# -- steps of a transaction


def record(
    db: sqlite_utils.Database, version: int, what: str, reason: Message | None = None, annotator: int | None = None
) -> None:
    """Add what happened to a version; `annotator` where a person did it."""
    db.table("policy_event").insert(
        {
            "version": version,
            "what": what,
            "annotator": annotator,
            "reason": reason.dumps() if reason else None,
            "created": now(),
        }
    )


def make_live(
    db: sqlite_utils.Database,
    version: int,
    old_status: str,
    reason: Message | None = None,
    annotator: int | None = None,
) -> None:
    """Make `version` live; the one that was live gets the status `old_status`. Nothing changes where it is live."""
    old: int = db.execute("select version from policy where status = 'live'").fetchone()[0]
    if old == version:
        return
    db.table("policy").update(old, {"status": old_status})
    record(db, old, old_status, reason, annotator)
    db.table("policy").update(version, {"status": "live"})
    record(db, version, "live", reason, annotator)


def last_good_before(db: sqlite_utils.Database, version: int) -> int:
    """As `Policies.last_good_before`."""
    rows = db.execute(f"select version, parent, {NOT_GOOD} from policy").fetchall()
    parents = {row[0]: row[1] or 0 for row in rows}
    bad = {row[0] for row in rows if row[2]}
    seen = {version}
    while version:
        version = parents[version]
        if version in seen or version not in bad:
            break
        seen.add(version)
    return version


def _check_may_answer(db: sqlite_utils.Database, version: int) -> None:
    """StoreError unless a version was live once: it has passed the gate, and no server has rejected it."""
    row = None
    if is_key(version):
        row = db.execute("select status from policy where version = ?", [version]).fetchone()
    if row is None:
        raise StoreError("There is no version v{n}.", n=version)
    if row[0] == "rejected":
        raise StoreError("Version v{n} was rejected and cannot go live.", n=version)
    if row[0] == "candidate":
        raise StoreError("Version v{n} is not complete and cannot go live.", n=version)


def _end_trials(db: sqlite_utils.Database, condition: str, version: int, reason: Message | None) -> None:
    """End the open trials that meet `condition`, undecided: an admin has decided."""
    db.execute(
        f"update trial set state = 'undecided', reason = ?, ended = ? where state = 'open' and {condition}",
        [reasons.by_admin(reason).dumps(), now(), version],
    )
