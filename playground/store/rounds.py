"""Training rounds: who asks for one, which worker holds it, how far it is and what it measured.

Also the settings that an admin has changed for the next rounds. What a round does is `training/round.py`'s.
"""

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from playground.store.checks import check_lease
from playground.store.database import Database, Row, insert, now
from playground.store.errors import StoreError
from playground.store.reasons import LEFT, STOPPED
from playground.store.votes import COUNT_NEW_VOTES
from playground.system.messages import Message, loads

ROUND_STATES = ("requested", "running", "published", "refused", "not_enough", "failed")

# what an admin may tell a round, None being "go on", and the error where no round is active
NO_ROUND = {
    "pause": Message("There is no round to pause."),
    "stop": Message("There is no round to stop."),
    None: Message("There is no round to resume."),
}


class Beat(NamedTuple):
    """What changes on a running round as long as its worker lives."""

    round_id: int
    owner: str | None
    number: int


class Rounds(Database):
    """Part of `Store`. A round's row has the columns of its table, with `metrics` and `config` decoded into dicts and
    `reason` into a Message."""

    clock = staticmethod(time.monotonic)  # measures leases, in seconds
    _last_beat: Beat | None = None  # the newest beat that this store has seen
    _last_beat_since = 0.0  # when it saw that beat for the first time, on `clock`

    # -- begin and end

    def request_round(self) -> int:
        """Ask for a round now; returns its id. A round that is already requested or running serves as well."""
        with self.writing() as db:
            active = db.execute("select id from round where state in ('requested', 'running')").fetchone()
            if active:
                db.execute("update round set asked = 1 where id = ?", [active[0]])
                return active[0]
            return insert(db, "round", {"state": "requested", "created": now(), "asked": 1})

    def take_round(
        self,
        owner: str,
        *,
        lease_seconds: float,
        auto_votes: int | None = None,
        config: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> Row | None:
        """Take the lease of a round for the worker `owner`; returns the round's row, or None when there is none to do.

        That is a running round whose worker is gone, or a requested one, or a new one where there are `auto_votes` new
        votes.

        A worker is gone when this store has seen no beat of it for `lease_seconds` of its own monotonic clock, so
        whoever asks for the first time waits that long. Wall clocks are not used: they are set back and forth, and they
        differ from machine to machine.
        """
        with self.writing() as db:
            row = next(db.query("select * from round where state in ('requested', 'running')"), None)
            if row is None and auto_votes is not None and self.one(COUNT_NEW_VOTES)["n"] >= auto_votes:
                row = db.table("round").get(insert(db, "round", {"state": "requested", "created": now()}))
            if row is None or self._held_by_another(row, owner, lease_seconds):
                return None
            change: Row = {
                "state": "running",
                "owner": owner,
                "beat": row["beat"] + 1,
                "heartbeat": time.time(),
                "attempts": row["attempts"] + 1,
            }
            if row["state"] == "requested":
                last_vote = db.execute("select coalesce(max(id), 0) from vote").fetchone()[0]
                change |= {
                    "phase": "collect",
                    "started": now(),
                    "config": json.dumps(config or {}),
                    "seed": seed,
                    "last_vote": last_vote,
                }
            db.table("round").update(row["id"], change)
        taken = self.round(row["id"])
        if taken is not None:
            self._seconds_since_beat(taken)
        return taken

    def take_fine_tuning(
        self, owner: str, file: str, *, lease_seconds: float, config: Mapping[str, Any] | None = None, seed: int = 0
    ) -> Row | None:
        """Begin a round of fine-tuning on a file of this name, whose lease `owner` has; returns its row. It uses no
        votes, so those of now still count as new.

        None while another fine-tuning may run; one that has been silent for `lease_seconds`, as in `take_round`, is
        ended. StoreError where a round on votes is asked for or runs.
        """
        with self.writing() as db:
            row = next(db.query("select * from round where state in ('requested', 'running')"), None)
            if row is not None and not is_fine_tuning(_decoded(row)):
                raise StoreError(
                    "Round {n} is {state}. Wait until it is over, or stop it, and start again.",
                    n=row["id"],
                    state=row["state"],
                )
            if row is not None and self._held_by_another(row, owner, lease_seconds):
                return None
            if row is not None:
                columns = {"state": "failed", "reason": LEFT.dumps(), "ended": now()}
                db.table("round").update(row["id"], columns)
            begun = {
                "state": "running",
                "phase": "collect",
                "owner": owner,
                "heartbeat": time.time(),
                "attempts": 1,
                "config": json.dumps(config or {}),
                "seed": seed,
                "metrics": json.dumps({"sft_file": file}),
                "created": now(),
                "started": now(),
                "asked": 1,
            }
            round_id = insert(db, "round", begun)
        return self.round(round_id)

    def end_round(self, round_id: int, owner: str, state: str, reason: Message | None = None) -> None:
        """End a running round in `state`. LeaseLost when `owner` no longer holds it."""
        self.update_round(round_id, owner, state=state, reason=reason.dumps() if reason else None, ended=now())

    def release_round(self, round_id: int, owner: str) -> None:
        """Give the lease up without ending the round, so that the next worker can take it at once.

        That does not count as a failed attempt.
        """
        with self.writing() as db:
            db.execute(
                """update round set owner = null, attempts = attempts - 1
                   where id = ? and owner = ? and state = 'running'""",
                [round_id, owner],
            )

    def _held_by_another(self, row: Row, owner: str, lease_seconds: float) -> bool:
        """Whether a round has another worker that may be alive. A running round without an owner was given up."""
        if row["state"] != "running" or row["owner"] in (None, owner):
            return False
        return self._seconds_since_beat(row) < lease_seconds

    def _seconds_since_beat(self, row: Row) -> float:
        """For how many seconds this store has seen the same beat on a round; 0 when it sees the beat first."""
        beat = Beat(row["id"], row["owner"], row["beat"])
        if self._last_beat != beat:
            self._last_beat = beat
            self._last_beat_since = self.clock()
        return self.clock() - self._last_beat_since

    # -- what a round records

    def update_round(self, round_id: int, owner: str, metrics: Mapping[str, Any] | None = None, **columns: Any) -> None:
        """Change columns of a running round and renew its lease; `metrics` are merged into those that it has.

        LeaseLost when `owner` no longer holds it.
        """
        with self.writing() as db:
            check_lease(db, round_id, owner)
            row = db.table("round").get(round_id)
            if metrics:
                columns["metrics"] = json.dumps({**json.loads(row["metrics"]), **metrics})
            row["beat"] += 1
            db.table("round").update(round_id, {**columns, "beat": row["beat"], "heartbeat": time.time()})
        self._seconds_since_beat(row)

    def record_used_votes(self, round_id: int, votes: Iterable[tuple[int, bool]]) -> None:
        """Record which votes a round has used, as pairs of a vote's id and whether it was held out."""
        with self.writing() as db:
            db.table("vote_use").insert_all(
                ({"round": round_id, "vote": vote, "heldout": int(heldout)} for vote, heldout in votes), replace=True
            )

    def add_metrics(self, round_id: int, step: int, values: Mapping[str, float | None]) -> None:
        """Append one point to each named curve of a round. A step repeated after a resume replaces its point."""
        with self.writing() as db:
            db.table("metric").insert_all(
                ({"round": round_id, "step": step, "name": name, "value": value} for name, value in values.items()),
                replace=True,
            )

    # -- reading

    def round(self, round_id: int) -> Row:
        """A round that exists; LookupError otherwise."""
        return _decoded(self.one("select * from round where id = ?", round_id))

    def last_round(self) -> Row | None:
        row = self.row("select * from round order by id desc limit 1")
        return _decoded(row) if row else None

    def rounds(self, limit: int = 200) -> list[Row]:
        """The rounds, newest first, each also with the `version` that it made and its `policy_status`, or None."""
        rows = self.rows(
            """select r.*, p.version, p.status as policy_status from round r left join policy p on p.round = r.id
               order by r.id desc limit ?""",
            limit,
        )
        return [_decoded(row) for row in rows]

    def rounds_by_state(self) -> dict[str, int]:
        """How many rounds are in each state; states without one are left out."""
        rows = self.rows("select state, count(*) as n from round group by state")
        return {row["state"]: row["n"] for row in rows}

    def ended_rounds(self, after: int) -> list[Row]:
        """The rounds after this one that have ended, oldest first. Keys: id, state, ended, and the version that it made
        or None.
        """
        return self.rows(
            """select r.id, r.state, r.ended, p.version from round r left join policy p on p.round = r.id
               where r.id > ? and r.ended is not null order by r.id""",
            after,
        )

    def used_votes(self, round_id: int) -> list[tuple[int, bool]]:
        """The votes that a round has used, as `record_used_votes` has them."""
        rows = self.rows("select vote, heldout from vote_use where round = ? order by vote", round_id)
        return [(row["vote"], bool(row["heldout"])) for row in rows]

    def metrics(self, round_id: int) -> dict[str, list[tuple[int, float | None]]]:
        """The curves of a round by name, each a list of (step, value)."""
        curves: dict[str, list[tuple[int, float | None]]] = {}
        for row in self.rows("select name, step, value from metric where round = ? order by name, step", round_id):
            curves.setdefault(row["name"], []).append((row["step"], row["value"]))
        return curves

    # -- what an admin decides

    def set_round_command(self, round_id: int, command: str | None) -> None:
        """Tell an active round to "pause", to "stop", or with None to go on; it obeys at its next step.

        A requested round that no worker has begun is stopped at once. StoreError where the round is not active.
        """
        with self.writing() as db:
            row = db.execute(
                "select state from round where id = ? and state in ('requested', 'running')", [round_id]
            ).fetchone()
            if row is None:
                raise StoreError(NO_ROUND[command])
            columns = {"wish": command}
            if command is None:  # it is to wait for nothing from now on, before its worker says so
                metrics = json.loads(db.table("round").get(round_id)["metrics"])
                columns["metrics"] = json.dumps({**metrics, "paused": False})
            if command == "stop" and row[0] == "requested":
                columns |= {"state": "failed", "reason": STOPPED.dumps(), "ended": now()}
            db.table("round").update(round_id, columns)

    def round_command(self, round_id: int) -> str | None:
        """An admin's command to the round: "pause", "stop" or None."""
        row = self.row("select wish from round where id = ?", round_id)
        return row["wish"] if row else None

    def overrides(self) -> dict[str, Any]:
        """The settings of the next rounds that an admin has changed, by name."""
        rows = self.rows("select name, value from override order by name")
        return {row["name"]: json.loads(row["value"]) for row in rows}

    def override(self, values: Mapping[str, Any], annotator: int) -> None:
        """Change settings of the next rounds; a value of None takes the change back."""
        with self.writing() as db:
            for name, value in values.items():
                if value is None:
                    db.execute("delete from override where name = ?", [name])
                    continue
                columns = {"name": name, "value": json.dumps(value), "annotator": annotator, "created": now()}
                db.table("override").upsert(columns, pk="name")


def is_fine_tuning(row: Mapping[str, Any]) -> bool:
    """Whether a round (a row of this module) fine-tunes on a file, and does not learn from votes."""
    return "sft_file" in row["metrics"]


def is_paused(row: Mapping[str, Any]) -> bool:
    """Whether a round waits because an admin asked for it. From the command on, it goes on until the end of a step."""
    return row["state"] == "running" and row["wish"] == "pause" and bool(row["metrics"].get("paused"))


def _decoded(row: Row) -> Row:
    return {
        **row,
        "reason": loads(row["reason"]) if row["reason"] else None,
        "metrics": json.loads(row["metrics"]),
        "config": json.loads(row["config"] or "{}"),
    }
