"""What is asked about how people vote, and the people whom an admin leaves out of training."""

import json

from playground.store.checks import is_key
from playground.store.database import Database, Row, now
from playground.store.erasures import ALLOWED
from playground.store.errors import StoreError
from playground.store.votes import COUNTS_BUT_FOR_ADMINS, VOTES

NEWEST = 50_000  # votes that are looked at; about a second
SWAPPED = "case {0} when 'a' then 'b' when 'b' then 'a' else {0} end"

# votes v on a pair d and w on its repetition e, of other people; both would count, but for what admins left out
TWICE = f"""
    select v.annotator as first, w.annotator as second, v.choice as one, {SWAPPED.format("w.choice")} as other,
      v.excluded is null and w.excluded is null and a.left_out is null and b.left_out is null as in_training
    from duel e join duel d on d.id = e.repeats
      join conversation c on c.id = d.conversation join annotator a on a.id = c.annotator
      join conversation k on k.id = e.conversation join annotator b on b.id = k.annotator
      join vote v on v.duel = d.id and v.annotator = a.id and v.superseded_by is null and v.choice != 'skip'
      join vote w on w.duel = e.id and w.annotator = b.id and w.superseded_by is null and w.choice != 'skip'
    where {ALLOWED} and b.allow_training and not b.banned and k.deleted is null and a.id != b.id
    order by e.id desc limit {NEWEST}"""


class Quality(Database):
    """Part of `Store`."""

    # -- reading

    def votes_for_quality(self) -> list[Row]:
        """The newest NEWEST votes as far as they count, also those that an admin left out, each person's oldest first.

        Keys: person, choice, dwell_ms (None where nobody knows, and of a vote that was changed), left_out (whether the
        person is).
        """
        return self.rows(
            f"""select v.annotator as person, v.choice, case when v.changed is null then v.dwell_ms end as dwell_ms,
                  a.left_out is not null as left_out from {VOTES}
                where {COUNTS_BUT_FOR_ADMINS} and v.id > (select coalesce(max(id), 0) from vote) - ?
                order by v.annotator, v.id""",
            NEWEST,
        )

    def judged_twice(self) -> list[Row]:
        """What two people said of the same pair, by the first one's sides, the newest NEWEST of them.

        Keys: first, second (people); one, other (their choices); in_training: whether rounds learn from both votes.
        """
        return self.rows(TWICE)

    def versions_of_votes(self, votes: list[int]) -> dict[int, list[int]]:
        """The published versions that have learnt from each of these votes, or from one that it took the place of;
        votes without any are left out.
        """
        rows = self.rows(
            """with asked(vote) as (select value from json_each(?)),
                 said(vote, earlier) as (
                   select vote, vote from asked
                   union select v.id, w.id from asked join vote v on v.id = asked.vote
                     join vote w on w.duel = v.duel and w.annotator = v.annotator and w.superseded_by is not null)
               select distinct said.vote, p.version from said join vote_use u on u.vote = said.earlier
               join round r on r.id = u.round join policy p on p.round = r.id
               where u.heldout = 0 and r.state = 'published' order by p.version""",
            json.dumps(votes),
        )
        found: dict[int, list[int]] = {}
        for row in rows:
            found.setdefault(row["vote"], []).append(row["version"])
        return found

    def versions_of_people(self) -> dict[int, list[int]]:
        """The published versions whose round has read chats of each person, as `learned_versions` has them for one."""
        rows = self.rows(
            """select distinct c.annotator as person, p.version from round_conversation k
               join conversation c on c.id = k.conversation join round r on r.id = k.round
               join policy p on p.round = r.id where r.state = 'published' order by p.version"""
        )
        found: dict[int, list[int]] = {}
        for row in rows:
            found.setdefault(row["person"], []).append(row["version"])
        return found

    # -- what an admin leaves out

    def leave_out_person(self, person: int, left_out: bool) -> None:
        """Leave all that a person says out of training, also later, or take it in again. It holds for rounds that begin
        from now on. What was left out vote by vote stays out. StoreError where there is no such person.
        """
        gone = StoreError("There is no such person.")
        if not is_key(person):
            raise gone
        with self.writing() as db:
            changed = db.execute(
                "update annotator set left_out = ? where id = ?", [now() if left_out else None, person]
            ).rowcount
            if not changed:
                raise gone
