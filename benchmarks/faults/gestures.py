"""Every gesture that writes to the store, each with what must be there before it; for the sections in which the store
cannot write.
"""

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.faults.people import Answer, Person

Do = Callable[[Person], Answer]


@dataclass(frozen=True)
class Gesture:
    """`ready` brings a person to where `do` is possible."""

    name: str
    ready: Callable[[Person], object]
    do: Do


def text() -> str:
    return f"Tell me about {secrets.token_hex(8)}"


def nothing(person: Person) -> None:
    """The page is open, which is enough."""
    person.loaded()


def sent(person: Person) -> None:
    person.message = text()
    person.send(person.message)


def voted(person: Person) -> None:
    sent(person)
    person.vote("a")


def shared(person: Person) -> None:
    voted(person)
    person.event("share")


def earlier(person: Person) -> None:
    """Two chats, the second one open."""
    voted(person)
    person.event("sidebar-new", None)
    voted(person)


def send(person: Person) -> Answer:
    person.message = text()
    return person.send(person.message)


def configure(person: Person, prompt: str = "You like short words.") -> Answer:
    """Another system prompt and temperature."""
    called = person.dependency("system-prompt", "blur")
    values = {c["id"]: c["props"].get("value") for c in person.config["components"]}
    values[person.ids["system-prompt"]] = prompt
    values[person.ids["knob-temperature"]] = 0.9
    return person.event("system-prompt", [values[i] for i in called["inputs"]], "blur")


def open_chat(person: Person) -> Answer:
    """Go back to the oldest chat; which number it has, the list says."""
    listed = person.loaded().text
    conversations = [int(n) for n in re.findall(r'\["[^"]*",(\d+)\]', listed)]
    return person.event("chats", [min(conversations, default=1), None, None], "input")


GESTURES = [
    Gesture("send", nothing, send),
    Gesture("regenerate", voted, lambda p: p.event("regenerate")),
    Gesture("vote", sent, lambda p: p.vote("a")),
    Gesture("change the vote", voted, lambda p: p.vote("b")),
    Gesture("a reason", voted, lambda p: p.event("tags", [None, ["clearer"]], "input")),
    Gesture("a comment", voted, lambda p: p.event("comment", [None, "because it is " + "so " * 200], "submit")),
    Gesture("a thumb", voted, lambda p: p.event("chat-a", None, "like", {"index": 1, "liked": True, "value": "x"})),
    Gesture(
        "edit a reply",
        voted,
        lambda p: p.event("chat-a", None, "edit", {"index": 1, "value": "Better words. " * 100, "previous_value": "x"}),
    ),
    Gesture("undo", voted, lambda p: p.event("undo")),
    Gesture("a new chat", voted, lambda p: p.event("sidebar-new")),
    Gesture("an earlier chat", earlier, open_chat),
    Gesture("share", voted, lambda p: p.event("share")),
    Gesture("end the link", shared, lambda p: p.event("unshare")),
    Gesture("delete the chat", voted, lambda p: p.event("delete-chat", [True, None, None])),
    Gesture("settings of the chat", voted, configure),
    Gesture("train now", nothing, lambda p: p.event("train-now")),
]
