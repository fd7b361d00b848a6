"""Conversations as a state machine: what a gesture of a person does. No Gradio here, and nothing about a conversation comes from the browser.

idle → streaming → voting → voted → streaming …; every state can be rebuilt from the store, so a reload shows what was there. What a page shows
is `views.py`'s.
"""

import random
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

from playground import active, prompts, views
from playground.decoder import Sampling
from playground.store import StoreError
from playground.views import Side, View

BUSY = "Replies are still streaming. Wait for them or press Stop."
COMMENT_CHARS = 1000
PATIENCE = 0.5  # seconds before a person is told that they wait: every message stands in the line for a moment
LINGER = 5  # seconds for which replies go on while nobody looks: a page that reloads is back by then
TAGS = 12  # at most so many reasons on a vote
KNOBS = {"temperature": (0.05, 2.0), "top_p": (0.05, 1.0), "top_k": (0, 1000), "repetition_penalty": (1.0, 2.0)}  # what a chat may set for itself


class Refused(Exception):
    """The gesture is not possible now; the message tells the person why and what to do."""


class Turn:
    """A pair that is being written: its stream, its duel, and whoever waits to vote on it."""

    def __init__(self):
        self.stream = self.duel = self.conversation = None
        self.ended = threading.Event()  # both replies are in the store
        self.vote = None  # an Event: a vote came before the end, and the last view waits for it
        self.looked = time.monotonic()  # when a page last asked for it


class Chat:
    """All conversations. Annotators are ids from `Store.annotator`; what is not theirs is refused."""

    def __init__(self, store, engine, settings, rng=None):
        self.store, self.engine, self.settings = store, engine, settings
        self._rng = rng or random.SystemRandom()
        self._picker = active.Picker(settings, engine.identity["hash"])
        self._turns = {}  # annotator -> Turn
        self._lock = threading.Lock()

    # -- what is there

    def view(self, annotator):
        """What this person sees after a reload."""
        conversation = self.store.conversation(annotator)
        if conversation is None:
            return View("idle")
        view = views.settled(self.store, conversation, annotator)
        turn = self._turns.get(annotator)
        if turn and turn.duel and turn.duel == view.duel and not turn.ended.is_set():
            turn.looked = time.monotonic()
            return self._streaming(turn, view.history, view.message, view.pairs)
        return view

    def shared(self, token):
        """A shared conversation's View to read, without what only its owner may do; None for a link that leads nowhere (any more)."""
        conversation = self.store.shared(token)
        return conversation and views.settled(self.store, conversation, conversation["annotator"])

    def busy(self, annotator):
        return annotator in self._turns

    # -- a turn

    def send(self, annotator, text):
        """Send a message: a generator of Views, from the first update to both replies complete. Closing it stops the replies.

        BadMessage or Refused before anything is recorded.
        """
        text = prompts.check(text, self.engine.tokenizer, self.settings.message_chars)
        with self._turn(annotator) as turn:
            if self.view(annotator).phase == "voting":
                raise Refused("Pick a reply first: A, B, tie, both bad, or skip.")
            if self.store.conversation(annotator) is None:
                self.store.new_conversation(annotator)
            conversation = self.store.conversation(annotator)
            yield from self._write(turn, annotator, conversation, self._history(self.store.history(conversation["id"])), text)

    def regenerate(self, annotator):
        """Two new replies to the same message, as `send`; the pair before them is kept, with its vote if it had one."""
        with self._turn(annotator) as turn:
            before = self.view(annotator)
            if before.duel is None:
                raise Refused("There are no replies here to write again. Send a message first.")
            duel = self.store.duel(before.duel)
            history = [{"role": m.role, "content": m.text} for m in before.history]
            yield from self._write(turn, annotator, self.store.conversation(annotator), history, before.message, duel["user_message"])

    def linger(self, annotator, views):
        """Go on with `views` (of `send` or `regenerate`), whose page went away, for as long as a page of this person asks for them or may come back to."""
        left, turn = time.monotonic(), self._turns.get(annotator)
        try:
            for _ in views:
                if turn is None or time.monotonic() - max(left, turn.looked) > LINGER:
                    break
        except Refused:  # the store has what there is, and nobody waits to be told
            pass
        views.close()

    def stop(self, annotator):
        """End this person's streaming replies; what is there can be voted on."""
        turn = self._turns.get(annotator)
        if turn and turn.stream:
            turn.stream.stop()

    # -- judging

    def vote(self, annotator, duel_id, choice, shown_at=None, dwell_ms=None):
        """Record a vote on a pair that was shown to this person and go on with the pick; returns the new View. While the replies still stream
        it ends them first. Refused otherwise."""
        duel = self._own_duel(annotator, duel_id)
        turn = self._turns.get(annotator)
        if turn and turn.duel == duel_id:
            return self._vote_early(turn, annotator, duel_id, choice, shown_at, dwell_ms)
        pick = {"a": duel["left"], "b": duel["right"]}.get(choice) or self._rng.choice([duel["left"], duel["right"]])
        with refusing():
            self.store.vote(duel_id, annotator, choice, pick["message"], shown_at, dwell_ms)
        return self.view(annotator)

    def _vote_early(self, turn, annotator, duel_id, choice, *when):
        if self.settings.candidates > 2 or not all(turn.stream.texts()):
            raise Refused("There is nothing to compare yet. Wait for the first words of both replies.")
        turn.vote = threading.Event()
        try:
            turn.stream.stop()
            if not turn.ended.wait(30):
                raise Refused("The replies could not be stopped. Vote once they are complete.")
            duel = self.store.duel(duel_id)
            pick = {"a": duel["left"], "b": duel["right"]}.get(choice) or self._rng.choice([duel["left"], duel["right"]])
            with refusing():
                self.store.vote(duel_id, annotator, choice, pick["message"], *when)
        finally:
            turn.vote.set()
        return self.view(annotator)

    def explain(self, annotator, vote, tags=None, comment=None):
        """Reasons for one's vote: tags or a comment, or both; what is None stays as it was."""
        if comment is not None and len(comment := comment.strip()) > COMMENT_CHARS:
            raise Refused(f"The comment has {len(comment):,} characters; at most {COMMENT_CHARS:,} fit. Please shorten it.")
        with refusing():
            self.store.explain(vote, annotator, tags and [str(tag)[:40] for tag in tags][:TAGS], comment)

    def rate(self, annotator, message, thumb):
        """A thumb up (1), down (-1) or none (None) on one reply."""
        with refusing():
            self.store.rate(message, annotator, thumb)

    def edit(self, annotator, message, after):
        """What one would rather have read: a demonstration, and what the conversation goes on with. Returns the new View."""
        self._idle(annotator)
        after = prompts.check(after, self.engine.tokenizer, self.settings.message_chars)
        with refusing():
            self.store.demonstrate(message, annotator, after)
        return self.view(annotator)

    # -- the conversation

    def undo(self, annotator):
        """Take the last turn back; returns the View and the message, to be written anew. Nothing is deleted."""
        self._idle(annotator)
        conversation = self.store.conversation(annotator)
        if conversation is None:
            raise Refused("There is nothing to undo.")
        with refusing():
            text = self.store.undo(conversation["id"])
        return self.view(annotator), text

    def show_pair(self, annotator, duel):
        """Go back to another pair that answers the same message."""
        self._idle(annotator)
        with refusing():
            self.store.show_duel(duel, annotator)
        return self.view(annotator)

    def new_chat(self, annotator):
        """Begin a new conversation with the same settings; the old one is kept."""
        self._idle(annotator)
        old = self.store.conversation(annotator)
        if old and self.view(annotator).started:
            self.store.new_conversation(annotator, old["system_prompt"], old["sampling"])
        return self.view(annotator)

    def open(self, annotator, conversation):
        """Go on with an earlier conversation of one's own."""
        self._idle(annotator)
        with refusing():
            self.store.open_conversation(conversation, annotator)
        return self.view(annotator)

    def delete(self, annotator, conversation):
        """Delete a conversation of one's own: it is shown no more, its share link ends, and no later round trains on it."""
        self._idle(annotator)
        with refusing():
            self.store.delete_conversation(conversation, annotator)
        return self.view(annotator)

    def share(self, annotator):
        """The token of the link to this conversation."""
        conversation = self.store.conversation(annotator)
        if conversation is None or not self.view(annotator).started:
            raise Refused("There is nothing to share yet. Send a message first.")
        return self.store.share(conversation["id"], annotator)

    def unshare(self, annotator):
        """The link to this conversation ends."""
        if conversation := self.store.conversation(annotator):
            self.store.unshare(conversation["id"], annotator)

    def configure(self, annotator, system_prompt, sampling):
        """This conversation's system prompt and sampling from the next message on; what equals the app's own setting is not kept."""
        self._idle(annotator)
        system_prompt = (system_prompt or "").strip() or None
        if system_prompt:
            prompts.check_system(system_prompt, self.engine.tokenizer, self.settings.message_chars, self.settings.context_tokens)
        for name, value in sampling.items():
            low, high = self._limits(name)
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise Refused(f"{name} takes {low:g} to {high:g}; got {value}.")
        own = {name: value for name, value in sampling.items() if value != getattr(self.settings, name)}
        row = self.store.conversation(annotator)
        self.store.configure(row["id"] if row else self.store.new_conversation(annotator), system_prompt, own or None)

    def sampling(self, annotator):
        """(system prompt or "", {name: value}) of the conversation that is open."""
        row = self.store.conversation(annotator) or {"system_prompt": None, "sampling": None}
        names = (*KNOBS, "reply_tokens")
        return row["system_prompt"] or "", {name: (row["sampling"] or {}).get(name, getattr(self.settings, name)) for name in names}

    # -- one turn

    @contextmanager
    def _turn(self, annotator):
        with self._lock:
            if annotator in self._turns:
                raise Refused(BUSY)
            turn = self._turns[annotator] = Turn()
        try:
            yield turn
        finally:
            turn.ended.set()
            with self._lock:
                del self._turns[annotator]

    def _write(self, turn, annotator, conversation, history, text, user_message=None):
        """Two replies to `text` after `history`; yields Views until both are in the store."""
        prompt = prompts.encode([*history, {"role": "user", "content": text}], self.engine.tokenizer, self.settings.context_tokens,
                                conversation["system_prompt"])
        sampling = self._sampling(conversation)
        seeds = [self._rng.getrandbits(48) for _ in range(self.settings.candidates)]
        turn.stream = stream = self.engine.duel(prompt, seeds, sampling, self.settings.stop)
        turn.conversation, pair = conversation["id"], active.Pair()
        try:
            side = {"policy": stream.policy.version, "base_model": self.engine.identity["model"], "base_hash": self.engine.identity["hash"],
                    "template_hash": self.engine.template_hash, "sampling": {**sampling.as_dict(), **self._picking()}}
            turn.duel = self.store.start_duel(conversation["id"], text, prompt, [{**side, "seed": seed} for seed in seeds[:2]], user_message)
            before = self.view(annotator)
            due = time.monotonic()
            while not stream.wait(max(due - time.monotonic(), 0)):
                yield self._streaming(turn, before.history, text, before.pairs)
                due = max(due + 1 / self.settings.stream_hz, time.monotonic())  # what an update takes is part of its period
            if len(seeds) > 2 and not stream.error:
                pair = self._picker.pair(prompt, [reply.token_ids for reply in stream.decoding.replies], seeds[0])
        finally:  # the end, a closed generator (the browser went away), or an error: the rows get what is there
            stream.stop()
            stream.wait(30)
            if turn.duel is not None:
                results = stream.results((pair.first, pair.second))
                if not all(r["token_ids"] for r in results):  # stopped before the first token: nothing to vote on
                    results = [{**r, "finish_reason": "error"} for r in results]
                self.store.finish_duel(turn.duel, results, pairing=pair.pairing, probability=pair.probability)
            turn.ended.set()
        if stream.error:
            raise Refused(f"The model could not answer: {stream.error}. Your message was not lost; send it again.")
        if not all(r["token_ids"] for r in results):
            raise Refused("Stopped before the first word. Your message is back in the box.")
        if turn.vote:
            turn.vote.wait(10)
        yield self.view(annotator)

    def _streaming(self, turn, history, text, pairs):
        """Both replies as they grow; of more than two, how far they are."""
        n, stream = self.settings.candidates, turn.stream
        view = View("streaming", history, text, Side(""), Side(""), turn.duel, pairs=pairs, conversation=turn.conversation, progress="")
        if stream.place and time.monotonic() - stream.started > PATIENCE:
            turns = f"{stream.place - 1} before you" if stream.place > 1 else "you are next"
            return replace(view, progress=f"Many people are chatting. Your message waits its turn: {turns}")
        if n == 2:
            left, right = stream.texts()
            return replace(view, left=Side(left), right=Side(right))
        done = f"{max(stream.tokens())} of at most {self.settings.reply_tokens} tokens"
        return replace(view, progress=f"{n} replies are being written, {done}; you will see two of them")

    def _sampling(self, conversation):
        s = self.settings.model_copy(update=conversation["sampling"] or {})
        return Sampling(s.temperature, s.top_p, s.top_k, s.reply_tokens, s.repetition_penalty)

    def _picking(self):
        """What is recorded with a reply's sampling settings where it is one of more than two."""
        return {"candidates": self.settings.candidates, "pick": self.settings.pick} if self.settings.candidates > 2 else {}

    def _limits(self, name):
        if name == "reply_tokens":
            return 1, self.settings.reply_tokens  # the owner's limit is the most a chat may ask for
        if name not in KNOBS:
            raise Refused(f"A chat has no setting {name}.")
        return KNOBS[name]

    def _idle(self, annotator):
        if self.busy(annotator):
            raise Refused(BUSY)

    def _own_duel(self, annotator, duel_id):
        duel = self.store.duel(duel_id) if isinstance(duel_id, int) else None
        if duel is None or duel["annotator"] != annotator:
            raise Refused("This pair of replies is not yours to vote on. Reload the page.")
        return duel

    @staticmethod
    def _history(rows):
        return [{"role": row["role"], "content": row["text"]} for row in rows]


@contextmanager
def refusing():
    """What the store refuses, the person is told."""
    try:
        yield
    except StoreError as error:
        raise Refused(str(error)) from None
