"""Turns: at most one for each person, and a limited number at once from one address and in all.

A turn runs from a message until both replies are in the store. How they are written is `writing.py`'s.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from playground.chat.refusals import Busy, Refused
from playground.chat.views import View
from playground.serving.engine import Engine
from playground.serving.pair_stream import PairStream
from playground.serving.stream import Stream
from playground.settings import Settings
from playground.store import Store
from playground.system.messages import Message

VIEWER = Message("You may look at everything here, but not send, vote or edit. Ask an admin for the role annotator.")
BUSY = Message("Replies are still streaming. Wait for them or press Stop.")
STOP_SECONDS = 30  # within which the engine ends replies that are told to stop


class Turn:
    """One message's pair of replies while they are written, and what their page shows."""

    def __init__(self, annotator: int, address: str, text: str | None, goes_on: bool = True) -> None:
        self.annotator = annotator
        self.address = address  # the network address that the message came from
        self.text = text  # the message; None where an earlier one is answered again
        self.goes_on = goes_on  # with the person's chat, so that its prompt has the pick of the pair before
        self.stream: Stream | PairStream | None = None
        self.replacement: Stream | None = None  # writes another right reply, since both said the same
        self.conversation: int | None = None
        self.duel: int | None = None  # once the store has it
        self.task: int | None = None  # of the prompt queue, whose prompt the message is
        self.stored_view = View("idle")  # as the store had the pair when the page was last updated
        self.stopped = threading.Event()  # somebody pressed Stop, or nobody asks for the replies any more
        self.recording = threading.Lock()  # held while a vote, or the pair's end, is written down
        self.ended = threading.Event()  # both replies are in the store
        self.last_look = time.monotonic()  # when a page last asked for it

    @property
    def begins(self) -> bool:
        """Whether its prompt is read and its pair not in the store yet: a pick that changes now would come too late."""
        return self.goes_on and self.duel is None

    @property
    def waiting(self) -> bool:
        """Whether there is no room for its replies yet."""
        return self.stream is None or self.stream.place > 0

    @property
    def voted(self) -> bool:
        """Whether a vote came before the end, so that the reply that was picked goes on alone."""
        return self.stored_view.phase == "voted"

    def stop(self) -> None:
        """End what is being written at the next step."""
        self.stopped.set()
        for stream in (self.stream, self.replacement):
            if stream:
                stream.stop()


@dataclass(frozen=True)
class ReplyOptions:
    """How the replies of one turn are made: `version` writes them (None: the one that answers people), and their seeds
    follow from `seed` (None: random ones).
    """

    version: int | None = None
    seed: int | None = None


DEFAULT_OPTIONS = ReplyOptions()


class Turns:
    """Part of `Chat`: the turns that run now. It also holds what all parts of `Chat` use."""

    def __init__(self, store: Store, engine: Engine, settings: Settings, rng: random.Random | None = None) -> None:
        self.store = store
        self.engine = engine
        self.settings = settings
        self._rng = rng or random.SystemRandom()
        self._turns: dict[int, Turn] = {}  # by annotator
        self._lock = threading.Lock()
        self.may_write: Callable[[int], bool] = lambda annotator: True  # whether a person is more than a viewer

    def check_may_write(self, annotator: int) -> None:
        """Refused for whoever may only look."""
        if not self.may_write(annotator):
            raise Refused(VIEWER)

    def busy(self, annotator: int) -> bool:
        """Whether replies to this person are being written."""
        return annotator in self._turns

    def is_answering(self, annotator: int, text: str | None) -> bool:
        """Whether replies to this message are being written: whoever sends it now, or the box that it has left empty,
        has pressed twice. None stands for other replies to an earlier message, and for the next prompt of the queue.
        """
        turn = self._turns.get(annotator)
        if turn is None:
            return False
        if text is None or turn.text is None:
            return not text and not turn.text
        return text.strip() in ("", turn.text.strip())

    def stop(self, annotator: int) -> None:
        """End this person's streaming replies; what is there can be voted on."""
        if turn := self._turns.get(annotator):
            turn.stop()

    @contextmanager
    def _turn(self, annotator: int, address: str, text: str | None = None, goes_on: bool = True) -> Iterator[Turn]:
        """A Turn of this person, who sent `text`, to go on with the chat or for itself. Refused for a viewer, where
        there is one already, and where too many messages wait or come from this address.
        """
        self.check_may_write(annotator)
        with self._lock:
            if annotator in self._turns:
                raise Busy(BUSY)
            self._check_limits(address)
            turn = self._turns[annotator] = Turn(annotator, address, text, goes_on)
        try:
            yield turn
        finally:
            self._release(turn)

    def _check_limits(self, address: str) -> None:
        """Refused where there is no place for one more turn."""
        waiting = sum(turn.waiting for turn in self._turns.values())
        if waiting >= self.settings.limits.waiting_messages:
            raise Busy(
                "Too many people are chatting: {n} {n:message waits|messages wait} already. Your message is back in "
                "the box; send it again in a moment.",
                n=f"{waiting:,}",
            )
        nearby = sum(turn.address == address for turn in self._turns.values())
        if address and nearby >= self.settings.limits.messages_per_address:
            raise Busy(
                "From your network address {n} {n:message is|messages are} being answered already. Your message is "
                "back in the box; send it again in a moment.",
                n=f"{nearby:,}",
            )

    def _release(self, turn: Turn) -> None:
        """The turn is over, and the person can go on."""
        with self._lock:
            if self._turns.get(turn.annotator) is turn:
                del self._turns[turn.annotator]
        turn.ended.set()

    def _end_turn(self, annotator: int, conversation: int | None = None) -> None:
        """Stop this person's replies (of `conversation`, where one is given) and wait until they are in the store."""
        turn = self._turns.get(annotator)
        if turn is None or (conversation is not None and turn.conversation not in (None, conversation)):
            return
        deadline = time.monotonic() + STOP_SECONDS
        while not turn.ended.wait(0.05):
            if turn.stream:  # a turn that has just begun has none yet
                turn.stop()
            if time.monotonic() > deadline:
                raise Refused("The replies could not be stopped. Try again in a moment.")

    def _check_idle(self, annotator: int) -> None:
        """Refused while replies to this person are being written."""
        if self.busy(annotator):
            raise Busy(BUSY)

    def _end_voted_turn(self, annotator: int) -> None:
        """As `_check_idle`, but a reply that goes on alone after an early vote ends where it is."""
        turn = self._turns.get(annotator)
        if turn and turn.voted:
            turn.stop()
            turn.ended.wait(STOP_SECONDS)
        self._check_idle(annotator)
