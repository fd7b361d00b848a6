"""When snapshots are made: a thread looks whether the database has changed, makes one at most every `backup.interval`
seconds and one at the end, and tries again with growing pauses where the target does not answer.

Snapshots of another data folder, as `identity.py` tells them, are left alone.
"""

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from playground.backup import identity, manifest, starting
from playground.backup.archive import SNAPSHOTS, Archive
from playground.backup.lease import Lease
from playground.backup.manifest import LARGEST_CHUNK, File, Manifest
from playground.backup.status import FULL, HELD, LATE, SHARED, UNREACHABLE, Status
from playground.backup.target import Target, TargetUnavailable, within
from playground.settings import Settings
from playground.store import Store, StoreError
from playground.system.messages import Message
from playground.system.safe_logging import describe_error

log = logging.getLogger(__name__)

POLL = 0.5  # seconds between two looks whether the database has changed
PRUNE = 60.0  # seconds between two looks for snapshots that are to be removed
FIRST_PAUSE = 2.0  # seconds after a failure; each further one doubles it
LONGEST_PAUSE = 300.0  # seconds
PATIENCE_AT_START = 60.0  # seconds that a start with an empty data folder waits for the target
PATIENCE_AT_END = 15.0  # seconds that the end waits for the last snapshot
DATABASE_CHUNK = 1 << 18  # bytes; a vote changes a page in each of a dozen places
COPY = ".backup.partial"  # a file in the data folder
RESERVE_BYTES = 64 << 20  # of the disk that a copy leaves free: votes come first
# what is kept beside the database, once it is whole: the versions, and what the page shows of a round
KEPT = ("adapters/v*/*", "rounds/*/gate.json", "rounds/*/log.txt")


class NoRoom(Exception):
    """A copy of the database would fill the disk."""


@dataclass
class _Progress:
    """What the thread has done, in seconds of the monotonic clock."""

    saved: float | None = None  # the database was last known to be in the target as it was then
    changed: float | None = None  # when a change was first seen that is not saved yet
    began: float = float("-inf")  # the last snapshot
    took: float = 0.0  # seconds
    snapshot: str = ""  # when it was made, in words
    state: str | None = None  # `Store.state` as it was saved
    pruned: float = float("-inf")  # old snapshots were last looked for
    pause: float = 0.0  # seconds after the last failure; 0 where there was none
    not_before: float = float("-inf")
    trouble: Message | None = None
    files: dict[Path, tuple[tuple[int, int], File]] = field(default_factory=dict)  # with size and time


# what the page says of an error
TROUBLE: dict[type[Exception], Message] = {TargetUnavailable: UNREACHABLE, NoRoom: FULL}


class Backup:
    """Keeps snapshots of the data folder at `backup.url`. `restore` before the store is opened, `start` after.

    BadTarget where nothing can be kept at this URL.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.target = Target(settings.backup.url)
        self.lease: Lease | None = None  # of the servers that save there
        self._archive: Archive | None = None  # None after a failure: what is in the target is read again
        self._known: set[str] | None = None  # names of the snapshots that were there at the start, and of our own
        self._store: Store | None = None
        self._started = time.monotonic()
        self._notices: tuple[Message, ...] = ()
        self._held: Message | None = None  # why nothing is written in this process
        self._reads_only = False
        self._was_restored = False
        self._checked: set[str] = set()  # hashes of the blobs that are known to be right
        self._progress = _Progress()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="backup", daemon=True)

    # -- at the start

    def restore(self, patience: float = PATIENCE_AT_START) -> None:
        """Where there is no database that goes on from the backup, restore the newest snapshot. Where that fails, as
        where the target does not answer for `patience` seconds, nothing is written to it in this process.
        """
        start = starting.begin(self.settings, self.target, patience)
        (self.settings.data_dir / COPY).unlink(missing_ok=True)  # of a process that was killed
        self._held, self._notices = start.held, tuple(start.notices)
        self._known, self._checked = start.known, start.checked
        self._was_restored = start.known is not None

    @property
    def was_restored(self) -> bool:
        """Whether the database of this process is a snapshot."""
        return self._was_restored

    def is_behind(self, patience: float = PATIENCE_AT_END) -> bool:
        """Whether another app has saved a newer snapshot since this one was restored, as in a restart in which two apps
        overlap. Then the next start restores again.
        """
        if self._known is None:
            return False
        try:
            behind = bool(within(patience, lambda: manifest.names(self.target.list(SNAPSHOTS))) - self._known)
        except TargetUnavailable as error:
            log.warning("whether there is a newer snapshot is not known: %s", error)
            return False
        if behind:
            starting.mark(self.settings.data_dir)
        return behind

    def follow(self, why: Message) -> None:
        """Make no snapshots in this process from now on: another server records."""
        self._held = why
        self._reads_only = True

    def start(self, store: Store) -> None:
        """Begin to make snapshots of `store`."""
        self._store = store
        self._thread.start()

    # -- the page and the end

    def status(self) -> Status:
        """How it stands now. It asks nobody."""
        progress, now = self._progress, time.monotonic()
        minutes = None if progress.saved is None else int((now - progress.saved) / 60)
        trouble = self._held or progress.trouble
        if not trouble and progress.changed is not None and now - progress.changed > 2 * self._interval + 60:
            trouble = LATE
        held, changed = self._held is not None, progress.changed is not None
        return Status(minutes, progress.snapshot, trouble, self._notices, held, changed, self._reads_only)

    def age(self) -> float:
        """Seconds since the database was last known to be saved as it was; since the start where it is not saved yet.
        It is about 0 while nothing is done that is not saved.
        """
        saved = self._progress.saved
        return time.monotonic() - (self._started if saved is None else saved)

    def close(self, patience: float = PATIENCE_AT_END) -> bool:
        """Make a last snapshot, for at most `patience` seconds. Returns whether the thread has ended."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(patience)
            if self._thread.is_alive():
                log.warning("the last snapshot was not made within %.0f s", patience)
        return not self._thread.is_alive()

    # -- the thread

    @property
    def _interval(self) -> float:
        return self.settings.backup.interval

    def _run(self) -> None:
        self._step()  # at once, so that a target that cannot be written is shown before anybody votes
        while not self._stopping.wait(POLL):
            self._step()
        self._progress.not_before = self._progress.began = float("-inf")
        self._step()

    def _step(self) -> None:
        """Make a snapshot if one is due. Nothing is raised: a failure is shown, and tried again later."""
        progress, now = self._progress, time.monotonic()
        assert self._store is not None
        state = self._store.state()
        if state == progress.state:
            progress.saved, progress.changed = now, None
        elif progress.changed is None:
            progress.changed = now
        if self._held or now < progress.not_before:
            return
        try:
            if self._archive is None:
                self._archive = self._own_archive()
                if self._archive:  # also where there is nothing new to save
                    self.target.try_to_write()
            began_before = progress.began
            # so that a change is in the target `backup.interval` after it was made, and not only begins to go there
            due = progress.began + max(self._interval - POLL - 2 * progress.took, self._interval / 2)
            if self._archive and state != progress.state and now >= due:
                progress.began = now
                name = None if self._is_overtaken(self._archive) else self._snapshot(self._store, self._archive)
                if name is None:
                    return
                progress.snapshot = manifest.moment_of(name)
                progress.took = time.monotonic() - now
                progress.state, progress.saved, progress.changed = state, now, None
                progress.pruned = float("-inf")
            if self._archive and now - progress.pruned > PRUNE:
                self._prune(self._archive)
                progress.pruned = now
            is_idle = progress.began == began_before and not self._stopping.is_set()
            if self._archive and is_idle and not self._archive.check_next():
                progress.state = None  # so that there is a snapshot even if nothing else changes
            progress.trouble, progress.pause = None, 0.0
        except (TargetUnavailable, StoreError, NoRoom, OSError) as error:
            self._failed(error)
        except Exception as error:  # a mistake of ours is no reason to stop saving
            log.exception("a snapshot failed")
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        progress = self._progress
        self._archive = None
        progress.began = float("-inf")  # the next try is a whole one: until it succeeds, the trouble is shown
        progress.pause = min(2 * progress.pause, LONGEST_PAUSE) if progress.pause else FIRST_PAUSE
        progress.not_before = time.monotonic() + progress.pause
        progress.trouble = TROUBLE.get(type(error), LATE)
        log.warning("no snapshot was made; trying again in %.0f s: %s", progress.pause, describe_error(error))

    def _own_archive(self) -> Archive | None:
        """What is in the target; None where it is another data folder's: nothing is written then."""
        archive = Archive(self.target, self._checked)
        if archive.newest and archive.newest.owner != identity.of(self.settings.data_dir):
            self._hold(HELD)
        elif self._known is None and starting.is_overtaken(self.settings.data_dir, archive):
            self._hold(SHARED)
        self._known = set(archive.snapshots) if self._known is None else self._known
        return None if self._held or self._is_shared(archive) else archive

    def _is_shared(self, archive: Archive) -> bool:
        """Whether another app saves there too: each would remove what the other needs. Then this one stops."""
        if self._known is not None and archive.names_now() - self._known:
            self._hold(SHARED)
        return self._held is not None

    def _is_overtaken(self, archive: Archive) -> bool:
        """Whether another server saves there, or records, by now."""
        return self._is_shared(archive) or (self.lease is not None and self.lease.is_anothers_now())

    def _hold(self, why: Message) -> None:
        """Save nothing any more, and leave the lease to the server whose snapshots these are."""
        log.error("%s", why)
        self._held = why
        if self.lease:
            self.lease.give_up()

    def _snapshot(self, store: Store, archive: Archive) -> str | None:
        """Write the database, then the files that it speaks of, then the manifest, unless all is there already. Returns
        the snapshot's name; None where another server has taken over meanwhile.

        The files are read after the database: an erasure that is done in it is done in them.
        """
        copy = self.settings.data_dir / COPY
        copy.unlink(missing_ok=True)
        self._check_room()
        try:
            copied = store.copy_to(copy)
            files = [archive.put(copy, self.settings.database.name, DATABASE_CHUNK)]
        finally:
            copy.unlink(missing_ok=True)
        files += self._other_files(archive)
        newest = archive.newest
        if newest and newest.files == tuple(files):
            return newest.name()
        after = newest.taken + 0.001 if newest else 0.0  # also where the clock was set back
        taken = round(max(time.time(), after), 3)
        owner = identity.of(self.settings.data_dir)
        snapshot = Manifest(owner, taken, copied.done, copied.erasures, tuple(files), copied.revoked)
        if self._is_overtaken(archive):  # this process may have stood still since the snapshot began
            return None
        # before the manifest: a kill after it must not make the snapshot look like another server's
        identity.write_base(self.settings.data_dir, [newest.name() if newest else "", snapshot.name()])
        self._known = {*(self._known or ()), snapshot.name()}
        archive.add(snapshot)
        return snapshot.name()

    def _check_room(self) -> None:
        """NoRoom where a copy of the database and its log would leave less than the reserve."""
        database = self.settings.database
        files = (database, database.with_name(f"{database.name}-wal"))
        size = sum(file.stat().st_size for file in files if file.exists())
        free = shutil.disk_usage(self.settings.data_dir).free
        if free < size + RESERVE_BYTES:
            raise NoRoom(f"{free >> 20} MB are free, and the copy has up to {size >> 20} MB")

    def _other_files(self, archive: Archive) -> Iterator[File]:
        """The files beside the database. One that has not changed is not read again."""
        data_dir = self.settings.data_dir
        seen = self._progress.files
        for path in sorted(path for pattern in KEPT for path in data_dir.glob(pattern)):
            name = path.relative_to(data_dir).as_posix()
            if not manifest.PATH.fullmatch(name):
                continue
            try:
                status = path.stat()
                stamp = status.st_size, status.st_mtime_ns
                if path not in seen or seen[path][0] != stamp or not archive.has(seen[path][1]):
                    seen[path] = stamp, archive.put(path, name, LARGEST_CHUNK)
            except FileNotFoundError:  # an erasure has just removed it
                continue
            yield seen[path][1]

    def _prune(self, archive: Archive) -> None:
        removed = archive.prune(self.settings.backup.keep, time.time())
        if removed:
            log.info("snapshots removed: %d", removed)
