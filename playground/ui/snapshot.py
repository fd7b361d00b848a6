"""What one page shows of a chat, as the server remembers it. Handlers compare it with the chat as it is now, so that
nothing about a conversation has to be read back from the page.
"""

import time
from dataclasses import dataclass, field
from typing import Any

from playground.chat.views import View


@dataclass(frozen=True)
class PageSnapshot:
    """What a page shows, kept in a `gr.State` of that page."""

    conversation: int | None
    duel: int | None
    live_version: int  # the version that answered then
    shown_at: str  # since when the pair can be voted on, as the store writes times
    shown_clock: float  # the same on the monotonic clock, in seconds
    vote: int | None = None  # the person's own vote on this pair
    refused: str | None = None  # the message in the box, where it could not be sent here
    painted: dict[int, Any] = field(default_factory=dict, repr=False)  # component id: the update that it got last

    def is_behind(self, view: View) -> bool:
        """Whether the person has gone on in another tab or window, to another chat, pair or vote. A gesture on this
        page was then meant for something that is no longer there.
        """
        if self.conversation is None and not view.started:
            return False  # both are empty
        return (self.conversation, self.duel, self.vote) != (view.conversation, view.duel, view.vote)

    def dwell_ms(self) -> float:
        """Milliseconds since the pair was shown."""
        return 1e3 * (time.monotonic() - self.shown_clock)
