"""SQLite's errors as sentences: locked, full, read-only, damaged; soon, and with everything as it was before."""

import os
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import pytest

from playground.store import Store, StoreUnavailable
from playground.store.database import PATIENCE, SHORT_PATIENCE
from playground.store.errors import StoreBusy, StoreFull
from tests.stores import candidate, cast, duel, file_store, outcome  # noqa: F401 (fixture)

SENTENCE = r"^[A-Z].*\.$"


@pytest.fixture
def hasty(tmp_path):
    """A store that waits half a second, and what holds it: a connection of somebody else."""
    store = Store(tmp_path / "nudge.db", patience=0.5)
    other = sqlite3.connect(tmp_path / "nudge.db", isolation_level=None, timeout=0)
    yield store, other
    other.close()


def test_a_person_waits_five_seconds_at_most():
    assert PATIENCE == 5


def test_a_locked_database_is_busy_after_the_patience_and_writes_again_once_it_is_free(hasty):
    """It was an sqlite3.OperationalError after 17 s, which the page answered with a blank status 500."""
    store, other = hasty
    other.execute("begin immediate")
    began = time.monotonic()
    with pytest.raises(StoreBusy, match="The database is busy, so nothing was recorded"):
        store.annotator("somebody")
    assert 0.4 < time.monotonic() - began < 5
    assert store.live_policy()["version"] == 0, "reading goes on"
    other.execute("rollback")
    assert store.annotator("somebody") == 1


def test_the_probe_waits_for_its_turn_as_every_write_does(tmp_path):
    """While this very process wrote for longer than 0.2 s, `/readyz` said that the database is busy."""
    store, begun = Store(tmp_path / "nudge.db"), threading.Event()

    def write():
        with store.writing():
            begun.set()
            time.sleep(2 * SHORT_PATIENCE)

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait()
    assert store.trouble() == ""
    writer.join()


def test_many_threads_that_write_at_once_take_turns(tmp_path):
    """They all looked for the lock again by chance: with 64 people at once an unlucky one waited for 5 s, and was told
    that the database is busy.
    """
    store, failed = Store(tmp_path / "nudge.db", patience=1.5), []

    def write():
        try:
            for _ in range(2):
                with store.writing():
                    time.sleep(0.008)
        except StoreBusy as error:
            failed.append(error)

    threads = [threading.Thread(target=write) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_whose_turn_does_not_come_is_told_so(tmp_path):
    store, said = Store(tmp_path / "nudge.db", patience=0.2), []

    def write():
        with pytest.raises(StoreBusy, match="The database is busy, so nothing was recorded") as error:
            store.annotator("somebody")
        said.append(error.value)

    with store.writing():
        other = threading.Thread(target=write)
        other.start()
        other.join()
    assert len(said) == 1 and store.annotator("somebody") == 1


def test_an_exclusive_lock_stops_reads_too_and_they_say_so(hasty):
    store, other = hasty
    other.execute("pragma locking_mode=exclusive")
    store._kept.close()  # the lock is to be had only while nobody has the file open
    store._local.db.close()
    del store._local.db
    other.execute("begin exclusive")
    other.execute("update policy set reason = null")
    for asked in (store.live_policy, lambda: store.annotator("somebody")):
        with pytest.raises(StoreUnavailable, match=SENTENCE):
            asked()


def test_who_comes_after_somebody_who_waited_in_vain_does_not_wait_as_long(tmp_path):
    """Page loads hung for a minute: each of a page's handlers waited in turn, and the server's threads with them."""
    store = Store(tmp_path / "nudge.db", patience=1.5)
    other = sqlite3.connect(tmp_path / "nudge.db", isolation_level=None)
    other.execute("begin immediate")

    def visit(name):
        with pytest.raises(StoreBusy):
            store.annotator(name)

    visit("first")
    began = time.monotonic()
    visit("second")
    assert time.monotonic() - began < 1.2
    other.execute("rollback")
    assert store.annotator("second") == 1


def test_readiness_tells_a_lock_within_a_second_and_forgets_it_soon(hasty):
    store, other = hasty
    assert store.trouble() == ""
    other.execute("begin immediate")
    store._probed = float("-inf")
    assert "busy" in store.trouble()
    other.execute("rollback")
    store._probed = float("-inf")
    assert store.trouble() == ""


def test_readiness_is_asked_of_the_file_once_in_two_seconds_at_most(file_store):
    frames = []
    for _ in range(20):
        assert file_store.trouble() == ""
        frames.append(os.stat(f"{file_store.path}-wal").st_size)
    assert len(set(frames)) == 1


# -- a full disk


@pytest.fixture
def small_disk(tmp_path):
    """A store on a disk of its own with a megabyte, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    store = Store(disk / "nudge.db")
    yield store
    del store
    subprocess.run(["umount", "-l", disk], check=True)


def fill(store):
    """Take all the room there is; returns the file that does."""
    ballast = Path(store.path).with_name("ballast")
    with open(ballast, "wb", buffering=0) as file:
        for size in (4096, 512, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass
    return ballast


def gestures(store):
    """Every kind of write that a person's gesture makes, each ready to be made."""
    who = store.annotator("ann")
    row, text = duel(store, who), "x" * 5000
    open_ = store.start_duel(row["conversation"], "Go on", [1, 2], [candidate(1), candidate(2)])
    reply = row["left"]["message"]
    other = duel(store, who)
    return {
        "a first visit": lambda: [store.annotator(f"{i} {text}") for i in range(200)],
        "a new chat": lambda: store.new_conversation(who, system_prompt=text),
        "a message": lambda: store.start_duel(other["conversation"], text, [1] * 3000, [candidate(1), candidate(2)]),
        "the replies' end": lambda: store.finish_duel(open_, [outcome(text, [1] * 3000), outcome(text, [2] * 3000)]),
        "a vote": lambda: store.vote(other["id"], who, "a", other["left"]["message"]),
        "a thumb": lambda: store.rate(reply, who, 1),
        "an edited reply": lambda: store.demonstrate(reply, who, text),
        "an undo": lambda: store.undo(other["conversation"]),
        "an opened chat": lambda: store.open_conversation(row["conversation"], who),
        "a deleted chat": lambda: store.delete_conversation(row["conversation"], who),
        "a shared chat": lambda: store.share(other["conversation"], who),
        "settings": lambda: store.configure(row["conversation"], text, {"top_k": 3}),
        "a round": store.request_round,
        "an admin's setting": lambda: store.override({"ppo.kl_target": 4.0}, who),
        "a sign-in": lambda: store.sign_in(who, "ann", 1e10),
    }


def test_every_gesture_on_a_full_disk_is_refused_in_a_sentence_and_can_be_made_again(small_disk):
    ready = gestures(small_disk)
    small_disk.db.execute("pragma wal_checkpoint(truncate)")
    before = small_disk.rows("select * from vote"), small_disk.rows("select * from message")
    ballast = fill(small_disk)
    for name, gesture in ready.items():
        with pytest.raises(StoreFull, match="The disk is full, so nothing could be recorded") as refused:
            gesture()
        assert refused.value.__cause__ is not None, name
    assert (small_disk.rows("select * from vote"), small_disk.rows("select * from message")) == before
    assert "disk is full" in small_disk.trouble()
    ballast.unlink()
    for name in ("a vote", "a thumb", "the replies' end", "a message"):
        ready[name]()
    small_disk._probed = float("-inf")
    assert small_disk.trouble() == "" and small_disk.row("pragma integrity_check")["integrity_check"] == "ok"


def test_a_commit_that_fails_leaves_no_transaction_open(file_store):
    """After it, every write of the thread failed with "cannot start a transaction within a transaction"."""
    who = file_store.annotator("ann")
    pages = file_store.row("pragma page_count")["page_count"]
    file_store.db.execute(f"pragma max_page_count={pages}")
    with pytest.raises(StoreFull):
        file_store.new_conversation(who, system_prompt="x" * 100_000)
    assert not file_store.db.conn.in_transaction
    file_store.db.execute("pragma max_page_count=1000000")
    assert file_store.new_conversation(who) == 1


# -- damage


def test_a_database_that_cannot_be_written_says_so(file_store):
    file_store.db.execute("pragma query_only=on")
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        file_store.annotator("somebody")


def test_a_damaged_database_says_so(file_store):
    cast(file_store)
    file_store.db.execute("pragma wal_checkpoint(truncate)")
    size = os.stat(file_store.path).st_size
    handle = os.open(file_store.path, os.O_WRONLY)
    # all but the first page; the handle stays open, so that no lock is dropped
    os.pwrite(handle, b"\xff" * (size - 4096), 4096)
    said = []
    thread = threading.Thread(
        target=lambda: said.append(pytest.raises(StoreUnavailable, file_store.annotator, "nobody").value)
    )
    thread.start()
    thread.join()
    os.close(handle)
    assert "damaged" in str(said[0])


def test_a_mistake_in_the_code_stays_what_it_is(file_store):
    with pytest.raises(sqlite3.IntegrityError):
        file_store.new_conversation(annotator=12345)
