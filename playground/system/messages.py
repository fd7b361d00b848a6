"""Sentences for people: an English template and the values for its places, kept apart until somebody reads them.

As in gettext, the template is the key: `languages.py` looks its translation up and fills the places. Whoever
raises, returns or stores a sentence makes a Message; `str(message)` is the English sentence, for logs and the command
line. Who is shown what, and in which language, is the page's.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, init=False)
class Message:
    """One sentence: `Message("The name has {n} characters.", n=70)`.

    The template is a literal, so that the tests find it and ask for its translation. A value that is itself to be
    translated is a Message; numbers come as they are to be read ("1,000"). A word that goes with a number has both its
    forms: "{n} {n:vote|votes}" is "1 vote" and "2 votes". Chinese needs none.
    """

    template: str
    values: "dict[str, Value]"

    def __init__(self, template: str, /, **values: "Value") -> None:
        object.__setattr__(self, "template", template)
        object.__setattr__(self, "values", values)

    def translated(self, translate: Callable[[str], str]) -> str:
        """The sentence with `translate` applied to its template, and to those of the Messages among its values."""
        values = {
            name: _Value(value.translated(translate) if isinstance(value, Message) else value)
            for name, value in self.values.items()
        }
        return translate(self.template).format(**values)

    def __str__(self) -> str:
        return self.translated(lambda template: template)

    def dumps(self) -> str:
        """As JSON, for a text column of the store; `loads` reads it."""
        return json.dumps(asdict(self), ensure_ascii=False)


class _Value:
    """A value as a template shows it; "{n:vote|votes}" is the first word where it is 1, else the second."""

    def __init__(self, value: "str | int | float") -> None:
        self.value = value

    def __format__(self, spec: str) -> str:
        one, bar, many = spec.partition("|")
        if not bar:
            return format(self.value, spec)
        return one if str(self.value) == "1" else many


Value = str | int | float | Message  # of a place in a template


def plain(text: str) -> Message:
    """A Message that reads exactly `text`, whatever it holds: braces in it are no places."""
    return Message(text.replace("{", "{{").replace("}", "}}"))


def joined(messages: Iterable[Message]) -> Message:
    """Several sentences, at least one, as one list: "this; that"."""
    first, *others = messages
    for message in others:
        first = Message("{first}; {next}", first=first, next=message)
    return first


def lines(messages: Iterable[Message]) -> Message:
    """Several sentences, at least one, each on a line of its own."""
    first, *others = messages
    for message in others:
        first = Message("{first}\n{next}", first=first, next=message)
    return first


def from_data(data: Any) -> Message:
    """The Message that `asdict` made a dict of. Any other value is a plain text: earlier versions stored those."""
    if not isinstance(data, dict):
        return plain(str(data))
    values = {name: from_data(value) if isinstance(value, dict) else value for name, value in data["values"].items()}
    return Message(data["template"], **values)


def loads(text: str) -> Message:
    """The Message that `Message.dumps` wrote. Any other text is read as it is: earlier versions stored English."""
    try:
        data = json.loads(text)
    except ValueError:
        return plain(text)
    return from_data(data) if isinstance(data, dict) and data.keys() == {"template", "values"} else plain(text)


class UserFacingError(Exception):
    """An error whose `message` a person is shown. It is made of a Message, or of a template and its values:
    `StoreError("Version v{n} was rejected and cannot go live.", n=3)`.
    """

    def __init__(self, message: str | Message, /, **values: Value) -> None:
        self.message = message if isinstance(message, Message) else Message(message, **values)
        super().__init__(str(self.message))
