"""What people judged here, as a folder of files for other programs, with a card that says what is in them.

Rows go from the database to the file one by one, so that memory does not grow with their number.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from heapq import merge
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from playground.data import formats, parquet, writers
from playground.data.card import Tally, card
from playground.data.progress import Progress
from playground.data.raw_rows import CannotRead
from playground.data.records import UNDECIDED, Demonstration, Imported, JudgedPair, Prompt, Record, Thumb
from playground.store import Filters, Row, Store
from playground.store.filters import ALL

Kind = TypeVar("Kind", bound=Record)
AsRows = Callable[[Record, formats.Shape], Iterator[formats.Row]]

FORMATS = ("preference", "kto", "sft", "prompts", "everything")
FILES = re.compile(r"(preference|undecided|kto|sft|prompts|pairs|thumbs|edits)\.(jsonl|parquet)")  # of any export


@dataclass(frozen=True)
class Export:
    """What is to be exported, and how."""

    format: str  # one of FORMATS
    file_type: str = "jsonl"  # one of `writers.WRITERS`
    plain: bool = False  # texts in the form of HH-RLHF, in place of messages
    implicit: bool = False  # a preference has no prompt of its own
    filters: Filters = ALL
    imported: bool = False  # the rows that were imported, in place of what people said here
    license: str | None = None  # of the dataset: the hub's name of one


@dataclass(frozen=True)
class Part:
    """One file of an export."""

    name: str  # without its ending
    records: Iterator[Record]
    as_rows: AsRows


def write(store: Store, export: Export, out: Path) -> Tally:
    """Write the files and their card into the folder `out`; returns what was counted. CannotRead where the folder holds
    anything. Each file appears once it is whole. Nobody but
    the owner of this process may read them: they hold what the database holds.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CannotRead(f"{out} is not an empty folder. Pass a new one with --out.")
    if export.file_type == "parquet":
        parquet.pyarrow()  # before anything is written
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    tally = Tally()
    names = []
    for part in parts(store, export):
        name = f"{part.name}.{export.file_type}"
        names.append(name)
        total = store.count_judged() if part.name in ("pairs", "preference") else None
        _write_part(part, export, out / name, tally, Progress(name, total))
    with writers.open_private(out / "README.md") as file:
        origins = store.origins() if export.imported else []
        file.write(card(tally, names, asked(export), export.license, origins))
    return tally


def _write_part(part: Part, export: Export, path: Path, tally: Tally, progress: Progress) -> None:
    shape = formats.plain if export.plain else formats.conversational
    with writers.WRITERS[export.file_type](path) as file, progress:
        for record in part.records:
            written = 0
            for row in part.as_rows(record, shape):
                file.write(row)
                tally.add_row(path.name, row)
                written += 1
            tally.add_left_out(path.name, formats.left_out(record, part.name))
            if written and part.name != "prompts":
                tally.add_record(record)
            progress.step()


def asked(export: Export) -> dict[str, Any]:
    """What an export is narrowed to."""
    narrowed = {name: value for name, value in asdict(export.filters).items() if value is not None}
    return {**narrowed, **({"source": "imported"} if export.imported else {})}


def parts(store: Store, export: Export) -> list[Part]:
    """The files of an export."""

    def preference(record: Record, shape: formats.Shape) -> Iterator[formats.Row]:
        assert isinstance(record, JudgedPair)
        return formats.preference(record, shape, explicit=not export.implicit)

    if export.format == "preference":
        return [
            Part("preference", pairs(store, export), preference),
            Part("undecided", undecided_pairs(store, export), as_it_is),
        ]
    if export.format == "kto":
        return [Part("kto", chain(thumbs(store, export), pairs(store, export)), formats.unpaired)]
    if export.format == "sft":
        return [Part("sft", chain(edits(store, export), pairs(store, export)), formats.prompt_completion)]
    if export.format == "prompts":
        return [Part("prompts", prompts(store, export), formats.prompt_only)]
    return [
        Part("pairs", pairs(store, export), as_it_is),
        Part("thumbs", thumbs(store, export), as_it_is),
        Part("edits", edits(store, export), as_it_is),
        Part("prompts", prompts(store, export), formats.prompt_only),
    ]


def as_it_is(record: Record, shape: formats.Shape) -> Iterator[formats.Row]:
    """A record as one row, with all that is known of it."""
    yield record.as_dict()


# -- records of the store, one by one


def pairs(store: Store, export: Export) -> Iterator[Record]:
    """Judged pairs."""
    if export.imported:
        return (_imported(JudgedPair, row) for row in store.imported("pair"))
    return map(JudgedPair.of, store.judged_pairs(export.filters))


def undecided_pairs(store: Store, export: Export) -> Iterator[Record]:
    """Judged pairs in which neither reply is better. The store looks for them: the others are not read once more."""
    if export.imported:
        return (pair for pair in pairs(store, export) if isinstance(pair, JudgedPair) and not pair.decided)
    asked = export.filters.choice
    by_choice = [
        pairs(store, replace(export, filters=replace(export.filters, choice=choice)))
        for choice in UNDECIDED
        if asked in (None, choice)
    ]
    return merge(*by_choice, key=lambda pair: pair.vote or 0)


def thumbs(store: Store, export: Export) -> Iterator[Record]:
    """Thumbs. None are imported."""
    return iter(()) if export.imported else map(Thumb.of, store.thumbs(export.filters))


def edits(store: Store, export: Export) -> Iterator[Record]:
    """Edited replies, or imported demonstrations."""
    if export.imported:
        return (_imported(Demonstration, row) for row in store.imported("demonstration"))
    return map(Demonstration.of, store.edits(export.filters))


def prompts(store: Store, export: Export) -> Iterator[Record]:
    """Messages that people sent, or imported prompts."""
    if export.imported:
        return (_imported(Prompt, row) for row in store.imported("prompt"))
    return map(Prompt.of, store.prompts(export.filters))


def _imported(kind: type[Kind], row: Row) -> Kind:
    """The record of a row of `Store.imported`, with what is kept beside it."""
    return replace(kind.of(row["record"]), imported=Imported.of(row))
