"""The database's files: private, and missed when they are gone. Another process is a real one wherever it matters."""

import logging
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from playground.store import Store, StoreError, StoreLost
from tests.stores import cast, file_store  # noqa: F401 (fixture)

ROOT = Path(__file__).parent.parent
OPEN_AND_CLOSE = """import sys; from pathlib import Path; from playground.store import Store
Store(Path(sys.argv[1])).annotator('the worker')"""


def another_process(path):
    """Opens the store, writes, and ends as a worker does."""
    subprocess.run([sys.executable, "-c", OPEN_AND_CLOSE, path], cwd=ROOT, check=True, timeout=60)


def read_as_a_file(path):
    with open(path, "rb") as file:
        file.read()


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


# -- what happens to files while the app runs


def deleted(path):
    os.unlink(path)


def replaced_by_a_copy(path):
    shutil.copy(path, f"{path}.copy")
    os.rename(f"{path}.copy", path)


def log_deleted(path):
    os.unlink(f"{path}-wal")


def index_deleted(path):
    os.unlink(f"{path}-shm")


def folder_moved(path):
    os.rename(path.parent, path.parent.with_name("elsewhere"))


def folder_moved_and_made_anew(path):
    folder_moved(path)
    Store(path)


def locks_lost(path):
    """What a request did that had the server read its own database as a file: the locks are gone, and who closes next
    deletes the log."""
    read_as_a_file(path)
    another_process(path)


ACCIDENTS = [
    deleted,
    replaced_by_a_copy,
    log_deleted,
    index_deleted,
    folder_moved,
    folder_moved_and_made_anew,
    locks_lost,
]


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_a_write_after_the_files_are_gone_is_refused_and_not_lost_in_silence(file_store, accident, caplog):
    """Votes were said to be recorded that went into a deleted file: `open(nudge.db)` in the server dropped SQLite's
    locks, the next process to close the database deleted its write-ahead log, and the server wrote on."""
    cast(file_store)
    accident(Path(file_store.path))
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            with pytest.raises(StoreLost, match="nothing can be recorded. Please tell the owner to restart the app"):
                cast(file_store)
            with pytest.raises(StoreLost):
                file_store.live_policy()
    assert "restart the app" in file_store.trouble()
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1, "said once in the log"


def test_what_was_recorded_before_the_locks_were_lost_is_there_after_a_restart(file_store):
    path = Path(file_store.path)
    for _ in range(5):
        cast(file_store)
    locks_lost(path)
    with pytest.raises(StoreLost):
        cast(file_store)
    del file_store
    assert Store(path).row("select count(*) as n from vote")["n"] == 5


def test_what_was_recorded_before_the_log_was_deleted_is_saved(file_store):
    """Votes that were acknowledged were in the deleted file alone, and gone at the next start."""
    path = Path(file_store.path)
    who = file_store.annotator("before")
    log_deleted(path)
    with ThreadPoolExecutor(1) as pool, pytest.raises(StoreLost):  # in a thread that has no connection yet
        pool.submit(file_store.annotator, "after").result()
    again = path.with_name("again.db")
    shutil.copy(path, again)
    assert Store(again).rows("select id from annotator where token_hash is not null") == [{"id": who}]
    assert file_store.trouble(), "and nothing more is recorded"


def test_files_that_vanish_during_a_transaction_are_noticed_before_the_write_is_said_to_be_recorded(file_store):
    with pytest.raises(StoreLost), file_store.writing() as db:
        db.execute("insert into annotator (token_hash, kind, created) values ('x', 'local', 'now')")
        deleted(file_store.path)


def test_once_lost_it_stays_so_though_the_files_come_back(file_store):
    path = Path(file_store.path)
    folder_moved(path)
    with pytest.raises(StoreLost):
        file_store.annotator("somebody")
    os.rename(path.parent.with_name("elsewhere"), path.parent)
    with pytest.raises(StoreLost):
        file_store.annotator("somebody")


# -- what may happen


def worker_comes_and_goes(path):
    another_process(path)


def checkpointed(path):
    with sqlite3.connect(path) as other:
        assert other.execute("pragma wal_checkpoint(truncate)").fetchone()[0] == 0
    other.close()


def vacuumed(path):
    subprocess.run(
        [sys.executable, "-c", "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('vacuum')", path],
        check=True,
        timeout=60,
    )


def backed_up(path):
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sqlite3, sys; sqlite3.connect(sys.argv[1]).backup(sqlite3.connect(sys.argv[1] + '.backup'))",
            path,
        ],
        check=True,
        timeout=60,
    )


def copied(path):
    shutil.copy(path, f"{path}.copy")


@pytest.mark.parametrize("event", [worker_comes_and_goes, checkpointed, vacuumed, backed_up, copied])
def test_what_is_harmless_is_no_alarm(file_store, event):
    cast(file_store)
    event(Path(file_store.path))
    cast(file_store)
    assert file_store.trouble() == "" and file_store.row("select count(*) as n from vote")["n"] == 2


def test_a_store_whose_first_thread_has_ended_keeps_its_log(tmp_path):
    """Each thread has a connection that ends with it; were there no other, another process would delete the log under
    the next writer."""
    made = []
    thread = threading.Thread(target=lambda: made.append(Store(tmp_path / "nudge.db")))
    thread.start()
    thread.join()
    another_process(tmp_path / "nudge.db")
    cast(made[0])


def test_a_store_in_memory_has_no_files_to_lose():
    assert Store().trouble() == ""


def test_a_database_behind_a_link_is_watched_where_it_lies(tmp_path):
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real" / "x.db", tmp_path / "nudge.db")
    (tmp_path / "real" / "x.db").touch()
    store = Store(tmp_path / "nudge.db")
    cast(store)
    os.unlink(tmp_path / "real" / "x.db-wal")
    with pytest.raises(StoreLost):
        cast(store)


# -- private


def test_new_files_are_private_from_their_birth(tmp_path):
    path = tmp_path / "data" / "nudge.db"
    before = os.umask(0)
    try:
        store = Store(path)
        cast(store)
    finally:
        os.umask(before)
    assert {name: mode(f"{path}{name}") for name in ("", "-wal", "-shm", ".lock")} == dict.fromkeys(
        ("", "-wal", "-shm", ".lock"), 0o600
    )
    assert mode(path.parent) == 0o700


def test_files_of_an_earlier_version_are_made_private(tmp_path):
    path = tmp_path / "nudge.db"
    Store(path)
    os.chmod(path, 0o644)
    store = Store(path)
    cast(store)
    assert [mode(f"{path}{name}") for name in ("", "-wal", "-shm")] == [0o600] * 3


def test_a_second_opening_in_the_same_process_does_not_drop_the_locks_of_the_first(file_store):
    """To look at the file by opening and closing it would be the very accident that is guarded against."""
    Store(Path(file_store.path))
    another_process(file_store.path)
    cast(file_store)


def test_a_worker_makes_no_database_of_its_own(tmp_path):
    with pytest.raises(StoreError, match="There is no database at .*nudge.db. Start the app first"):
        Store(tmp_path / "nudge.db", create=False)
    assert not list(tmp_path.iterdir())
