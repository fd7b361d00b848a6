"""Files and datasets from elsewhere into the store, row by row: the good rows go in, a bad one is named by its number
and the reason.

Rows are kept in small transactions, so that nobody's vote waits for them. An import that was stopped is begun again:
what is there already is known by the hash of its content.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from playground.data import columns, files
from playground.data.hub import Dataset
from playground.data.raw_rows import BadRow, Row
from playground.store import ImportedRow, Origin, Store

BATCH = 200  # rows in a transaction
MOST_ROWS = 1_000_000  # of a file, or of a dataset


@dataclass
class Report:
    """What became of the rows of a file."""

    read: int = 0
    added: Counter[str] = field(default_factory=Counter)  # new rows by kind
    known: int = 0  # rows that were there already
    reweighed: int = 0  # of these, pairs that have another weight now
    bad: int = 0
    left_over: bool = False  # whether the file has more than MOST_ROWS rows


def load(
    store: Store,
    path: Path | Dataset,
    source: str,
    *,
    kind: str | None = None,
    weight: float | None = None,
    most_rows: int = MOST_ROWS,
    on_bad: Callable[[int, str], None] = lambda number, reason: None,
    on_row: Callable[[], None] = lambda: None,
    report: Report | None = None,
    keep_sources: bool = False,
) -> Report:
    """Import a file or a dataset of the hub under the name `source`. `kind`: what of each row is taken; by default the
    most that it has. `weight`: of each pair, beside a vote's 1, also of those that are there already; None: 1, and what
    is there keeps its own. `on_bad(number, reason)` is called for each row that is left out. `on_row` is called for
    each row, and `report` is counted up meanwhile. `keep_sources`: rows of a file that `export --imported` wrote keep
    the source and the origin that they had there, and without `weight` their weight. CannotRead where the whole of it
    cannot be read.
    """
    report = Report() if report is None else report
    batch: list[ImportedRow] = []
    rows = path.rows() if isinstance(path, Dataset) else files.read(path)
    origin = path.origin if isinstance(path, Dataset) else None

    def keep() -> None:
        _keep(store, source, batch, weight, report, origin)
        batch.clear()

    for number, row in rows:
        if report.read == most_rows:
            report.left_over = True
            break
        report.read += 1
        on_row()
        try:
            batch.append(_checked(row, kind, weight, keep_sources))
        except BadRow as error:
            report.bad += 1
            on_bad(number, str(error))
        if len(batch) == BATCH:
            keep()
    keep()
    return report


def _checked(row: Row | BadRow, kind: str | None, weight: float | None, keep_sources: bool) -> ImportedRow:
    if isinstance(row, BadRow):
        raise row
    kind_of_row, record = columns.record_of(row, kind)
    kept = record.imported if keep_sources else None
    texts = replace(record, imported=None)
    weight = (kept.weight if kept else 1.0) if weight is None else weight
    imported = ImportedRow(texts.content_hash(), kind_of_row, weight, texts.as_dict())
    if kept is None:
        return imported
    origin = Origin(kept.url, kept.split, kept.license) if kept.url and kept.split else None
    return imported._replace(source=kept.source, origin=origin)


def _keep(
    store: Store, source: str, batch: list[ImportedRow], weight: float | None, report: Report, origin: Origin | None
) -> None:
    if weight is not None:
        report.reweighed += store.reweigh_imported([row.sha256 for row in batch], weight)
    for kind in columns.KINDS:
        rows = [row for row in batch if row.kind == kind]
        if rows:
            added = store.add_imported(source, rows, origin)
            report.added[kind] += added
            report.known += len(rows) - added
