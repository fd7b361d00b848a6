"""A row of a data file, and what may be wrong with one: whatever the file's kind is (`files.py`, `parquet.py`)."""

from collections.abc import Iterator, Mapping
from typing import Any

Row = Mapping[str, Any]

MOST_BYTES = 4 << 20  # of a row


class CannotRead(Exception):
    """A whole file cannot be read or written; the message says what to do."""


class BadRow(Exception):
    """A row cannot be used. The message says why, and quotes nothing of its texts."""


Numbered = Iterator[tuple[int, Row | BadRow]]  # from 1


def too_long() -> BadRow:
    """What stands for a row of more than MOST_BYTES."""
    return BadRow(f"the row has more than {MOST_BYTES >> 20} MB")
