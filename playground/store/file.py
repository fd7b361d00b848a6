"""The SQLite file: connections, transactions, and the moment. What the rows mean is the other modules' of this package.

One connection a thread; WAL with `synchronous=FULL`, so that a vote that was shown as accepted is on disk; every write
takes the write lock first (`begin immediate`), because a deferred transaction that reads and then writes fails at once
when another process wrote in between.

This is the one place where SQLite's errors become sentences (`errors.py`), and where a transaction asks whether the
files are still there (`disk.py`).
"""

import logging
import sqlite3
import threading
import time
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import sqlite_utils
from filelock import FileLock, Timeout

from playground.store import errors
from playground.store.disk import PRIVATE, Files
from playground.store.errors import StoreBusy, StoreError, StoreUnavailable
from playground.store.migrations import migrations

log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds for which a write or a read waits for another process; then the person is told
# the wait once somebody has just waited in vain: everybody's together would use up the server's threads
BRIEF = 0.2  # seconds
RECENT = 2.0  # seconds for which that is true, and for which `trouble` remembers what it found
OPENING = 60.0  # seconds for which the opening of a file waits for other processes that open it


def now() -> str:
    """This moment in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class File:
    """The database at `path` (`:memory:` for tests), migrated to the newest schema when it is opened.

    `patience` is how many seconds a transaction waits for another process. With `create` false a database that is not
    there is a StoreError.
    """

    def __init__(self, path: str | Path = ":memory:", *, patience: float = PATIENCE, create: bool = True):
        self.path, self.patience = str(path), patience
        self._local = threading.local()
        self._shared = self._files = None
        self._memory_lock = nullcontext()
        self._lost = False
        self._waited_in_vain = float("-inf")  # when a wait for another process last ended so, on the monotonic clock
        self._probe, self._probed, self._trouble = threading.Lock(), float("-inf"), ""
        if self.path == ":memory:":
            self._shared, self._memory_lock = self._connect(), threading.RLock()
            self._migrate()
        else:
            self._open(Path(path), create)

    def _open(self, path: Path, create: bool):
        if not create and not path.exists():
            raise StoreError(
                "There is no database at {path}. Start the app first, or pass its --data-dir.", path=str(path)
            )
        files = Files(self.path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            # SQLite's busy timeout does not cover the switch to WAL, and server and worker may open a new file at the
            # same moment
            with FileLock(f"{self.path}.lock", timeout=OPENING, mode=PRIVATE), self._in_words():
                files.make()
                self._execute("pragma journal_mode=wal")
        except Timeout:
            raise StoreBusy(
                "Another process has been opening the database {path} for {n} s.", path=str(path), n=f"{OPENING:.0f}"
            ) from None
        # while a process has a connection, no other deletes the write-ahead log; a thread's own connection ends with it
        self._migrate()
        self._kept = self._connect(any_thread=True)
        self._kept.execute("select count(*) from sqlite_master").fetchone()  # which opens the log
        files.make_private()
        files.remember()
        self._files = files

    def _migrate(self):
        with self.writing() as db:
            migrations.apply(db)

    @property
    def db(self) -> sqlite_utils.Database:
        """This thread's connection."""
        if self._shared is not None:
            return self._shared
        if not hasattr(self._local, "db"):
            self._local.db = self._connect()
        return self._local.db

    def _connect(self, any_thread: bool = False):
        any_thread = any_thread or self.path == ":memory:"
        connection = sqlite3.connect(
            self.path, timeout=self.patience, isolation_level=None, check_same_thread=not any_thread
        )
        for pragma in ("foreign_keys=on", "synchronous=full", "secure_delete=on"):
            connection.execute(f"pragma {pragma}")
        return sqlite_utils.Database(connection)

    # -- transactions

    @contextmanager
    def writing(self):
        """One transaction that holds the write lock from its start; an exception rolls it back. It has ended well only
        when this returns.

        StoreUnavailable where the database cannot do it.
        """
        with self._memory_lock, self._in_words():
            self._check()
            self._execute("begin immediate")
            try:
                yield self.db
                self._execute("commit")
            except BaseException:
                self._roll_back()
                raise
            self._check()  # what was committed to a file that nobody finds again is not recorded
            self._waited_in_vain = float("-inf")

    def rows(self, sql: str, *values) -> list[dict]:
        """Rows of a query as a list of dicts. StoreUnavailable where the database cannot answer."""
        with self._memory_lock, self._in_words():
            self._check()
            self._be_patient()
            return list(self.db.query(sql, list(values)))

    def row(self, sql: str, *values) -> dict | None:
        """The first row of a query, or None."""
        return next(iter(self.rows(sql, *values)), None)

    @contextmanager
    def _in_words(self):
        """What SQLite raises becomes a sentence; mistakes of the code that asks stay what they are."""
        try:
            yield
        except sqlite3.Error as error:
            if not errors.is_failure(error):
                raise
            said = errors.in_words(error)
            if isinstance(said, StoreBusy):
                self._waited_in_vain = time.monotonic()
            log.warning("the database failed: %s", error)
            raise said from error

    def _execute(self, sql):
        self._be_patient()
        self.db.execute(sql)

    def _be_patient(self, seconds: float | None = None):
        """How long this thread's next statement waits for another process."""
        if seconds is None:
            seconds = min(BRIEF, self.patience) if time.monotonic() - self._waited_in_vain < RECENT else self.patience
        self.db.execute(f"pragma busy_timeout={1000 * seconds:.0f}")

    def _roll_back(self):
        """Undo the transaction, where SQLite has not done so by itself. A connection that cannot is let go of, so that
        the next one starts afresh."""
        try:
            if self.db.conn.in_transaction:
                self.db.execute("rollback")
        except sqlite3.Error:
            if self._shared is None:
                self._local.db.close()
                del self._local.db

    # -- is it well?

    def _check(self):
        """StoreLost unless the files on disk are those that were opened, from the first time on that they are not."""
        if self._files is None:
            return
        if not self._lost and (what := self._files.changed()):
            self._lost = True
            self._rescue()
            log.error(
                "%s while the app was running: %s. Nothing is recorded any more; put the files back or leave them, "
                "and restart the app.",
                self.path,
                what,
            )
        if self._lost:
            raise errors.lost()

    def _rescue(self):
        """Where only the write-ahead log was deleted, bring what it holds into the database: a connection that was open
        before still reads it, and it goes with the last of them.
        """
        if not self._files.only_the_log_is_gone():
            return
        try:
            _, pages, saved = self._kept.execute("pragma wal_checkpoint(passive)").fetchone()
        except sqlite3.Error as error:
            log.error("what the deleted write-ahead log held could not be saved: %s", error)
            return
        log.warning("%d of %d pages of the deleted write-ahead log were saved into the database", saved, pages)

    def trouble(self) -> str:
        """Why nothing can be written now, in words; "" where it can. Found out by writing, at most once in two
        seconds."""
        with self._probe:
            if time.monotonic() - self._probed > RECENT:
                self._trouble = self._try_to_write()
                self._probed = time.monotonic()
            return self._trouble

    def _try_to_write(self):
        try:
            with self._memory_lock, self._in_words():
                self._check()
                self._be_patient(BRIEF)
                self.db.execute("begin immediate")
                try:
                    version = self.db.execute("pragma user_version").fetchone()[0]
                    self.db.execute(f"pragma user_version={version:d}")  # SQLite writes the page anew, whatever it held
                    self.db.execute("commit")
                except BaseException:
                    self._roll_back()
                    raise
                self._check()
        except StoreUnavailable as error:
            return str(error)
        return ""

    def sqlite_version(self) -> str:
        return sqlite3.sqlite_version

    def scrub(self, patience: float, rewrite: bool = False) -> bool:
        """Bring what is deleted out of the write-ahead log, and with `rewrite` out of every corner of the file; False
        where others were at it for longer than `patience` seconds, and it is to be tried again.

        `secure_delete` overwrites a row where it is deleted, but not the copies that SQLite left where it had moved a
        row from (seen): only
        `vacuum` is rid of them. It holds the write lock for about as long as it takes to copy the file.
        """
        if self.path == ":memory:":
            return True
        try:
            self._be_patient(patience)
            if rewrite:
                self.db.execute("vacuum")
            busy, *_ = self.db.execute("pragma wal_checkpoint(truncate)").fetchone()
            return not busy
        except sqlite3.OperationalError:  # locked, or no room for the copy
            return False
