"""Completions for other programs: the turn of a chat whose history they send along, and what they say of its replies.

They take the way of the page: one turn at a time for each person, the same checks and limits, two replies, which are
recorded. Each completion is a conversation of its own, so that its pair can still be voted on when others have
followed.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

from playground.chat import gestures
from playground.chat.comparing import Comparing
from playground.chat.refusals import Refused, Unavailable, refusing
from playground.chat.turns import ReplyOptions
from playground.chat.views import StoreRow, View
from playground.chat.votes import Votes
from playground.models import prompts, templates
from playground.store import StoreUnavailable

MOST_MESSAGES = 64  # of one request
HISTORY_FACTOR = 16  # the history may have this many times the characters of one message


@dataclass(frozen=True)
class CompletionRequest:
    """What a program asks for. `messages` begin and end with the user's, and roles alternate. `sampling` holds what a
    chat may set for itself; longer replies than the app's are cut to that.
    """

    messages: tuple[templates.Message, ...]
    system_prompt: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    version: int | None = None  # None: the one that answers people
    seed: int | None = None


@dataclass(frozen=True)
class Reply:
    """One reply of a pair that is complete."""

    message: int
    text: str
    finish_reason: str | None  # as the store has it; None until it is recorded
    tokens: int
    version: int  # that wrote it; nobody sees it before the vote


@dataclass(frozen=True)
class Completed:
    """A pair that is complete."""

    duel: int
    replies: tuple[Reply, Reply]
    prompt_tokens: int


class Completing(Votes, Comparing):
    """Part of `Chat`."""

    def complete(self, annotator: int, request: CompletionRequest, address: str = "") -> Generator[View]:
        """Two replies, as `Chat.send`: Views from the first update to both complete. Closing it stops them."""
        with self._turn(annotator, address, goes_on=False) as turn:  # before any text is read: that costs time
            *history, last = self._checked_messages(request.messages)
            if request.version is not None:
                self._check_in_use(request.version)
            system_prompt = self._checked_system(request.system_prompt)
            own = self._own_sampling(request.sampling)
            tokenizer, budget = self.engine.tokenizer, self.settings.chat.context_tokens
            prompts.encode([*history, last], tokenizer, budget, system_prompt)  # refuses before anything is recorded
            said = [(message["role"], message["content"]) for message in history]
            with refusing():
                conversation = self.store.begin_with(annotator, said, system_prompt, own)
            options = ReplyOptions(request.version, request.seed)
            yield from self._write(turn, conversation, history, last["content"], options=options)

    def completed(self, annotator: int, duel_id: int) -> Completed:
        """A pair of this person's that is complete."""
        try:
            duel = self._own_duel(annotator, duel_id)
            prompt_tokens = self.store.prompt_tokens(duel_id)
        except StoreUnavailable as error:
            raise Unavailable(error.message) from None
        return Completed(duel_id, (_reply(duel["left"]), _reply(duel["right"])), prompt_tokens)

    def rate_reply(self, annotator: int, duel_id: int, side: int, thumb: int | None) -> None:
        """A thumb on the left (0) or the right (1) reply of one's own pair, as `rate`."""
        duel = self._own_duel(annotator, duel_id)
        self.rate(annotator, duel["right" if side else "left"]["message"], thumb)

    # -- checks

    def _checked_messages(self, messages: tuple[templates.Message, ...]) -> list[templates.Message]:
        """The messages as they are used. What people wrote is checked as on the page; what a model wrote may be of any
        length that the whole may have.
        """
        if not messages or len(messages) > MOST_MESSAGES:
            raise Refused("A chat has from 1 to {limit} messages.", limit=MOST_MESSAGES)
        roles = [message["role"] for message in messages]
        if any(role != ("assistant" if i % 2 else "user") for i, role in enumerate(roles)) or roles[-1] != "user":
            raise Refused(
                "Messages alternate between user and assistant, and begin and end with the user's; a system message "
                "may come before."
            )
        most = HISTORY_FACTOR * self.settings.limits.message_chars
        if sum(len(message["content"]) for message in messages) > most:
            raise Refused("All messages together may have {limit} characters.", limit=f"{most:,}")
        checked: list[templates.Message] = []
        for message in messages:
            text = message["content"]
            if message["role"] == "user":
                text = self._checked_text(text)
            checked.append({"role": message["role"], "content": text})
        return checked

    def _checked_system(self, text: str | None) -> str | None:
        """A system prompt as `Chat.configure` takes it; None where it is empty."""
        if not (text or "").strip():
            return None
        limits, chat = self.settings.limits, self.settings.chat
        return prompts.check_system(text, self.engine.tokenizer, limits.message_chars, chat.context_tokens)

    def _own_sampling(self, sampling: Mapping[str, float]) -> dict[str, float] | None:
        """The sampling settings that differ from the app's, checked; None where none does."""
        values = dict(sampling)
        if "reply_tokens" in values:
            values["reply_tokens"] = min(values["reply_tokens"], self.settings.chat.reply_tokens)
        gestures.check_sampling(values, gestures.sampling_limits(self.settings))
        return {name: value for name, value in values.items() if value != getattr(self.settings.chat, name)} or None


def _reply(row: StoreRow) -> Reply:
    return Reply(row["message"], row["text"], row["finish_reason"], row["tokens"], row["policy"])
