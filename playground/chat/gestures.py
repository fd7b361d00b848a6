"""What a page may send with a gesture, checked by type where it enters `session.Chat`.

Nothing is converted: true is not a number, 2.5 is not a whole number, "3" is not an id. The sampling settings in an
older database row are read through the same models.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from playground.chat.refusals import Refused
from playground.settings import Settings

Id = Annotated[int, Field(ge=1, le=2**63 - 1)]  # of a row
Limits = Mapping[str, tuple[float, float]]  # {sampling setting: (least, most)}

# the sampling settings that a chat may set for itself, and their limits
KNOBS = {
    "temperature": (0.05, 2.0),
    "top_p": (0.05, 1.0),
    "top_k": (0, 1000),
    "repetition_penalty": (1.0, 2.0),
}
SHOWN_CHARS = 60  # of a value that is refused


class NotUsable(Refused):
    """A value that a page sent cannot be used; the message names it."""


class Gesture(BaseModel):
    """The base of the models below: strict types, finite numbers, and no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


Kind = TypeVar("Kind", bound=Gesture)


class ChatSampling(Gesture):
    """The sampling settings that a chat may have of its own. The defaults only make each field optional; nothing reads
    them.
    """

    temperature: float = Field(1.0, ge=KNOBS["temperature"][0], le=KNOBS["temperature"][1])
    top_p: float = Field(1.0, ge=KNOBS["top_p"][0], le=KNOBS["top_p"][1])
    top_k: int = Field(0, ge=KNOBS["top_k"][0], le=KNOBS["top_k"][1])
    repetition_penalty: float = Field(1.0, ge=KNOBS["repetition_penalty"][0], le=KNOBS["repetition_penalty"][1])
    reply_tokens: int = Field(1, ge=1)


class Text(Gesture):
    """A message, or a reply as its reader would have written it."""

    text: str | None


class SystemPrompt(Gesture):
    """How the model should behave in a chat."""

    system_prompt: str | None


class Ballot(Gesture):
    """A vote on a pair: the choice, since when the pair could be voted on, and for how long it was shown, in ms."""

    choice: Literal["a", "b", "tie", "both_bad", "skip"]
    shown_at: str | None = Field(None, max_length=40)
    dwell_ms: float | None = Field(None, ge=0)


class Reason(Gesture):
    """Why somebody voted so."""

    vote: Id
    tags: list[str] | None = None
    comment: str | None = None


class Rating(Gesture):
    """A thumb on a reply, or its withdrawal."""

    message: Id
    thumb: int | None

    @field_validator("thumb")
    @classmethod
    def _up_or_down(cls, thumb: int | None) -> int | None:
        if thumb not in (1, -1, None):  # a Literal takes True for 1
            raise ValueError("a thumb is 1 or -1")
        return thumb


class Row(Gesture):
    """The id of a pair, a conversation or a reply."""

    id: Id


def checked(kind: type[Kind], **values: object) -> Kind:
    """The `kind` of Gesture with these values. NotUsable names the first one that does not fit."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0]) if problem["loc"] else kind.__name__
        raise NotUsable(
            "The page sent something that cannot be used: {name} is {what}. Reload the page and try again.",
            name=name,
            what=brief(values.get(name)),
        ) from None


# -- a chat's own sampling settings


def sampling_limits(settings: Settings) -> Limits:
    """{name: (least, most)} of what a chat may set for itself. A chat may not ask for longer replies than the app."""
    return {**KNOBS, "reply_tokens": (1, settings.chat.reply_tokens)}


def check_sampling(values: Mapping[str, object], limits: Limits) -> None:
    """NotUsable names the first of the sampling settings that a chat does not have or cannot set to this value."""
    for name, value in values.items():
        if name not in limits:
            raise NotUsable("A chat has no setting {setting}.", setting=brief(name))
        if fits(name, value, limits):
            continue
        low, high = limits[name]
        details = {"setting": name, "low": f"{low:g}", "high": f"{high:g}", "what": brief(value)}
        if ChatSampling.model_fields[name].annotation is int:
            raise NotUsable("{setting} takes whole numbers from {low} to {high}; got {what}.", **details)
        raise NotUsable("{setting} takes numbers from {low} to {high}; got {what}.", **details)


def usable_sampling(values: object, limits: Limits) -> dict[str, float]:
    """The usable ones of the sampling settings in a chat's row, which may hold anything: {name: value}."""
    if not isinstance(values, dict):
        return {}
    return {name: value for name, value in values.items() if isinstance(name, str) and fits(name, value, limits)}


def fits(name: str, value: object, limits: Limits) -> bool:
    """Whether a chat may set this sampling setting to this value."""
    try:
        sampling = ChatSampling.model_validate({name: value})
    except ValidationError:
        return False
    low, high = limits[name]
    return low <= getattr(sampling, name) <= high


def brief(value: object) -> str:
    """A refused value as the person reads it: short, whatever it is."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"
