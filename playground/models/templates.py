"""A tokenizer's chat template: which one is used, what it takes, how it ends a reply, and which tokens steer it.

`prepare` decides once which template a tokenizer uses. `of` says what that template is like, which is found out by
rendering short conversations. `encode` renders any conversation. Messages and budgets are `prompts.py`'s.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% else %}{{ {'user': 'User', 'assistant': 'Assistant'}[message['role']] + ':\n' + message['content'] + '\n' }}{% "
    "endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)

# the short conversations that a template is tried with
SYSTEM = "Be brief today."
QUESTION = "Which river?"
ANSWER = "The Nile of Egypt."
ANOTHER_QUESTION = "Which mountain?"

# what an added token that steers a chat looks like: <|im_end|>, <｜User｜>, [INST], <start_of_turn>, <<SYS>>
STEERING = re.compile(r"<[|｜].*[|｜]>|\[/?[A-Z][A-Z_ ]*\]|</?[a-z]+(_[a-z]+)+>|<</?SYS>>")
BRACKETED = re.compile(r"<.+>|\[.+\]|\{.+\}")
THOUGHTS = {"<think>", "</think>"}  # a reply may hold them, and templates read them there


class BadTemplate(Exception):
    """A chat template cannot be used, or not for this conversation; the message says why."""


class Message(TypedDict):
    """A message as transformers' chat templates take it."""

    role: Literal["system", "user", "assistant"]
    content: str


def token_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a text, without special tokens around it."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# -- tokens that steer


class ControlTokens:
    """Tokens that must not come from a message: those that the tokenizer calls special, and added ones that look like
    them or are used like them.

    A plain word or blanks may be an added token too; those steer nothing and are not among these.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        template = tokenizer.chat_template or ""
        ids = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        for token_id, token in tokenizer.added_tokens_decoder.items():
            text = token.content
            in_template = BRACKETED.fullmatch(text) and text in template and text not in THOUGHTS
            if token.special or STEERING.fullmatch(text) or in_template:
                ids[text] = token_id
        self.texts = {text for text in ids if text.strip()}
        self.ids = frozenset(ids[text] for text in self.texts)
        self._longest = max(map(len, self.texts), default=0)
        self._lengths: dict[str, set[int]] = {}  # by last character: lengths of the tokens that end with it
        for text in self.texts:
            self._lengths.setdefault(text[-1], set()).add(len(text))

    def first(self, text: str) -> str | None:
        """The token in `text` whose end comes first, or None. Linear in the text."""
        for place, char in enumerate(text):
            token = self._token_ending(char, text[max(0, place + 1 - self._longest) : place + 1])
            if token:
                return token
        return None

    def without(self, text: str) -> str:
        """`text` with all tokens left out, also those that form where another was left out. Linear in the text."""
        kept: list[str] = []
        for char in text:
            kept.append(char)
            if char in self._lengths:
                token = self._token_ending(char, "".join(kept[-self._longest :]))
                if token:
                    del kept[-len(token) :]
        return "".join(kept)

    def _token_ending(self, char: str, tail: str) -> str | None:
        """The token that `tail`, whose last character is `char`, ends with."""
        for length in self._lengths.get(char, ()):
            if tail[-length:] in self.texts:
                return tail[-length:]
        return None


# -- what a template is like


@dataclass(frozen=True)
class Format:
    """What a tokenizer's chat template takes and gives."""

    template: str
    takes_system: bool  # else the system prompt goes into the first message of the user, as model cards advise
    alternates: bool  # two messages of one role in a row are refused, so they are joined
    end: tuple[int, ...]  # the token ids that end a reply: one, or those of `end_text`
    end_text: str  # words that end a reply where the template has no token for it, or ""
    hidden: tuple[int, ...]  # `end` where it is one token; not every tokenizer calls it special and skips it
    control: ControlTokens


_formats: WeakKeyDictionary[PreTrainedTokenizerBase, Format] = WeakKeyDictionary()


def of(tokenizer: PreTrainedTokenizerBase) -> Format:
    """The Format of a tokenizer's chat template; found out once. BadTemplate where it cannot even render a question."""
    known = _formats.get(tokenizer)
    if known is None or known.template != tokenizer.chat_template:
        known = _formats[tokenizer] = _find_format(tokenizer)
    return known


def prepare(tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the chat template: the one named default where there are several, a plain one where there is none.

    BadTemplate where it has an error, refuses the plainest question or marks no end of a reply.
    """
    template = tokenizer.chat_template
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        if "default" not in template:
            raise BadTemplate(
                f"there are several, {', '.join(sorted(template))}, and none of them is called default; rename the one "
                "to use"
            )
        template = template["default"]
    if not template:
        template = ("{{ bos_token }}" if _begins_with_bos(tokenizer) else "") + PLAIN
        log.warning(
            "the model has no chat template; a plain one is used: %r",
            _render(tokenizer, [_user(QUESTION)], chat_template=template),
        )
    tokenizer.chat_template = template
    of(tokenizer)


def encode(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a conversation and of the beginning of the next reply. BadTemplate where the template refuses it."""
    form = of(tokenizer)
    if not form.takes_system:
        messages = _fold_system(messages)
    if form.alternates:
        messages = _join_roles(messages)
    return _apply(tokenizer, messages, tokenize=True, return_dict=False, add_generation_prompt=True)


def _fold_system(messages: Sequence[Message]) -> Sequence[Message]:
    """The system prompt put at the beginning of the user's first message."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return messages
    system, first, *others = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]


def _join_roles(messages: Sequence[Message]) -> list[Message]:
    """Neighbouring messages of one role joined to one."""
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            content = f"{joined[-1]['content']}\n\n{message['content']}"
            joined[-1] = {**message, "content": content}
        else:
            joined.append(message)
    return joined


# -- finding out what a template is like


def _find_format(tokenizer: PreTrainedTokenizerBase) -> Format:
    """Render conversations of a few words and look at the results."""
    _render(tokenizer, [_user(QUESTION)], add_generation_prompt=True)  # BadTemplate where not even this can be
    control = ControlTokens(tokenizer)
    end = _find_end(tokenizer, control)
    return Format(
        template=tokenizer.chat_template,
        takes_system=_keeps(tokenizer, [_system(SYSTEM), _user(QUESTION)], SYSTEM),
        alternates=not _keeps(tokenizer, [_user(QUESTION), _user(ANOTHER_QUESTION)], QUESTION),
        end=end.token_ids,
        end_text=end.text,
        hidden=() if end.text else end.token_ids,
        control=control,
    )


@dataclass(frozen=True)
class _End:
    """What ends a reply."""

    token_ids: tuple[int, ...]
    text: str = ""  # where words do


def _keeps(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str) -> bool:
    """Whether the template renders these messages, and `text` with them."""
    try:
        return text in _render(tokenizer, messages)
    except BadTemplate:
        return False


def _find_end(tokenizer: PreTrainedTokenizerBase, control: ControlTokens) -> _End:
    """The first control token after a reply; else the words between a reply and the next question; else eos."""
    turn = [_user(QUESTION), _assistant(ANSWER)]
    after = _render(tokenizer, turn).rpartition(ANSWER)[2]
    with_question = _render(tokenizer, [*turn, _user(ANOTHER_QUESTION)])
    between = with_question.rpartition(ANSWER)[2].partition(ANOTHER_QUESTION)[0]
    for text in (after, between):
        for token_id in token_ids(text, tokenizer):
            if token_id in control.ids:
                return _End((token_id,))
    words = between.rstrip()
    if words:
        return _End(_ids_after_text(words, tokenizer), words)
    if tokenizer.eos_token_id is None:
        raise BadTemplate("it marks no end of a reply, and the tokenizer has no eos_token")
    return _End((tokenizer.eos_token_id,))


def _ids_after_text(words: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids of words that follow a reply: some tokenizers add a blank at the beginning of a text."""
    with_words = token_ids(ANSWER + words, tokenizer)
    alone = token_ids(ANSWER, tokenizer)
    if with_words[: len(alone)] == alone:
        return tuple(with_words[len(alone) :])
    return tuple(token_ids(words, tokenizer))


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any) -> str:
    """The text of a conversation; BadTemplate where the template refuses it."""
    return _apply(tokenizer, messages, tokenize=False, **options)


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any) -> Any:
    conversation = cast("list[dict[str, str]]", messages)  # as transformers types them
    try:
        return tokenizer.apply_chat_template(conversation, **options)
    except Exception as error:  # a template is a program of its own and may raise anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadTemplate(reason[0]) from None


def _begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer(QUESTION)["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
