"""Why a row of a file cannot be used, in a plain sentence that quotes nothing of its texts."""

from typing import Any

from pydantic import ValidationError

WRONG_TYPES = {  # by pydantic's name of an error
    "missing": "is missing",
    "string_type": "is not a text",
    "list_type": "is not a list",
    "dict_type": "is not an object",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "int_parsing_size": "is too large a number",
    "float_type": "is not a number",
    "bool_type": "is neither true nor false",
    "finite_number": "is not a finite number",
}
UNKNOWN = "has a value that cannot be used"


def why_bad(error: ValidationError) -> str:
    """The first reason of several."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        if "recursion" in str(first.get("ctx", {}).get("error", "")):
            return "a value has too many others within each other"
        return "a text holds half a character (a lone surrogate)"
    place, context = _place(first["loc"]), first.get("ctx", {})
    match first["type"]:
        case "string_too_long":
            return f"{place} has more than {context['max_length']:,} characters"
        case "too_long":
            return f"{place} has more than {context['max_length']:,} entries"
        case "too_short":
            return f"{place} is empty"
        case "literal_error":
            return f"{place} is none of {context['expected']}"
        case "dict_type" if first["loc"][0] == "messages":
            return f"{place} is not an object with a role and a content"
        case "greater_than_equal":
            return f"{place} is below {context['ge']}"
        case "greater_than":
            return f"{place} is not above {context['gt']:g}"
        case "less_than_equal":
            return f"{place} is above {context['le']}"
        case known:
            return f"{place} {WRONG_TYPES.get(known, UNKNOWN)}"


def _place(steps: tuple[Any, ...]) -> str:
    """Where a value stands: `("messages", 2, "content")` is the content of message 3."""
    match steps:
        case ("messages", int(index)):
            return f"message {index + 1}"
        case ("messages", int(index), str(name), *_):
            return f"the {name} of message {index + 1}"
        case (str(name), int(index), *_):
            return f"entry {index + 1} of {name}"
        case (str(name), *_):
            return name
        case _:
            return "the row"
