"""Which votes, thumbs and edits somebody wants to see or to export, as conditions in SQL."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

Conditions = Mapping[str, str]  # by a field of Filters: a condition with one place, or none where nothing can fit


@dataclass(frozen=True)
class Filters:
    """What a row must fit; None asks for nothing."""

    version: int | None = None  # that wrote one of the replies
    choice: str | None = None  # of the vote
    tag: str | None = None  # among the vote's reasons
    person: int | None = None  # who said it, by number
    since: str | None = None  # said at this time or later, in ISO 8601 and UTC
    until: str | None = None  # said before this time
    text: str | None = None  # in the message or in a reply, whatever the case of ASCII letters
    model: str | None = None  # the base model below the versions, by its name
    excluded: bool | None = None  # whether an admin left the vote out of training; those are in no export

    def as_sql(self, conditions: Conditions) -> tuple[str, list[Any]]:
        """What follows `where …`, "" where nothing is asked for, and the values for its places. A field without a
        condition fits no row.
        """
        sql = ""
        values = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            condition = conditions.get(field.name, "false")
            sql += f" and {condition}"
            places = condition.count("?")
            values += [like(value) if field.name == "text" else value] * places
        return sql, values


ALL = Filters()  # every row


def like(text: str) -> str:
    """The pattern of SQL's `like … escape '!'` for texts that hold this one."""
    for special in "!%_":
        text = text.replace(special, f"!{special}")
    return f"%{text}%"


def holds(*columns: str) -> str:
    """The condition that one of these columns has the text."""
    return "(" + " or ".join(f"{column} like ? escape '!'" for column in columns) + ")"
