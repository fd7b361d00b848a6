"""Two versions compared on a person's own prompt: both reply side by side. Nothing of it is kept, and nobody votes.

It takes the place of a turn: one at a time for each person, within the limits of messages, in the same line.
"""

import random
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from playground.chat.refusals import Refused
from playground.chat.turns import STOP_SECONDS, Turn
from playground.chat.writing import PATIENCE, Writing, place_in_line
from playground.decoding.sampling import of_chat
from playground.models import export, prompts
from playground.serving.engine import EngineStopped
from playground.serving.guests import Invitation, not_in_use
from playground.serving.pair_stream import PairStream
from playground.serving.versions import Match
from playground.system.messages import Message

LOADING_SECONDS = 60  # that both versions may take to be loaded, the wait for others included
LOOK_SECONDS = 0.5  # between two looks whether they are there
SEED_BITS = 48


@dataclass(frozen=True)
class Comparison:
    """Two replies as they grow. `progress`: why there are none yet."""

    left: str = ""
    right: str = ""
    progress: Message | None = None


class Comparing(Writing):
    """Part of `Chat`."""

    def compare(
        self, annotator: int, text: str, left: int, right: int, address: str = "", may_load: bool = False
    ) -> Generator[Comparison]:
        """The replies of two versions to `text`, from the first update to the end. Closing the generator stops them.

        BadMessage or Refused before anything is written. A version that is not in memory is loaded where `may_load`;
        the others have to take those that are there.
        """
        self.check_may_write(annotator)
        text = self._checked_text(text)
        chat = self.settings.chat
        prompt = prompts.encode([{"role": "user", "content": text}], self.engine.tokenizer, chat.context_tokens)
        if left == right:
            raise Refused("Pick two different versions.")
        self._check_in_use(left, right)
        with self._turn(annotator, address, text, goes_on=False) as turn:
            with self.engine.guests.invite((left, right), may_load) as invitation:
                yield from self._load(invitation, turn)
                self._check_in_use(left, right)  # while they were loaded an admin may have withdrawn one
                left_policy, right_policy = invitation.policies
                stream = self._compared(prompt, Match(left_policy, right_policy, 1.0))
            turn.stream = stream
            try:
                yield from self._comparison(stream)
            finally:
                turn.stop()
                stream.wait(STOP_SECONDS)
            if stream.error:
                raise Refused("The model could not answer: {error}.", error=stream.error)
            yield _comparison_of(stream)

    def _check_in_use(self, *versions: int) -> None:
        """Refused unless each version may reply to people, also where it is in memory still."""
        for version in versions:
            row = self.store.policy(version)
            if row is None or not export.may_reply(row):
                why = not_in_use(version)
                raise Refused(why)

    def _load(self, invitation: Invitation, turn: Turn) -> Iterator[Comparison]:
        """Wait until both versions are in memory; Refused where they cannot be brought there."""
        deadline = time.monotonic() + LOADING_SECONDS
        while not invitation.answered.is_set():
            in_memory = self.engine.versions.in_memory()
            missing = next((version for version in invitation.versions if version not in in_memory), None)
            if turn.stopped.is_set():
                raise Refused("Stopped before both versions were there.")
            if time.monotonic() > deadline:
                raise Refused("The versions could not be loaded: others are being compared. Try again in a moment.")
            if missing is not None:
                yield Comparison(progress=Message("Version v{n} is being loaded.", n=missing))
            invitation.answered.wait(LOOK_SECONDS)
        if invitation.refusal:
            raise Refused(invitation.refusal)

    def _compared(self, prompt: list[int], match: Match) -> PairStream:
        """Start both replies; Refused where the server is shutting down."""
        chat = self.settings.chat
        seeds = [random.getrandbits(SEED_BITS) for _ in range(2)]
        try:
            return self.engine.match_duel(match, prompt, seeds, of_chat(chat), chat.stop)
        except EngineStopped as error:
            raise Refused(error.message) from None

    def _comparison(self, stream: PairStream) -> Iterator[Comparison]:
        """Both replies as they grow, at the page's pace."""
        while not stream.wait(1 / self.settings.chat.stream_hz):
            waits = stream.place and time.monotonic() - stream.started > PATIENCE
            yield Comparison(progress=place_in_line(stream.place)) if waits else _comparison_of(stream)


def _comparison_of(stream: PairStream) -> Comparison:
    """Both replies as they are now."""
    left, right = stream.texts()
    return Comparison(left, right)
