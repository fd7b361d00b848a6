"""What a page shows of a conversation, as plain values, built from the store's rows. No Gradio here, and nothing that
changes anything.
"""

from dataclasses import dataclass, field, replace

from playground.system.messages import Message


@dataclass(frozen=True)
class ChatMessage:
    """One message before the pair on screen. `text` is as its owner last edited it; `version` is the policy that wrote
    a reply.
    """

    id: int
    role: str
    text: str
    edited: bool = False
    thumb: int | None = None
    version: int | None = None

    @classmethod
    def of(cls, row):
        return cls(row["id"], row["role"], row["text"], row["edited"], row["thumb"], row["policy"])


@dataclass(frozen=True)
class Side:
    """One candidate as the page shows it; what follows `thumb` is None until the vote, so that nobody votes by it."""

    text: str
    message: int | None = None
    edited: bool = False
    thumb: int | None = None
    version: int | None = None
    chosen: bool = False
    first_token_ms: float | None = None
    tokens_per_second: float | None = None

    @classmethod
    def blind(cls, row):
        """A candidate that can be voted on."""
        return cls(row["shown"], row["message"], row["edited"], row["thumb"])

    @classmethod
    def revealed(cls, row, chosen):
        """A candidate after the vote: who wrote it, and how fast."""
        tokens, total, first = row["tokens"], row["total_ms"], row["first_token_ms"]
        timed = (
            tokens > 1 and total is not None and first is not None and total > first
        )  # not while it is still being written
        rate = 1e3 * (tokens - 1) / (total - first) if timed else None
        return cls(row["shown"], row["message"], row["edited"], row["thumb"], row["policy"], chosen, first, rate)


@dataclass(frozen=True)
class View:
    """All that the page shows of a conversation.

    `phase` is idle, streaming, voting, voted, or same (both replies are one text: there is nothing to vote on);
    `history` are the ChatMessages before the pair on screen; `message` is what the pair answers; `pairs` are the duels
    that answer it, this one among them, oldest first.
    """

    phase: str
    history: list = field(default_factory=list)
    message: str | None = None
    left: Side | None = None
    right: Side | None = None
    duel: int | None = None
    choice: str | None = None
    vote: int | None = None
    tags: tuple = ()
    comment: str = ""
    pairs: tuple = ()
    conversation: int | None = None
    progress: Message | None = None  # while replies stream: why they are not to be seen yet, if so
    writing: str | None = None  # after an early vote: the side ("a" or "b") that goes on to its end

    @property
    def started(self):
        return self.phase != "idle" or bool(self.history)

    @property
    def versions(self):
        """Versions that wrote what is shown, as far as they may be known: of the history and, after the vote, of the
        pair.
        """
        return [m.version for m in (*self.history, self.left, self.right) if m and m.version is not None]


def settled(store, conversation, annotator):
    """The View of a conversation (its row) as the store has it; a pair that still streams is `voting` with what is
    there.
    """
    rows, duel = store.history(conversation["id"]), store.shown_duel(conversation["id"])
    if duel is None:
        return View("idle", [ChatMessage.of(row) for row in rows], conversation=conversation["id"])
    left, right = duel["left"], duel["right"]
    own = {duel["user_message"], left["message"], right["message"]}  # the history ends before the duel's own message
    shown = {
        "history": [ChatMessage.of(row) for row in rows if row["id"] not in own],
        "message": duel["user_text"],
        "duel": duel["id"],
        "pairs": tuple(duel["pairs"]),
        "conversation": conversation["id"],
    }
    vote = store.current_vote(duel["id"], annotator)
    if vote is None:
        return View("same" if duel["same"] else "voting", left=Side.blind(left), right=Side.blind(right), **shown)
    sides = {
        name: Side.revealed(row, row["message"] == vote["continued_with"])
        for name, row in (("left", left), ("right", right))
    }
    return View(
        "voted",
        **sides,
        choice=vote["choice"],
        vote=vote["id"],
        tags=tuple(vote["tags"] or ()),
        comment=vote["comment"] or "",
        **shown,
    )


def to_read(view):
    """A View for somebody else: what was written, without what its owner said of it (the vote and its
    reasons, thumbs).
    """
    sides = {
        name: side and Side(side.text, side.message, side.edited)
        for name, side in (("left", view.left), ("right", view.right))
    }
    history = [replace(message, thumb=None) for message in view.history]
    return replace(view, history=history, choice=None, vote=None, tags=(), comment="", **sides)
