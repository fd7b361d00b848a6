"""Bring the newest snapshot back into a data folder. One whose database is torn or was tampered with is left out for
the one before it. A version that is damaged is left out of its snapshot: votes are worth more than a version.

What is in the way is moved into a folder of its own, `before-restore-…`, and stays there.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from playground.backup import identity, manifest
from playground.backup.archive import Archive, Damaged
from playground.backup.manifest import Manifest
from playground.store import Store, snapshots
from playground.store.snapshots import Erasure

log = logging.getLogger(__name__)

PARTIAL = ".restore.partial"  # a folder in the data folder
ASIDE = "before-restore-"  # how the name of a folder begins in which is what was in the way
FOLDERS = ("adapters/v*", "rounds/*")  # of which snapshots have files
CHECKPOINT_SECONDS = 5.0


@dataclass(frozen=True)
class Restored:
    """The name of the snapshot that was restored, those of newer ones whose database was damaged, and the folders of
    the snapshot that were left out.
    """

    name: str
    damaged: tuple[str, ...]
    left_out: tuple[str, ...]


def restore_newest(archive: Archive, data_dir: Path, database: Path) -> Restored | None:
    """Restore the newest snapshot whose database is whole; None where none is. TargetUnavailable where it cannot be
    read, StoreError where its database cannot be opened; then everything in the data folder is as it was.

    The database is put in its place last, and is complete then: a restore that was cut off begins again.
    """
    partial = data_dir / PARTIAL
    try:
        return _restore_newest(archive, data_dir, database, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _restore_newest(archive: Archive, data_dir: Path, database: Path, partial: Path) -> Restored | None:
    damaged: list[str] = []
    newer: list[Manifest] = []
    for name, snapshot in reversed(archive.snapshots.items()):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            if snapshot is None:
                raise Damaged("its manifest is torn or was altered")
            left_out = _fetch(archive, snapshot, partial, database.name)
        except Damaged as error:
            log.error("the snapshot of %s is left out: %s", manifest.moment_of(name, with_seconds=True), error)
            damaged.append(name)
            newer += [snapshot] if snapshot else []
            continue
        _bring_up_to_date(partial / database.name, newer)
        _clear_the_way(snapshot, data_dir, database)
        left_out = [folder for folder in left_out if not (data_dir / folder).exists()]  # one that is there is right
        _move(snapshot, partial, data_dir, database)
        log.info("the snapshot of %s is restored", manifest.moment_of(name, with_seconds=True))
        return Restored(name, tuple(damaged), tuple(left_out))
    return None


def _fetch(archive: Archive, snapshot: Manifest, folder: Path, database: str) -> list[str]:
    """All files of a snapshot into a new folder; returns the folders that are damaged and left out. Damaged where the
    database is.
    """
    folder.mkdir(mode=0o700)
    if database not in {file.path for file in snapshot.files}:
        raise Damaged("it has no database")
    left_out: list[str] = []
    for file in sorted(snapshot.files, key=lambda file: file.path != database):  # the database first
        own_folder = os.path.dirname(file.path)
        if own_folder in left_out:
            continue
        destination = folder / file.path
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            archive.get(file, destination)
            if file.path == database and not snapshots.is_sound(destination):
                raise Damaged("its database is no sound one")
        except Damaged as error:
            if file.path == database:
                raise
            log.error("%s is left out: %s", own_folder, error)
            left_out.append(own_folder)
            shutil.rmtree(destination.parent)
    return left_out


def _bring_up_to_date(database: Path, newer: Iterable[Manifest]) -> None:
    """Take back in a fetched database what newer snapshots say was taken back since, and begin its round again."""
    erasures: dict[int, Erasure] = {}
    revoked: set[int] = set()
    for snapshot in newer:
        erasures |= {erasure.id: erasure for erasure in snapshot.erasures}
        revoked |= set(snapshot.revoked)
    store = Store(database)
    store.restart_running_round()
    store.erase_again([erasures[number] for number in sorted(erasures)])
    store.revoke_again(revoked)
    store.scrub(CHECKPOINT_SECONDS)  # everything is in the one file then
    store.close()


# -- what is in the way


def set_aside(data_dir: Path, database: str) -> list[Path]:
    """The folders with a database that was in the way of a restore."""
    return sorted(file.parent for file in data_dir.glob(f"{ASIDE}*/{database}"))


def _clear_the_way(snapshot: Manifest, data_dir: Path, database: Path) -> None:
    """Move a database that is there, and versions and rounds that are not the snapshot's, into a folder of their own. A
    later round would take a version that the restored database does not know for its own.
    """
    aside = data_dir / f"{ASIDE}{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%fZ')}"
    for folder in sorted(folder for pattern in FOLDERS for folder in data_dir.glob(pattern)):
        if not _is_as_in(snapshot, folder, data_dir):
            _move_aside(folder, data_dir, aside)
    if database.exists():
        snapshots.fold_log(database)  # what is in its log goes with it
        for rest in ("-wal", "-shm", ""):
            file = Path(f"{database}{rest}")
            if file.exists():
                _move_aside(file, data_dir, aside)
    for rest in ("-wal", "-shm"):  # of a database that is gone: SQLite would write that log into the one that comes
        Path(f"{database}{rest}").unlink(missing_ok=True)


def _is_as_in(snapshot: Manifest, folder: Path, data_dir: Path) -> bool:
    """Whether the snapshot has files of this folder, and all of them are there as it has them."""
    name = folder.relative_to(data_dir).as_posix()
    files = [file for file in snapshot.files if os.path.dirname(file.path) == name]
    try:
        return bool(files) and all(
            hashlib.sha256((data_dir / file.path).read_bytes()).hexdigest() == file.sha256 for file in files
        )
    except OSError:
        return False


def _move_aside(path: Path, data_dir: Path, aside: Path) -> None:
    place = aside / path.relative_to(data_dir)
    aside.mkdir(mode=0o700, exist_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, place)
    log.warning("%s is not of the snapshot and is kept in %s", path.relative_to(data_dir), aside.name)


def _move(snapshot: Manifest, folder: Path, data_dir: Path, database: Path) -> None:
    """Put what was fetched in its place, the database last."""
    for file in snapshot.files:
        if file.path != database.name and (folder / file.path).exists():
            place = data_dir / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder / file.path, place)
    identity.write(data_dir, snapshot.owner)
    os.sync()  # what the database names is on disk before the database is
    os.replace(folder / database.name, database)
