"""One turn's two replies by two versions: two Streams of one reply each, read and stopped as one."""

import threading
import time
from collections.abc import Sequence

from playground.serving.stream import ReplyRecord, Stream
from playground.serving.versions import Policy


class PairStream:
    """Has what a chat reads of a Stream: `left` and `right` are its two replies, in this order."""

    def __init__(self, left: Stream, right: Stream) -> None:
        self.sides = (left, right)
        self.started = left.started

    @property
    def policies(self) -> list[Policy]:
        return [side.policy for side in self.sides]

    @property
    def seeds(self) -> list[int]:
        return [side.seeds[0] for side in self.sides]

    @property
    def place(self) -> int:
        """In the queue for room; 0 once both run."""
        return max(side.place for side in self.sides)

    @property
    def admitted(self) -> threading.Event:
        """Set once the one that waits longer has left the queue."""
        left, right = self.sides
        return left.admitted if not left.admitted.is_set() else right.admitted

    @property
    def error(self) -> str | None:
        left, right = self.sides
        return left.error or right.error

    def texts(self) -> list[str]:
        return [side.texts()[0] for side in self.sides]

    def tokens(self) -> list[int]:
        return [side.tokens()[0] for side in self.sides]

    def stop(self, reply: int | None = None) -> None:
        """End both replies at the next step, or only the one with this index."""
        for i, side in enumerate(self.sides):
            if reply in (None, i):
                side.stop()

    def growing(self, reply: int) -> bool:
        return self.sides[reply].growing(0)

    def wait(self, timeout: float) -> bool:
        """Wait until both have ended, at most `timeout` seconds; returns whether they have. Where one has failed, the
        other one is told to end.
        """
        deadline = time.monotonic() + timeout
        if self.error:
            self.stop()
        return all(side.wait(max(deadline - time.monotonic(), 0)) for side in self.sides)

    def so_far(self) -> list[ReplyRecord]:
        return [side.so_far()[0] for side in self.sides]

    def results(self, shown: Sequence[int] = (0, 1)) -> list[ReplyRecord]:
        return [self.sides[i].results((0,))[0] for i in shown]
