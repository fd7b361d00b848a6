"""Rows of other people's files to records: which columns say what. TRL's types, UltraFeedback (binarized), HH-RLHF,
PandaLM, and Nudge's own.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from playground.data.raw_rows import BadRow, Row
from playground.data.reasons import why_bad
from playground.data.records import IDS, Demonstration, Imported, JudgedPair, Prompt, Turn

Importable = JudgedPair | Demonstration | Prompt
Values = dict[str, Any]

KINDS: dict[str, type[Importable]] = {"pair": JudgedPair, "demonstration": Demonstration, "prompt": Prompt}

OBJECT_CHARS = 10_000  # of an object as JSON
SPEAKER = re.compile(r"\n\n(Human|Assistant|System):")
NO_PAIR = "no pair: it needs the columns chosen and rejected"
ROLES = {"Human": "user", "Assistant": "assistant", "System": "system"}


def record_of(row: Row, kind: str | None = None) -> tuple[str, Importable]:
    """(kind, record) of a row: a pair where it has one, else a demonstration, else a prompt; or the `kind` that is
    asked for. BadRow where its columns or their values say no such thing.
    """
    kind = kind or kind_of(row)
    readers: dict[str, Callable[[Row], Values]] = {"pair": _pair, "demonstration": _demonstration, "prompt": _prompt}
    return kind, _checked(kind, {**readers[kind](row), **_marks(row)})


def _marks(row: Row) -> Values:
    """Where a row that Nudge exported comes from, whatever is made of it. Other programs turn ids into texts and
    floats, and other people's files have columns of these names that mean something else.
    """
    ids = {name: found for name in IDS if (found := _id(row.get(name))) is not None}
    created = row.get("created")
    marks = ids | ({"created": created} if isinstance(created, str) and 0 < len(created) <= 200 else {})
    imported = _imported(row.get("imported"))
    return marks | ({"imported": imported} if imported else {})


def _imported(value: Any) -> Values | None:
    """What `export --imported` has kept beside a row; None for what is another thing."""
    value = _object(value)
    if not isinstance(value, Mapping) or not {"source", "weight"} <= value.keys():
        return None
    if not str(value["source"]).isprintable():
        raise BadRow("its source has characters that cannot be printed")
    return {name: value.get(name) for name in Imported.__dataclass_fields__}


def _object(value: Any) -> Any:
    """An object, also where a cell of Parquet or CSV has its JSON; other values as they are."""
    if not isinstance(value, str) or not value.startswith("{") or len(value) > OBJECT_CHARS:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _id(value: Any) -> int | None:
    """A whole number as other programs write it: 1, "1", 1.0 or "1.0"; None where it is none."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}(\.0)?", value, re.ASCII):
        value = int(value.partition(".")[0])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_id = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return value if is_id else None


def kind_of(row: Row) -> str:
    """What the columns of a row say: the most that they can be. BadRow where they are not known."""
    has = row.keys()
    if {"chosen", "rejected"} <= has or {"left", "right"} <= has or _two_responses(row):
        return "pair"
    if has & {"chosen", "rejected"}:
        raise BadRow(NO_PAIR)
    if "label" in has or "thumb" in has:
        raise BadRow("a reply judged alone (thumb, KTO) cannot be imported")
    if {"prompt", "completion"} <= has or {"messages", "reply"} <= has or {"instruction", "output"} <= has:
        return "demonstration"
    if "messages" in has:
        return "demonstration" if _ends_with_reply(row["messages"]) else "prompt"
    if has & {"prompt", "instruction"}:
        return "prompt"
    names = ", ".join(str(name)[:40] for name in list(has)[:8])
    raise BadRow(f"no known columns among: {names}")


def _ends_with_reply(messages: Any) -> bool:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, Mapping) and last.get("role") == "assistant"


# -- checking


ADAPTERS: dict[str, TypeAdapter[Importable]] = {kind: TypeAdapter(record) for kind, record in KINDS.items()}


def _checked(kind: str, values: Values) -> Importable:
    """The record of these values, each of its type and within its bounds; BadRow says which one is not.

    They go through JSON: there pydantic is strict about values and still makes a dataclass of a dict.
    """
    try:
        text = json.dumps(values, default=str, allow_nan=False)
    except ValueError:
        raise BadRow("a number is not finite") from None
    try:
        record = ADAPTERS[kind].validate_json(text, strict=True)
    except ValidationError as error:
        raise BadRow(why_bad(error)) from None
    _check_chat(record.messages)
    replies = [value for name in ("left", "right", "reply") if (value := getattr(record, name, None)) is not None]
    if not all(reply.strip() for reply in replies):
        raise BadRow("a reply is empty")
    if len(replies) == 2 and replies[0] == replies[1]:
        raise BadRow("both replies are the same")
    return record


def _check_chat(messages: list[Turn]) -> None:
    """BadRow unless a chat has texts, and user and assistant take turns up to a message of the user."""
    if not all(turn["content"].strip() for turn in messages):
        raise BadRow("a message is empty")
    roles = [turn["role"] for turn in messages]
    said = roles[1:] if roles[0] == "system" else roles
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(said))]
    if said != expected or len(said) % 2 == 0:
        raise BadRow("user and assistant do not take turns up to a message of the user")


# -- pairs


def _pair(row: Row) -> Values:
    if {"left", "right"} <= row.keys():
        return _own(row, JudgedPair)
    if _two_responses(row):
        return _two_judged_responses(row)
    if not {"chosen", "rejected"} <= row.keys():
        raise BadRow(NO_PAIR)
    messages, chosen = _dialogue(row.get("prompt"), row["chosen"])
    other, rejected = _dialogue(row.get("prompt"), row["rejected"])
    if messages != other:
        raise BadRow("the two dialogues part before their last reply")
    versions = {"left_version": row.get("chosen_version"), "right_version": row.get("rejected_version")}
    marks = {name: row[name] for name in ("tags", "early", "person") if row.get(name) is not None}
    return {"messages": messages, "left": chosen, "right": rejected, "choice": _verdict(row), **versions, **marks}


def _verdict(row: Row) -> str:
    """The choice of a row whose better reply is on the left: its own where neither is better."""
    if row.get("choice") in ("tie", "both_bad"):
        return row["choice"]
    scores = row.get("score_chosen"), row.get("score_rejected")  # of UltraFeedback
    if None not in scores and scores[0] == scores[1]:
        return "tie"
    return "a"


RESPONSES = (("response1", "response2"), ("reply_1", "reply_2"))


def _two_responses(row: Row) -> tuple[str, str] | None:
    """The columns of PandaLM's two responses."""
    return next((names for names in RESPONSES if set(names) <= row.keys() and "instruction" in row), None)


def _two_judged_responses(row: Row) -> Values:
    """PandaLM: an instruction, two responses, and what several people said: 1, 2, or 0 for a tie. Where some said
    nothing, pandas writes floats, and NaN or nothing for them.
    """
    left, right = (row[name] for name in _two_responses(row) or ())
    votes = row.get("votes") or [value for name, value in row.items() if re.fullmatch(r"annotator\d+", name)]
    choices = {0: "tie", 1: "a", 2: "b"}
    given = [vote for vote in votes if vote not in (None, "") and vote == vote] if isinstance(votes, list) else []
    numbers = [_id(vote) for vote in given]
    if not numbers or not all(number in choices for number in numbers):
        raise BadRow("the votes are not 0, 1 or 2")
    vote, count = Counter(numbers).most_common(1)[0]
    if vote is None or 2 * count <= len(numbers):
        raise BadRow("its annotators have no majority")
    return {"messages": _instruction(row), "left": left, "right": right, "choice": choices[vote]}


def _instruction(row: Row) -> list[Values]:
    """An instruction with its input as one message. Where there is no input, some files have NaN."""
    parts = [part for part in (row["instruction"], row.get("input")) if isinstance(part, str) and part.strip()]
    return [{"role": "user", "content": "\n\n".join(parts)}]


# -- demonstrations and prompts


def _demonstration(row: Row) -> Values:
    if {"messages", "reply"} <= row.keys():
        return _own(row, Demonstration)
    if {"instruction", "output"} <= row.keys():
        return {"messages": _instruction(row), "reply": row["output"]}
    if "completion" in row:
        messages, reply = _dialogue(row.get("prompt"), row["completion"])
    elif "messages" in row:
        messages, reply = _dialogue(None, row["messages"])
    else:
        raise BadRow("no demonstration: it needs the columns prompt and completion, or messages")
    marks = {name: row[name] for name in ("version", "person") if row.get(name) is not None}
    return {"messages": messages, "reply": reply, **marks}


def _prompt(row: Row) -> Values:
    if "prompt" in row:
        return {"messages": _messages(row["prompt"])}
    if "messages" in row:
        messages = _messages(row["messages"])
        return {"messages": messages[:-1] if _ends_with_reply(messages) else messages}
    if "instruction" in row:
        return {"messages": _instruction(row)}
    raise BadRow("no prompt: it needs one of the columns prompt, messages and instruction")


# -- the forms that texts have


def _own(row: Row, kind: type[JudgedPair] | type[Demonstration]) -> Values:
    """The columns of a record of Nudge. NaN is what other programs write where one is empty."""
    values = {name: row[name] for name in kind.__dataclass_fields__ if name in row and name != "imported"}
    values = {name: value for name, value in values.items() if not (isinstance(value, float) and math.isnan(value))}
    return values | ({"sampling": _object(values["sampling"])} if "sampling" in values else {})


def _dialogue(prompt: Any, value: Any) -> tuple[list[Any], Any]:
    """(messages, reply) of a completion, or of a whole dialogue that ends with one."""
    if isinstance(value, str) and prompt is not None:
        return _messages(prompt), value.removeprefix(" ")
    turns = _messages(value, "a dialogue")
    if not _ends_with_reply(turns):
        raise BadRow("the dialogue does not end with a reply")
    reply = turns[-1].get("content")
    if len(turns) > 1:
        return turns[:-1], reply
    if prompt is None:
        raise BadRow("there is no prompt")
    return _messages(prompt), reply


def _messages(value: Any, what: str = "a prompt") -> list[Any]:
    """Messages of a list, of a text in the form of HH-RLHF, or of a text that is a first message."""
    if isinstance(value, list):
        return [dict(turn) if isinstance(turn, Mapping) else turn for turn in value]
    if not isinstance(value, str):
        raise BadRow(f"{what} is neither a text nor a list of messages")
    if not SPEAKER.match(value):
        if what == "a dialogue":
            raise BadRow("there is no prompt: it needs the column prompt, or dialogues of Human and Assistant")
        return [{"role": "user", "content": value}]
    _, *parts = SPEAKER.split(value)
    turns = [
        {"role": ROLES[speaker], "content": text.removeprefix(" ")}
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    if what == "a prompt" and turns[-1] == {"role": "assistant", "content": ""}:  # where the reply begins
        turns.pop()
    return turns
