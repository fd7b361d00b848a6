"""A turn's pair of replies: streamed by the engine, shown as Views, and recorded in the store when both are complete.

idle → streaming → voting → voted → streaming …; every state can be rebuilt from the store, so a reload shows what was
there.
"""

import random
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from playground.chat import gestures
from playground.chat.refusals import Refused, Unavailable, refusing
from playground.chat.turns import DEFAULT_OPTIONS, STOP_SECONDS, ReplyOptions, Turn, Turns
from playground.chat.views import Side, StoreRow, View, stored_view
from playground.decoding.sampling import Sampling, of_chat
from playground.models import active, prompts, templates
from playground.serving.engine import Engine, EngineStopped
from playground.serving.guests import not_in_memory
from playground.serving.pair_stream import PairStream
from playground.serving.stream import ReplyRecord, Stream
from playground.serving.versions import VersionGone
from playground.settings import Settings
from playground.store import Store, StoreUnavailable
from playground.system import log_ids
from playground.system.messages import Message

PATIENCE = 0.5  # seconds before a person is told that they wait: every message is in the line for a moment
WAITING_SECONDS = 0.5  # between two looks at a place in the line
SIGN_OF_LIFE = 5  # seconds after which a page gets the same place again
TRIES = 3  # other replies that are drawn for the right side while both say the same
REWRITING = Message("Both gave the same answer. Another one is being written for side B.")
NEXT_IN_LINE = Message("Many people are chatting. Your message waits its turn: you are next")


@dataclass(frozen=True)
class Finished:
    """A pair that is complete, as `Store.finish_duel` takes it."""

    duel: int
    results: list[ReplyRecord]
    pair: active.Pair


class Writing(Turns):
    """Part of `Chat`: writes the replies of a turn, and says what a person sees meanwhile."""

    def __init__(self, store: Store, engine: Engine, settings: Settings, rng: random.Random | None = None) -> None:
        super().__init__(store, engine, settings, rng)
        self._picker = active.Picker(settings, engine.identity["hash"])
        self._unrecorded: dict[int, Finished] = {}  # by annotator: complete while the store could not take it

    # -- what a person sees

    def view(self, annotator: int) -> View:
        """What this person sees after a reload. StoreUnavailable while the replies of their last turn cannot be
        recorded.
        """
        self._record(annotator)
        conversation = self.store.conversation(annotator)
        if conversation is None:
            return View("idle")
        view = stored_view(self.store, conversation, annotator)
        turn = self._turns.get(annotator)
        if turn and turn.duel and turn.duel == view.duel and not turn.ended.is_set():
            turn.last_look = time.monotonic()
            turn.stored_view = view
            return self._current_view(turn)
        return view

    def _current_view(self, turn: Turn) -> View:
        """The View of a pair that is being written."""
        if turn.stream is None:
            return turn.stored_view
        return self._voted_view(turn, turn.stream) if turn.voted else self._streaming_view(turn, turn.stream)

    @staticmethod
    def _voted_view(turn: Turn, stream: Stream | PairStream) -> View:
        """After an early vote: the reply that was picked as it grows, and the other one where it ended."""
        view = turn.stored_view
        left, right = stream.texts()
        return replace(
            view,
            left=view.left and replace(view.left, text=left),
            right=view.right and replace(view.right, text=right),
            writing="a" if view.left and view.left.chosen else "b",
        )

    def _streaming_view(self, turn: Turn, stream: Stream | PairStream) -> View:
        """Both replies as they grow; of more than two, how far they are."""
        view = View(
            "streaming",
            history=turn.stored_view.history,
            message=turn.stored_view.message,
            left=Side(""),
            right=Side(""),
            duel=turn.duel,
            pairs=turn.stored_view.pairs,
            conversation=turn.conversation,
            queued=turn.stored_view.queued,
        )
        if turn.replacement:
            left, right = stream.texts()[0], turn.replacement.texts()[0]
            return replace(view, left=Side(left), right=Side(right), progress=REWRITING)
        if stream.place and time.monotonic() - stream.started > PATIENCE:
            return replace(view, progress=place_in_line(stream.place))
        if len(stream.seeds) == 2:
            sides = [Side(text, complete=not stream.growing(i)) for i, text in enumerate(stream.texts())]
            return replace(view, left=sides[0], right=sides[1])
        progress = Message(
            "{n} replies are being written, {done} of at most {limit} tokens; you will see two of them",
            n=len(stream.seeds),
            done=max(stream.tokens()),
            limit=self.settings.chat.reply_tokens,
        )
        return replace(view, progress=progress)

    # -- how the replies are written

    def _write(
        self,
        turn: Turn,
        conversation: StoreRow,
        history: list[templates.Message],
        text: str,
        user_message: int | None = None,
        options: ReplyOptions = DEFAULT_OPTIONS,
    ) -> Iterator[View]:
        """Two replies to `text` after `history`; yields Views until both are in the store. `user_message` is the id of
        `text` where the store has it already.
        """
        prompt = prompts.encode(
            [*history, {"role": "user", "content": text}],
            self.engine.tokenizer,
            self.settings.chat.context_tokens,
            conversation["system_prompt"],
        )
        sampling = self._sampling(conversation)
        try:
            stream, pair = self._start(prompt, sampling, options)
        except EngineStopped as error:
            raise Unavailable(error.message) from None
        except VersionGone as gone:
            why = not_in_memory(gone.version)
            raise Refused(why) from None
        turn.stream = stream
        turn.conversation = conversation["id"]
        try:
            candidates = self._origins(stream, sampling)
            with refusing():
                turn.duel = self.store.start_duel(conversation["id"], text, prompt, candidates, user_message, turn.task)
            log_ids.current()["duel"] = turn.duel
            yield self.view(turn.annotator)
            yield from self._watch(turn, stream)
            if isinstance(stream, Stream) and len(stream.seeds) > 2 and stream.decoding and not stream.error:
                replies = [reply.token_ids for reply in stream.decoding.replies]
                pair = self._picker.pair(prompt, replies, stream.seeds[0])
            elif len(stream.seeds) == 2:
                yield from self._rewrite_right(turn, stream, prompt, sampling)
        finally:  # the end, a closed generator (the browser went away), or an error: the rows get what is there
            turn.stop()
            stream.wait(STOP_SECONDS)
            with turn.recording:
                results = self._results(turn, stream, pair)
                if turn.duel is not None:
                    self._unrecorded[turn.annotator] = Finished(turn.duel, results, pair)
                    with suppress(StoreUnavailable):  # the view below says so
                        self._record(turn.annotator)
                self._release(turn)
        if stream.error and not turn.voted:
            raise Unavailable(
                "The model could not answer: {error}. Your message was not lost; send it again.", error=stream.error
            )
        if not all(result["token_ids"] for result in results):
            raise Refused("Stopped before the first word. Your message is back in the box.")
        yield self.view(turn.annotator)

    def _start(
        self, prompt: list[int], sampling: Sampling, options: ReplyOptions
    ) -> tuple[Stream | PairStream, active.Pair]:
        """The replies to a prompt, by two versions where the live one is on trial and this turn is to compare them; and
        how the pair came about. VersionGone where `options` name a version that is not in memory.
        """
        rng = self._rng if options.seed is None else random.Random(options.seed)
        seeds = [rng.getrandbits(48) for _ in range(self.settings.chat.candidates)]
        stop = self.settings.chat.stop
        if options.version is not None:
            policy = self.engine.versions.resident(options.version)
            return self.engine.duel(prompt, seeds, sampling, stop, policy), active.Pair()
        if match := self.engine.versions.match(rng):
            pair = active.Pair(pairing="champion_challenger", probability=match.probability)
            with suppress(VersionGone):  # the trial has ended this moment
                return self.engine.match_duel(match, prompt, seeds, sampling, stop), pair
        return self.engine.duel(prompt, seeds, sampling, stop), active.Pair()

    def _watch(self, turn: Turn, stream: Stream | PairStream) -> Iterator[View]:
        """Views while `stream` goes on, at the page's pace.

        A page whose turn waits in the line gets an update only where its place has changed, and now and then: at every
        step, a crowd that waits would keep the server busy. The updates now and then also find out that a page is gone.
        """
        period = 1 / self.settings.chat.stream_hz
        due = time.monotonic() + period
        last_place: int | None = None
        while not stream.wait(max(due - time.monotonic(), 0)):
            place = stream.place if time.monotonic() - stream.started > PATIENCE else 0
            if not place or place != last_place or time.monotonic() - due > SIGN_OF_LIFE:
                yield self._current_view(turn)
                last_place = place
                due = max(due + period, time.monotonic())  # the time of an update is part of its period
            if place:
                stream.admitted.wait(WAITING_SECONDS)

    def _rewrite_right(
        self, turn: Turn, stream: Stream | PairStream, prompt: list[int], sampling: Sampling
    ) -> Iterator[View]:
        """While both replies are the same text, write another one for the right side, a few times; yields Views."""
        left, right = (result["text"] for result in stream.results())
        for _ in range(TRIES):
            if left != right or stream.error or turn.voted or turn.stopped.is_set():
                return
            seed = self._rng.getrandbits(48)
            try:
                replacement = self.engine.duel(prompt, [seed], sampling, self.settings.chat.stop, stream.policies[1])
            except (EngineStopped, VersionGone):
                return
            turn.replacement = replacement
            if turn.stopped.is_set():
                replacement.stop()
            try:
                yield from self._watch(turn, replacement)
            finally:
                replacement.stop()
                replacement.wait(STOP_SECONDS)
            right = replacement.results((0,))[0]["text"]

    # -- what is recorded

    def _origins(self, stream: Stream | PairStream, sampling: Sampling) -> list[dict[str, Any]]:
        """What the store keeps of how each of the two replies is made: by which version, and with which settings."""
        picking: dict[str, Any] = {}
        if len(stream.seeds) > 2:
            picking = {"candidates": len(stream.seeds), "pick": self.settings.chat.pick}
        origin = {
            "base_model": self.engine.identity["model"],
            "base_hash": self.engine.identity["hash"],
            "template_hash": self.engine.template_hash,
            "sampling": {**sampling.as_dict(), **picking},
        }
        policies = stream.policies
        return [{**origin, "policy": policies[i].version, "seed": stream.seeds[i]} for i in range(2)]

    @staticmethod
    def _results(turn: Turn, stream: Stream | PairStream, pair: active.Pair) -> list[ReplyRecord]:
        """What `Store.finish_duel` records of the two replies that are shown."""
        results = stream.results((pair.first, pair.second))
        if turn.replacement and not turn.replacement.error:
            [right] = turn.replacement.results((0,))
            if right["token_ids"]:
                results[1] = right
        if turn.voted:  # what was voted on stays, whatever broke after it
            return [
                _with_end(result, "stopped") if result["finish_reason"] == "error" else result for result in results
            ]
        if not all(result["token_ids"] for result in results):  # stopped before the first token: nothing to vote on
            return [_with_end(result, "error") for result in results]
        return results

    def _record(self, annotator: int) -> None:
        """Give the store the replies that it could not take when they were complete, if there are any."""
        finished = self._unrecorded.pop(annotator, None)
        if finished is None:
            return
        pair = finished.pair
        try:
            self.store.finish_duel(finished.duel, finished.results, pairing=pair.pairing, probability=pair.probability)
        except StoreUnavailable:
            self._unrecorded[annotator] = finished
            raise

    def _checked_text(self, text: str) -> str:
        """A text that a person wrote, as `prompts.check` returns it; BadMessage or Refused where it cannot be used."""
        checked = gestures.checked(gestures.Text, text=text).text
        return prompts.check(checked, self.engine.tokenizer, self.settings.limits.message_chars)

    def _sampling(self, conversation: StoreRow) -> Sampling:
        """How a conversation's replies are drawn: by its own settings where it has any, else by the app's."""
        own = gestures.usable_sampling(conversation["sampling"], gestures.sampling_limits(self.settings))
        return of_chat(self.settings.chat.model_copy(update=own))


def _with_end(result: ReplyRecord, finish_reason: str) -> ReplyRecord:
    """A reply's result with another reason for its end."""
    return {**result, "finish_reason": finish_reason}


def place_in_line(place: int) -> Message:
    """The sentence for a person who waits for room."""
    if place == 1:
        return NEXT_IN_LINE
    return Message("Many people are chatting. Your message waits its turn: {n} before you", n=place - 1)
