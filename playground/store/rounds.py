"""Training rounds: who asks for one, who holds it, how far it is, what it measured; and the settings of the
next ones.
"""

import json
import time

from sqlite_utils.db import NotFoundError

from playground.store.errors import StoreError
from playground.store.file import now
from playground.store.reasons import STOPPED
from playground.system.messages import Message, loads

WISHES = {
    "pause": Message("There is no round to pause."),
    "stop": Message("There is no round to stop."),
    None: Message("There is no round to resume."),
}


class LeaseLost(StoreError):
    """Another worker has taken the round over."""


class Rounds:
    """Part of `Store`."""

    clock = staticmethod(time.monotonic)  # of leases, in seconds
    _last_beat, _first_seen = None, 0.0  # the newest (round, owner, beat) that this store saw, and since when

    def request_round(self):
        """Ask for a round now. Returns the active round's id: the new one, or the one that is already asked for or
        running.
        """
        with self.writing() as db:
            active = db.execute("select id from round where state in ('requested', 'running')").fetchone()
            return active[0] if active else db["round"].insert({"state": "requested", "created": now()}).last_pk

    def take_round(self, owner, *, lease_seconds, auto_votes=None, config=None, seed=0):
        """Take the lease of a round for `owner`: a running one whose worker is gone, a requested one, or, where there
        are `auto_votes` new votes, a new one. Returns the round's row, or None when there is nothing to do.

        A worker is gone when this store has seen no beat of it for `lease_seconds` of its own monotonic clock: whoever
        asks for the first time waits that long. Wall clocks are set back and forth, and differ from machine to machine.
        """
        with self.writing() as db:
            row = next(db.query("select * from round where state in ('requested', 'running')"), None)
            if row is None and auto_votes is not None and self.new_votes() >= auto_votes:
                row = db["round"].get(db["round"].insert({"state": "requested", "created": now()}).last_pk)
            if row is None or self._held_by_another(row, owner, lease_seconds):
                return None
            change = {
                "state": "running",
                "owner": owner,
                "beat": row["beat"] + 1,
                "heartbeat": time.time(),
                "attempts": row["attempts"] + 1,
            }
            if row["state"] == "requested":
                last = db.execute("select coalesce(max(id), 0) from vote").fetchone()[0]
                change |= {
                    "phase": "collect",
                    "started": now(),
                    "config": json.dumps(config or {}),
                    "seed": seed,
                    "last_vote": last,
                }
            db["round"].update(row["id"], change)
        taken = self.round(row["id"])
        self._unchanged_for(taken)
        return taken

    def _held_by_another(self, row, owner, lease_seconds):
        """Whether a round has a worker that may be alive. One without an owner was given up."""
        if row["state"] != "running" or row["owner"] in (None, owner):
            return False
        return self._unchanged_for(row) < lease_seconds

    def _unchanged_for(self, row):
        """For how many seconds this store has seen the same beat of the same owner on a round; 0 at the first look."""
        beat = (row["id"], row["owner"], row["beat"])
        if self._last_beat != beat:
            self._last_beat, self._first_seen = beat, self.clock()
        return self.clock() - self._first_seen

    def round(self, round_id):
        """A round's row, its metrics and config decoded."""
        row = self.row("select * from round where id = ?", round_id)
        return row and self._decoded_round(row)

    def last_round(self):
        row = self.row("select id from round order by id desc limit 1")
        return row and self.round(row["id"])

    def update_round(self, round_id, owner, metrics=None, **columns):
        """Change a running round and renew its lease; `metrics` are merged into what it has. LeaseLost when `owner` no
        longer holds it.
        """
        with self.writing() as db:
            self._held(db, round_id, owner)
            row = db["round"].get(round_id)
            if metrics:
                columns["metrics"] = json.dumps({**json.loads(row["metrics"]), **metrics})
            row["beat"] += 1
            db["round"].update(round_id, {**columns, "beat": row["beat"], "heartbeat": time.time()})
        self._unchanged_for(row)

    def end_round(self, round_id, owner, state, reason=None):
        self.update_round(round_id, owner, state=state, reason=reason and reason.dumps(), ended=now())

    def release_round(self, round_id, owner):
        """Give the lease up without ending the round, so that the next worker goes on at once. That is no failed
        attempt.
        """
        with self.writing() as db:
            db.execute(
                """update round set owner = null, attempts = attempts - 1
                          where id = ? and owner = ? and state = 'running'""",
                [round_id, owner],
            )

    def _held(self, db, round_id, owner):
        try:
            row = db["round"].get(round_id)
        except NotFoundError:
            raise LeaseLost("round {n} does not exist", n=round_id) from None
        if row["owner"] != owner or row["state"] != "running":
            raise LeaseLost(
                "round {n} is {state}, held by {holder}, not by {owner}",
                n=round_id,
                state=row["state"],
                holder=str(row["owner"]),
                owner=owner,
            )

    def use_votes(self, round_id, uses):
        """Record which votes a round used, as (vote, heldout) pairs."""
        with self.writing() as db:
            db["vote_use"].insert_all(
                ({"round": round_id, "vote": v, "heldout": int(h)} for v, h in uses), replace=True
            )

    def add_metrics(self, round_id, step, values):
        """Append one point to each named curve of a round; a repeated step (after a resume) replaces its point."""
        with self.writing() as db:
            db["metric"].insert_all(
                ({"round": round_id, "step": step, "name": k, "value": v} for k, v in values.items()), replace=True
            )

    def metrics(self, round_id):
        """The curves of a round: {name: [(step, value), ...]}."""
        curves = {}
        for row in self.rows("select name, step, value from metric where round = ? order by name, step", round_id):
            curves.setdefault(row["name"], []).append((row["step"], row["value"]))
        return curves

    def rounds(self, limit=200):
        """Rounds, newest first, each with the `version` it made and that one's `policy_status`, or None."""
        return [
            self._decoded_round(row)
            for row in self.rows(
                """select r.*, p.version, p.status as policy_status from round r left join policy p on p.round = r.id
               order by r.id desc limit ?""",
                limit,
            )
        ]

    @staticmethod
    def _decoded_round(row):
        reason = row["reason"] and loads(row["reason"])
        return {
            **row,
            "reason": reason,
            "metrics": json.loads(row["metrics"]),
            "config": json.loads(row["config"] or "{}"),
        }

    # -- what an admin wishes

    def wish(self, round_id, wish):
        """ "pause", "stop", or None to go on: the round obeys at its next step. One that nobody has begun stops at
        once.
        """
        with self.writing() as db:
            row = db.execute(
                "select state from round where id = ? and state in ('requested', 'running')", [round_id]
            ).fetchone()
            if row is None:
                raise StoreError(WISHES[wish])
            ended = (
                {"state": "failed", "reason": STOPPED.dumps(), "ended": now()}
                if (wish, row[0]) == ("stop", "requested")
                else {}
            )
            db["round"].update(round_id, {"wish": wish, **ended})

    def wish_of(self, round_id):
        row = self.row("select wish from round where id = ?", round_id)
        return row and row["wish"]

    def overrides(self):
        """Settings of the next rounds that an admin has changed: {name: value}."""
        return {
            row["name"]: json.loads(row["value"]) for row in self.rows("select name, value from override order by name")
        }

    def override(self, values, annotator):
        """Set each of `values` for the next rounds; None takes the change back."""
        with self.writing() as db:
            for name, value in values.items():
                if value is None:
                    db.execute("delete from override where name = ?", [name])
                else:
                    db["override"].upsert(
                        {"name": name, "value": json.dumps(value), "annotator": annotator, "created": now()}, pk="name"
                    )
