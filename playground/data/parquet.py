"""Rows of Parquet, read group by group. A file may be anybody's, and a few hundred bytes of it may be gigabytes once
they are unpacked: what a group and a row take is counted before they are.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playground.data import raw_rows
from playground.data.arrow_sizes import BYTES_OF_VALUE, UnknownKind, leaves, unpacked_bytes
from playground.data.raw_rows import BadRow, CannotRead, Numbered, Row, too_long

BATCH = 500  # most rows at once
MOST_GROUP = 1 << 30  # bytes of a group of rows, unpacked, as the file says


def read(path: Path) -> Numbered:
    """The rows of a file with their numbers, or why one cannot be read. CannotRead where it is no Parquet."""
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
            for number, row in enumerate(_group(file, group), before + 1):
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


def _group(file: Any, group: int) -> Iterator[Row | BadRow]:
    """The rows of a group. Where it is damaged or too large, one BadRow stands for the rest of it."""
    expanding = _expanding_columns(file)
    if problem := _too_large(file, group, expanding):
        yield problem
        return
    facts = file.metadata.row_group(group)
    mean = max(facts.total_byte_size, _fixed_bytes(file, group)) // max(1, facts.num_rows)
    at_once = 1 if expanding else max(1, min(BATCH, 8 * raw_rows.MOST_BYTES // max(1, mean)))
    batches = file.iter_batches(batch_size=at_once, row_groups=[group])
    while True:
        try:
            batch = next(batches, None)
        except Exception:  # pyarrow's own kinds, OSError and ValueError among them
            yield BadRow("the file is damaged here: the rest of this group of rows cannot be read")
            return
        if batch is None:
            return
        yield from _batch(batch)


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


def _batch(batch: Any) -> Iterator[Row | BadRow]:
    try:
        may_be_long = sum(map(unpacked_bytes, batch.columns)) > raw_rows.MOST_BYTES
    except UnknownKind as error:
        reason = f"the row has a column of the Arrow kind {error}, which is not read here"
        yield from (BadRow(reason) for _ in range(batch.num_rows))
        return
    for place in range(batch.num_rows):
        one = batch.slice(place, 1)
        if may_be_long and sum(map(unpacked_bytes, one.columns)) > raw_rows.MOST_BYTES:
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
