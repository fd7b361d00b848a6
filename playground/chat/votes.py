"""What a person says of replies: a vote on a pair and its reasons, a thumb, a better wording."""

from collections.abc import Sequence

from playground.chat import gestures
from playground.chat.gestures import NotUsable
from playground.chat.refusals import Busy, Refused, refusing
from playground.chat.turns import BUSY, Turn
from playground.chat.views import StoreRow, View
from playground.chat.writing import Writing
from playground.store import CHOICES
from playground.system.messages import Message

NOT_YOURS = Message("This pair of replies is not yours to vote on. Reload the page.")
JUDGEMENTS = ", ".join(choice for choice in CHOICES if choice != "skip")
COMMENT_CHARS = 1000  # longest comment on a vote
# the reasons that fit a vote, by its choice
PRAISE = ("more helpful", "more correct", "clearer", "better length", "better tone", "follows my request")
REASONS: dict[str, tuple[str, ...]] = {
    "a": PRAISE,
    "b": PRAISE,
    "tie": ("both good", "the same in other words", "each better in its way"),
    "both_bad": ("wrong", "too long", "off-topic", "unsafe"),
    "skip": (),
}


class Votes(Writing):
    """Part of `Chat`: the gestures on replies."""

    def vote(
        self,
        annotator: int,
        duel_id: int,
        choice: str,
        shown_at: str | None = None,
        dwell_ms: float | None = None,
    ) -> View:
        """Record a vote on a pair that was shown to this person, and go on with the pick; returns the new View.

        While both replies are still being written, the other one ends and the pick goes on to its end; the vote is on
        what both had said. Refused where the pair cannot be voted on (any more).
        """
        self.check_may_write(annotator)
        duel = self._own_duel(annotator, duel_id)
        if choice not in CHOICES:
            raise Refused("A vote is one of {name}; got {what}.", name=", ".join(CHOICES), what=gestures.brief(choice))
        ballot = gestures.checked(gestures.Ballot, choice=choice, shown_at=shown_at, dwell_ms=dwell_ms)
        turn = self._turns.get(annotator)
        if turn and turn.begins:
            raise Busy(BUSY)
        if turn and turn.duel == duel_id:
            with turn.recording:
                if not turn.ended.is_set():
                    self._vote_early(turn, duel, ballot)
                    return self.view(annotator)
            duel = self._own_duel(annotator, duel_id)  # as it is now
        if duel["same"]:
            raise Refused("Both gave the same answer, so there is nothing to vote on. Go on with the next message.")
        with refusing():
            self.store.vote(duel_id, annotator, choice, self._pick(duel, choice), ballot.shown_at, ballot.dwell_ms)
        return self.view(annotator)

    def _vote_early(self, turn: Turn, duel: StoreRow, ballot: gestures.Ballot) -> None:
        """A vote while replies are being written. A second one on the same pair changes the first."""
        earlier = self.store.current_vote(duel["id"], turn.annotator)
        if earlier:
            pick = self._pick(duel, ballot.choice)
            with refusing():
                self.store.vote(duel["id"], turn.annotator, ballot.choice, pick, ballot.shown_at, ballot.dwell_ms)
            if pick != earlier["continued_with"]:
                turn.stop()  # this reply has ended already, and nobody asks for the other one
            return
        stream = turn.stream
        if stream is None or len(stream.seeds) > 2 or turn.replacement or not all(stream.texts()):
            raise Refused("There is nothing to compare yet. Wait for the first words of both replies.")
        left, right = so_far = stream.so_far()
        if left["text"] == right["text"] or left["token_ids"] == right["token_ids"]:
            raise Refused("Both replies say the same so far. Wait until they differ.")
        pick = self._pick(duel, ballot.choice)
        with refusing():
            self.store.vote(
                duel["id"], turn.annotator, ballot.choice, pick, ballot.shown_at, ballot.dwell_ms, early=so_far
            )
        stream.stop(1 if pick == duel["left"]["message"] else 0)

    def correct(self, annotator: int, vote: int, choice: str) -> int:
        """Put another choice in the place of one's own vote, also once its chat has gone on; returns the vote's id.

        A vote from before the replies had ended stays one on what both had said by then.
        """
        if choice not in CHOICES or choice == "skip":
            raise Refused("A vote is one of {name}; got {what}.", name=JUDGEMENTS, what=gestures.brief(choice))
        with refusing():
            duel = self.store.duel(self._duel_of(annotator, vote))
            assert duel is not None, vote
            corrected: int = self.store.correct_vote(vote, annotator, choice, self._pick(duel, choice))
        return corrected

    def withdraw(self, annotator: int, vote: int) -> None:
        """Take one's own vote back: it counts nowhere from now on. Its chat stays, and what was learnt from it."""
        with refusing():
            self._duel_of(annotator, vote)
            self.store.withdraw_vote(vote, annotator)

    def _duel_of(self, annotator: int, vote: int) -> int:
        """The pair of one's own vote, which is to change. Refused while its replies are being written, and while a
        message begins, whose prompt has the pick in it already.
        """
        self.check_may_write(annotator)
        duel = int(self.store.duel_of_vote(gestures.checked(gestures.Row, id=vote).id, annotator))
        turn = self._turns.get(annotator)
        if turn and (turn.begins or turn.duel == duel):
            raise Busy(BUSY)
        return duel

    def _pick(self, duel: StoreRow, choice: str) -> int:
        """The message that the conversation goes on with.

        Where no side won it is picked at random, of those that were not stopped where there are any. A pair that was
        voted on early goes on with the reply that went on to its end.
        """
        if choice in ("a", "b"):
            return int(duel["left" if choice == "a" else "right"]["message"])
        sides = [duel["left"], duel["right"]]
        whole = [side["message"] for side in sides if side["finish_reason"] != "stopped"]
        messages = whole or [side["message"] for side in sides]
        earlier = self.store.current_vote(duel["id"], duel["annotator"])
        if earlier and duel["left_cut"] is not None and earlier["continued_with"] in messages:
            return int(earlier["continued_with"])
        return int(self._rng.choice(messages))

    def _own_duel(self, annotator: int, duel_id: int) -> StoreRow:
        """The row of a pair that was shown to this person; Refused where it was not."""
        self._record(annotator)
        try:
            duel: StoreRow | None = self.store.duel(gestures.checked(gestures.Row, id=duel_id).id)
        except NotUsable:
            duel = None
        if duel is None or duel["annotator"] != annotator:
            raise Refused(NOT_YOURS)
        return duel

    def explain(self, annotator: int, vote: int, tags: Sequence[str] | None = None, comment: str | None = None) -> None:
        """Reasons for one's vote: tags (of `REASONS`), a comment, or both; what is None stays as it was. Refused where
        a tag does not fit the vote.
        """
        self.check_may_write(annotator)
        gestures.checked(gestures.Reason, vote=vote, tags=tags, comment=comment)
        if comment is not None:
            comment = comment.strip()
            if len(comment) > COMMENT_CHARS:
                raise Refused(
                    "The comment has {n} characters; at most {limit} fit. Please shorten it.",
                    n=f"{len(comment):,}",
                    limit=f"{COMMENT_CHARS:,}",
                )
        if tags:
            tags = self._fitting(vote, tags)
        with refusing():
            self.store.explain(vote, annotator, tags, comment)

    def _fitting(self, vote: int, tags: Sequence[str]) -> list[str]:
        """`tags`, each once; Refused where one is no reason for such a vote."""
        row = self.store.vote_fate(vote)
        possible = REASONS[row["choice"]] if row else ()
        if any(tag not in possible for tag in tags):
            raise Refused("This reason does not fit your vote. Reload the page.")
        return [tag for tag in possible if tag in tags]

    def rate(self, annotator: int, message: int, thumb: int | None) -> None:
        """A thumb up (1), down (-1) or none (None) on one reply."""
        self.check_may_write(annotator)
        gestures.checked(gestures.Rating, message=message, thumb=thumb)
        with refusing():
            self.store.rate(message, annotator, thumb)

    def edit(self, annotator: int, message: int, after: str) -> View:
        """What one would rather have read: a demonstration, and what the conversation goes on with. Returns the new
        View.
        """
        self.check_may_write(annotator)
        self._check_idle(annotator)
        gestures.checked(gestures.Row, id=message)
        after = self._checked_text(after)
        with refusing():
            self.store.demonstrate(message, annotator, after)
        return self.view(annotator)
