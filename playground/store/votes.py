"""What people say about replies: votes with their reasons, thumbs and edits; which votes count, and what became of one.
How training reads them is `training_data.py`'s.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlite_utils

from playground.store.database import Database, Row, insert, now
from playground.store.erasures import ALLOWED
from playground.store.errors import StoreError
from playground.store.queue_tasks import note_vote
from playground.system.messages import Message

CHOICES = ("a", "b", "tie", "both_bad", "skip")
NOT_CURRENT = Message("This vote is not yours, or it was replaced. Reload the page.")
GONE_ON = Message("The conversation has gone on since. A vote on this pair can be changed in the tab Data.")

# The votes that count, wherever a number of votes is shown or compared: one for each pair and person, no skips, none
# that an admin left out, nor of people whom an admin left out, on two replies that differ, in chats that were not
# deleted, of people who let training have them, and on the base model that answers (`bases.py`; an older file knows the
# newest reply's). A number that counts fewer of them (votes for A or B, say) has another name.
VOTES = """
    vote v join duel d on d.id = v.duel join conversation c on c.id = d.conversation
    join annotator a on a.id = v.annotator
    join generation l on l.id = d.left_generation"""
COUNTS_BUT_FOR_ADMINS = f"v.superseded_by is null and v.choice != 'skip' and not d.same and {ALLOWED}"
COUNTS = f"{COUNTS_BUT_FOR_ADMINS} and v.excluded is null and a.left_out is null"
LAST_BASE = """coalesce(
    (select base_hash from base order by id desc limit 1),
    (select base_hash from generation order by id desc limit 1))"""
COUNTED = f"{COUNTS} and l.base_hash = {LAST_BASE}"
# Comparisons of versions that the person did not know; of a pair that was judged twice the first judge's alone. A vote
# shows which version wrote what. So a person's first vote on a pair, `f`, counts as it was given, whatever came in its
# place; and none once one of them was taken back (it supersedes itself).
OTHER_ON_THE_PAIR = "w.duel = v.duel and w.annotator = v.annotator and w.superseded_by is not null"
BLIND_VOTES = f"""{VOTES}
    join vote f on f.id = coalesce((select min(w.id) from vote w where {OTHER_ON_THE_PAIR}), v.id)"""
BLIND = f"""d.repeats is null
    and not exists (select 1 from vote w where {OTHER_ON_THE_PAIR} and w.superseded_by = w.id)"""
NEW = "v.id > coalesce((select max(last_vote) from round), 0)"  # since the last round began
COUNT_NEW_VOTES = f"select count(*) as n from {VOTES} where {COUNTED} and {NEW}"

# of the newest version that learnt from a vote
LEARNT = """
    (select {what} from vote_use w join policy p on p.round = w.round join round q on q.id = w.round
     where w.vote = v.id and w.heldout = 0 and q.state = 'published' order by p.version desc limit 1)"""
# what has become of a vote; a where clause follows
FATE = f"""
    select v.id as vote, v.created, v.choice, d.conversation, m.text, c.deleted, a.allow_training as allowed,
      d.left_cut is not null as early, {COUNTED} as counts,
      coalesce(v.comment, '') != '' as commented,
      u.round, u.heldout, r.state as round_state, r.phase as round_phase,
      {LEARNT.format(what="p.version")} as version, {LEARNT.format(what="p.status")} as version_status,
      f.probability, f.hit
    from {VOTES} join message m on m.id = d.user_message
      left join vote_use u on u.vote = v.id and u.round = (select max(round) from vote_use where vote = v.id)
      left join round r on r.id = u.round left join forecast f on f.vote = v.id"""


class Votes(Database):
    """Part of `Store`."""

    # -- what a person says

    def vote(
        self,
        duel: int,
        annotator: int,
        choice: str,
        continue_with: int | None,
        shown_at: str | None = None,
        dwell_ms: float | None = None,
        early: Sequence[Mapping[str, Any]] | None = None,
    ) -> int:
        """Record a vote and move the conversation on to the message `continue_with`; returns the vote's id.

        The vote is on disk when this returns. It takes the place of this person's earlier vote on the same duel
        (`add_vote`). StoreError when the conversation does not show this duel any more.

        `early`: where replies were still being written, what both had said by then, as `finish_duel` takes it; the
        finish_reason of a reply that still grows is None. Training compares that many tokens of them, whatever the
        replies become.
        """
        if choice not in CHOICES:
            raise StoreError("A vote is one of {name}; got {what}.", name=", ".join(CHOICES), what=repr(choice))
        with self.writing() as db:
            if not db.execute("select 1 from conversation where shown_duel = ?", [duel]).fetchone():
                raise StoreError(GONE_ON)
            columns = {
                "duel": duel,
                "annotator": annotator,
                "choice": choice,
                "continued_with": continue_with,
                "shown_at": shown_at,
                "dwell_ms": dwell_ms,
            }
            vote = add_vote(db, columns, changed="chat")
            db.execute(
                "update conversation set tail = ? where id = (select conversation from duel where id = ?)",
                [continue_with, duel],
            )
            if early:
                _keep_early(db, duel, early)
            note_vote(db, duel, annotator, choice)
            return vote

    def current_vote(self, duel: int, annotator: int) -> Row | None:
        """This person's vote on a duel: the columns of the table with `tags` as a list; or None."""
        row = self.row("select * from vote where duel = ? and annotator = ? and superseded_by is null", duel, annotator)
        if row is None:
            return None
        return {**row, "tags": json.loads(row["tags"] or "[]")}

    def explain(self, vote: int, annotator: int, tags: Iterable[str] | None = None, comment: str | None = None) -> None:
        """Record reasons for one's own current vote: tags, a comment or both. What is None stays as it was."""
        columns: Row = {}
        if tags is not None:
            columns["tags"] = json.dumps(list(tags))
        if comment is not None:
            columns["comment"] = comment or None
        with self.writing() as db:
            row = db.execute(
                """select 1 from vote v join duel d on d.id = v.duel join conversation c on c.id = d.conversation
                   where v.id = ? and v.annotator = ? and v.superseded_by is null and c.deleted is null""",
                [vote, annotator],
            ).fetchone()
            if row is None:
                raise StoreError(NOT_CURRENT)
            db.table("vote").update(vote, columns)

    def rate(self, message: int, annotator: int, thumb: int | None) -> None:
        """Record a thumb up (1) or down (-1) on a reply in one's own chats; None withdraws it.

        A thumb supersedes the earlier one. One that is withdrawn supersedes itself.
        """
        with self.writing() as db:
            _own_reply(db, message, annotator)
            rating = None
            if thumb:
                columns = {"message": message, "annotator": annotator, "thumb": thumb, "created": now()}
                rating = insert(db, "rating", columns)
            db.execute(
                """update rating set superseded_by = coalesce(?, id)
                   where message = ? and annotator = ? and superseded_by is null and id is not ?""",
                [rating, message, annotator, rating],
            )

    def demonstrate(self, message: int, annotator: int, after: str) -> int:
        """Record a reply in one's own chats as the person edited it, with the text before; returns its id.

        A later edit of the same reply replaces the earlier one. Otherwise one person could fill the disk and the warm
        start with one reply. It keeps that one's id and time, by which a file that was exported before is known.
        """
        with self.writing() as db:
            before = _own_reply(db, message, annotator)
            earlier = db.execute(
                "select max(id) from demonstration where message = ? and annotator = ?", [message, annotator]
            ).fetchone()[0]
            if earlier:
                db.table("demonstration").update(earlier, {"before": before, "after": after, "edited": now()})
                return int(earlier)
            columns = {"message": message, "annotator": annotator, "before": before, "after": after, "created": now()}
            return insert(db, "demonstration", columns)

    # -- what became of votes

    def my_votes(self, annotator: int, limit: int = 50, offset: int = 0) -> list[Row]:
        """The annotator's current votes, newest first.

        Keys: vote, created, choice, conversation, text (of the user's message), deleted, allowed; round, heldout,
        round_state, round_phase: the newest round that used it, or None; version: the newest published version that was
        trained on it, or None; probability, hit: its forecast, or None; early: whether it was given while the replies
        were written; counts: whether it counts; commented: whether it has a comment.
        """
        return self.rows(
            f"{FATE} where v.annotator = ? and v.superseded_by is null order by v.id desc limit ? offset ?",
            annotator,
            limit,
            offset,
        )

    def vote_totals(self, annotator: int) -> Row:
        """Numbers of the annotator's current votes.

        Keys: votes: those that count; published: of these, those that a published version learned from; waiting: of
        these, those that are new since the last round began; listed: all, also those that do not count.
        """
        return self.one(
            f"""select coalesce(sum({COUNTED}), 0) as votes,
                 coalesce(sum({COUNTED} and exists (
                   select 1 from vote_use u join round r on r.id = u.round
                   where u.vote = v.id and u.heldout = 0 and r.state = 'published')), 0) as published,
                 coalesce(sum({COUNTED} and {NEW}), 0) as waiting, count(*) as listed
               from {VOTES} where v.annotator = ? and v.superseded_by is null""",
            annotator,
        )

    def vote_fate(self, vote: int) -> Row | None:
        """One vote as `my_votes` returns it, or None."""
        return self.row(f"{FATE} where v.id = ?", vote)

    def new_votes(self) -> int:
        """How many votes that count are new since the last round began."""
        return self.one(COUNT_NEW_VOTES)["n"]

    # -- numbers

    def votes_by_choice(self, after: int = 0) -> list[Row]:
        """All votes that were recorded after the one with this id, superseded ones and skips included, in their
        numbers. Keys: choice, n, last (the newest one's id).
        """
        return self.rows("select choice, count(*) as n, max(id) as last from vote where id > ? group by choice", after)

    def last_base_hash(self) -> str | None:
        """The base model that answers, or None where that is not known."""
        return self.one(f"select {LAST_BASE} as base_hash")["base_hash"]


def add_vote(db: sqlite_utils.Database, columns: Row, changed: str) -> int:
    """Insert a vote with these columns, in the place of its person's earlier one on the same duel; returns its id.

    It takes over the comment, and that an admin left the earlier one out of training; not the tags, which fit that
    choice. One that was taken back counts as an earlier one, else a vote that was left out could come back. `changed`:
    where the person changed it, if there was one; its time says nothing about how long a first look took.
    """
    key = [columns["duel"], columns["annotator"]]
    earlier = db.execute(
        "select id, comment, excluded from vote where duel = ? and annotator = ? and superseded_by is null", key
    ).fetchone()
    vote: int = db.execute("select coalesce(max(id), 0) + 1 from vote").fetchone()[0]
    if earlier:
        db.execute("update vote set superseded_by = ? where id = ?", [vote, earlier[0]])
    else:
        earlier = db.execute(
            """select id, comment, excluded from vote where duel = ? and annotator = ? and superseded_by is not null
               order by id desc limit 1""",
            key,
        ).fetchone()
    taken_over = {"comment": earlier[1], "excluded": earlier[2], "changed": changed} if earlier else {}
    db.table("vote").insert({"id": vote, **columns, **taken_over, "created": now()})
    return vote


def _keep_early(db: sqlite_utils.Database, duel: int, sides: Sequence[Mapping[str, Any]]) -> None:
    """Keep what both replies had said, so that after a crash the vote is there and also what it was about."""
    row = db.table("duel").get(duel)
    if any(side["finish_reason"] is None for side in sides):
        cuts = {"left_cut": len(sides[0]["token_ids"]), "right_cut": len(sides[1]["token_ids"])}
        db.table("duel").update(duel, cuts)
    for generation, side in zip((row["left_generation"], row["right_generation"]), sides, strict=True):
        message = db.table("generation").get(generation)["message"]
        if db.table("message").get(message)["status"] == "streaming":
            db.table("message").update(message, {"text": side["text"]})
            columns = {
                "token_ids": json.dumps(side["token_ids"]),
                "logprobs": json.dumps([round(logprob, 5) for logprob in side["logprobs"]]),
                "first_token_ms": side["first_token_ms"],
            }
            db.table("generation").update(generation, columns)


def _own_reply(db: sqlite_utils.Database, message: int, annotator: int) -> str:
    """The text of a reply in a chat of the annotator; StoreError where it is not one."""
    row = db.execute(
        """select m.text from message m join conversation c on c.id = m.conversation
           where m.id = ? and m.role = 'assistant' and c.annotator = ? and c.deleted is null""",
        [message, annotator],
    ).fetchone()
    if row is None:
        raise StoreError("This message is not yours.")
    return row[0]
