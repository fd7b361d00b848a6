"""Conversations as a state machine: what each gesture of a person does.

`turns.py` says who may have replies written, `writing.py` writes them, `votes.py` has the gestures on replies,
`queueing.py` those on the prompt queue, and `completing.py` those of other programs; here are those on messages and
conversations. What a page shows is `views.py`'s. Nothing here knows Gradio, and nothing
about a conversation comes from the browser.
"""

import time
from collections.abc import Generator, Mapping

from playground.chat import gestures
from playground.chat.gestures import KNOBS
from playground.chat.queueing import JUDGE_FIRST, PICK_FIRST, Queueing
from playground.chat.refusals import Refused, refusing
from playground.chat.views import View, read_only, stored_view
from playground.models import prompts, templates
from playground.store import StoreError

BACKGROUND_SECONDS = 5  # for which replies go on while no page looks: one that reloads is back by then


class Chat(Queueing):
    """All conversations. Annotators are ids from `Store.annotator`; what is not theirs is refused."""

    # -- messages

    def send(self, annotator: int, text: str, address: str = "") -> Generator[View]:
        """Send a message: a generator of Views, from the first update to both replies complete. Closing it stops the
        replies.

        BadMessage or Refused before anything is recorded. `address` is the network address that the message came from.
        """
        text = self._checked_text(text)
        with self._turn(annotator, address, text) as turn:
            if self.view(annotator).phase == "voting":
                raise Refused(PICK_FIRST)
            while (conversation := self.store.conversation(annotator)) is None:
                self.store.new_conversation(annotator)
            rows = self.store.history(conversation["id"])
            history: list[templates.Message] = [{"role": row["role"], "content": row["text"]} for row in rows]
            yield from self._write(turn, conversation, history, text)

    def regenerate(self, annotator: int, address: str = "") -> Generator[View]:
        """Two new replies to the same message, as `send`; the pair before them is kept, with its vote if it had one.
        Refused for a pair of the queue that this person is to judge after another one.
        """
        with self._turn(annotator, address) as turn:
            view = self.view(annotator)
            task = self.store.queue_task(annotator) if view.queued else None
            if task and task["repeats"] is not None:
                raise Refused(JUDGE_FIRST)
            conversation = self.store.conversation(annotator)
            duel = self.store.duel(view.duel) if view.duel is not None else None
            if conversation is None or duel is None or view.message is None:
                raise Refused("There are no replies here to write again. Send a message first.")
            history: list[templates.Message] = [
                {"role": message.role, "content": message.text} for message in view.history
            ]
            yield from self._write(turn, conversation, history, view.message, duel["user_message"])

    def finish_in_background(self, annotator: int, views: Generator[View]) -> None:
        """Go on with `views` (of `send` or `regenerate`), whose page went away, for as long as a page of this person
        asks for them or may come back to them.
        """
        left = time.monotonic()
        turn = self._turns.get(annotator)
        try:
            for _ in views:
                if turn is None or time.monotonic() - max(left, turn.last_look) > BACKGROUND_SECONDS:
                    break
        except (Refused, StoreError):
            pass  # the replies so far are recorded now or later, and no page is open to show an error
        views.close()

    def undo(self, annotator: int) -> tuple[View, str]:
        """Take the last turn back; returns the View and the message, to be written again. Nothing is deleted. Refused
        for a prompt of the queue that this person has not judged.
        """
        self.check_may_write(annotator)
        self._check_idle(annotator)
        conversation = self.store.conversation(annotator)
        if conversation is None:
            raise Refused("There is nothing to undo.")
        if self.view(annotator).queued:
            raise Refused(JUDGE_FIRST)
        with refusing():
            text = self.store.undo(conversation["id"])
        return self.view(annotator), text

    def show_pair(self, annotator: int, duel: int) -> View:
        """Go back to another pair that answers the same message."""
        self.check_may_write(annotator)
        self._check_idle(annotator)
        gestures.checked(gestures.Row, id=duel)
        with refusing():
            self.store.show_duel(duel, annotator)
        return self.view(annotator)

    # -- conversations

    def new_chat(self, annotator: int) -> View:
        """Begin a new conversation with the same settings; the old one is kept. A reply that goes on after an early
        vote ends where it is.
        """
        self.check_may_write(annotator)
        self._end_voted_turn(annotator)
        old = self.store.conversation(annotator)
        if old and self.view(annotator).started:
            self._add_conversation(annotator, old)
        return self.view(annotator)

    def open(self, annotator: int, conversation: int) -> View:
        """Go on with an earlier conversation of one's own."""
        self._end_voted_turn(annotator)
        gestures.checked(gestures.Row, id=conversation)
        with refusing():
            self.store.open_conversation(conversation, annotator)
        return self.view(annotator)

    def delete(self, annotator: int, conversation: int) -> View:
        """Delete a conversation of one's own and all its texts: its share link ends, and no later round trains on
        it.
        """
        gestures.checked(gestures.Row, id=conversation)
        self._end_turn(annotator, conversation)
        with refusing():
            self.store.delete_conversation(conversation, annotator)
        return self.view(annotator)

    def forget(self, annotator: int) -> None:
        """Delete everything of this person; who comes with the same cookie is a new person."""
        self._end_turn(annotator)
        self.store.forget(annotator)

    def allow_training(self, annotator: int, allowed: bool) -> None:
        """Whether rounds may learn from this person's chats."""
        self.store.allow_training(annotator, bool(allowed))

    # -- sharing

    def share(self, annotator: int) -> str:
        """The token of the link to this conversation."""
        self.check_may_write(annotator)
        conversation = self.store.conversation(annotator)
        if conversation is None or not self.view(annotator).started:
            raise Refused("There is nothing to share yet. Send a message first.")
        return str(self.store.share(conversation["id"], annotator))

    def unshare(self, annotator: int) -> None:
        """End the link to this conversation."""
        if conversation := self.store.conversation(annotator):
            self.store.unshare(conversation["id"], annotator)

    def shared(self, token: str) -> View | None:
        """A shared conversation's View to read, without what only its owner may do; None where no chat has this link
        (any more).
        """
        conversation = self.store.shared(token)
        if conversation is None:
            return None
        return read_only(stored_view(self.store, conversation, conversation["annotator"]))

    # -- a conversation's own settings

    def configure(self, annotator: int, system_prompt: str | None, sampling: Mapping[str, float]) -> None:
        """Set this conversation's system prompt and sampling from the next message on. A value that equals the app's
        own is not kept. Refused for a chat of the queue: all people judge the same thing.
        """
        self.check_may_write(annotator)
        self._check_idle(annotator)
        given = gestures.checked(gestures.SystemPrompt, system_prompt=system_prompt).system_prompt
        system_prompt = (given or "").strip() or None
        if system_prompt:
            prompts.check_system(
                system_prompt,
                self.engine.tokenizer,
                self.settings.limits.message_chars,
                self.settings.chat.context_tokens,
            )
        gestures.check_sampling(sampling, gestures.sampling_limits(self.settings))
        own = {name: value for name, value in sampling.items() if value != getattr(self.settings.chat, name)}
        conversation = self.store.conversation(annotator)
        if conversation and self.store.is_queued(conversation["id"]):
            raise Refused("A chat of the queue keeps the queue's own settings. Begin a new chat to set yours.")
        conversation_id = conversation["id"] if conversation else self.store.new_conversation(annotator)
        self.store.configure(conversation_id, system_prompt, own or None)

    def sampling(self, annotator: int) -> tuple[str, dict[str, float]]:
        """The system prompt (or "") and the sampling settings {name: value} of the conversation that is open."""
        conversation = self.store.conversation(annotator) or {"system_prompt": None, "sampling": None}
        own = gestures.usable_sampling(conversation["sampling"], gestures.sampling_limits(self.settings))
        names = (*KNOBS, "reply_tokens")
        values = {name: own.get(name, getattr(self.settings.chat, name)) for name in names}
        return conversation["system_prompt"] or "", values
