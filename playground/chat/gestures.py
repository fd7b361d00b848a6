"""What a page may send with a gesture, checked by type where it enters `session.Chat`.

Nothing is converted: true is no number, 2.5 no whole number, "3" no id. What an older database row holds is read
through the same models.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from playground.system.messages import UserFacingError

Id = Annotated[int, Field(ge=1, le=2**63 - 1)]  # of a row

KNOBS = {
    "temperature": (0.05, 2.0),
    "top_p": (0.05, 1.0),
    "top_k": (0, 1000),
    "repetition_penalty": (1.0, 2.0),
}  # what a chat may set for itself
SHOWN_CHARS = 60  # of a value that is refused


class NotUsable(UserFacingError):
    """A value that a page sent cannot be used; the message names it."""


class Gesture(BaseModel):
    """The base of what follows: strict types, finite numbers, and nothing that is not asked for."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class ChatSampling(Gesture):
    """The sampling settings that a chat may have of its own; those that are not set are None."""

    temperature: float = Field(None, ge=KNOBS["temperature"][0], le=KNOBS["temperature"][1])
    top_p: float = Field(None, ge=KNOBS["top_p"][0], le=KNOBS["top_p"][1])
    top_k: int = Field(None, ge=KNOBS["top_k"][0], le=KNOBS["top_k"][1])
    repetition_penalty: float = Field(None, ge=KNOBS["repetition_penalty"][0], le=KNOBS["repetition_penalty"][1])
    reply_tokens: int = Field(None, ge=1)


class Text(Gesture):
    """A message, or a reply as its reader would rather have it."""

    text: str | None


class SystemPrompt(Gesture):
    """How the model should behave in a chat."""

    system_prompt: str | None


class Ballot(Gesture):
    """A vote on a pair: when it could be voted on, and for how long it was looked at, in ms."""

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
    def _up_or_down(cls, thumb):
        if thumb not in (1, -1, None):  # a Literal takes True for 1
            raise ValueError("a thumb is 1 or -1")
        return thumb


class Row(Gesture):
    """The id of a pair, a conversation or a reply."""

    id: Id


def checked(kind, **values):
    """The `kind` of Gesture with these values; NotUsable names the first that does not fit."""
    try:
        return kind(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0]) if problem["loc"] else kind.__name__
        raise NotUsable(
            "The page sent something that cannot be used: {name} is {what}. Reload the page and try again.",
            name=name,
            what=brief(values.get(name)),
        ) from None


def usable_sampling(values, limits):
    """Of what a chat's row holds as sampling settings (anything), those that can be used: {name: value}. `limits` is
    {name: (least, most)}.
    """
    if not isinstance(values, dict):
        return {}
    return {name: value for name, value in values.items() if isinstance(name, str) and fits(name, value, limits)}


def fits(name, value, limits):
    """Whether a chat may set this sampling setting to this value."""
    try:
        ChatSampling(**{name: value})
    except ValidationError:
        return False
    low, high = limits[name]
    return low <= value <= high


def brief(value):
    """A refused value as it is told: short, whatever it is."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"
