"""What is said of a value that a setting does not take: the setting, the value, and what is accepted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Annotated, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from playground.settings.names import fields, flag, variable
from playground.system.messages import Message, UserFacingError, lines, plain


@dataclass(frozen=True)
class RefusedValue:
    """A value that a setting, by its dotted name, does not take."""

    name: str
    value: str
    accepted: Message


class SettingsError(UserFacingError):
    """A setting cannot be used; the message names it, the value given and what is accepted. A plain text is for the
    command line; what the page may show is a Message. `refused` has the values, where they are the reason.
    """

    def __init__(self, message: str | Message, refused: Sequence[RefusedValue] = ()) -> None:
        super().__init__(message if isinstance(message, Message) else plain(message))
        self.refused = refused


def settings_error(kind: type[BaseModel], error: ValidationError) -> SettingsError:
    """All that `error` says of settings of the class `kind`."""
    problems = error.errors()
    known = fields(kind)
    refused = [
        RefusedValue(_name(problem), repr(problem["input"]), accepted(known[_name(problem)]))
        for problem in problems
        if _name(problem) in known
    ]
    return SettingsError(lines(_explain(kind, problem) for problem in problems), refused)


def _name(problem: ErrorDetails) -> str:
    """The setting's dotted name."""
    return ".".join(str(part).replace("-", "_") for part in problem["loc"][:2])


def _explain(kind: type[BaseModel], problem: ErrorDetails) -> Message:
    """What is wrong with the value of one setting."""
    name = _name(problem)
    field = fields(kind).get(name)
    if problem["type"] == "extra_forbidden":
        return plain(f"{flag(name)} ({variable(name)}): there is no such setting")
    if field is None:
        return plain(f"{name}: {problem['msg']}")
    return Message(
        "--{setting} (NUDGE_{name}): got {what}; accepted: {accepted}. {reason}",
        setting=flag(name).removeprefix("--"),
        name=variable(name).removeprefix("NUDGE_"),
        what=repr(problem["input"]),
        accepted=accepted(field),
        reason=meaning(field),
    )


def own_help(kind: type[BaseModel], common: type[BaseModel], prog: str) -> str:
    """What `--help` says of a command whose settings `kind` has beside the `common` ones, which a hundred lines would
    hide it among.
    """
    own = {field.alias or name: field for name, field in kind.model_fields.items() if name not in common.model_fields}
    needed = " ".join(f"{flag(name)} {name.upper()}" for name, field in own.items() if field.is_required())
    parts = [f"usage: {prog} {needed}".rstrip() + " [options]", " ".join((kind.__doc__ or "").split())]
    for name, field in own.items():
        text = str(meaning(field))
        if field.annotation is not bool:
            text += f" It takes {accepted(field)}."
            text += "" if field.is_required() or field.default == "" else f" (default: {field.default})"
        parts.append(f"  {flag(name)}\n" + fill(text, 100, initial_indent="      ", subsequent_indent="      "))
    rest = (
        "Every setting of the app is an option too, such as --model and --data-dir: pass those that the app was "
        "started with. --help-all lists them."
    )
    return "\n\n".join([*parts, fill(rest, 100)])


def meaning(field: FieldInfo) -> Message:
    """A field's docstring in one line."""
    return plain(" ".join((field.description or "").split()))


def accepted(field: FieldInfo) -> Message:
    """What a field takes, in words: `an integer at least 1 and at most 65535`."""
    kind, limits = field.annotation, list(field.metadata)
    if get_origin(kind) is Annotated:
        kind, *extra = get_args(kind)
        limits += [limit for info in extra for limit in info.metadata]
    if get_origin(kind) is Literal:
        return plain(" or ".join(map(str, get_args(kind))))
    text = _kind(kind)
    bounds = [bound for bound in map(_bound, limits) if bound]
    if not bounds:
        return text
    if len(bounds) == 1:
        return Message("{kind} {bound}", kind=text, bound=bounds[0])
    return Message("{kind} {bound} and {other}", kind=text, bound=bounds[0], other=bounds[1])


def _kind(kind: object) -> Message:
    """What values of a type are called."""
    if kind is int:
        return Message("an integer")
    if kind is float:
        return Message("a number")
    if kind is bool:
        return Message("true or false")
    return Message("a path") if kind is Path else Message("text")


def _bound(limit: object) -> Message | None:
    """One bound of a field's metadata; None where it is no bound."""
    match limit:
        case Ge(least):
            return Message("at least {value}", value=str(least))
        case Gt(below):
            return Message("above {value}", value=str(below))
        case Le(most):
            return Message("at most {value}", value=str(most))
        case Lt(above):
            return Message("below {value}", value=str(above))
    pattern = getattr(limit, "pattern", None)
    return Message("matching {value}", value=str(pattern)) if pattern else None
