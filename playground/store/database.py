"""The SQLite file: its connections and transactions. What rows mean is up to this package's other modules.

Each thread has a connection of its own. The file is in WAL mode with `synchronous=FULL`, so a vote that was shown as
accepted is on disk. Every write takes the write lock first (`begin immediate`): a deferred transaction that reads and
then writes fails at once when another process has written in between. Threads of one process take turns before that.

Only this module turns SQLite's errors into sentences (`errors.py`) and checks in each transaction that the files on
disk are still the ones that were opened (`disk.py`).
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import sqlite_utils
from filelock import FileLock, Timeout

from playground.store import errors
from playground.store.disk import PRIVATE, Files
from playground.store.errors import StoreBusy, StoreError, StoreReadOnly, StoreUnavailable
from playground.store.migrations import migrations
from playground.system.messages import Message

log = logging.getLogger(__name__)

Row = dict[str, Any]  # a row of a query, by column

PATIENCE = 5.0  # seconds that a write or a read waits for another process before the person gets an error
# After a wait that failed, others wait only briefly for a while: many long waits would use up the server's threads.
SHORT_PATIENCE = 0.2  # seconds
RECENT = 2.0  # seconds after a failed wait in which waits are short; also how long `trouble` keeps its last answer
OPENING = 60.0  # seconds that opening the file waits for other processes that are opening it
CACHE_KB = 256  # of each connection, of which every thread has one; the system keeps the file itself in memory
IN_MEMORY = ":memory:"


def now() -> str:
    """The current time in UTC, in ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def insert(db: sqlite_utils.Database, table: str, columns: Row) -> int:
    """Insert a row into a table whose key SQLite chooses, and return the key."""
    return cast(int, db.table(table).insert(columns).last_pk)


class Database:
    """The database at `path` (`:memory:` for tests), migrated to the newest schema when it is opened.

    Base class of the store's parts: they read with `rows`, `row` and `one`, and write in a `writing` block.

    `patience`: seconds that a transaction waits for another process. `create`: whether to make a database that does not
    exist; StoreError where it is false and there is none.
    """

    read_only: Message | None = None  # why nothing is recorded in this process, from when it is set

    def __init__(self, path: str | Path = IN_MEMORY, *, patience: float = PATIENCE, create: bool = True) -> None:
        self.path = str(path)
        self.patience = patience
        self._local = threading.local()
        self._kept: sqlite_utils.Database  # open as long as the store; in memory the only connection
        self._files: Files | None = None
        self._memory_lock: AbstractContextManager[Any] = nullcontext()
        self._write_turn = threading.RLock()
        self._lost = False
        self._last_busy = float("-inf")  # when a wait for another process last failed, on the monotonic clock
        self._probe_lock = threading.Lock()
        self._probed = float("-inf")  # when `trouble` last tried to write, on the monotonic clock
        self._trouble = ""
        self.failures = errors.Failures()
        if self._in_memory:
            self._memory_lock = threading.RLock()
            self._kept = self._connect(any_thread=True)
            self._migrate()
        else:
            self._open(Path(path), create)

    @property
    def _in_memory(self) -> bool:
        return self.path == IN_MEMORY

    def _open(self, path: Path, create: bool) -> None:
        if not create and not path.exists():
            raise StoreError(
                "There is no database at {path}. Start the app first, or pass its --data-dir.", path=str(path)
            )
        files = Files(self.path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            # SQLite's busy timeout does not cover the switch to WAL, and server and worker may open a new file at the
            # same moment.
            with FileLock(f"{self.path}.lock", timeout=OPENING, mode=PRIVATE), self._translated_errors():
                files.make()
                self._execute("pragma journal_mode=wal")
        except Timeout:
            raise StoreBusy(
                "Another process has been opening the database {path} for {n} s.", path=str(path), n=f"{OPENING:.0f}"
            ) from None
        self._migrate()
        # While this process has a connection, no other process deletes the write-ahead log. The connection of a thread
        # ends with its thread, so one is kept.
        self._kept = self._connect(any_thread=True)
        self._kept.execute("select count(*) from sqlite_master").fetchone()  # the first read opens the log
        files.make_private()
        files.remember()
        self._files = files

    def _migrate(self) -> None:
        with self.writing() as db:
            migrations.apply(db)

    def state(self) -> str:
        """A text that changes whenever anything in the database does, whoever writes it. It costs no query."""
        if self._files is None:
            return str(self._kept.conn.total_changes)
        return self._files.state()

    @property
    def db(self) -> sqlite_utils.Database:
        """This thread's connection."""
        if self._in_memory:
            return self._kept
        if not hasattr(self._local, "db"):
            self._local.db = self._connect()
        return self._local.db

    def _connect(self, any_thread: bool = False) -> sqlite_utils.Database:
        connection = sqlite3.connect(
            self.path, timeout=self.patience, isolation_level=None, check_same_thread=not any_thread
        )
        for pragma in ("foreign_keys=on", "synchronous=full", "secure_delete=on", f"cache_size=-{CACHE_KB}"):
            connection.execute(f"pragma {pragma}")
        return sqlite_utils.Database(connection)

    def close(self) -> None:
        """Close the connection that is kept and that of this thread: nothing can be asked of this store any more."""
        if hasattr(self._local, "db"):
            self._local.db.close()
        self._kept.close()

    # -- transactions

    @contextmanager
    def writing(self) -> Iterator[sqlite_utils.Database]:
        """One transaction that holds the write lock from its start; an exception rolls it back.

        Only when the block is left without an exception is everything recorded. StoreUnavailable where the database
        cannot do it.
        """
        self._check_may_write()
        with self._memory_lock, self._one_writer(), self._translated_errors():
            self._check_files()
            self._execute("begin immediate")
            try:
                yield self.db
                self._execute("commit")
            except BaseException:
                self._roll_back()
                raise
            self._check_files()  # a commit to a file that nobody finds again is not recorded
            self._last_busy = float("-inf")

    def _check_may_write(self) -> None:
        if self.read_only:
            raise StoreReadOnly(self.read_only)

    @contextmanager
    def _one_writer(self) -> Iterator[None]:
        """This process's turn to write. StoreBusy where it does not come within `patience`.

        Threads that wait in SQLite look again by chance, so that of dozens an unlucky one waited for seconds.
        """
        if not self._write_turn.acquire(timeout=self.patience):
            busy = errors.busy()
            self.failures.add(busy)
            raise busy
        try:
            yield
        finally:
            self._write_turn.release()

    def rows(self, sql: str, *values: Any) -> list[Row]:
        """The rows of a query. StoreUnavailable where the database cannot answer."""
        with self._memory_lock, self._translated_errors():
            self._check_files()
            self._set_busy_timeout()
            return list(self.db.query(sql, list(values)))

    def row(self, sql: str, *values: Any) -> Row | None:
        """The first row of a query, or None."""
        return next(iter(self.rows(sql, *values)), None)

    def one(self, sql: str, *values: Any) -> Row:
        """The row of a query that always has one, such as a count."""
        return self.rows(sql, *values)[0]

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise SQLite's errors as StoreUnavailable, whose message is a sentence for the person.

        Errors that only a mistake in our code can cause are raised as they are.
        """
        try:
            yield
        except sqlite3.Error as error:
            if not errors.is_failure(error):
                raise
            translated = errors.translate(error)
            if isinstance(translated, StoreBusy):
                self._last_busy = time.monotonic()
            self.failures.add(translated)
            log.warning("the database failed: %s", error)
            raise translated from error

    def _execute(self, sql: str) -> None:
        self._set_busy_timeout()
        self.db.execute(sql)

    def _set_busy_timeout(self, seconds: float | None = None) -> None:
        """Set how long this thread's next statement waits for another process; without `seconds`, as usual."""
        if seconds is None:
            was_busy = time.monotonic() - self._last_busy < RECENT
            seconds = min(SHORT_PATIENCE, self.patience) if was_busy else self.patience
        self.db.execute(f"pragma busy_timeout={1000 * seconds:.0f}")

    def _roll_back(self) -> None:
        """Undo the transaction, unless SQLite has done so by itself.

        A connection that cannot roll back is closed, and the thread's next statement opens a new one.
        """
        try:
            if self.db.conn.in_transaction:
                self.db.execute("rollback")
        except sqlite3.Error:
            if not self._in_memory:
                self._local.db.close()
                del self._local.db

    # -- is the database well?

    def _check_files(self) -> None:
        """StoreLost unless the files on disk are those that were opened. Files that were lost once stay lost."""
        if self._files is None:
            return
        if not self._lost and (change := self._files.changed()):
            self._lost = True
            self._rescue(self._files)
            log.error(
                "%s while the app was running: %s. Nothing is recorded any more; put the files back or leave them, "
                "and restart the app.",
                Path(self.path),
                change,
            )
        if self._lost:
            lost = errors.files_lost()
            self.failures.add(lost)
            raise lost

    def _rescue(self, files: Files) -> None:
        """Where only the write-ahead log was deleted, save what it holds into the database.

        A connection that was opened before can still read the deleted log; with the last such connection it is gone.
        """
        if not files.only_the_log_is_gone():
            return
        try:
            _, pages, saved = self._kept.execute("pragma wal_checkpoint(passive)").fetchone()
        except sqlite3.Error as error:
            log.error("what the deleted write-ahead log held could not be saved: %s", error)
            return
        log.warning("%d of %d pages of the deleted write-ahead log were saved into the database", saved, pages)

    def trouble(self) -> str:
        """Why nothing can be written now, as a sentence, or "". It tries to write, at most once in RECENT seconds."""
        with self._probe_lock:
            if time.monotonic() - self._probed > RECENT:
                self._trouble = self._try_to_write()
                self._probed = time.monotonic()
            return self._trouble

    def _try_to_write(self) -> str:
        try:
            self._check_may_write()
            with self._memory_lock, self._one_writer(), self._translated_errors():
                self._check_files()
                self._set_busy_timeout(SHORT_PATIENCE)
                self.db.execute("begin immediate")
                try:
                    version = self.db.execute("pragma user_version").fetchone()[0]
                    self.db.execute(f"pragma user_version={version:d}")  # SQLite writes the page even if it is the same
                    self.db.execute("commit")
                except BaseException:
                    self._roll_back()
                    raise
                self._check_files()
        except StoreUnavailable as error:
            return str(error)
        return ""

    def sqlite_version(self) -> str:
        return sqlite3.sqlite_version

    def scrub(self, patience: float, rewrite: bool = False) -> bool:
        """Remove what was deleted from the write-ahead log, and with `rewrite` from the whole file.

        Returns False where other connections were busy for longer than `patience` seconds; then try again later.

        `secure_delete` overwrites a row where it is deleted, but not the copies that SQLite left behind when it moved a
        row. Only `vacuum` removes those. It holds the write lock for about as long as it takes to copy the file.
        """
        if self._in_memory:
            return True
        try:
            self._set_busy_timeout(patience)
            if rewrite:
                self.db.execute("vacuum")
            busy, *_ = self.db.execute("pragma wal_checkpoint(truncate)").fetchone()
            return not busy
        except sqlite3.OperationalError:  # locked, or no room for the copy
            return False
