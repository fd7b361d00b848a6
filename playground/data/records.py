"""The records that files are made of and read into: a judged pair, a thumb, an edited reply and a prompt.

Owns what makes two of them the same (`content_hash`), and the bounds of each field, which hold for what is imported.
Knows nothing about files or columns of other programs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le, MaxLen, MinLen
from typing_extensions import TypedDict

MOST_TURNS = 200
MOST_CHARACTERS = 200_000  # of one message

Text = Annotated[str, MaxLen(MOST_CHARACTERS)]
Name = Annotated[str, MaxLen(200)]
Id = Annotated[int, Ge(0), Le(2**63 - 1)]
Tags = Annotated[list[Name], MaxLen(50)]


class Turn(TypedDict):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: Text


Turns = Sequence[Turn]

UNDECIDED = ("tie", "both_bad")  # choices of a pair in which neither reply is better

IDS = ("vote", "demonstration", "rating", "message")  # fields of a record that are ids in the database it comes from
MARKS = (*IDS, "created")


@dataclass(frozen=True)
class Imported:
    """What is kept beside an imported row: the name of its import, its weight beside a vote's 1, and of one that others
    publish the address with the commit, the split and the licence.
    """

    source: Annotated[str, MinLen(1), MaxLen(100)]
    weight: Annotated[float, Gt(0), Le(1000)] = 1.0
    url: Annotated[str, MaxLen(2000)] | None = None
    split: Name | None = None
    license: Name | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """From a row that has these fields, and others."""
        return cls(**{f.name: row[f.name] for f in fields(cls)})


@dataclass(frozen=True)
class Record:
    """What all records have. `messages`: the chat up to the message that was answered, its system prompt first.

    Its marks say where it comes from, whatever is made of it: an id in the database that recorded it, and when. By them
    that database knows what it recorded, so that what was deleted there does not come back by a file.
    """

    messages: Annotated[list[Turn], MinLen(1), MaxLen(MOST_TURNS)]
    vote: Id | None = field(default=None, kw_only=True)
    demonstration: Id | None = field(default=None, kw_only=True)  # an edit of a reply
    rating: Id | None = field(default=None, kw_only=True)  # a thumb
    message: Id | None = field(default=None, kw_only=True)  # the last one of a prompt
    created: Name | None = field(default=None, kw_only=True)  # when it was said, in UTC
    imported: Imported | None = field(default=None, kw_only=True)  # of a row that was imported: what is kept beside it

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """From a row that has these fields, and maybe others."""
        return cls(**{name: row[name] for name in (f.name for f in fields(cls)) if name in row})

    def as_dict(self) -> dict[str, Any]:
        """All fields, the marks last, and `imported` where the record was."""
        values = asdict(self)
        del values["imported"]
        marks = self.marks()
        return {name: value for name, value in values.items() if name not in marks} | marks

    def marks(self) -> dict[str, Any]:
        kept = {"imported": asdict(self.imported)} if self.imported else {}
        return {name: getattr(self, name) for name in MARKS} | kept


@dataclass(frozen=True)
class JudgedPair(Record):
    """Two replies to one chat, and which of them somebody picked."""

    left: Text
    right: Text
    choice: Literal["a", "b", "tie", "both_bad"]  # a is the left one
    tags: Tags = field(default_factory=list)  # the person's reasons
    comment: Text | None = None
    early: bool = False  # picked while the replies were being written; the texts are what they became
    left_tokens: Id | None = None  # of an early pick: how many tokens were there; training compares those
    right_tokens: Id | None = None
    left_grew: bool | None = None  # of an early pick: whether the reply went on after it, so that its end was not seen
    right_grew: bool | None = None
    left_version: Id | None = None  # that wrote the reply; 0 is the base model
    right_version: Id | None = None
    left_ended: Name | None = None  # why the reply ended: end, length (the limit) or stopped
    right_ended: Name | None = None
    pairing: Name | None = None  # how the two came together
    probability: float | None = None  # with which this pair was chosen
    base_model: Name | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    person: Id | None = None  # ids in the database that it comes from
    conversation: Id | None = None

    @property
    def decided(self) -> bool:
        """Whether one of the two is better."""
        return self.choice not in UNDECIDED

    @property
    def chosen(self) -> str:
        """The better reply; of two that are equally good, the left one."""
        return self.right if self.choice == "b" else self.left

    @property
    def rejected(self) -> str:
        return self.left if self.choice == "b" else self.right

    def content_hash(self) -> str:
        """The same for the same judgement, whichever side the better reply is on."""
        replies = [self.chosen, self.rejected]
        return _digest("pair", self.messages, replies if self.decided else sorted(replies), self._verdict, self.created)

    @property
    def _verdict(self) -> str:
        return "decided" if self.decided else self.choice


@dataclass(frozen=True)
class Thumb(Record):
    """One reply that somebody found good or bad."""

    reply: Text
    thumb: int  # 1 or -1
    version: Id | None = None
    base_model: Name | None = None
    person: Id | None = None
    conversation: Id | None = None


@dataclass(frozen=True)
class Demonstration(Record):
    """A reply that somebody wrote."""

    reply: Text
    before: Text | None = None  # what the model had written, where the reply is an edit of it
    version: Id | None = None  # that had written it
    base_model: Name | None = None
    person: Id | None = None
    conversation: Id | None = None

    def content_hash(self) -> str:
        return _digest("demonstration", self.messages, self.reply, self.created)


@dataclass(frozen=True)
class Prompt(Record):
    """Messages that wait for a reply."""

    def content_hash(self) -> str:
        return _digest("prompt", self.messages)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
