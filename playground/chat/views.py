"""What a page shows of a conversation, as plain values, built from the store's rows. This module knows no Gradio and
changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from playground.store import Store
from playground.system.messages import Message

StoreRow = Mapping[str, Any]
Phase = Literal["idle", "streaming", "voting", "voted", "same", "shared"]


@dataclass(frozen=True)
class ChatMessage:
    """One message before the pair on screen. `text` is as its owner last edited it; `version` is the policy that wrote
    a reply, `cut` after how many tokens it reached the limit, if it did; `stopped`: whether it was stopped before its
    end.
    """

    id: int
    role: Literal["user", "assistant"]
    text: str
    edited: bool = False
    thumb: int | None = None
    version: int | None = None
    cut: int | None = None
    stopped: bool = False

    @classmethod
    def of(cls, row: StoreRow) -> "ChatMessage":
        """The message of one of the rows of `Store.history`."""
        return cls(
            id=row["id"],
            role=row["role"],
            text=row["text"],
            edited=row["edited"],
            thumb=row["thumb"],
            version=row["policy"],
            cut=row["cut"],
            stopped=row["stopped"],
        )


@dataclass(frozen=True)
class Side:
    """One candidate as the page shows it; `cut`: after how many tokens it reached the limit, if it did; `stopped`:
    whether it was stopped before its end; `complete`: whether it has ended while the other one is still being written.
    The fields after that are unset until the vote, so that nobody votes by them.
    """

    text: str
    message: int | None = None
    edited: bool = False
    thumb: int | None = None
    cut: int | None = None
    stopped: bool = False
    complete: bool = False
    version: int | None = None
    chosen: bool = False
    first_token_ms: float | None = None
    tokens_per_second: float | None = None

    @classmethod
    def blind(cls, row: StoreRow) -> "Side":
        """A candidate that can be voted on."""
        return cls(
            text=row["shown"],
            message=row["message"],
            edited=row["edited"],
            thumb=row["thumb"],
            cut=row["cut"],
            stopped=row["stopped"],
        )

    @classmethod
    def revealed(cls, row: StoreRow, chosen: bool) -> "Side":
        """A candidate after the vote: who wrote it, and how fast."""
        return replace(
            cls.blind(row),
            version=row["policy"],
            chosen=chosen,
            first_token_ms=row["first_token_ms"],
            tokens_per_second=_tokens_per_second(row),
        )


def _tokens_per_second(row: StoreRow) -> float | None:
    """How fast a reply was written after its first token; None while it is still being written."""
    tokens, total, first = row["tokens"], row["total_ms"], row["first_token_ms"]
    if tokens <= 1 or total is None or first is None or total <= first:
        return None
    return float(1e3 * (tokens - 1) / (total - first))


@dataclass(frozen=True)
class View:
    """All that the page shows of a conversation.

    `phase` is idle, streaming, voting, voted, same (both replies are one text: there is nothing to vote on), or shared
    (another person's chat, to read). `history` are the messages before the pair on screen. `message` is what the pair
    answers. `pairs` are the ids of all duels that answer it, oldest first, with this one among them.
    """

    phase: Phase
    history: list[ChatMessage] = field(default_factory=list)
    message: str | None = None
    left: Side | None = None
    right: Side | None = None
    duel: int | None = None
    choice: str | None = None
    vote: int | None = None
    tags: tuple[str, ...] = ()
    comment: str = ""
    pairs: tuple[int, ...] = ()
    conversation: int | None = None
    progress: Message | None = None  # while replies stream: why they are not to be seen yet, if so
    writing: Literal["a", "b"] | None = None  # after an early vote: the side that goes on to its end
    queued: bool = False  # whether the pair answers the prompt that this person has from the queue

    @property
    def started(self) -> bool:
        """Whether the conversation has any message."""
        return self.phase != "idle" or bool(self.history)

    @property
    def versions(self) -> list[int]:
        """Versions that wrote what is shown, as far as they may be known: of the history and, after the vote, of the
        pair.
        """
        shown = (*self.history, self.left, self.right)
        return [part.version for part in shown if part and part.version is not None]


def stored_view(store: Store, conversation: StoreRow, annotator: int) -> View:
    """The View of a conversation (its row) as the store has it. A pair that still streams is `voting`, with what is
    there.
    """
    rows = store.history(conversation["id"])
    duel = store.shown_duel(conversation["id"])
    if duel is None:
        return View("idle", [ChatMessage.of(row) for row in rows], conversation=conversation["id"])
    left, right = duel["left"], duel["right"]
    of_duel = {duel["user_message"], left["message"], right["message"]}  # the history ends before the duel's message
    vote = store.current_vote(duel["id"], annotator)
    view = View(
        "same" if duel["same"] else "voting",
        history=[ChatMessage.of(row) for row in rows if row["id"] not in of_duel],
        message=duel["user_text"],
        left=Side.blind(left),
        right=Side.blind(right),
        duel=duel["id"],
        pairs=tuple(duel["pairs"]),
        conversation=conversation["id"],
        queued=vote is None and store.is_task(duel["user_message"], annotator),
    )
    if vote is None:
        return view
    # a vote that was changed after the chat had gone on keeps what the chat went on with
    picked = {"a": left["message"], "b": right["message"]}.get(vote["choice"], vote["continued_with"])
    return replace(
        view,
        phase="voted",
        left=Side.revealed(left, chosen=left["message"] == picked),
        right=Side.revealed(right, chosen=right["message"] == picked),
        choice=vote["choice"],
        vote=vote["id"],
        tags=tuple(vote["tags"] or ()),
        comment=vote["comment"] or "",
    )


def read_only(view: View) -> View:
    """A View for somebody else: what was written, without what its owner said of it (thumbs, the vote and its
    reasons).
    """
    return replace(
        view,
        history=[replace(message, thumb=None) for message in view.history],
        left=_text_alone(view.left),
        right=_text_alone(view.right),
        choice=None,
        vote=None,
        tags=(),
        comment="",
    )


def _text_alone(side: Side | None) -> Side | None:
    return side and Side(text=side.text, message=side.message, edited=side.edited, cut=side.cut, stopped=side.stopped)
