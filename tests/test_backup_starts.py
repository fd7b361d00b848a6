"""Starts with a backup: after one that could not restore, with an old database in the way, and beside another app."""

import threading

import pytest

from app import CannotStart, start_backup
from playground.backup import Backup, keeper, manifest, starting, status
from playground.backup.restore import ASIDE
from playground.backup.target import Target, TargetUnavailable, within
from playground.store import Store
from tests.backups import Folder, adapter, deaf, newest, rows, snapshots, torn_blob
from tests.backups import folder as folder
from tests.backups import target as target
from tests.backups import url as url
from tests.stores import cast


def saved(folder):
    """The rows of a folder that was saved after three votes."""
    for _ in range(3):
        cast(folder.store)
    folder.save()
    return rows(folder.settings.database)


def start_deaf(path, url, monkeypatch):
    """A start that cannot read the target."""
    with monkeypatch.context() as patch:
        patch.setattr(Target, "list", lambda *_: (_ for _ in ()).throw(TargetUnavailable("no route to host")))
        return Folder(path, url, patience=0.1)


def aside(path):
    return sorted(path.glob(f"{ASIDE}*"))


def lose_database(folder):
    folder.store.close()
    for file in folder.settings.data_dir.glob("nudge.db*"):
        file.unlink()


# -- a start that did not restore


def test_after_a_failed_restore_the_next_start_restores_and_the_empty_database_never_takes_its_place(
    folder, url, target, monkeypatch
):
    """The database was lost and `backup.json` was not: the next start took the empty database for the one that was
    saved, and after `backup.keep` snapshots of it the good ones were gone.
    """
    before = saved(folder)
    lose_database(folder)
    data_dir = folder.settings.data_dir
    empty = start_deaf(data_dir, url, monkeypatch)
    assert (data_dir / starting.PENDING).exists() and empty.save().trouble == status.UNREAD
    empty.store.close()
    second = Folder(data_dir, url)
    assert rows(second.settings.database) == before and not (data_dir / starting.PENDING).exists()
    cast(second.store)
    assert second.save().trouble is None and len(snapshots(target)) == 2


def test_votes_of_a_start_that_could_not_restore_are_kept_beside(folder, url, tmp_path, monkeypatch):
    """A new folder whose start could not restore was another folder's ever after: held, whatever was restarted."""
    before = saved(folder)
    path = tmp_path / "second"
    held = start_deaf(path, url, monkeypatch)
    cast(held.store, "tie")
    held.save()
    meanwhile = rows(held.settings.database)
    held.store.close()
    again = Folder(path, url)
    [kept] = aside(path)
    assert rows(path / "nudge.db") == before and rows(kept / "nudge.db") == meanwhile != before
    assert kept.stat().st_mode & 0o777 == 0o700
    [notice] = again.backup.status().notices
    assert notice.values["folder"] == kept.name
    again.store.close()
    assert Folder(path, url).backup.status().notices == (notice,)  # until somebody has removed it


def test_a_start_that_still_cannot_restore_goes_on_with_what_people_did(folder, url, tmp_path, monkeypatch):
    saved(folder)
    held = start_deaf(tmp_path / "second", url, monkeypatch)
    cast(held.store, "tie")
    meanwhile = rows(held.settings.database)
    held.store.close()
    again = start_deaf(tmp_path / "second", url, monkeypatch)
    assert rows(again.settings.database) == meanwhile and again.save().trouble == status.UNREAD


def test_a_first_start_whose_empty_target_was_not_reached_is_saved_from_the_next_one_on(
    url, tmp_path, target, monkeypatch
):
    held = start_deaf(tmp_path / "second", url, monkeypatch)
    cast(held.store)
    held.store.close()
    again = Folder(tmp_path / "second", url)
    assert again.save().trouble is None and len(snapshots(target)) == 1 and aside(tmp_path / "second") == []


def test_a_disk_that_is_not_mounted_is_no_empty_backup(folder, tmp_path, url, target):
    """It was read as a backup without snapshots, and a new one was begun below the place for the disk."""
    unmounted = Folder(tmp_path / "second", (tmp_path / "mnt" / "nudge").as_uri(), patience=1.0)
    cast(unmounted.store)
    assert unmounted.save().trouble == status.UNREAD and not (tmp_path / "mnt").exists()
    before = saved(folder)
    lose_database(folder)
    target.rename(tmp_path / "elsewhere")  # the folder above it is there, as an empty mount point is
    gone = Folder(folder.settings.data_dir, url)
    cast(gone.store)
    assert gone.save().trouble == status.GONE and not target.exists()
    gone.store.close()
    (tmp_path / "elsewhere").rename(target)
    assert rows(Folder(folder.settings.data_dir, url).settings.database) == before


def test_a_target_that_hangs_in_the_middle_of_a_restore_keeps_no_start(folder, url, tmp_path, monkeypatch):
    """The page said "reading the backup" for ever."""
    before = saved(folder)
    over, read = threading.Event(), Target.read
    monkeypatch.setattr("playground.backup.archive.READ_PATIENCE", 0.2)
    monkeypatch.setattr(
        Target, "read", lambda self, name: read(self, name) if "snap" in name else over.wait(20) and b""
    )
    held = Folder(tmp_path / "second", url)
    over.set()
    assert held.backup.status().trouble == status.UNREAD
    held.store.close()
    monkeypatch.undo()
    assert rows(Folder(tmp_path / "second", url).settings.database) == before


def test_a_data_folder_that_a_restore_makes_is_private(folder, url, tmp_path):
    saved(folder)
    second = Folder(tmp_path / "second", url)
    assert second.settings.data_dir.stat().st_mode & 0o777 == 0o700
    assert second.settings.database.stat().st_mode & 0o777 == 0o600


def test_a_data_folder_that_cannot_be_written_ends_the_start(folder, url, tmp_path):
    saved(folder)
    (tmp_path / "second").write_text("a file")
    with pytest.raises(starting.FolderNotWritable, match="File exists"):
        Folder(tmp_path / "second", url)


# -- what is damaged in part


def blob_of(folder_path, name):
    """The blob of a small file of the newest snapshot."""
    [file] = [file for file in newest(folder_path).files if file.path == name]
    [chunk] = file.chunks
    return folder_path / "blobs" / chunk.sha256


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_rotten_version_costs_that_version_and_no_vote(folder, url, target, tmp_path):
    """All snapshots share an old version's parts, so one bad part made all of them useless."""
    for number in (1, 2):
        adapter(folder, number, b"weights of %d" % number)
    saved(folder)
    cast(folder.store, "b")
    folder.save()
    flip(blob_of(target, "adapters/v0001/adapter_model.safetensors"))
    second = Folder(tmp_path / "second", url)
    assert rows(second.settings.database) == rows(folder.settings.database)
    assert [path.name for path in second.settings.adapters_dir.iterdir()] == ["v0002"]
    [notice] = second.backup.status().notices
    assert notice.values["folders"] == "adapters/v0001"
    assert second.save().trouble is None


def test_a_rotten_version_that_is_on_the_disk_is_not_missing(folder, url, target):
    adapter(folder, 1)
    saved(folder)
    flip(blob_of(target, "adapters/v0001/adapter_model.safetensors"))
    lose_database(folder)
    again = Folder(folder.settings.data_dir, url)
    assert (again.settings.adapters_dir / "v0001" / "manifest.json").exists()
    assert again.backup.status().notices == () and aside(folder.settings.data_dir) == []


def test_a_part_that_was_altered_is_found_and_written_again(folder, url, target, tmp_path):
    """Its size was all that was looked at, so each later snapshot relied on it."""
    adapter(folder, 1)
    saved(folder)
    path = blob_of(target, "adapters/v0001/adapter_model.safetensors")
    right = path.read_bytes()
    flip(path)
    folder.store.close()
    again = Folder(folder.settings.data_dir, url)
    again.save()
    for _ in range(len(newest(target).blobs())):
        again.backup._step()
    again.save()
    assert path.read_bytes() == right and Folder(tmp_path / "second", url).backup.status().notices == ()


# -- what somebody took back


def test_what_was_taken_back_by_somebody_whom_the_older_snapshot_does_not_know_is_no_error(
    folder, url, target, tmp_path
):
    """The start ended with an IntegrityError; the next one found a database, and the other erasures were never made."""
    store = folder.store
    deleter = store.annotator("deleter")
    row = cast(store, who=deleter)
    folder.save()
    newcomer = store.annotator("newcomer")
    cast(store, who=newcomer)
    store.forget(newcomer)
    store.delete_conversation(row["conversation"], deleter)
    folder.save()
    torn_blob(target)
    second = Folder(tmp_path / "second", url).store
    assert second.row("select deleted from conversation where id = ?", row["conversation"])["deleted"]
    assert second.person(newcomer) is None and len(second.unfinished_erasures()) == 1


def test_a_revoked_key_does_not_work_again_after_an_older_snapshot(folder, url, target, tmp_path):
    store = folder.store
    person = store.add_key("robot", "key one")
    store.add_key("other", "key two")
    folder.save()
    store.revoke_keys(person)
    folder.save()
    torn_blob(target)
    second = Folder(tmp_path / "second", url).store
    assert second.person_of_key("key one") is None and second.person_of_key("key two") is not None


def test_a_start_that_is_cut_off_leaves_no_database_in_which_something_is_not_taken_back(
    folder, url, target, tmp_path, monkeypatch
):
    """The database came first and the erasures after it, in another step of the start."""
    store, path = folder.store, tmp_path / "second"
    deleter = store.annotator("deleter")
    row = cast(store, who=deleter)
    folder.save()
    store.delete_conversation(row["conversation"], deleter)
    folder.save()
    torn_blob(target)
    with monkeypatch.context() as patch:
        patch.setattr("playground.store.Store.erase_again", deaf)  # as where the process ends there
        empty = Folder(path, url).store
    assert empty.rows("select id from message") == []
    empty.close()
    second = Folder(path, url).store
    assert second.row("select deleted from conversation where id = ?", row["conversation"])["deleted"]


# -- versions in the way


def test_versions_of_a_lost_database_are_kept_beside_and_the_snapshots_own_stay(folder, url, tmp_path):
    """The next round that got a number of theirs failed at its end."""
    adapter(folder, 1)
    saved(folder)
    for version in (1, 2):
        adapter(Folder(tmp_path / "other", (tmp_path / "elsewhere").as_uri()), version, b"other %d" % version)
    lose_database(folder)
    adapter(folder, 2, b"lost")
    inode = (folder.settings.adapters_dir / "v0001").stat().st_ino
    (folder.settings.rounds_dir / "0002").mkdir(parents=True)
    (folder.settings.rounds_dir / "0002" / "log.txt").write_text("lost")
    second = Folder(folder.settings.data_dir, url)
    [kept] = aside(folder.settings.data_dir)
    assert [path.name for path in second.settings.adapters_dir.iterdir()] == ["v0001"]
    assert (second.settings.adapters_dir / "v0001").stat().st_ino == inode
    assert (kept / "adapters" / "v0002" / "manifest.json").read_bytes() == b"lostmanifest.json"
    assert (kept / "rounds" / "0002" / "log.txt").read_text() == "lost"
    assert second.backup.status().notices == ()


# -- another app, a full disk


def test_an_app_that_was_overtaken_while_it_started_ends_and_its_next_start_has_everything(
    folder, url, target, tmp_path
):
    """In a rolling deployment the old app saves at its end what the new one does not have: the new one saved nothing
    any more, and the old one's last votes were in no database that anybody used.
    """
    saved(folder)
    settings = folder.settings.with_values(data_dir=tmp_path / "second")
    new = Backup(settings)
    new.restore()
    store = Store(settings.database)
    cast(folder.store, "b")
    folder.save()
    with pytest.raises(CannotStart, match="restores the newest snapshot"):
        start_backup(new, store)
    store.close()
    assert new.close(1) and len(snapshots(target)) == 2
    again = Folder(tmp_path / "second", url)
    assert rows(again.settings.database) == rows(folder.settings.database) and not again.backup.is_behind()


def test_a_start_goes_on_where_nobody_knows_whether_it_was_overtaken(folder, url, tmp_path, monkeypatch):
    saved(folder)
    second = Folder(tmp_path / "second", url)
    monkeypatch.setattr(second.backup.target.files, "ls", deaf)
    assert not second.backup.is_behind(1.0)


def test_a_copy_that_would_fill_the_disk_is_not_made(folder, target, monkeypatch):
    """It took the room that the next votes needed."""
    saved(folder)
    size = folder.settings.database.stat().st_size
    free = [size + keeper.RESERVE_BYTES]
    monkeypatch.setattr(keeper.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free[0]}))
    cast(folder.store)
    assert folder.save().trouble == status.FULL and len(snapshots(target)) == 1  # its log is copied too
    assert not (folder.settings.data_dir / keeper.COPY).exists()
    free[0] += 64 << 20
    assert folder.save().trouble is None and len(snapshots(target)) == 2


def test_an_answer_that_does_not_come_is_an_error():
    over = threading.Event()
    assert within(5, lambda: 7) == 7
    with pytest.raises(TargetUnavailable, match="no answer within"):
        within(0.05, lambda: over.wait(20))
    with pytest.raises(OSError, match="no route"):
        within(5, deaf)
    over.set()


def test_a_manifest_of_before_revoked_keys_is_read(folder, target):
    saved(folder)
    content = snapshots(target)[-1].read_bytes().replace(b', "revoked": []', b"")
    name = f"20261127T190806123Z-{manifest.digest(content)[:16]}.json"
    assert b"revoked" not in content and manifest.loads(name, content).revoked == ()
