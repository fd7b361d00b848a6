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
from playground.decoding.sampling import Sampling
from playground.models import prompts
from playground.serving.engine import EngineStopped
from playground.serving.pair_stream import PairStream
from playground.serving.versions import Match, VersionGone
from playground.system.messages import Message

LOADING_SECONDS = 60  # that a version may take to be loaded
LOOK_SECONDS = 0.5  # between two looks whether it is there
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
        text = self._checked_text(text)
        chat = self.settings.chat
        prompt = prompts.encode([{"role": "user", "content": text}], self.engine.tokenizer, chat.context_tokens)
        if left == right:
            raise Refused("Pick two different versions.")
        with self._turn(annotator, address) as turn:
            for version in (left, right):
                yield from self._load(version, turn, may_load)
            seeds = [random.getrandbits(SEED_BITS) for _ in range(2)]
            sampling = Sampling(
                temperature=chat.temperature,
                top_p=chat.top_p,
                top_k=chat.top_k,
                max_tokens=chat.reply_tokens,
                repetition_penalty=chat.repetition_penalty,
            )
            versions = self.engine.versions
            try:
                match = Match(versions.resident(left), versions.resident(right), 1.0)
                stream = self.engine.match_duel(match, prompt, seeds, sampling, chat.stop)
            except VersionGone:
                raise Refused("One of the two versions is not in memory any more. Try again.") from None
            except EngineStopped as error:
                raise Refused(error.message) from None
            turn.stream = stream
            try:
                yield from self._comparison(stream)
            finally:
                turn.stop()
                stream.wait(STOP_SECONDS)
            if stream.error:
                raise Refused("The model could not answer: {error}.", error=stream.error)
            yield _comparison_of(stream)

    def _load(self, version: int, turn: Turn, may_load: bool) -> Iterator[Comparison]:
        """Wait until a version is in memory; Refused where it cannot be brought there."""
        versions = self.engine.versions
        if version in versions.in_memory():
            return
        if not may_load:
            raise Refused("Version v{n} is not in memory. Pick one of those that are.", n=version)
        versions.invite(version)
        deadline = time.monotonic() + LOADING_SECONDS
        while version not in versions.in_memory():
            if not versions.is_invited(version) or time.monotonic() > deadline or turn.stopped.is_set():
                raise Refused("Version v{n} could not be loaded.", n=version)
            yield Comparison(progress=Message("Version v{n} is being loaded.", n=version))
            time.sleep(LOOK_SECONDS)

    def _comparison(self, stream: PairStream) -> Iterator[Comparison]:
        """Both replies as they grow, at the page's pace."""
        while not stream.wait(1 / self.settings.chat.stream_hz):
            waits = stream.place and time.monotonic() - stream.started > PATIENCE
            yield Comparison(progress=place_in_line(stream.place)) if waits else _comparison_of(stream)


def _comparison_of(stream: PairStream) -> Comparison:
    """Both replies as they are now."""
    left, right = stream.texts()
    return Comparison(left, right)
