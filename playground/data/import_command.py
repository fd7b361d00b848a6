"""What `python -m playground.data import` does: the files and datasets that it names into the store, one after the
other, and what is said of each.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from playground.data import hub, importing
from playground.data.progress import Progress
from playground.data.raw_rows import CannotRead
from playground.store import Store

SOME_BAD = 3  # exit code
MOST_NAMED = 20  # bad rows that are named one by one; the others are counted by reason


def run(store: Store, arguments: argparse.Namespace) -> int:
    """Import what the arguments name; returns the exit code."""
    print(f"Database: {store.path}")
    bad = usable = 0
    for where in arguments.files:
        reasons: Counter[str] = Counter()
        path, name, source = named(where, arguments.split)

        def name_bad(number: int, reason: str, name: str = name, reasons: Counter[str] = reasons) -> None:
            if reasons.total() < MOST_NAMED:
                print(f"{name}: row {number:,} is left out: {reason}", file=sys.stderr)
            reasons[reason] += 1

        with Progress(name) as progress:
            report = importing.load(
                store,
                path,
                source_name(arguments.source or source),
                kind=arguments.kind,
                weight=arguments.weight,
                most_rows=arguments.max_rows,
                on_bad=name_bad,
                on_row=progress.step,
                keep_sources=isinstance(path, Path) and arguments.source is None,
            )
        tell(name, report, reasons)
        bad += report.bad
        usable += report.read - report.bad
    if not bad:
        return 0
    return SOME_BAD if usable else 1


def named(where: str, split: str | None) -> tuple[Path | hub.Dataset, str, str]:
    """What an argument names, how messages call it, and the name of its rows."""
    if not hub.is_address(where):
        return Path(where), where, Path(where).stem
    dataset = hub.find(where, split)
    size = sum(file.size for file in dataset.files)
    print(
        f"{dataset.name}: split {dataset.split}, {counted(len(dataset.files), 'file')} of {size / 1e6:,.1f} MB, "
        f"licence {dataset.license or 'not named'}"
    )
    return dataset, dataset.name, dataset.name


def source_name(name: str) -> str:
    """A name for a source; CannotRead where it cannot be one."""
    if not name.isprintable() or not 0 < len(name) <= 100:
        raise CannotRead("--source: a name has 1 to 100 characters that can be printed.")
    return name


def tell(name: str, report: importing.Report, reasons: Counter[str]) -> None:
    """Say what became of a file's rows."""
    added = ", ".join(f"{kind}s {n:,}" for kind, n in report.added.items()) or "nothing"
    read = counted(report.read, "row")
    print(f"{name}: {read} read; new: {added}; there already: {report.known:,}; left out: {report.bad:,}")
    if report.reweighed:
        print(f"{name}: pairs that were there already and have the new weight: {report.reweighed:,}")
    if report.bad > MOST_NAMED:
        for reason, n in reasons.most_common(10):
            print(f"  {n:,} × {reason}", file=sys.stderr)
    if report.left_over:
        print(f"{name}: the rows after the first {report.read:,} were not read; see --max-rows", file=sys.stderr)


def counted(n: int, noun: str) -> str:
    """A number with what it counts: "1 row", "2 rows"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
