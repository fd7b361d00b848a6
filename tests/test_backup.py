"""Snapshots of the data folder: what is in them, what comes back, and what happens where they are damaged, cannot be
reached, or hold what somebody has deleted. What a start does beside that is in test_backup_starts.py.
"""

import json
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fsspec.registry import _registry

from playground.backup import Backup, BadTarget, archive, keeper, manifest, starting, status
from playground.backup.archive import Archive
from playground.backup.manifest import BadManifest, Chunk, File, Manifest
from playground.backup.target import Target, TargetUnavailable
from playground.settings import Settings
from playground.store import Store
from playground.store.snapshots import CopySummary, is_sound
from tests.backups import INTERVAL, Folder, adapter, blobs, deaf, newest, own_blobs, rows, snapshots, torn_blob
from tests.backups import folder as folder
from tests.backups import target as target
from tests.backups import url as url
from tests.stores import cast, duel
from tests.stores import file_store as file_store

# -- a copy of the database


def test_a_copy_has_every_row_and_is_private(file_store, tmp_path):
    for _ in range(20):
        cast(file_store)
    copy = tmp_path / "copy.db"
    assert file_store.copy_to(copy) == CopySummary(0, ())
    assert is_sound(copy) and rows(copy) == rows(file_store.path) and copy.stat().st_mode & 0o777 == 0o600
    assert not Path(f"{copy}-wal").exists()


def test_people_write_while_a_copy_is_made_which_is_of_one_moment(file_store, tmp_path, monkeypatch):
    """SQLite would begin the copy again after each step between which somebody has written."""
    monkeypatch.setattr("playground.store.snapshots.STEP_PAGES", 16)
    for _ in range(20):
        cast(file_store)
    before, copy, steps = rows(file_store.path), tmp_path / "copy.db", []

    def write(_, remaining, total):
        steps.append(total - remaining)
        assert len(steps) <= total
        cast(file_store)

    file_store.copy_to(copy, write)
    pages = copy.stat().st_size // 4096
    assert steps == [*range(16, pages, 16), pages] and len(steps) > 2
    assert is_sound(copy) and rows(copy) == before != rows(file_store.path)


def test_a_try_to_write_makes_no_other_copy(file_store, tmp_path):
    """`/readyz` asks for one; each would have been a new snapshot."""
    cast(file_store)
    file_store.copy_to(tmp_path / "a.db")
    assert file_store.trouble() == ""
    file_store.copy_to(tmp_path / "b.db")
    assert (tmp_path / "a.db").read_bytes() == (tmp_path / "b.db").read_bytes()


@pytest.mark.parametrize("place", [0, 4096 * 3])
def test_a_damaged_copy_is_not_sound(file_store, tmp_path, place):
    for _ in range(30):
        cast(file_store)
    copy = tmp_path / "copy.db"
    file_store.copy_to(copy)
    content = bytearray(copy.read_bytes())
    content[place : place + 200] = b"\xff" * 200
    copy.write_bytes(content)
    assert not is_sound(copy)


# -- back and forth


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_an_empty_folder_gets_everything_back(tmp_path, kind):
    url = (tmp_path / "target").as_uri() if kind == "file" else f"memory://{tmp_path.name}"
    first = Folder(tmp_path / "first", url)
    for choice in ("a", "b", "tie"):
        cast(first.store, choice)
    adapter(first, 1)
    report = first.settings.rounds_dir / "0001" / "gate.json"
    report.parent.mkdir(parents=True)
    report.write_text("{}")
    assert first.save().minutes == 0
    second = Folder(tmp_path / "second", url)
    assert rows(second.settings.database) == rows(first.settings.database)
    for name in ("adapters/v0001/adapter_model.safetensors", "adapters/v0001/manifest.json", "rounds/0001/gate.json"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    assert second.backup.status().notices == () and second.settings.database.stat().st_mode & 0o777 == 0o600
    cast(second.store)
    assert second.save().trouble is None  # it goes on with the same snapshots
    assert rows(Folder(tmp_path / "third", url).settings.database) == rows(second.settings.database)


def test_a_snapshot_is_made_of_changes_alone(folder, target):
    adapter(folder, 1, bytes(range(256)) * 20_000)
    for _ in range(100):
        cast(folder.store)
    folder.save()
    before, first = blobs(target), newest(target)
    assert folder.save() and len(snapshots(target)) == 1  # nothing has changed
    cast(folder.store)
    folder.save()
    more, second = blobs(target) - before, newest(target)
    unchanged = {chunk for file in first.files for chunk in file.chunks} & set(second.blobs().values())
    assert len(snapshots(target)) == 2 and 1 <= len(more) <= 4 and len(unchanged) > len(more)
    assert {file.path for file in second.files} >= {"nudge.db", "adapters/v0001/adapter_model.safetensors"}


def test_what_is_kept_is_bounded_and_what_nobody_names_goes(tmp_path, url, target):
    folder = Folder(tmp_path / "first", url, keep=2)
    for _ in range(4):
        cast(folder.store)
        folder.save()
    named = set().union(*(manifest.loads(p.name, p.read_bytes()).blobs() for p in snapshots(target)))
    assert len(snapshots(target)) == 2 and blobs(target) == named


def test_a_round_that_was_running_begins_anew_after_a_restore(folder, tmp_path, url):
    """Its files are not in a snapshot: going on at its phase would fail."""
    folder.store.request_round()
    row = folder.store.take_round("w1", lease_seconds=30)
    folder.store.update_round(row["id"], "w1", phase="ppo", step=3, steps=8)
    folder.store.add_metrics(row["id"], 3, {"kl": 1.0})
    folder.save()
    second = Folder(tmp_path / "second", url)
    restored = second.store.round(row["id"])
    assert (restored["state"], restored["phase"], restored["step"]) == ("running", "collect", 0)
    assert second.store.metrics(row["id"]) == {}
    assert restored["metrics"] == {}


def test_the_thread_saves_what_is_new_within_the_interval_and_at_the_end(tmp_path, url, monkeypatch):
    monkeypatch.setattr(keeper, "POLL", 0.02)
    settings = Settings(_env_file=None, data_dir=tmp_path / "first", backup={"url": url, "interval": INTERVAL})
    backup = Backup(settings)
    backup.restore()
    store = Store(settings.database)
    backup.start(store)
    try:
        cast(store)
        deadline = time.monotonic() + 5
        while backup.status().minutes is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert backup.status().minutes == 0
        cast(store, "b")
    finally:
        assert backup.close(10)
    assert rows(Folder(tmp_path / "second", url).settings.database) == rows(settings.database)


def test_the_log_of_a_database_that_is_gone_is_not_written_into_the_restored_one(folder, tmp_path, url):
    """SQLite takes every log that it finds beside a database for that database's."""
    cast(folder.store)
    folder.save()
    expected = rows(folder.settings.database)
    for _ in range(20):
        cast(folder.store, "b")
    left = tmp_path / "second" / "nudge.db-wal"
    left.parent.mkdir()
    left.write_bytes(Path(f"{folder.settings.database}-wal").read_bytes())
    second = Folder(tmp_path / "second", url)
    assert rows(second.settings.database) == expected


def test_a_copy_that_cannot_be_made_is_shown_as_late(folder, monkeypatch):
    monkeypatch.setattr(folder.store, "copy_to", deaf)
    assert folder.save().trouble == status.LATE


# -- damaged snapshots


def two_snapshots(folder):
    """The rows of the first of two snapshots."""
    cast(folder.store)
    folder.save()
    first = rows(folder.settings.database)
    cast(folder.store, "b")
    folder.save()
    return first


def torn_manifest(target):
    path = snapshots(target)[-1]
    path.write_bytes(path.read_bytes()[:-20])


def altered_manifest(target):
    path = snapshots(target)[-1]
    path.write_bytes(path.read_bytes().replace(b'"erased": 0', b'"erased": 1'))


def altered_blob(target):
    path = target / "blobs" / min(own_blobs(target))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    for place in range(middle, middle + 64):  # one bit alone may unpack to the same zeros
        content[place] ^= 0xFF
    path.write_bytes(content)


def missing_blob(target):
    (target / "blobs" / min(own_blobs(target))).unlink()


@pytest.mark.parametrize("damage", [torn_manifest, altered_manifest, torn_blob, altered_blob, missing_blob])
def test_a_damaged_snapshot_is_left_out_for_the_one_before_it_and_that_is_said(folder, target, url, tmp_path, damage):
    first = two_snapshots(folder)
    damage(target)
    second = Folder(tmp_path / "second", url)
    assert rows(second.settings.database) == first
    [notice] = second.backup.status().notices
    assert notice.values["newest"] == manifest.moment_of(snapshots(target)[-1].name, with_seconds=True)
    cast(second.store)
    assert second.save().trouble is None and len(Archive(Target(url), set()).snapshots) >= 2


def test_a_damaged_snapshot_and_the_one_of_the_same_minute_before_it_are_told_apart(
    folder, target, url, tmp_path, monkeypatch
):
    for second in (6, 41):
        taken = datetime(2026, 11, 27, 19, 8, second, tzinfo=UTC).timestamp()
        monkeypatch.setattr(keeper.time, "time", lambda taken=taken: taken)
        cast(folder.store)
        folder.save()
    torn_blob(target)
    [notice] = Folder(tmp_path / "second", url).backup.status().notices
    assert notice.values == {"newest": "2026-11-27 19:08:41 UTC", "time": "2026-11-27 19:08:06 UTC"}


def test_a_blob_that_is_gone_is_written_again_by_the_next_snapshot(folder, target, url, tmp_path):
    two_snapshots(folder)
    torn_blob(target)
    folder.backup._archive = None  # as after a restart
    cast(folder.store)
    folder.save()
    assert rows(Folder(tmp_path / "second", url).settings.database) == rows(folder.settings.database)


def test_where_no_snapshot_is_whole_the_chat_starts_and_nothing_is_overwritten(folder, target, url, tmp_path):
    cast(folder.store)
    folder.save()
    for blob in blobs(target):
        (target / "blobs" / blob).write_bytes(b"x")
    second = Folder(tmp_path / "second", url)
    cast(second.store)
    assert second.save().trouble == status.UNREAD and len(snapshots(target)) == 1


@pytest.mark.parametrize(
    "path", ["../nudge.db", "/etc/passwd", "nudge.db-wal", "adapters/v0001/../../x.json", "adapters/v0001/x.py"]
)
def test_a_manifest_names_no_file_outside_of_what_is_kept(path):
    bad = Manifest("id", 1.0, 0, (), (File(path, "0" * 64, ()),))
    with pytest.raises(BadManifest):
        manifest.loads(bad.name(), bad.dumps())


@pytest.mark.parametrize("change", [{"size": 1 << 30}, {"sha256": "../x"}, {"size": "1"}])
def test_a_manifest_names_no_blob_that_none_is(change):
    chunk = Chunk(**{"sha256": "0" * 64, "size": 1, "stored": 1, **change})
    bad = Manifest("id", 1.0, 0, (), (File("nudge.db", "0" * 64, (chunk,)),))
    with pytest.raises(BadManifest):
        manifest.loads(bad.name(), bad.dumps())


# -- a target that does not answer


def test_an_unreachable_target_is_shown_and_tried_again_with_growing_pauses(folder, monkeypatch):
    cast(folder.store)
    write = folder.backup.target.files.pipe_file
    monkeypatch.setattr(folder.backup.target.files, "pipe_file", deaf)
    pauses = []
    for _ in range(4):
        assert folder.save().trouble == status.UNREACHABLE
        pauses.append(folder.backup._progress.pause)
        folder.backup._step()  # within the pause nothing is tried
        assert folder.backup._progress.pause == pauses[-1]
        cast(folder.store)  # people go on voting
    assert pauses == [2, 4, 8, 16] and folder.backup.status().minutes is None
    monkeypatch.setattr(folder.backup.target.files, "pipe_file", write)
    now = folder.save()
    assert (now.trouble, now.minutes, folder.backup._progress.pause) == (None, 0, 0)


def test_a_target_that_can_only_be_read_is_shown_at_once_and_until_something_is_written(folder, target, monkeypatch):
    """Between two tries to save, what could be read was shown as "ok". And where nothing was new, nothing was tried."""
    cast(folder.store)
    folder.save()
    folder.store.close()
    again = Folder(folder.settings.data_dir, target.as_uri())
    monkeypatch.setattr(keeper, "POLL", 60.0)
    with monkeypatch.context() as patch:
        patch.setattr(again.backup.target.files, "pipe_file", deaf)
        again.backup._thread = threading.Thread(target=again.backup._run, daemon=True)
        again.backup.start(again.store)
        deadline = time.monotonic() + 5
        while again.backup.status().trouble is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert again.backup.status().trouble == status.UNREACHABLE and again.backup.close(5)
        again.backup._progress.not_before = float("-inf")  # the pause is over
        again.backup._step()
        assert again.backup.status().trouble == status.UNREACHABLE
    again.backup._progress.not_before = float("-inf")
    again.backup._step()
    assert again.backup.status().trouble is None and again.backup.status().minutes == 0
    assert sorted(path.name for path in target.iterdir()) == ["blobs", "snapshots"]


def test_after_a_failure_a_try_that_only_reads_does_not_end_the_trouble(folder, monkeypatch):
    """Until the next snapshot was due, half an interval later, "ok" was shown."""
    folder.backup.settings = folder.settings.with_values(backup={"interval": 60})
    cast(folder.store)
    monkeypatch.setattr(folder.store, "copy_to", deaf)
    for _ in range(2):
        folder.backup._progress.not_before = float("-inf")
        folder.backup._step()
        assert folder.backup.status().trouble == status.LATE


def test_a_target_that_never_answers_keeps_neither_the_start_nor_the_end_nor_is_it_overwritten(
    folder, tmp_path, url, monkeypatch
):
    """An empty database that took the place of the snapshots would have been what the next start restores."""
    cast(folder.store)
    folder.save()
    settings = folder.settings.with_values(data_dir=tmp_path / "second")
    backup, over = Backup(settings), threading.Event()
    monkeypatch.setattr(Target, "list", lambda *_: over.wait(20) and {})
    began = time.monotonic()
    backup.restore(patience=0.2)
    store = Store(settings.database)
    backup.start(store)
    cast(store)
    assert time.monotonic() - began < 5 and backup.status().trouble == status.UNREAD
    assert backup.close(5)
    over.set()
    monkeypatch.undo()
    assert rows(Folder(tmp_path / "third", url).settings.database) == rows(folder.settings.database)


def test_the_end_waits_for_a_hanging_target_only_so_long(folder, monkeypatch):
    cast(folder.store)
    over = threading.Event()
    monkeypatch.setattr(folder.backup.target.files, "pipe_file", lambda *_: over.wait(20))
    folder.backup._thread = threading.Thread(target=folder.backup._run, daemon=True)
    folder.backup._thread.start()
    began = time.monotonic()
    assert not folder.backup.close(0.3) and time.monotonic() - began < 3
    over.set()


def test_another_folders_snapshots_are_left_alone(folder, target, url, tmp_path):
    """Two apps with one URL would have removed each other's."""
    cast(folder.store)
    folder.save()
    other = Folder(tmp_path / "other", (tmp_path / "elsewhere").as_uri())
    cast(other.store, "b")
    other.backup.target = Target(url)
    assert other.save().trouble == status.HELD and len(snapshots(target)) == 1


def test_of_two_apps_that_were_restored_from_the_same_snapshots_one_stops_to_save(folder, tmp_path, url, target):
    """Each would have removed blobs that the other's snapshots need."""
    cast(folder.store)
    folder.save()
    second = Folder(tmp_path / "second", url)
    cast(second.store, "b")
    assert second.save().trouble is None and len(snapshots(target)) == 2
    cast(folder.store)
    now = folder.save()
    assert now.trouble == status.SHARED and len(snapshots(target)) == 2
    assert now.held and now.changed and now.not_saved.values["time"] == manifest.moment_of(snapshots(target)[0].name)
    assert rows(Folder(tmp_path / "third", url).settings.database) == rows(second.settings.database)
    folder.store.close()
    again = Folder(folder.settings.data_dir, url)  # a start that does not look whether the other one has saved
    assert again.save().trouble == status.SHARED and len(snapshots(target)) == 2
    again.store.close()
    starting.mark_if_overtaken(folder.settings.data_dir, again.backup.target)  # as the app does
    again = Folder(folder.settings.data_dir, url)
    assert rows(again.settings.database) == rows(second.settings.database)
    cast(again.store)
    assert again.save().trouble is None and len(snapshots(target)) == 3


@pytest.mark.parametrize(
    ("url", "words"), [("s3://bucket/x", "s3fs"), ("nonsense://x", "nonsense"), ("hf://datasets/a/b", "hf://buckets")]
)
def test_a_url_that_cannot_be_used_is_explained(tmp_path, url, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # not installed
    monkeypatch.delitem(_registry, "s3", raising=False)  # as it is before a test has used it
    with pytest.raises(BadTarget, match=words):
        Backup(Settings(_env_file=None, data_dir=tmp_path, backup={"url": url}))


def test_the_copies_on_this_machine_are_private(folder, target):
    cast(folder.store)
    folder.save()
    assert target.stat().st_mode & 0o777 == 0o700 and (target / "blobs").stat().st_mode & 0o777 == 0o700


# -- what somebody has deleted


def test_snapshots_that_hold_what_was_deleted_go_within_the_hour(folder, target, url, monkeypatch):
    who = folder.store.annotator("somebody")
    row = duel(folder.store, who, text="a secret")
    folder.save()
    folder.store.delete_conversation(row["conversation"], who)
    folder.save()
    assert len(snapshots(target)) == 2  # the worker has not cleared the files yet
    folder.store.finish_erasures(folder.store.unfinished_erasures())
    folder.save()
    assert len(snapshots(target)) == 3 and archive.TAKEN_BACK_SECONDS <= 3600 - 2 * keeper.LONGEST_PAUSE
    later = time.time() + archive.TAKEN_BACK_SECONDS + 1
    monkeypatch.setattr(keeper.time, "time", lambda: later)
    folder.save()
    assert len(snapshots(target)) == 1 and newest(target).erased == 1
    assert blobs(target) == newest(target).blobs().keys()


def test_what_was_deleted_does_not_come_back_with_an_older_snapshot(folder, target, url, tmp_path):
    store = folder.store
    deleter, leaver, refuser = (store.annotator(name) for name in ("deleter", "leaver", "refuser"))
    gone = duel(store, deleter, text="secret one")
    kept = duel(store, deleter, text="hello")
    duel(store, leaver, text="secret two")
    duel(store, refuser, text="not for training")
    folder.save()
    store.delete_conversation(gone["conversation"], deleter)
    store.forget(leaver)
    store.allow_training(refuser, False)
    folder.save()
    torn_blob(target)
    second = Folder(tmp_path / "second", url).store
    texts = {row["text"] for row in second.rows("select text from message where role = 'user'")}
    assert texts == {"", "hello", "not for training"} and second.duel(kept["id"])
    assert second.person(refuser)["allow_training"] == 0 and len(second.unfinished_erasures()) == 3
    assert second.annotator("leaver") != leaver


def test_a_store_without_a_backup_has_no_word_of_it(tmp_path):
    assert Settings(_env_file=None, data_dir=tmp_path).backup.url == ""
    assert json.loads(json.dumps(Settings(_env_file=None).flat("json")))["backup.keep"] == 20


def test_a_target_says_what_it_cannot_do(tmp_path):
    with pytest.raises(TargetUnavailable):
        Target((tmp_path / "none").as_uri()).read("x")
    assert Target((tmp_path / "none").as_uri()).list("x") == {}
