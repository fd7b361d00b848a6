"""One conversation as a state machine: send, stream, stop, vote, go on. No Gradio here, and nothing about a conversation comes from the browser.

idle → streaming → voting → voted → streaming …; every state can be rebuilt from the store, so a reload shows what was there.
"""

import random
import threading
from dataclasses import dataclass, field

from playground import active, prompts
from playground.decoder import Sampling
from playground.store import StoreError


class Refused(Exception):
    """The gesture is not possible now; the message tells the person why and what to do."""


@dataclass(frozen=True)
class Side:
    """One candidate as the page shows it; the facts below the text are None until the vote."""

    text: str
    version: int | None = None
    chosen: bool = False
    first_token_ms: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class View:
    """All that the page shows of a conversation. `phase` is idle, streaming, voting or voted; `history` are {"role", "content"} dicts
    before the current duel; `message` is the duel's user message."""

    phase: str
    history: list = field(default_factory=list)
    message: str | None = None
    left: Side | None = None
    right: Side | None = None
    duel: int | None = None
    choice: str | None = None
    progress: str | None = None  # while replies stream: why they are not to be seen yet, if so


class Chat:
    """All conversations: what a gesture of an annotator does. Annotators are ids from `Store.annotator`."""

    def __init__(self, store, engine, settings, rng=None):
        self.store, self.engine, self.settings = store, engine, settings
        self._rng = rng or random.SystemRandom()
        self._picker = active.Picker(settings, engine.identity["hash"])
        self._streams = {}  # annotator -> (Stream or None while starting)
        self._lock = threading.Lock()

    # -- gestures

    def view(self, annotator):
        """What this person sees after a reload."""
        conversation = self.store.conversation(annotator)
        if conversation is None:
            return View("idle")
        history = self.store.history(conversation["id"])
        duel = self.store.last_duel(conversation["id"])
        if duel is None:
            return View("idle", self._messages(history))
        # the history ends before the duel's own message
        own = {duel["user_message"], duel["left"]["message"], duel["right"]["message"]}
        messages = self._messages([m for m in history if m["id"] not in own])
        sides = [duel["left"], duel["right"]]
        if sides[0]["status"] == "streaming":
            return self._streaming(self._streams.get(annotator), messages, duel["user_text"], duel["id"])
        vote = self.store.current_vote(duel["id"], annotator)
        if vote is None:
            return View("voting", messages, duel["user_text"], *(Side(s["text"]) for s in sides), duel["id"])
        return View("voted", messages, duel["user_text"], *(self._revealed(s, vote) for s in sides), duel["id"], vote["choice"])

    def send(self, annotator, text):
        """Send a message: a generator of Views, from the first update to both replies complete. Closing it stops the replies.

        BadMessage or Refused before anything is recorded.
        """
        text = prompts.check(text, self.engine.tokenizer, self.settings.message_chars)
        with self._lock:
            if annotator in self._streams:
                raise Refused("Replies are still streaming. Wait for them or press Stop.")
            self._streams[annotator] = None
        try:
            yield from self._turn(annotator, text)
        finally:
            with self._lock:
                del self._streams[annotator]

    def stop(self, annotator):
        """End this person's streaming replies; what is there can be voted on."""
        stream = self._streams.get(annotator)
        if stream:
            stream.stop()

    def vote(self, annotator, duel_id, choice, shown_at=None, dwell_ms=None):
        """Record a vote on a duel that was shown to this person and go on with the pick; returns the new View. Refused otherwise."""
        duel = self.store.duel(duel_id) if isinstance(duel_id, int) else None
        if duel is None or duel["annotator"] != annotator:
            raise Refused("This pair of replies is not yours to vote on. Reload the page.")
        if "streaming" in (duel["left"]["status"], duel["right"]["status"]):
            raise Refused("The replies are still streaming. Wait for them or press Stop, then vote.")
        pick = {"a": duel["left"], "b": duel["right"]}.get(choice) or self._rng.choice([duel["left"], duel["right"]])
        try:
            self.store.vote(duel_id, annotator, choice, pick["message"], shown_at, dwell_ms)
        except StoreError as error:
            raise Refused(str(error)) from None
        return self.view(annotator)

    def new_chat(self, annotator):
        """Begin a new conversation; the old one is kept."""
        if annotator in self._streams:
            raise Refused("Replies are still streaming. Wait for them or press Stop.")
        if self.view(annotator).phase != "idle":
            self.store.new_conversation(annotator)
        return self.view(annotator)

    # -- one turn

    def _turn(self, annotator, text):
        before = self.view(annotator)
        if before.phase == "voting":
            raise Refused("Pick a reply first: A, B, tie, both bad, or skip.")
        row = self.store.conversation(annotator)
        conversation = row["id"] if row else self.store.new_conversation(annotator)
        history = self._messages(self.store.history(conversation))
        prompt = prompts.encode([*history, {"role": "user", "content": text}], self.engine.tokenizer, self.settings.context_tokens,
                                row and row["system_prompt"])
        s = self.settings
        sampling = Sampling(s.temperature, s.top_p, s.top_k, s.reply_tokens, s.repetition_penalty)
        seeds = [self._rng.getrandbits(48) for _ in range(self.settings.candidates)]
        stream = self.engine.duel(prompt, seeds, sampling, s.stop)
        duel, pair = None, active.Pair()
        try:
            side = {"policy": stream.policy.version, "base_model": self.engine.identity["model"], "base_hash": self.engine.identity["hash"],
                    "template_hash": self.engine.template_hash, "sampling": {**sampling.as_dict(), **self._picking()}}
            duel = self.store.start_duel(conversation, text, prompt, [{**side, "seed": seed} for seed in seeds[:2]])
            self._streams[annotator] = stream
            while not stream.wait(1 / self.settings.stream_hz):
                yield self._streaming(stream, history, text, duel)
            if len(seeds) > 2 and not stream.error:
                pair = self._picker.pair(prompt, [reply.token_ids for reply in stream.decoding.replies], seeds[0])
        finally:  # the end, a closed generator (the browser went away), or an error: the rows get what is there
            stream.stop()
            stream.wait(30)
            if duel is not None:
                results = stream.results((pair.first, pair.second))
                if not all(r["token_ids"] for r in results):  # stopped before the first token: nothing to vote on
                    results = [{**r, "finish_reason": "error"} for r in results]
                self.store.finish_duel(duel, results, pairing=pair.pairing, probability=pair.probability)
        if stream.error:
            raise Refused(f"The model could not answer: {stream.error}. Your message was not lost; send it again.")
        yield self.view(annotator)

    def _streaming(self, stream, history, text, duel):
        """Both replies as they grow; of more than two, how far they are."""
        n = self.settings.candidates
        if stream and stream.place:
            turns = f"{stream.place - 1} before you" if stream.place > 1 else "you are next"
            return View("streaming", history, text, Side(""), Side(""), duel, progress=f"Many people are chatting. Your message waits its turn: {turns}")
        if n == 2:
            return View("streaming", history, text, *map(Side, stream.texts() if stream else ["", ""]), duel, progress="")
        done = f"{max(stream.tokens())} of at most {self.settings.reply_tokens} tokens" if stream else "starting"
        return View("streaming", history, text, Side(""), Side(""), duel, progress=f"{n} replies are being written, {done}; you will see two of them")

    def _picking(self):
        """What is recorded with a reply's sampling settings where it is one of more than two."""
        return {"candidates": self.settings.candidates, "pick": self.settings.pick} if self.settings.candidates > 2 else {}

    @staticmethod
    def _messages(rows):
        return [{"role": m["role"], "content": m.get("text", m.get("content"))} for m in rows]

    @staticmethod
    def _revealed(side, vote):
        tokens, total, first = side["tokens"], side["total_ms"], side["first_token_ms"]
        rate = 1e3 * (tokens - 1) / (total - first) if tokens > 1 and total > first else None
        return Side(side["text"], side["policy"], side["message"] == vote["continued_with"], first, rate)
