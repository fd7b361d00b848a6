"""Versions on trial: against which version, what the votes on pairs of the two say, and how the trial ended.

A trial rests while another version answers, and goes on when its version is live again: after the next one was rolled
back, or could not be loaded. When a trial is over, and by which figures, is up to `playground/models/trial.py`.
"""

from playground.store.database import Database, Row, now
from playground.store.policies import NOT_GOOD, make_live
from playground.store.votes import BLIND, BLIND_VOTES, COUNTED, VOTES
from playground.system.messages import Message, loads

# conditions on a vote on a pair of two versions; ?1 is the one on trial, ?2 the other one
OF_BOTH = "((l.policy = ?1 and r.policy = ?2) or (l.policy = ?2 and r.policy = ?1))"
WON = "(f.choice = 'a' and l.policy = ?1 or f.choice = 'b' and r.policy = ?1)"
LOST = "(f.choice = 'a' and l.policy = ?2 or f.choice = 'b' and r.policy = ?2)"


class Trials(Database):
    """Part of `Store`. A trial's row has the columns of its table (`migrations.py`), with `reason` as a Message, and
    `live`: whether its version answers now.
    """

    def open_trial(self) -> Row | None:
        """The trial of the version that answers now, while it goes on; or None."""
        return self._trial("p.status = 'live' and t.state = 'open'")

    def trial(self, version: int) -> Row | None:
        """The trial of a version, or None where it had none."""
        return self._trial("t.version = ?", version)

    def _trial(self, condition: str, *values: int) -> Row | None:
        row = self.row(
            f"""select t.*, p.status = 'live' as live from trial t join policy p on p.version = t.version
                where {condition}""",
            *values,
        )
        return row and {**row, "reason": loads(row["reason"]) if row["reason"] else None}

    def votes_on_trial(self, trial: Row, annotator: int | None = None) -> Row:
        """Votes that count, as they were given blind (`BLIND_VOTES`), on pairs of a trial's two versions, since it
        began, of all people or of one.

        Keys: wins and losses of the version on trial, and ties, both bad among them.
        """
        whose = "" if annotator is None else "and v.annotator = ?4"
        return self.one(
            f"""select coalesce(sum({WON}), 0) as wins, coalesce(sum({LOST}), 0) as losses,
                  coalesce(sum(f.choice in ('tie', 'both_bad')), 0) as ties
                from {BLIND_VOTES} join generation r on r.id = d.right_generation
                where f.id > ?3 and {BLIND} and {COUNTED} and {OF_BOTH} {whose}""",
            trial["version"],
            trial["against"],
            trial["after_vote"],
            *([] if annotator is None else [annotator]),
        )

    def decided_on_trial(self, trial: Row) -> list[Row]:
        """The votes that count, as they were given blind (`BLIND_VOTES`), for one of a trial's two versions, since it
        began, oldest first. Keys: id; annotator; won, whether the version on trial was preferred.
        """
        rows = self.rows(
            f"""select f.id, f.annotator, {WON} as won from {BLIND_VOTES} join generation r on r.id = d.right_generation
                where f.id > ?3 and {BLIND} and {COUNTED} and {OF_BOTH} and f.choice in ('a', 'b')
                order by f.id""",
            trial["version"],
            trial["against"],
            trial["after_vote"],
        )
        return [{**row, "won": bool(row["won"])} for row in rows]

    def people_of_trial(self, trial: Row, votes: int) -> int:
        """How many people have given at least so many votes that count, since the trial before this one began, on
        whatever pairs from before this one ended. Whoever changes a vote later has taken part all the same.
        """
        return int(
            self.one(
                f"""select count(*) as n from (
                      select v.annotator from {BLIND_VOTES}
                      where f.id > coalesce((select max(t.after_vote) from trial t where t.version < ?1), 0)
                        and d.created <= coalesce(?2, d.created) and {COUNTED}
                      group by v.annotator having count(*) >= ?3)""",
                trial["version"],
                trial["ended"],
                votes,
            )["n"]
        )

    def ended_trials(self) -> list[Row]:
        """Trials that are over, oldest first."""
        return self.rows("select * from trial where state != 'open' order by version")

    def decided_against_base(self, version: int) -> list[Row]:
        """The votes that count for one of the two on pairs of the base and a version or its parent, oldest first.

        Keys: id; annotator; won, whether the version was preferred.
        """
        parent = self.one("select coalesce(parent, 0) as parent from policy where version = ?", version)["parent"]
        votes = [
            vote
            for ours in sorted({version, parent} - {0})
            for vote in self.decided_on_trial({"version": ours, "against": 0, "after_vote": 0})
        ]
        return sorted(votes, key=lambda vote: vote["id"])

    def votes_on_own_pairs(self, version: int) -> Row:
        """Votes that count on pairs of which both replies are by this version.

        Keys: votes; ties, both bad among them; forecasts: those for A or B that the reward model forecast before it
        learned from them; hits: those that it forecast rightly.
        """
        return self.one(
            f"""select count(*) as votes, coalesce(sum(v.choice in ('tie', 'both_bad')), 0) as ties,
                  count(f.hit) as forecasts, coalesce(sum(f.hit), 0) as hits
                from {VOTES} join generation r on r.id = d.right_generation left join forecast f on f.vote = v.id
                where {COUNTED} and d.repeats is null and l.policy = ?1 and r.policy = ?1""",
            version,
        )

    def end_trial(self, version: int, state: str, reason: Message) -> None:
        """End a trial: `state` is kept, undecided or rolled_back. A version that is rolled back makes room for the one
        that it was compared with. A trial that is over stays as it is.
        """
        with self.writing() as db:
            row = db.execute(
                f"""select t.against, p.status,
                      (select {NOT_GOOD} from policy where version = t.against) from trial t
                    join policy p on p.version = t.version where t.version = ? and t.state = 'open'""",
                [version],
            ).fetchone()
            if row is None:
                return
            against, status, other_is_bad = row
            columns = {"state": state, "reason": reason.dumps(), "ended": now()}
            db.table("trial").update(version, columns)
            if state == "rolled_back" and status == "live" and not other_is_bad:
                make_live(db, against, "rolled_back", reason)
                db.table("policy").update(version, {"reason": str(reason)})
