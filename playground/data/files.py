"""Rows of data files, read one by one: JSONL, JSON arrays, CSV, Parquet, and prompts as lines of text. What a row
means is left to others, and how files are written to `writers.py`.

A file that is read may be anybody's: each row has a bound, and one that cannot be read does not end the reading.
"""

import csv
import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self, TextIO

from playground.data.arrow_sizes import BYTES_OF_VALUE, UnknownKind, leaves, unpacked_bytes

Row = Mapping[str, Any]

MOST_BYTES = 4 << 20  # of a row
MOST_JSON = 64 << 20  # bytes of a file that is one JSON array, which is read as a whole
BATCH = 500  # most rows of Parquet at once
MOST_GROUP = 1 << 30  # bytes of a group of rows of Parquet, unpacked, as the file says
MOST_COLUMNS = 2000  # of CSV, whose short rows are filled up to all of them


class CannotRead(Exception):
    """A whole file cannot be read or written; the message says what to do."""


class BadRow(Exception):
    """A row cannot be used. The message says why, and quotes nothing of its texts."""


Numbered = Iterator[tuple[int, Row | BadRow]]  # from 1


def read(path: Path) -> Numbered:
    """The rows of a file with their numbers, or why one cannot be read. The name's ending says what the file is.

    CannotRead where there is no such file, or its kind is not known.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet, ".txt": _lines}
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
        while line := file.readline(MOST_BYTES + 1):
            number += 1
            if len(line) > MOST_BYTES:
                _skip_line(file, line)
                yield number, None
            else:
                yield number, line


def _skip_line(file: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(MOST_BYTES)


def too_long() -> BadRow:
    return BadRow(f"the row has more than {MOST_BYTES >> 20} MB")


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
    may_be_long = path.stat().st_size > MOST_BYTES
    for number, row in enumerate(rows, 1):
        yield number, too_long() if may_be_long and _bytes_of(row) > MOST_BYTES else _object(row)


def _bytes_of(row: Any) -> int:
    return len(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"))


OTHER_MARKS = {";": "semicolons", "\t": "tabs"}  # between columns, as some programs write them


def _csv(path: Path) -> Numbered:
    """The rows below a line of names. A cell that is a JSON list of messages is read as one."""
    csv.field_size_limit(MOST_BYTES)
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
        if self._bytes > MOST_BYTES:
            while line and (self._quotes % 2 or not line.endswith(("\n", "\r"))):
                line = self._read()
            raise _RowTooLong
        return line

    def _read(self) -> str:
        line = self._file.readline(MOST_BYTES + 1)
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


def _parquet(path: Path) -> Numbered:
    pyarrow()
    module = importlib.import_module("pyarrow.parquet")
    try:
        metadata = module.read_metadata(path)
        file = module.ParquetFile(path, metadata=metadata, read_dictionary=_columns_of_text(metadata))
    except Exception as error:  # pyarrow's own kinds
        raise CannotRead(f"{path}: this is not a Parquet file.") from error
    with file:
        before = 0  # rows in the groups before this one
        for group in range(file.metadata.num_row_groups):
            number = before
            for number, row in enumerate(_parquet_group(file, group), before + 1):
                yield number, row
            before = max(number, before + file.metadata.row_group(group).num_rows)


def _columns_of_text(metadata: Any) -> list[str]:
    """The columns whose texts are read as a dictionary: one that many rows share takes its memory once, as in the
    file. Otherwise a file of 500 bytes unpacks to gigabytes. pyarrow does so with no column of a DELTA encoding.
    """
    columns = [metadata.schema.column(i) for i in range(len(metadata.schema))]
    texts = ("STRING", "JSON", "ENUM", "NONE")
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    encodings = [{name for group in groups for name in group.column(i).encodings} for i in range(len(columns))]
    return [
        column.path
        for column, names in zip(columns, encodings, strict=True)
        if column.physical_type == "BYTE_ARRAY" and column.logical_type.type in texts
        if not any("DELTA" in name for name in names)
    ]


def _parquet_group(file: Any, group: int) -> Iterator[Row | BadRow]:
    """The rows of a group. Where it is damaged or too large, one BadRow stands for the rest of it."""
    expanding = _expanding_columns(file)
    if problem := _too_large(file, group, expanding):
        yield problem
        return
    facts = file.metadata.row_group(group)
    mean = max(facts.total_byte_size, _fixed_bytes(file, group)) // max(1, facts.num_rows)
    at_once = 1 if expanding else max(1, min(BATCH, 8 * MOST_BYTES // max(1, mean)))
    batches = file.iter_batches(batch_size=at_once, row_groups=[group])
    while True:
        try:
            batch = next(batches, None)
        except Exception:  # pyarrow's own kinds, OSError and ValueError among them
            yield BadRow("the file is damaged here: the rest of this group of rows cannot be read")
            return
        if batch is None:
            return
        yield from _parquet_batch(batch)


def _expanding_columns(file: Any) -> list[int]:
    """The columns of texts that are not read as a dictionary, whatever was asked: of a DELTA encoding, or of a kind of
    Arrow's own, such as its JSON. There a few bytes of the file may be a long text.
    """
    types, schema = pyarrow().types, file.metadata.schema
    kinds = [kind for field in file.schema_arrow for kind in leaves(field.type)]
    return [
        i
        for i in range(len(schema))
        if schema.column(i).physical_type == "BYTE_ARRAY"
        if len(kinds) != len(schema) or not types.is_dictionary(kinds[i])
    ]


def _too_large(file: Any, group: int, expanding: list[int]) -> BadRow | None:
    facts = file.metadata.row_group(group)
    if max(facts.total_byte_size, _fixed_bytes(file, group)) > MOST_GROUP:
        return BadRow(f"its group of rows has more than {MOST_GROUP >> 20} MB; write smaller groups")
    for i in expanding:  # one that is in no list is bounded by reading it row by row
        column = facts.column(i)
        in_lists = file.metadata.schema.column(i).max_repetition_level > 0
        if in_lists and column.num_values * column.total_uncompressed_size > MOST_GROUP:
            return BadRow(
                f"its group of rows may unpack to more than {MOST_GROUP >> 20} MB, since texts in lists are encoded as "
                "DELTA or of an Arrow kind of their own; write them as plain texts in a dictionary"
            )
    return None


def _fixed_bytes(file: Any, group: int) -> int:
    """What the values of a group take at least; those of a fixed length take it each, also where they are null or the
    file has one for all.
    """
    facts, schema = file.metadata.row_group(group), file.metadata.schema
    widths = [max(BYTES_OF_VALUE, schema.column(i).length) for i in range(len(schema))]
    return sum(width * facts.column(i).num_values for i, width in enumerate(widths))


def _parquet_batch(batch: Any) -> Iterator[Row | BadRow]:
    try:
        may_be_long = sum(map(unpacked_bytes, batch.columns)) > MOST_BYTES
    except UnknownKind as error:
        reason = f"the row has a column of the Arrow kind {error}, which is not read here"
        yield from (BadRow(reason) for _ in range(batch.num_rows))
        return
    for place in range(batch.num_rows):
        one = batch.slice(place, 1)
        if may_be_long and sum(map(unpacked_bytes, one.columns)) > MOST_BYTES:
            yield too_long()
            continue
        try:
            (row,) = one.to_pylist()
        except Exception:  # a text that is not UTF-8, a time that Python does not have
            row = BadRow("the row has a value that cannot be read")
        yield row


def pyarrow() -> Any:
    """The module pyarrow; CannotRead where it is not installed."""
    try:
        return importlib.import_module("pyarrow")
    except ModuleNotFoundError:
        raise CannotRead(
            "Parquet needs pyarrow, which is not installed. Install it with `pip install pyarrow`, or use JSONL."
        ) from None
