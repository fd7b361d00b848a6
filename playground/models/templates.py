"""A tokenizer's chat template, made fit for use: which one it is, what it takes, how it ends a reply, and which tokens
steer it.

`prepare` settles once what a tokenizer's template is; `of` says what that template is like, found out by rendering
short conversations;
`encode` renders any. Messages and budgets are `prompts.py`'s.
"""

import logging
import re
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

log = logging.getLogger(__name__)

PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% else %}{{ {'user': 'User', 'assistant': 'Assistant'}[message['role']] + ':\n' + message['content'] + '\n' }}{% "
    "endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)

SYSTEM, QUESTION, ANSWER, ANOTHER = "Be brief today.", "Which river?", "The Nile of Egypt.", "Which mountain?"

# what an added token looks like that steers a chat: <|im_end|>, <｜User｜>, [INST], <start_of_turn>, <<SYS>>
STEERS = re.compile(r"<[|｜].*[|｜]>|\[/?[A-Z][A-Z_ ]*\]|</?[a-z]+(_[a-z]+)+>|<</?SYS>>")
BRACKETED = re.compile(r"<.+>|\[.+\]|\{.+\}")
THOUGHTS = {"<think>", "</think>"}  # a reply may hold them, and templates read them there


class BadTemplate(Exception):
    """A chat template cannot be used, or not for this conversation; the message says why."""


# -- tokens that steer


class ControlTokens:
    """Tokens that must not come from a message: those that the tokenizer calls special, and added ones that look or
    serve like them.

    A plain word or blanks may be an added token too, and steer nothing.
    """

    def __init__(self, tokenizer):
        template = tokenizer.chat_template or ""
        ids = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        for token_id, token in tokenizer.added_tokens_decoder.items():
            text = token.content
            in_template = BRACKETED.fullmatch(text) and text in template and text not in THOUGHTS
            if token.special or STEERS.fullmatch(text) or in_template:
                ids[text] = token_id
        self.texts = {text for text in ids if text.strip()}
        self.ids = frozenset(ids[text] for text in self.texts)
        self._longest = max(map(len, self.texts), default=0)
        self._lengths = {}  # last character: lengths of the tokens that end with it
        for text in self.texts:
            self._lengths.setdefault(text[-1], set()).add(len(text))

    def first(self, text: str) -> str | None:
        """The first of them that ends in `text`, or None. Linear in the text."""
        for place, char in enumerate(text):
            found = self._ending(char, text[max(0, place + 1 - self._longest) : place + 1])
            if found:
                return found
        return None

    def without(self, text: str) -> str:
        """`text` with all of them left out, also those that leaving one out would join. Linear in the text."""
        kept = []
        for char in text:
            kept.append(char)
            if char in self._lengths:
                found = self._ending(char, "".join(kept[-self._longest :]))
                if found:
                    del kept[-len(found) :]
        return "".join(kept)

    def _ending(self, char, tail):
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
    control: ControlTokens


_formats = WeakKeyDictionary()  # tokenizer: Format


def of(tokenizer) -> Format:
    """The Format of a tokenizer's chat template; found once. BadTemplate where it cannot even render a question."""
    found = _formats.get(tokenizer)
    if found is None or found.template != tokenizer.chat_template:
        found = _formats[tokenizer] = _Study(tokenizer).format
    return found


def prepare(tokenizer) -> None:
    """Settle what the chat template is: the one named default where there are several, a plain one where there is none.

    BadTemplate where it has an error, refuses the plainest question or ends no reply.
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


def encode(messages: list[dict], tokenizer) -> list[int]:
    """Token ids of a conversation ({"role", "content"} dicts) and of the beginning of the next reply. BadTemplate where
    the template refuses it.
    """
    form = of(tokenizer)
    if not form.takes_system:
        messages = _system_folded(messages)
    if form.alternates:
        messages = _joined(messages)
    return _render(tokenizer, messages, tokenize=True, return_dict=False, add_generation_prompt=True)


def _system_folded(messages):
    """The system prompt as the beginning of the user's first message."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return messages
    system, first, *others = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]


def _joined(messages):
    """Neighbours of one role as one message."""
    joined = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1] = {**message, "content": f"{joined[-1]['content']}\n\n{message['content']}"}
        else:
            joined.append(message)
    return joined


class _Study:
    """Finds a template's Format by rendering conversations of a few words."""

    def __init__(self, tokenizer):
        self.tokenizer, self.control = tokenizer, ControlTokens(tokenizer)

    @cached_property
    def format(self):
        _render(self.tokenizer, [_user(QUESTION)], add_generation_prompt=True)  # BadTemplate where not even this can be
        end, end_text = self._end()
        return Format(
            self.tokenizer.chat_template,
            takes_system=self._takes([_system(SYSTEM), _user(QUESTION)], SYSTEM),
            alternates=not self._takes([_user(QUESTION), _user(ANOTHER)], QUESTION),
            end=end,
            end_text=end_text,
            control=self.control,
        )

    def _takes(self, messages, text):
        """Whether the template renders these messages, and `text` with them."""
        try:
            return text in _render(self.tokenizer, messages)
        except BadTemplate:
            return False

    def _end(self):
        """(token ids, text) that end a reply: the first control token after one, else the words before the next
        question, else eos.
        """
        after = _render(self.tokenizer, [_user(QUESTION), _assistant(ANSWER)]).rpartition(ANSWER)[2]
        more = _render(self.tokenizer, [_user(QUESTION), _assistant(ANSWER), _user(ANOTHER)])
        between = more.rpartition(ANSWER)[2].partition(ANOTHER)[0]
        for text in (after, between):
            for token_id in self.tokenizer(text, add_special_tokens=False)["input_ids"]:
                if token_id in self.control.ids:
                    return (token_id,), ""
        words = between.rstrip()
        if words:
            return self._ids_after_text(words), words
        if self.tokenizer.eos_token_id is None:
            raise BadTemplate("it marks no end of a reply, and the tokenizer has no eos_token")
        return (self.tokenizer.eos_token_id,), ""

    def _ids_after_text(self, words):
        """Ids of words that follow a reply: some tokenizers begin a text with a blank of their own."""
        with_words, alone = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (ANSWER + words, ANSWER)
        )
        if with_words[: len(alone)] == alone:
            return tuple(with_words[len(alone) :])
        return tuple(self.tokenizer(words, add_special_tokens=False)["input_ids"])


def _render(tokenizer, messages, tokenize=False, **options):
    try:
        return tokenizer.apply_chat_template(messages, tokenize=tokenize, **options)
    except Exception as error:  # a template is a program of its own and may raise anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadTemplate(reason[0]) from None


def _begins_with_bos(tokenizer):
    ids = tokenizer(QUESTION)["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _system(text):
    return {"role": "system", "content": text}


def _user(text):
    return {"role": "user", "content": text}


def _assistant(text):
    return {"role": "assistant", "content": text}
