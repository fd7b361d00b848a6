"""When snapshots are made: a thread looks whether the database has changed, makes one at most every `backup.interval`
seconds and one at the end, and tries again with growing pauses where the target does not answer.

Snapshots of another data folder, as `identity.py` tells them, are left alone.
"""

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from playground.backup import identity, manifest
from playground.backup.archive import Archive
from playground.backup.manifest import LARGEST_CHUNK, File, Manifest
from playground.backup.restore import Restored, restore_newest
from playground.backup.status import HELD, LATE, SHARED, UNREACHABLE, UNREAD, Status
from playground.backup.target import Target, TargetUnavailable
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
# what is kept beside the database, once it is whole: the versions, and what the page shows of a round
KEPT = ("adapters/v*/*", "rounds/*/gate.json", "rounds/*/log.txt")


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


class Backup:
    """Keeps snapshots of the data folder at `backup.url`. `restore` before the store is opened, `start` after.

    BadTarget where nothing can be kept at this URL.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.target = Target(settings.backup.url)
        self._archive: Archive | None = None  # None after a failure: what is in the target is looked at anew
        self._known: set[str] | None = None  # names of the snapshots that were there at the start, and of our own
        self._store: Store | None = None
        self._notice: Message | None = None
        self._held: Message | None = None  # why nothing is written in this process
        self._restored: Restored | None = None
        self._progress = _Progress()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="backup", daemon=True)

    # -- at the start

    def restore(self, patience: float = PATIENCE_AT_START) -> None:
        """Where there is no database, restore the newest whole snapshot. A target that does not answer for `patience`
        seconds leaves the folder empty; then nothing is written to it in this process.
        """
        (self.settings.data_dir / COPY).unlink(missing_ok=True)  # of a process that was killed
        if self.settings.database.exists():
            return
        archive = self._reached(patience)
        try:
            if archive is None:
                self._held = UNREAD
            elif archive.snapshots:
                self._known = set(archive.snapshots)
                self._use(restore_newest(archive, self.settings.data_dir, self.settings.database))
        except (TargetUnavailable, OSError) as error:
            log.error("no snapshot could be restored: %s", error)
            self._held = UNREAD

    def _use(self, restored: Restored | None) -> None:
        if restored is None:
            self._held = UNREAD
            return
        self._restored = restored
        identity.write(self.settings.data_dir, restored.snapshot.owner)
        if restored.damaged:
            self._notice = Message(
                "The newest snapshot, of {newest}, was damaged. That of {time} was restored; what came after it is "
                "lost.",
                newest=manifest.moment_of(restored.damaged[0]),
                time=manifest.moment_of(restored.name),
            )

    def _reached(self, patience: float) -> Archive | None:
        """What is in the target; None where that is not known after `patience` seconds. The target may never answer, so
        it is asked in another thread.
        """
        found: list[Archive] = []
        given_up = threading.Event()

        def ask() -> None:
            pause = FIRST_PAUSE
            while not given_up.is_set():
                try:
                    found.append(Archive(self.target))
                    return
                except TargetUnavailable as error:
                    log.warning("the backup cannot be read; trying again in %.0f s: %s", pause, error)
                given_up.wait(pause)
                pause *= 2

        asking = threading.Thread(target=ask, name="backup-start", daemon=True)
        asking.start()
        asking.join(patience)
        given_up.set()
        return found[0] if found else None

    def start(self, store: Store) -> None:
        """Begin to make snapshots of `store`."""
        if self._restored:
            store.begin_round_anew()
            store.erase_again(self._restored.erasures)
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
        return Status(minutes, progress.snapshot, trouble, self._notice)

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
            # so that a change is in the target `backup.interval` after it was made, and not only begins to go there
            due = progress.began + max(self._interval - POLL - 2 * progress.took, self._interval / 2)
            if self._archive and state != progress.state and now >= due:
                progress.began = now
                if self._is_shared(self._archive):
                    return
                progress.snapshot = manifest.moment_of(self._snapshot(self._store, self._archive))
                progress.took = time.monotonic() - now
                progress.state, progress.saved, progress.changed = state, now, None
                progress.pruned = float("-inf")
            if self._archive and now - progress.pruned > PRUNE:
                self._prune(self._archive)
                progress.pruned = now
            progress.trouble, progress.pause = None, 0.0
        except (TargetUnavailable, StoreError, OSError) as error:
            self._failed(error)
        except Exception as error:  # a mistake of ours is no reason to stop saving
            log.exception("a snapshot failed")
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        progress = self._progress
        self._archive = None
        progress.pause = min(2 * progress.pause, LONGEST_PAUSE) if progress.pause else FIRST_PAUSE
        progress.not_before = time.monotonic() + progress.pause
        progress.trouble = UNREACHABLE if isinstance(error, TargetUnavailable) else LATE
        log.warning("no snapshot was made; trying again in %.0f s: %s", progress.pause, describe_error(error))

    def _own_archive(self) -> Archive | None:
        """What is in the target; None where it is another data folder's: nothing is written then."""
        archive = Archive(self.target)
        if archive.newest and archive.newest.owner != identity.of(self.settings.data_dir):
            log.error("%s", HELD)
            self._held = HELD
        self._known = set(archive.snapshots) if self._known is None else self._known
        return None if self._held or self._is_shared(archive) else archive

    def _is_shared(self, archive: Archive) -> bool:
        """Whether another app saves there too: each would remove what the other needs. Then this one stops."""
        if self._known is not None and archive.names_now() - self._known:
            log.error("%s", SHARED)
            self._held = SHARED
        return self._held is not None

    def _snapshot(self, store: Store, archive: Archive) -> str:
        """Write the database, then the files that it speaks of, then the manifest, unless all is there already. Returns
        the snapshot's name.

        The files are read after the database: an erasure that is done in it is done in them.
        """
        copy = self.settings.data_dir / COPY
        copy.unlink(missing_ok=True)
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
        snapshot = Manifest(identity.of(self.settings.data_dir), taken, copied.done, copied.erasures, tuple(files))
        self._known = {*(self._known or ()), snapshot.name()}
        archive.add(snapshot)
        return snapshot.name()

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
            log.info("%d snapshots were removed", removed)
