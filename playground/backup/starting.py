"""A start with a backup: whether the database in the data folder goes on from what is in the backup, and the restore
where there is none.

The file `restore-pending` says that it does not: it is there from before a restore until that has succeeded. While it
is there nothing is saved, and each start tries the restore again. Where it says COPY, the database in the folder is an
older snapshot in which nothing was recorded, and is not kept.
"""

import logging
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

from playground.backup import identity, manifest
from playground.backup.archive import SNAPSHOTS, Archive
from playground.backup.restore import Restored, restore_newest, set_aside
from playground.backup.status import GONE, UNREAD
from playground.backup.target import Target, TargetUnavailable, within
from playground.settings import Settings
from playground.store import StoreError
from playground.system.messages import Message, UserFacingError

log = logging.getLogger(__name__)

PENDING = "restore-pending"
COPY = "copy"
FIRST_PAUSE = 2.0  # seconds after a target that did not answer; each further one doubles it
PATIENCE = 15.0  # seconds that the target has to say whether another server has saved meanwhile


class FolderNotWritable(UserFacingError):
    """Nothing can be written to the data folder."""


@dataclass
class Start:
    """How a start went. `held`: why nothing may be saved. `known`: the names of the snapshots that were restored from;
    None where none was restored. `checked`: hashes of the blobs that were read and found right.
    """

    held: Message | None = None
    notices: list[Message] = field(default_factory=list)
    known: set[str] | None = None
    checked: set[str] = field(default_factory=set)


def begin(settings: Settings, target: Target, patience: float) -> Start:
    """Where there is no database that goes on from the backup, restore the newest snapshot. Whatever fails leaves the
    folder as it was, and nothing is saved then. `patience`: seconds that the target has for its first answer.
    """
    data_dir = settings.data_dir
    start = Start()
    pending = data_dir / PENDING
    if not settings.database.exists() or pending.exists():
        is_copy = pending.exists() and pending.read_text() == COPY
        kept_before = set_aside(data_dir, settings.database.name)
        mark(data_dir, is_copy)
        try:
            _restore(settings, target, patience, start)
        except (TargetUnavailable, OSError, StoreError) as error:
            log.error("no snapshot could be restored: %s", error)
            start.held = UNREAD
        except Exception:  # a mistake of ours: the chat goes on, and the snapshots stay
            log.exception("no snapshot could be restored")
            start.held = UNREAD
        if start.held is None:
            pending.unlink()
            for folder in set_aside(data_dir, settings.database.name) if is_copy else []:
                if folder not in kept_before:
                    shutil.rmtree(folder, ignore_errors=True)
    start.notices += [_kept(folder) for folder in set_aside(data_dir, settings.database.name)]
    return start


def mark(data_dir: Path, is_copy: bool = False) -> None:
    """Have the next start restore, whatever database it finds. `is_copy`: that is one in which nothing was recorded."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data_dir / PENDING).touch(mode=0o600)
        (data_dir / PENDING).write_text(COPY if is_copy else "")
    except OSError as error:
        raise FolderNotWritable(
            "Nothing can be written to the data folder {folder}: {error}.",
            folder=str(data_dir),
            error=error.strerror or type(error).__name__,
        ) from None


def mark_if_overtaken(data_dir: Path, target: Target, patience: float = PATIENCE) -> None:
    """Have the next start restore where another server has saved since the database here was used, and has ended. Where
    the target does not say so within `patience` seconds, the keeper looks again before it saves.
    """
    base = identity.base_of(data_dir)
    if not base or (data_dir / PENDING).exists():
        return
    try:
        names = within(patience, lambda: manifest.names(target.list(SNAPSHOTS)))
    except TargetUnavailable as error:
        log.warning("whether another server has saved meanwhile is not known: %s", error)
        return
    if not names or max(names) in base:  # as nearly always; no manifest is read then
        return
    archive = _reached(target, patience, set())
    if archive and is_overtaken(data_dir, archive):
        log.warning("another server has saved since this data folder was used; its newest snapshot is restored")
        mark(data_dir)


def is_overtaken(data_dir: Path, archive: Archive) -> bool:
    """Whether the newest snapshot is of this folder's content, and newer than what the database here goes on from."""
    base, newest = identity.base_of(data_dir), archive.newest
    if not base or newest is None or newest.owner != identity.of(data_dir):
        return False
    return newest.name() not in base and newest.name() > base[0]


def _restore(settings: Settings, target: Target, patience: float, start: Start) -> None:
    archive = _reached(target, patience, start.checked)
    if archive is None:
        start.held = UNREAD
    elif archive.snapshots:
        restored = restore_newest(archive, settings.data_dir, settings.database)
        if restored is None:
            start.held = UNREAD
            return
        start.known = set(archive.snapshots)
        identity.write_base(settings.data_dir, [max(archive.snapshots)])
        start.notices += _what_is_missing(restored)
    elif identity.exists(settings.data_dir):
        start.held = GONE


def _what_is_missing(restored: Restored) -> list[Message]:
    notices = []
    if restored.damaged:
        notices.append(
            Message(
                "The newest snapshot, of {newest}, was damaged. That of {time} was restored; what came after it is "
                "lost.",
                newest=manifest.moment_of(restored.damaged[0], with_seconds=True),
                time=manifest.moment_of(restored.name, with_seconds=True),
            )
        )
    if restored.left_out:
        notices.append(
            Message(
                "The backup was damaged in part. The database was restored, without the files of {folders}.",
                folders=", ".join(restored.left_out),
            )
        )
    return notices


def _kept(folder: Path) -> Message:
    return Message(
        "A database that was here before the backup was restored is kept in {folder} of the data folder. Export and "
        "import its votes if they matter, then remove it.",
        folder=folder.name,
    )


def _reached(target: Target, patience: float, checked: set[str]) -> Archive | None:
    """What is in the target; None where that is not known after `patience` seconds. The target may never answer, so it
    is asked in another thread.
    """
    archives: list[Archive] = []
    given_up = threading.Event()

    def ask() -> None:
        pause = FIRST_PAUSE
        while not given_up.is_set():
            try:
                archives.append(Archive(target, checked))
                return
            except TargetUnavailable as error:
                log.warning("the backup cannot be read; trying again in %.0f s: %s", pause, error)
            given_up.wait(pause)
            pause *= 2

    asking = threading.Thread(target=ask, name="backup-start", daemon=True)
    asking.start()
    asking.join(patience)
    given_up.set()
    return archives[0] if archives else None
