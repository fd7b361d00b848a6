"""A copy of the whole database as it is at one moment, while everybody goes on writing; and what a copy needs before it
is used again.

Where copies go is up to `playground/backup/`.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from playground.store.database import now
from playground.store.disk import PRIVATE
from playground.store.erasures import Erasures, blank
from playground.store.errors import StoreUnavailable

COPY_PATIENCE = 5.0  # seconds that a copy, which nobody else has open, waits for others
STEP_PAGES = 1024  # pages that are copied at once, 4 MB

# Two counters in the header of the file: they grow with every transaction, also with one that changes no row, such as
# the try of `Database.trouble`. In a copy they are 1, so that equal databases have equal copies.
# https://sqlite.org/fileformat2.html, 1.3.5 and 1.3.15
COUNTERS = (24, 92)  # where they begin; each has four bytes

# what a round reads nothing of: cookies that are signed in, keys, the queue, what admins changed and did, erasures. In
# an order in which no row is removed before those that name it.
NOT_FOR_ROUNDS = ("sign_in", "api_key", "queue_task", "queued_prompt", "override", "policy_event", "erasure")

REMEMBERED = 1000  # erasures, and revoked keys, that a copy lists, the newest


@dataclass(frozen=True)
class Erasure:
    """What somebody took back: a chat, or (`conversation` is None) everything, or only the permission to train."""

    id: int
    annotator: int
    conversation: int | None
    everything: bool


@dataclass(frozen=True)
class CopySummary:
    """What a copy of the database says of erasures: how many are done, and the newest of all; and the ids of the keys
    that were revoked last.
    """

    done: int
    erasures: tuple[Erasure, ...]
    revoked: tuple[int, ...] = ()


class Snapshots(Erasures):
    """Part of `Store`."""

    def copy_to(self, path: Path, progress: Callable[[int, int, int], object] | None = None) -> CopySummary:
        """Copy the database to a new file at `path`, which its owner alone can read. StoreUnavailable where it cannot
        be read, or the copy not be written. `progress` is called after each step, as by `sqlite3.Connection.backup`.
        """
        # One read transaction lasts as long as the copy, so that it is of one moment and never starts over. In WAL mode
        # no writer waits for it.
        with self._translated_errors():
            self._check_files()
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, PRIVATE))
            with closing(self._connect().conn) as source, closing(sqlite3.connect(path)) as copy:
                source.execute("begin")
                done = source.execute("select count(*) from erasure where done is not null").fetchone()[0]
                erasures = source.execute(
                    """select e.id, e.annotator, e.conversation, e.conversation is null and a.token_hash is null
                       from erasure e join annotator a on a.id = e.annotator order by e.id desc limit ?""",
                    [REMEMBERED],
                ).fetchall()
                revoked = source.execute(
                    "select id from api_key where key_hash is null order by revoked desc limit ?", [REMEMBERED]
                ).fetchall()
                copy.execute("pragma synchronous=off")  # a copy that a power cut tears is not used
                source.backup(copy, pages=STEP_PAGES, progress=progress)
                source.execute("rollback")
            self._check_files()
        with path.open("r+b") as file:
            for place in COUNTERS:
                file.seek(place)
                file.write((1).to_bytes(4, "big"))
        newest = tuple(Erasure(row[0], row[1], row[2], bool(row[3])) for row in reversed(erasures))
        return CopySummary(done, newest, tuple(sorted(row[0] for row in revoked)))

    def keep_for_round(self, round_id: int) -> None:
        """Leave in this database, which is a copy, only what a round needs: the chats that it was recorded to read,
        without names, cookies, comments or links. What is removed is nowhere in the file then.
        """
        unread = "not in (select conversation from round_conversation where round = ?)"
        with self.writing() as db:
            for table in NOT_FOR_ROUNDS:
                db.execute(f"delete from {table}")
            # deleted first: a text that two chats share is kept for one that is not
            db.execute(f"update conversation set deleted = ? where deleted is null and id {unread}", [now(), round_id])
            blank(db, unread, round_id)
            db.execute("update conversation set share_token = null, shown_duel = null, sampling = null")
            db.execute("update vote set tags = null, comment = null")
            db.execute(
                """update annotator set token_hash = null, name = null, account = null, signed_in_until = null,
                     role = 'annotator'"""
            )
            db.execute("update round set reason = null, wish = null")
        if not self.scrub(COPY_PATIENCE, rewrite=True):
            raise StoreUnavailable("The copy of the database for a round could not be written.")

    def restart_running_round(self) -> None:
        """Send a round that was running when the copy was made back to its first phase: its files are not there.
        One that fine-tunes on a file is still known by that, so that a worker ends it, as one whose process is gone.
        One that trains elsewhere goes on there, so what it has read is kept too.
        """
        with self.writing() as db:
            for (round_id,) in db.execute("select id from round where state = 'running'").fetchall():
                for table in ("vote_use", "metric"):
                    db.execute(f"delete from {table} where round = ?", [round_id])
                db.execute(
                    """delete from round_conversation where round = ?1
                         and (select json_extract(metrics, '$.job') from round where id = ?1) is null""",
                    [round_id],
                )
                db.execute(
                    """update round set phase = 'collect', step = 0, steps = 0,
                         metrics = json_patch('{}', json_object('sft_file', json_extract(metrics, '$.sft_file'),
                           'job', json_extract(metrics, '$.job'), 'jobs_sent', json_extract(metrics, '$.jobs_sent')))
                       where id = ?""",
                    [round_id],
                )

    def erase_again(self, erasures: Iterable[Erasure]) -> None:
        """Ask again for the erasures that this database does not know of, since it is older than they are. Somebody who
        came after it was made has nothing in it to erase.
        """
        known = self.one("select coalesce(max(id), 0) as id from erasure")["id"]
        for erasure in erasures:
            if erasure.id <= known or not self.row("select 1 from annotator where id = ?", erasure.annotator):
                continue
            if erasure.conversation is not None:
                not_deleted = "select 1 from conversation where id = ? and annotator = ? and deleted is null"
                if self.row(not_deleted, erasure.conversation, erasure.annotator):
                    self.delete_conversation(erasure.conversation, erasure.annotator)
            elif erasure.everything:
                self.forget(erasure.annotator)
            else:
                self.allow_training(erasure.annotator, False)

    def revoke_again(self, keys: Iterable[int]) -> None:
        """Revoke the keys with these ids that still work here."""
        with self.writing() as db:
            for key in keys:
                db.execute(
                    "update api_key set key_hash = null, revoked = ? where id = ? and key_hash is not null",
                    [now(), key],
                )


def fold_log(path: Path) -> None:
    """Write what is in the log of a database that nobody has open into its file. One that cannot be read stays as it
    is.
    """
    with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as database:
        database.execute("pragma wal_checkpoint(truncate)")


def is_sound(path: Path) -> bool:
    """Whether a copy at `path` is a database without damage."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as copy:
            return copy.execute("pragma integrity_check(1)").fetchone() == ("ok",)
    except sqlite3.Error:
        return False
