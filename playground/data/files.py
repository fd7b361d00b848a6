"""Rows of data files, read one by one: JSONL, JSON arrays, CSV, Parquet, and prompts as lines of text. What a row
means is left to others, and how files are written to `writers.py`.

A file that is read may be anybody's: each row has a bound, and one that cannot be read does not end the reading.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self, TextIO

from playground.data import parquet, raw_rows
from playground.data.raw_rows import BadRow, CannotRead, Numbered, Row, too_long

MOST_JSON = 64 << 20  # bytes of a file that is one JSON array, which is read as a whole
MOST_COLUMNS = 2000  # of CSV, whose short rows are filled up to all of them


def read(path: Path) -> Numbered:
    """The rows of a file with their numbers, or why one cannot be read. The name's ending says what the file is.

    CannotRead where there is no such file, or its kind is not known.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": parquet.read, ".txt": _lines}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise CannotRead(f"{path}: the name ends in none of {', '.join(readers)}.")
    if not path.is_file():
        raise CannotRead(f"{path}: there is no such file.")
    return reader(path)


def _jsonl(path: Path) -> Numbered:
    for number, line in _bounded_lines(path):
        if line is None:
            yield number, too_long()
        elif line.strip():
            yield number, _parsed(line)


def _bounded_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a file with their numbers from 1 on; None for one that is too long."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(raw_rows.MOST_BYTES + 1):
            number += 1
            if len(line) > raw_rows.MOST_BYTES:
                _skip_line(file, line)
                yield number, None
            else:
                yield number, line


def _skip_line(file: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(raw_rows.MOST_BYTES)


def _lines(path: Path) -> Numbered:
    """A prompt a line; empty lines and those that begin with # are none."""
    for number, line in _bounded_lines(path):
        if line is None:
            yield number, too_long()
            continue
        try:
            text = line.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            yield number, BadRow("the row is not UTF-8")
            continue
        if text and not text.startswith("#"):
            yield number, {"prompt": text}


def _parsed(line: bytes) -> Row | BadRow:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return BadRow("the row is not UTF-8")
    except (ValueError, RecursionError):
        return BadRow("the row is not JSON")
    return _object(row)


def _object(row: Any) -> Row | BadRow:
    return row if isinstance(row, dict) else BadRow("the row is not a JSON object")


def _json(path: Path) -> Numbered:
    """The objects of one array; a file of JSON lines is read as such."""
    with path.open("rb") as file:
        is_array = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if not is_array:
        yield from _jsonl(path)
        return
    if path.stat().st_size > MOST_JSON:
        raise CannotRead(f"{path}: a JSON array may have {MOST_JSON >> 20} MB; write one object a line, as .jsonl.")
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        raise CannotRead(f"{path}: this is not a JSON array in UTF-8.") from None
    may_be_long = path.stat().st_size > raw_rows.MOST_BYTES
    for number, row in enumerate(rows, 1):
        yield number, too_long() if may_be_long and _bytes_of(row) > raw_rows.MOST_BYTES else _object(row)


def _bytes_of(row: Any) -> int:
    return len(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"))


OTHER_MARKS = {";": "semicolons", "\t": "tabs"}  # between columns, as some programs write them


def _csv(path: Path) -> Numbered:
    """The rows below a line of names. A cell that is a JSON list of messages is read as one."""
    csv.field_size_limit(raw_rows.MOST_BYTES)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _LinesOfRows(file)
        rows = csv.DictReader(lines)
        try:
            names = rows.fieldnames or []
        except (csv.Error, _RowTooLong):
            raise CannotRead(f"{path}: the first line has no names of columns.") from None
        if len(names) > MOST_COLUMNS:
            raise CannotRead(f"{path}: the first line has more than {MOST_COLUMNS:,} names of columns.")
        for mark, called in OTHER_MARKS.items():
            if len(names) == 1 and mark in names[0]:
                raise CannotRead(f"{path}: between the columns are {called}. Save the file with commas there.")
        number = 0
        while True:
            number += 1
            lines.begin_row()
            try:
                row = next(rows)
            except StopIteration:
                return
            except _RowTooLong:
                yield number, too_long()
                continue
            except csv.Error as error:
                yield number, BadRow(f"the row is not CSV: {error}")
                continue
            yield number, _cells(row)


class _RowTooLong(Exception):
    """A row of CSV has more than MOST_BYTES."""


class _LinesOfRows:
    """The lines of a CSV file. A row may have several; one that is too long is passed over to its end."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.begin_row()

    def begin_row(self) -> None:
        """The next line is the first of a row."""
        self._bytes = 0
        self._quotes = 0  # while their number is odd, the row goes on in the next line

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._read()
        if not line:
            raise StopIteration
        self._bytes += len(line.encode("utf-8", "surrogateescape"))
        if self._bytes > raw_rows.MOST_BYTES:
            while line and (self._quotes % 2 or not line.endswith(("\n", "\r"))):
                line = self._read()
            raise _RowTooLong
        return line

    def _read(self) -> str:
        line = self._file.readline(raw_rows.MOST_BYTES + 1)
        self._quotes += line.count('"')
        return line


def _cells(row: Mapping[str | None, Any]) -> Row | BadRow:
    if None in row or None in row.values():
        return BadRow("the row has not as many cells as there are names in the first line")
    if any(char for cell in row.values() for char in cell if "\udc80" <= char <= "\udcff"):
        return BadRow("the row is not UTF-8")
    return {str(name): _cell(cell) for name, cell in row.items()}


def _cell(cell: str) -> Any:
    if cell.startswith("[{"):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell
