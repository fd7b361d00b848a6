"""Bring the newest whole snapshot back into an empty data folder. One that is torn or was tampered with is left out for
the one before it.
"""

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from playground.backup import manifest
from playground.backup.archive import Archive, Damaged
from playground.backup.manifest import Manifest
from playground.store import snapshots
from playground.store.snapshots import Erasure

log = logging.getLogger(__name__)

PARTIAL = ".restore.partial"  # a folder in the data folder


@dataclass(frozen=True)
class Restored:
    """The snapshot that was restored, its name, the names of newer ones that were damaged, and the erasures that any
    of them speaks of.
    """

    snapshot: Manifest
    name: str
    damaged: tuple[str, ...]
    erasures: tuple[Erasure, ...]


def restore_newest(archive: Archive, data_dir: Path, database: Path) -> Restored | None:
    """Restore the newest snapshot that is whole; None where none is. TargetUnavailable where it cannot be read.

    The database is put in its place last, so a restore that was cut off begins again at the next start.
    """
    damaged: list[str] = []
    erasures: list[Erasure] = []
    for name, snapshot in reversed(archive.snapshots.items()):
        partial = data_dir / PARTIAL
        shutil.rmtree(partial, ignore_errors=True)
        try:
            if snapshot is None:
                raise Damaged("its manifest is torn or was altered")
            _fetch(archive, snapshot, partial, database.name)
        except Damaged as error:
            log.error("the snapshot of %s is left out: %s", manifest.moment_of(name), error)
            damaged.append(name)
            erasures = [*(snapshot.erasures if snapshot else ()), *erasures]
            continue
        _move(snapshot, partial, data_dir, database)
        log.info("the snapshot of %s is restored", manifest.moment_of(name))
        return Restored(snapshot, name, tuple(damaged), tuple(erasures))
    return None


def _fetch(archive: Archive, snapshot: Manifest, folder: Path, database: str) -> None:
    """All files of a snapshot into a new folder."""
    folder.mkdir(mode=0o700, parents=True)
    if database not in {file.path for file in snapshot.files}:
        raise Damaged("it has no database")
    for file in snapshot.files:
        destination = folder / file.path
        destination.parent.mkdir(parents=True, exist_ok=True)
        archive.get(file, destination)
    if not snapshots.is_sound(folder / database):
        raise Damaged("its database is no sound one")


def _move(snapshot: Manifest, folder: Path, data_dir: Path, database: Path) -> None:
    """Put what was fetched in its place, the database last."""
    for file in snapshot.files:
        if file.path != database.name:
            place = data_dir / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder / file.path, place)
    for rest in ("-wal", "-shm"):  # of a database that was here: SQLite would write that log into the one that comes
        Path(f"{database}{rest}").unlink(missing_ok=True)
    os.sync()  # what the database names is on disk before the database is
    os.replace(folder / database.name, database)
    shutil.rmtree(folder)
