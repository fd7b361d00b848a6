"""Votes that a person corrects or takes back in the list of their own, whatever their chats show by now."""

import sqlite_utils

from playground.store.checks import is_key
from playground.store.database import Database, Row
from playground.store.duels import show
from playground.store.erasures import SCRUB_PATIENCE
from playground.store.errors import StoreError
from playground.store.queue_tasks import note_vote, note_withdrawal
from playground.store.votes import NOT_CURRENT, add_vote

OWN = """
    select v.id, v.duel, v.choice, v.comment, v.excluded, v.continued_with, d.conversation,
      c.shown_duel is d.id as shown
    from vote v join duel d on d.id = v.duel join conversation c on c.id = d.conversation
    where v.id = ? and v.annotator = ? and v.superseded_by is null and c.deleted is null"""


class Corrections(Database):
    """Part of `Store`. Each method raises StoreError where the vote is not a current one of this person."""

    def duel_of_vote(self, vote: int, annotator: int) -> int:
        """The pair that a person's vote is on."""
        row = self.row(OWN, vote, annotator) if is_key(vote) else None
        if row is None:
            raise StoreError(NOT_CURRENT)
        return int(row["duel"])

    def correct_vote(self, vote: int, annotator: int, choice: str, continue_with: int) -> int:
        """Put a vote with another choice in the place of this one; returns its id, or this one's where the choice is
        the same.

        It takes over what a changed vote does (`add_vote`). How long the person looked at the pair is not known. A chat
        that still shows the pair goes on with the message `continue_with`; another one stays as it is.
        """
        with self.writing() as db:
            own = _own(db, vote, annotator)
            if own["choice"] == choice:
                return vote
            columns = {
                "duel": own["duel"],
                "annotator": annotator,
                "choice": choice,
                "continued_with": continue_with if own["shown"] else own["continued_with"],
            }
            corrected = add_vote(db, columns, changed="list")
            if own["shown"]:
                db.table("conversation").update(own["conversation"], {"tail": continue_with})
            note_vote(db, own["duel"], annotator, choice)
            return corrected

    def withdraw_vote(self, vote: int, annotator: int) -> None:
        """Take a vote back: it counts nowhere from now on, and reasons and comments that were given with it or with
        those before it on the pair are removed. A chat that still shows the pair asks for a vote again, on what the
        replies became where this one was early.

        The row stays, superseded by itself, so that no file that was exported before brings the vote back.
        """
        with self.writing() as db:
            own = _own(db, vote, annotator)
            db.execute("update vote set superseded_by = id where id = ?", [vote])
            db.execute(
                """update vote set tags = null, comment = null
                   where duel = ? and annotator = ? and superseded_by is not null""",
                [own["duel"], annotator],
            )
            db.execute("update duel set left_cut = null, right_cut = null where id = ?", [own["duel"]])
            if own["shown"]:
                show(db, own["conversation"], own["duel"])
            note_withdrawal(db, own["duel"], annotator)
        self.scrub(SCRUB_PATIENCE)


def _own(db: sqlite_utils.Database, vote: int, annotator: int) -> Row:
    """A current vote of a person in a chat that is there."""
    found = list(db.query(OWN, [vote, annotator])) if is_key(vote) else []
    if not found:
        raise StoreError(NOT_CURRENT)
    return found[0]
