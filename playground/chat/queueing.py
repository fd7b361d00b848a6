"""The prompt queue beside the chat: a person takes the next prompt, which is sent as a message is, or skips it.

Which prompt that is, and who else has it, is the store's (`playground/store/queue.py`). Each prompt begins a chat of
its own, with the queue's own system prompt and the app's sampling, so that all people judge the same thing.
"""

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from playground.chat.completing import Completing
from playground.chat.refusals import Refused, refusing
from playground.chat.turns import Turn
from playground.chat.views import StoreRow, View
from playground.models import prompts, templates
from playground.models.detokeniser import Detokeniser
from playground.models.prompts import BadMessage
from playground.store.queue import parts
from playground.system.messages import Message

PICK_FIRST = Message("Pick a reply first: A, B, tie, both bad, or skip.")
JUDGE_FIRST = Message("Vote on this pair of the queue first, or skip its prompt with a reason.")
NO_PROMPT = Message("No prompt of the queue is free for you now. Others may have the rest.")
SKIPS = ("unclear", "unsafe", "language", "unable")  # why a person skips a prompt
UNFIT = "unfit"  # the prompt is too long for the model, or its template refuses it
SAME = "same"  # both replies were the same text
TRIES = 20  # prompts that cannot be sent, until a press gives up


@dataclass(frozen=True)
class QueueView:
    """What a person sees of the queue. Numbers are prompts."""

    total: int
    judged: int  # by at least one person
    twice: int  # that two people are to judge
    judged_twice: int
    free: bool  # whether there is one for this person


class Queueing(Completing):
    """Part of `Chat`."""

    @property
    def has_queue(self) -> bool:
        return bool(self.settings.queue.prompts)

    @property
    def _seconds(self) -> float:
        """How long a person keeps a prompt."""
        return 60 * self.settings.queue.minutes

    def queue(self, annotator: int, progress: Mapping[str, int]) -> QueueView:
        """The queue as this person sees it; `progress` is of `Store.queue_progress`."""
        free = self.may_write(annotator) and self.store.has_prompt_for(annotator, time.time(), self._seconds)
        return QueueView(
            total=progress["total"],
            judged=progress["judged"],
            twice=progress["twice"],
            judged_twice=progress["judged_twice"],
            free=free,
        )

    def next_prompt(self, annotator: int, address: str = "") -> Generator[View]:
        """The next prompt of the queue, in a chat of its own: Views as of `send`. A pair that is judged a second time
        is there at once; a prompt that this person has and has not judged is taken up again.
        """
        self.check_may_write(annotator)
        self._end_voted_turn(annotator)
        with self._turn(annotator, address, "") as turn:
            if self.view(annotator).phase == "voting":
                raise Refused(PICK_FIRST)
            for _ in range(TRIES):
                task = self._take(annotator)
                if (shown := self._shown_already(annotator, task)) is not None:
                    if shown.phase != "same":
                        yield shown
                        return
                    self.store.skip_prompt(annotator, SAME)
                elif task["repeats"] is not None:
                    if self._show_again(task):
                        yield self.view(annotator)
                        return
                    self.store.leave_prompt(annotator)
                else:
                    try:
                        yield from self._send_queued(turn, task)
                        return
                    except BadMessage:
                        self.store.skip_prompt(annotator, UNFIT)
            raise Refused(NO_PROMPT)

    def skip_prompt(self, annotator: int, reason: str) -> View:
        """Skip the prompt that this person has, for good; `reason` is one of SKIPS. An empty chat follows."""
        self.check_may_write(annotator)
        if reason not in SKIPS:
            raise Refused("Say why you skip this prompt: pick one of the reasons.")
        task = self.store.queue_task(annotator)
        if task is None:
            raise Refused("There is no prompt of the queue to skip here.")
        self._end_turn(annotator, task["conversation"])
        with refusing():
            self.store.skip_prompt(annotator, reason)
            self._add_conversation(annotator, self.store.conversation(annotator))
        return self.view(annotator)

    def _add_conversation(self, annotator: int, before: StoreRow | None) -> None:
        """A new conversation, with the settings of the one before it, unless that was the queue's."""
        if before is None or self.store.is_queued(before["id"]):
            self.store.new_conversation(annotator)
        else:
            self.store.new_conversation(annotator, before["system_prompt"], before["sampling"])

    # -- what becomes of a task

    def _take(self, annotator: int) -> StoreRow:
        with refusing():
            task: StoreRow | None = self.store.take_prompt(annotator, time.time(), self._seconds)
        if task is None:
            raise Refused(NO_PROMPT)
        return task

    def _shown_already(self, annotator: int, task: StoreRow) -> View | None:
        """The View of a task whose pair is there, in its chat; None where it has none, or another message followed."""
        if task["message"] is None:
            return None
        with refusing():
            self.store.open_conversation(task["conversation"], annotator)
        view = self.view(annotator)
        duel = self.store.duel(view.duel) if view.duel is not None else None
        return view if duel and duel["user_message"] == task["message"] else None

    def _send_queued(self, turn: Turn, task: StoreRow) -> Generator[View]:
        """Send the prompt of a task. BadMessage where it does not fit the model, before anything is recorded."""
        system, said, text = parts(task["messages"])
        text = self._checked_text(text)
        tokenizer, budget = self.engine.tokenizer, self.settings.chat.context_tokens
        history: list[templates.Message] = [
            {"role": message["role"], "content": message["content"]} for message in said
        ]
        prompts.encode([*history, {"role": "user", "content": text}], tokenizer, budget, system)
        with refusing():
            conversation = self.store.begin_with(
                turn.annotator, [(message["role"], message["content"]) for message in history], system
            )
        turn.task = task["id"]
        yield from self._write(turn, conversation, history, text)

    def _show_again(self, task: StoreRow) -> bool:
        """Show the pair that a task repeats, as its first judge saw it: an early vote was on what both had said by
        then. False where it is gone.
        """
        duel = self.store.duel(task["repeats"])
        if duel is None:
            return False
        replies = []
        for side in ("left", "right"):
            ids = self.store.reply_tokens(duel[side]["id"])
            cut = duel[f"{side}_cut"]
            early = cut is not None and cut < len(ids)
            replies.append((self._text_of(ids[:cut]), ids[:cut]) if early else (duel[side]["text"], ids))
        with refusing():
            return self.store.show_again(task, replies)

    def _text_of(self, token_ids: Sequence[int]) -> str:
        """What a reply that was still being written had said."""
        detokeniser = Detokeniser(self.engine.tokenizer)
        for token_id in token_ids:
            detokeniser.add(token_id)
        stops = prompts.stops_of(self.engine.tokenizer, self.settings.chat.stop)
        return prompts.before(detokeniser.text, stops, growing=True).strip()
