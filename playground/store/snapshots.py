"""A copy of the whole database as it is at one moment, while everybody goes on writing; and what a copy needs before it
is used again.

Where copies go is up to `playground/backup/`.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from playground.store.database import Database
from playground.store.disk import PRIVATE

STEP_PAGES = 1024  # pages that are copied at once, 4 MB

# Two counters in the header of the file: they grow with every transaction, also with one that changes no row, such as
# the try of `Database.trouble`. In a copy they are 1, so that equal databases have equal copies.
# https://sqlite.org/fileformat2.html, 1.3.5 and 1.3.15
COUNTERS = (24, 92)  # where they begin; each has four bytes


class Snapshots(Database):
    """Part of `Store`."""

    def copy_to(self, path: Path) -> int:
        """Copy the database to a new file at `path`, which its owner alone can read. Returns how many erasures are
        done in the copy.

        One read transaction lasts as long as the copy, so the copy is of one moment and never begins anew; in WAL mode
        no writer waits for it. StoreUnavailable where the database cannot be read or the copy not be written.
        """
        with self._translated_errors():
            self._check_files()
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, PRIVATE))
            with closing(self._connect().conn) as source, closing(sqlite3.connect(path)) as copy:
                source.execute("begin")
                erasures = source.execute("select count(*) from erasure where done is not null").fetchone()[0]
                copy.execute("pragma synchronous=off")  # a copy that a power cut tears is not used
                source.backup(copy, pages=STEP_PAGES)
                source.execute("rollback")
            self._check_files()
        with path.open("r+b") as file:
            for place in COUNTERS:
                file.seek(place)
                file.write((1).to_bytes(4, "big"))
        return erasures

    def begin_round_anew(self) -> None:
        """Send a round that was running when the copy was made back to its first phase: its files are not there."""
        with self.writing() as db:
            for (round_id,) in db.execute("select id from round where state = 'running'").fetchall():
                for table in ("round_conversation", "vote_use", "metric"):
                    db.execute(f"delete from {table} where round = ?", [round_id])
                db.execute(
                    "update round set phase = 'collect', step = 0, steps = 0, metrics = '{}' where id = ?", [round_id]
                )


def is_sound(path: Path) -> bool:
    """Whether a copy at `path` is a database without damage."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as copy:
            return copy.execute("pragma integrity_check(1)").fetchone() == ("ok",)
    except sqlite3.Error:
        return False
