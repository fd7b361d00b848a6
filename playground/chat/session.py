"""Conversations as a state machine: what a gesture of a person does. No Gradio here, and nothing about a conversation
comes from the browser.

idle → streaming → voting → voted → streaming …; every state can be rebuilt from the store, so a reload shows what was
there. What a page shows is `views.py`'s.
"""

import random
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

from playground.chat import gestures, views
from playground.chat.gestures import KNOBS, NotUsable
from playground.chat.views import Side, View
from playground.decoding.decoder import Sampling
from playground.models import active, prompts
from playground.serving.engine import EngineStopped, VersionGone
from playground.store import CHOICES, StoreError, StoreUnavailable
from playground.system.messages import Message, UserFacingError

BUSY = Message("Replies are still streaming. Wait for them or press Stop.")
ANOTHER = Message("Both gave the same answer. Another one is being written for side B.")
NEXT = Message("Many people are chatting. Your message waits its turn: you are next")
COMMENT_CHARS = 1000
PATIENCE = 0.5  # seconds before a person is told that they wait: every message stands in the line for a moment
WAITING_SECONDS = 0.5  # between two looks at a place in the line
SIGN_OF_LIFE = 5  # seconds after which a page is told of the same place again
TRIES = 3  # other replies that are drawn for the right side while both say the same
STOP_SECONDS = 30  # within which the engine ends replies that are told to stop
LINGER = 5  # seconds for which replies go on while nobody looks: a page that reloads is back by then
# the reasons that fit a vote, by its choice
PRAISE = ("more helpful", "more correct", "clearer", "better length", "better tone", "follows my request")
REASONS = {
    "a": PRAISE,
    "b": PRAISE,
    "tie": ("both good", "the same in other words", "each better in its way"),
    "both_bad": ("wrong", "too long", "off-topic", "unsafe"),
    "skip": (),
}


class Refused(UserFacingError):
    """The gesture is not possible now; the message tells the person why and what to do."""


class Turn:
    """A pair that is being written, and what its page shows."""

    def __init__(self, annotator, address):
        self.annotator, self.address = annotator, address
        self.stream = self.duel = self.conversation = None
        self.before = None  # the View when its first token was still to come
        self.judged = None  # the View since a vote came before the end: the reply that was picked goes on
        self.other = None  # the Stream of another right reply, while both said the same
        self.stopped = False  # somebody pressed Stop
        self.recording = threading.Lock()  # held while a vote, or the pair's end, is written down
        self.ended = threading.Event()  # both replies are in the store
        self.looked = time.monotonic()  # when a page last asked for it

    @property
    def waiting(self):
        """Whether it has no room yet."""
        return self.stream is None or self.stream.place > 0

    def stop(self):
        """End what is being written at the next step."""
        self.stopped = True
        for stream in (self.stream, self.other):
            if stream:
                stream.stop()


class Chat:
    """All conversations. Annotators are ids from `Store.annotator`; what is not theirs is refused."""

    def __init__(self, store, engine, settings, rng=None):
        self.store, self.engine, self.settings = store, engine, settings
        self._rng = rng or random.SystemRandom()
        self._picker = active.Picker(settings, engine.identity["hash"])
        self._turns = {}  # annotator -> Turn
        # annotator -> (duel, results, pair): written to the end while the store could not take it
        self._unrecorded = {}
        self._lock = threading.Lock()

    # -- what is there

    def view(self, annotator):
        """What this person sees after a reload. StoreUnavailable while the replies of their last turn cannot be
        recorded."""
        self._record(annotator)
        conversation = self.store.conversation(annotator)
        if conversation is None:
            return View("idle")
        view = views.settled(self.store, conversation, annotator)
        turn = self._turns.get(annotator)
        if turn and turn.duel and turn.duel == view.duel and not turn.ended.is_set():
            turn.looked = time.monotonic()
            turn.before = view
            turn.judged = view if view.phase == "voted" else None
            return self._written(turn)
        return view

    def shared(self, token):
        """A shared conversation's View to read, without what only its owner may do; None for a link that leads nowhere
        (any more).
        """
        conversation = self.store.shared(token)
        return conversation and views.to_read(views.settled(self.store, conversation, conversation["annotator"]))

    def busy(self, annotator):
        return annotator in self._turns

    # -- a turn

    def send(self, annotator, text, address=""):
        """Send a message: a generator of Views, from the first update to both replies complete. Closing it stops the
        replies.

        BadMessage or Refused before anything is recorded. `address` is the network address that the message came from.
        """
        text = prompts.check(
            self._checked(gestures.Text, text=text).text, self.engine.tokenizer, self.settings.message_chars
        )
        with self._turn(annotator, address) as turn:
            if self.view(annotator).phase == "voting":
                raise Refused("Pick a reply first: A, B, tie, both bad, or skip.")
            if self.store.conversation(annotator) is None:
                self.store.new_conversation(annotator)
            conversation = self.store.conversation(annotator)
            yield from self._write(turn, conversation, self._history(self.store.history(conversation["id"])), text)

    def regenerate(self, annotator, address=""):
        """Two new replies to the same message, as `send`; the pair before them is kept, with its vote if it had one."""
        with self._turn(annotator, address) as turn:
            before = self.view(annotator)
            if before.duel is None:
                raise Refused("There are no replies here to write again. Send a message first.")
            duel = self.store.duel(before.duel)
            history = [{"role": m.role, "content": m.text} for m in before.history]
            yield from self._write(
                turn, self.store.conversation(annotator), history, before.message, duel["user_message"]
            )

    def linger(self, annotator, views):
        """Go on with `views` (of `send` or `regenerate`), whose page went away, for as long as a page of this person
        asks for them or may come back to.
        """
        left, turn = time.monotonic(), self._turns.get(annotator)
        try:
            for _ in views:
                if turn is None or time.monotonic() - max(left, turn.looked) > LINGER:
                    break
        except (Refused, StoreError):  # the store has what there is, or will be given it; and nobody waits to be told
            pass
        views.close()

    def stop(self, annotator):
        """End this person's streaming replies; what is there can be voted on."""
        if turn := self._turns.get(annotator):
            turn.stop()

    # -- judging

    def vote(self, annotator, duel_id, choice, shown_at=None, dwell_ms=None):
        """Record a vote on a pair that was shown to this person and go on with the pick; returns the new View. While
        both replies are still being written, the other one ends and the pick goes on to its end; the vote is on what
        both had said. Refused otherwise.
        """
        duel = self._own_duel(annotator, duel_id)
        if choice not in CHOICES:
            raise Refused("A vote is one of {name}; got {what}.", name=", ".join(CHOICES), what=gestures.brief(choice))
        self._checked(gestures.Ballot, choice=choice, shown_at=shown_at, dwell_ms=dwell_ms)
        turn = self._turns.get(annotator)
        if turn and turn.duel == duel_id:
            with turn.recording:
                if not turn.ended.is_set():
                    self._vote_early(turn, duel, choice, shown_at, dwell_ms)
                    return self.view(annotator)
            duel = self.store.duel(duel_id)
        if duel["same"]:
            raise Refused("Both gave the same answer, so there is nothing to vote on. Go on with the next message.")
        with refusing():
            self.store.vote(duel_id, annotator, choice, self._pick(duel, choice), shown_at, dwell_ms)
        return self.view(annotator)

    def _vote_early(self, turn, duel, choice, *when):
        """A vote while replies are being written; the second one on the same pair changes the first."""
        before = self.store.current_vote(duel["id"], turn.annotator)
        if before:
            pick = self._pick(duel, choice)
            with refusing():
                self.store.vote(duel["id"], turn.annotator, choice, pick, *when)
            if pick != before["continued_with"]:
                turn.stop()  # this one has ended already, and nobody asks for the other
            return
        if self.settings.candidates > 2 or turn.other or not all(turn.stream.texts()):
            raise Refused("There is nothing to compare yet. Wait for the first words of both replies.")
        said = turn.stream.so_far()
        if said[0]["text"] == said[1]["text"] or said[0]["token_ids"] == said[1]["token_ids"]:
            raise Refused("Both replies say the same so far. Wait until they differ.")
        pick = self._pick(duel, choice)
        with refusing():
            self.store.vote(duel["id"], turn.annotator, choice, pick, *when, early=said)
        turn.stream.stop(1 if pick == duel["left"]["message"] else 0)

    def _pick(self, duel, choice):
        """The message that the conversation goes on with. Where nobody won it is drawn by lot, but for a pair that was
        picked early: there the one that went on to its end goes on."""
        if choice in ("a", "b"):
            return duel["left" if choice == "a" else "right"]["message"]
        before = self.store.current_vote(duel["id"], duel["annotator"])
        if before and (duel["left_cut"] is not None):
            return before["continued_with"]
        return self._rng.choice([duel["left"], duel["right"]])["message"]

    def explain(self, annotator, vote, tags=None, comment=None):
        """Reasons for one's vote: tags (of `REASONS`) or a comment, or both; what is None stays as it was. Refused
        where a tag does not fit the vote.
        """
        self._checked(gestures.Reason, vote=vote, tags=tags, comment=comment)
        if comment is not None and len(comment := comment.strip()) > COMMENT_CHARS:
            raise Refused(
                "The comment has {n} characters; at most {limit} fit. Please shorten it.",
                n=f"{len(comment):,}",
                limit=f"{COMMENT_CHARS:,}",
            )
        if tags:
            tags = self._fitting(vote, tags)
        with refusing():
            self.store.explain(vote, annotator, tags, comment)

    def rate(self, annotator, message, thumb):
        """A thumb up (1), down (-1) or none (None) on one reply."""
        self._checked(gestures.Rating, message=message, thumb=thumb)
        with refusing():
            self.store.rate(message, annotator, thumb)

    def edit(self, annotator, message, after):
        """What one would rather have read: a demonstration, and what the conversation goes on with. Returns the new
        View.
        """
        self._idle(annotator)
        self._checked(gestures.Row, id=message)
        after = prompts.check(
            self._checked(gestures.Text, text=after).text, self.engine.tokenizer, self.settings.message_chars
        )
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
        self._checked(gestures.Row, id=duel)
        with refusing():
            self.store.show_duel(duel, annotator)
        return self.view(annotator)

    def new_chat(self, annotator):
        """Begin a new conversation with the same settings; the old one is kept. A reply that goes on after an early
        vote ends where it is.
        """
        self._let_go(annotator)
        old = self.store.conversation(annotator)
        if old and self.view(annotator).started:
            self.store.new_conversation(annotator, old["system_prompt"], old["sampling"])
        return self.view(annotator)

    def open(self, annotator, conversation):
        """Go on with an earlier conversation of one's own."""
        self._let_go(annotator)
        self._checked(gestures.Row, id=conversation)
        with refusing():
            self.store.open_conversation(conversation, annotator)
        return self.view(annotator)

    def delete(self, annotator, conversation):
        """Delete a conversation of one's own and all its texts: its share link ends, and no later round
        trains on it.
        """
        self._checked(gestures.Row, id=conversation)
        self._end_turn(annotator, conversation)
        with refusing():
            self.store.delete_conversation(conversation, annotator)
        return self.view(annotator)

    def forget(self, annotator):
        """Delete everything of this person; who comes with the same cookie is a new person."""
        self._end_turn(annotator)
        self.store.forget(annotator)

    def allow_training(self, annotator, allowed):
        """Whether rounds may learn from this person's chats."""
        self.store.allow_training(annotator, bool(allowed))

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
        """This conversation's system prompt and sampling from the next message on; what equals the app's own setting is
        not kept.
        """
        self._idle(annotator)
        system_prompt = (
            self._checked(gestures.SystemPrompt, system_prompt=system_prompt).system_prompt or ""
        ).strip() or None
        if system_prompt:
            prompts.check_system(
                system_prompt, self.engine.tokenizer, self.settings.message_chars, self.settings.context_tokens
            )
        limits = self._limits()
        for name, value in sampling.items():
            if name not in limits:
                raise Refused("A chat has no setting {setting}.", setting=gestures.brief(name))
            if not gestures.fits(name, value, limits):
                low, high = limits[name]
                said = {"setting": name, "low": f"{low:g}", "high": f"{high:g}", "what": gestures.brief(value)}
                if gestures.ChatSampling.model_fields[name].annotation is int:
                    raise Refused("{setting} takes whole numbers from {low} to {high}; got {what}.", **said)
                raise Refused("{setting} takes numbers from {low} to {high}; got {what}.", **said)
        own = {name: value for name, value in sampling.items() if value != getattr(self.settings, name)}
        row = self.store.conversation(annotator)
        self.store.configure(row["id"] if row else self.store.new_conversation(annotator), system_prompt, own or None)

    def sampling(self, annotator):
        """(system prompt or "", {name: value}) of the conversation that is open."""
        row = self.store.conversation(annotator) or {"system_prompt": None, "sampling": None}
        own = gestures.usable_sampling(row["sampling"], self._limits())
        return row["system_prompt"] or "", {
            name: own.get(name, getattr(self.settings, name)) for name in (*KNOBS, "reply_tokens")
        }

    # -- one turn

    @contextmanager
    def _turn(self, annotator, address):
        """A Turn of this person; Refused where there is one already, or where too many messages wait or come from this
        address.
        """
        with self._lock:
            if annotator in self._turns:
                raise Refused(BUSY)
            others = list(self._turns.values())
            waiting, nearby = sum(turn.waiting for turn in others), sum(turn.address == address for turn in others)
            if waiting >= self.settings.waiting_messages:
                raise Refused(
                    "Too many people are chatting: {n} messages wait already. Your message is back in the box; send it "
                    "again in a moment.",
                    n=f"{waiting:,}",
                )
            if address and nearby >= self.settings.messages_per_address:
                raise Refused(
                    "From your network address {n} messages are being answered already. Your message is back in the "
                    "box; send it again in a moment.",
                    n=f"{nearby:,}",
                )
            turn = self._turns[annotator] = Turn(annotator, address)
        try:
            yield turn
        finally:
            self._release(turn)

    def _release(self, turn):
        """The turn is over, and the person can go on."""
        with self._lock:
            if self._turns.get(turn.annotator) is turn:
                del self._turns[turn.annotator]
        turn.ended.set()

    def _write(self, turn, conversation, history, text, user_message=None):
        """Two replies to `text` after `history`; yields Views until both are in the store."""
        prompt = prompts.encode(
            [*history, {"role": "user", "content": text}],
            self.engine.tokenizer,
            self.settings.context_tokens,
            conversation["system_prompt"],
        )
        sampling = self._sampling(conversation)
        seeds = [self._rng.getrandbits(48) for _ in range(self.settings.candidates)]
        try:
            turn.stream = stream = self.engine.duel(prompt, seeds, sampling, self.settings.stop)
        except EngineStopped as error:
            raise Refused(error.message) from None
        turn.conversation, pair = conversation["id"], active.Pair()
        try:
            side = {
                "policy": stream.policy.version,
                "base_model": self.engine.identity["model"],
                "base_hash": self.engine.identity["hash"],
                "template_hash": self.engine.template_hash,
                "sampling": {**sampling.as_dict(), **self._picking()},
            }
            with refusing():
                turn.duel = self.store.start_duel(
                    conversation["id"], text, prompt, [{**side, "seed": seed} for seed in seeds[:2]], user_message
                )
            yield self.view(turn.annotator)
            yield from self._grow(turn, stream)
            if len(seeds) > 2 and not stream.error:
                pair = self._picker.pair(prompt, [reply.token_ids for reply in stream.decoding.replies], seeds[0])
            elif len(seeds) == 2:
                yield from self._differ(turn, prompt, sampling)
        finally:  # the end, a closed generator (the browser went away), or an error: the rows get what is there
            turn.stop()
            stream.wait(STOP_SECONDS)
            with turn.recording:
                results = self._results(turn, pair)
                if turn.duel is not None:
                    self._unrecorded[turn.annotator] = turn.duel, results, pair
                    with suppress(StoreUnavailable):  # the view below says so
                        self._record(turn.annotator)
                self._release(turn)
        if stream.error and not turn.judged:
            raise Refused(
                "The model could not answer: {error}. Your message was not lost; send it again.", error=stream.error
            )
        if not all(r["token_ids"] for r in results):
            raise Refused("Stopped before the first word. Your message is back in the box.")
        yield self.view(turn.annotator)

    def _record(self, annotator):
        """Give the store the replies that it could not take when they were complete, if there are any."""
        finished = self._unrecorded.pop(annotator, None)
        if finished is None:
            return
        duel, results, pair = finished
        try:
            self.store.finish_duel(duel, results, pairing=pair.pairing, probability=pair.probability)
        except StoreUnavailable:
            self._unrecorded[annotator] = finished
            raise

    def _grow(self, turn, stream):
        """Views while `stream` goes on, at the page's pace. Of one that waits in the line only where its place has
        changed, and now and then, or a crowd that waits would keep the server busy with telling them so; a page that
        went away is found out at an update.
        """
        due, told = time.monotonic() + 1 / self.settings.stream_hz, None
        while not stream.wait(max(due - time.monotonic(), 0)):
            waits = stream.place if time.monotonic() - stream.started > PATIENCE else 0
            if not waits or waits != told or time.monotonic() - due > SIGN_OF_LIFE:
                yield self._written(turn)
                told = waits
                due = max(
                    due + 1 / self.settings.stream_hz, time.monotonic()
                )  # what an update takes is part of its period
            if waits:
                stream.admitted.wait(WAITING_SECONDS)

    def _differ(self, turn, prompt, sampling):
        """While both replies are the same text, write another for the right side, a few times; yields Views."""
        stream = turn.stream
        left, right = (result["text"] for result in stream.results())
        for _ in range(TRIES):
            if left != right or stream.error or turn.judged or turn.stopped:
                return
            try:
                other = self.engine.duel(
                    prompt, [self._rng.getrandbits(48)], sampling, self.settings.stop, stream.policy
                )
            except (EngineStopped, VersionGone):
                return
            turn.other = other
            if turn.stopped:
                other.stop()
            try:
                yield from self._grow(turn, other)
            finally:
                other.stop()
                other.wait(STOP_SECONDS)
            right = other.results((0,))[0]["text"]

    @staticmethod
    def _results(turn, pair):
        """What `Store.finish_duel` records of the two replies that are shown."""
        results = turn.stream.results((pair.first, pair.second))
        if turn.other and not turn.other.error:
            [right] = turn.other.results((0,))
            if right["token_ids"]:
                results[1] = right
        if turn.judged:  # what was voted on stays, whatever broke after it
            return [
                {**r, "finish_reason": "stopped" if r["finish_reason"] == "error" else r["finish_reason"]}
                for r in results
            ]
        if not all(r["token_ids"] for r in results):  # stopped before the first token: nothing to vote on
            return [{**r, "finish_reason": "error"} for r in results]
        return results

    def _written(self, turn):
        """The View of a pair that is being written."""
        return self._going_on(turn) if turn.judged else self._streaming(turn)

    def _going_on(self, turn):
        """After an early vote: the reply that was picked as it grows, and the other where it ended."""
        judged, (left, right) = turn.judged, turn.stream.texts()
        return replace(
            judged,
            left=replace(judged.left, text=left),
            right=replace(judged.right, text=right),
            writing="a" if judged.left.chosen else "b",
        )

    def _streaming(self, turn):
        """Both replies as they grow; of more than two, how far they are."""
        n, stream, before = self.settings.candidates, turn.stream, turn.before
        view = View(
            "streaming",
            before.history,
            before.message,
            Side(""),
            Side(""),
            turn.duel,
            pairs=before.pairs,
            conversation=turn.conversation,
        )
        if turn.other:
            view = replace(view, left=Side(stream.texts()[0]), right=Side(turn.other.texts()[0]))
            return replace(view, progress=ANOTHER)
        if stream.place and time.monotonic() - stream.started > PATIENCE:
            if stream.place == 1:
                return replace(view, progress=NEXT)
            before_you = Message(
                "Many people are chatting. Your message waits its turn: {n} before you", n=stream.place - 1
            )
            return replace(view, progress=before_you)
        if n == 2:
            left, right = stream.texts()
            return replace(view, left=Side(left), right=Side(right))
        progress = Message(
            "{n} replies are being written, {done} of at most {limit} tokens; you will see two of them",
            n=n,
            done=max(stream.tokens()),
            limit=self.settings.reply_tokens,
        )
        return replace(view, progress=progress)

    def _sampling(self, conversation):
        s = self.settings.model_copy(update=gestures.usable_sampling(conversation["sampling"], self._limits()))
        return Sampling(s.temperature, s.top_p, s.top_k, s.reply_tokens, s.repetition_penalty)

    def _picking(self):
        """What is recorded with a reply's sampling settings where it is one of more than two."""
        return (
            {"candidates": self.settings.candidates, "pick": self.settings.pick} if self.settings.candidates > 2 else {}
        )

    def _limits(self):
        """{name: (least, most)} of what a chat may set for itself; the owner's longest reply is the most that it may
        ask for.
        """
        return {**KNOBS, "reply_tokens": (1, self.settings.reply_tokens)}

    @staticmethod
    def _checked(kind, **values):
        try:
            return gestures.checked(kind, **values)
        except NotUsable as error:
            raise Refused(error.message) from None

    def _end_turn(self, annotator, conversation=None):
        """Stop what this person's model is writing (in `conversation`, where one is given) and wait until it is in the
        store.
        """
        turn = self._turns.get(annotator)
        if turn is None or (conversation is not None and turn.conversation not in (None, conversation)):
            return
        latest = time.monotonic() + STOP_SECONDS
        while not turn.ended.wait(0.05):
            if turn.stream:  # a turn that has just begun has none yet
                turn.stop()
            if time.monotonic() > latest:
                raise Refused("The replies could not be stopped. Try again in a moment.")

    def _idle(self, annotator):
        if self.busy(annotator):
            raise Refused(BUSY)

    def _let_go(self, annotator):
        """As `_idle`; but a reply that only goes on because it was picked early ends where it is."""
        turn = self._turns.get(annotator)
        if turn and turn.judged:
            turn.stop()
            turn.ended.wait(STOP_SECONDS)
        self._idle(annotator)

    def _own_duel(self, annotator, duel_id):
        self._record(annotator)
        try:
            duel = self.store.duel(gestures.checked(gestures.Row, id=duel_id).id)
        except NotUsable:
            duel = None
        if duel is None or duel["annotator"] != annotator:
            raise Refused("This pair of replies is not yours to vote on. Reload the page.")
        return duel

    def _fitting(self, vote, tags):
        """`tags`, each once; Refused where one is no reason for such a vote."""
        row = self.store.vote_fate(vote)
        possible = REASONS[row["choice"]] if row else ()
        if not isinstance(tags, list) or any(tag not in possible for tag in tags):
            raise Refused("This reason does not fit your vote. Reload the page.")
        return [tag for tag in possible if tag in tags]

    @staticmethod
    def _history(rows):
        return [{"role": row["role"], "content": row["text"]} for row in rows]


@contextmanager
def refusing():
    """What the store refuses, the person is told."""
    try:
        yield
    except StoreError as error:
        raise Refused(error.message) from None
