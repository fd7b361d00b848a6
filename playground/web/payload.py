"""What a page may send with a gesture: the shape of the body and the type of each value, checked before Gradio sees it.

Gradio trusts its own page: it takes a file object wherever a component has a value, a handler's number from anybody,
and any type in any place. Here a body is parsed strictly, and Gradio gets a new body made of what was parsed. Whether a
value makes sense (a message too long, a temperature out of range) is checked by the handler, which explains it.
"""

from dataclasses import dataclass
from types import GenericAlias
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

Integer = Annotated[int, Field(strict=True, ge=-(2**53), le=2**53)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)] | Integer
Text = Annotated[str, Field(strict=True)]
Boolean = Annotated[bool, Field(strict=True)]
Texts = Annotated[list[Annotated[str, Field(strict=True, max_length=200)]], Field(max_length=50)]

# the type of the value that the browser sends for an input of a handler, by the component's class
VALUES: dict[str, Any] = {
    "State": None,  # its value is the server's; the browser sends null
    "Textbox": Text | None,
    "Button": Text | None,  # what it says
    "Checkbox": Boolean | None,
    "Slider": Number,
    "Number": Number | None,
    "Radio": Integer | Text | None,
    "Dropdown": Integer | Text | None,
    "CheckboxGroup": Texts,
}
FILE_KEYS = {"path", "url", "meta", "_type", "orig_name", "mime_type", "is_stream"}  # of Gradio's file objects
EVENT_KEYS = {"index", "value", "previous_value", "liked", "selected"}  # what handlers read of an event


class BadPayload(Exception):
    """A body that no gesture of the page would send; the message says what is wrong with it."""


class Call(BaseModel):
    """The body of a gesture, as the page sends it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    data: Annotated[list[Any], Field(max_length=200)]
    fn_index: Annotated[int, Field(ge=0, le=10_000)]
    session_hash: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    trigger_id: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    event_data: Any = None


@dataclass(frozen=True)
class Handler:
    """A Gradio handler that a page may call: by which route, from which components, and with which values."""

    queued: bool  # whether it streams and is called by `queue/join`; otherwise it is called by `run/predict`
    triggers: frozenset[int]  # ids of the components whose events call it
    values: TypeAdapter[tuple[Any, ...]]  # of `data`, as a tuple
    event: frozenset[str]  # keys of its event data that it reads; all must be there

    @classmethod
    def of(cls, queued: bool, triggers: list[int], inputs: list[str], event: frozenset[str] = frozenset()) -> "Handler":
        """A handler whose inputs are components of these classes; KeyError for a class that no gesture sends."""
        types = tuple(VALUES[name] for name in inputs)
        tuple_type: Any = GenericAlias(tuple, types)  # known only at run time
        return cls(queued, frozenset(triggers), TypeAdapter(tuple_type), event)


def read(body: bytes, handlers: dict[int, Handler], queued: bool) -> Call:
    """The Call in `body`, which was sent to `queue/join` where `queued`, else to `run/predict`.

    BadPayload unless it is one that the page could send.
    """
    try:
        call = Call.model_validate_json(body)
    except ValidationError as error:
        raise BadPayload(explain(error)) from None
    handler = handlers.get(call.fn_index)
    if handler is None or handler.queued != queued:
        raise BadPayload(f"fn_index: this page has no such gesture: {call.fn_index}")
    # a gesture that follows another names the component that began it, so any component with a gesture will do
    if call.trigger_id is not None and not any(call.trigger_id in other.triggers for other in handlers.values()):
        raise BadPayload(f"trigger_id: this page has no such component: {call.trigger_id}")
    try:
        handler.values.validate_python(tuple(call.data))
    except ValidationError as error:
        raise BadPayload(f"data: {explain(error)}") from None
    checked = event(call.event_data)
    given = checked or {}
    if not handler.event <= given.keys():
        raise BadPayload("event_data: something is missing")
    if "index" in handler.event and not is_index(given["index"]):
        raise BadPayload("event_data: index is no place in a chat or list")
    return call.model_copy(update={"event_data": checked})


def event(data: Any) -> dict[str, Any] | None:
    """The part of an event's data that handlers read. BadPayload where a file object is anywhere in it."""
    if data is None:
        return None
    refuse_files(data)
    if not isinstance(data, dict):
        raise BadPayload("event_data: neither an object nor null")
    return {key: plain(value) for key, value in data.items() if key in EVENT_KEYS}


def plain(value: Any) -> Any:
    """A text, an integer, a boolean or a list of at most two integers; None instead of anything else."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, list) and len(value) <= 2 and all(type(item) is int for item in value):
        return value
    return None


def is_index(index: Any) -> bool:
    """Whether an event's index is a row, or a row and a column."""
    if isinstance(index, list):
        return len(index) > 0
    return type(index) is int


def refuse_files(value: Any) -> None:
    """BadPayload where `value` holds an object with a key of Gradio's file objects, at any depth."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if FILE_KEYS & item.keys():
                raise BadPayload("a file object: this page takes no files")
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def explain(error: ValidationError) -> str:
    """The first problem of a body, without quoting the body."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"][:2] if isinstance(part, int) or part in Call.model_fields)
    return f"{place}: {first['msg']}" if place else first["msg"]
