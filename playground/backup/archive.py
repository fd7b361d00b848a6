"""The snapshots in a target: `snapshots/` has their manifests, `blobs/` the parts of files, each named by the hash of
what it says and compressed. What several snapshots share is there once.

A manifest is written last, so a snapshot with a manifest is whole, unless its files were damaged later. Blobs that no
manifest names are removed.
"""

import hashlib
import logging
import zlib
from pathlib import Path

from playground.backup import manifest
from playground.backup.manifest import BadManifest, Chunk, File, Manifest
from playground.backup.target import READ_PATIENCE, Target, TargetUnavailable, within

log = logging.getLogger(__name__)

SNAPSHOTS = "snapshots"
BLOBS = "blobs"
COMPRESSION = 1  # of zlib; the slower levels make text smaller by a tenth
# Seconds after which a snapshot that holds what somebody took back is removed; counted from the first one without it.
# The page promises an hour: the worker and the snapshot take their time before.
TAKEN_BACK_SECONDS = 1800.0


class Damaged(Exception):
    """A part of a snapshot is missing or not what it was."""


class Archive:
    """The snapshots in `target`, as they are there when it is made. TargetUnavailable from every method.

    `checked`: the hashes of blobs that this process has read, or written, and found right; the archive adds to them.
    """

    def __init__(self, target: Target, checked: set[str]) -> None:
        self.target = target
        self._checked = checked
        names = sorted(manifest.names(target.list(SNAPSHOTS)))
        self.snapshots: dict[str, Manifest | None] = {name: self._manifest(name) for name in names}  # oldest first
        self._present = target.list(BLOBS)  # {hash: size} of all blobs, also of those that nobody names
        self._whole: dict[str, Chunk] = {}  # parts that need not be written again
        # only the newest snapshot's, which `check_next` reads one by one
        for sha256, chunk in (self.newest.blobs() if self.newest else {}).items():
            if self._present.get(sha256) == chunk.stored:
                self._whole[sha256] = chunk

    def _manifest(self, name: str) -> Manifest | None:
        """The manifest of this name; None where it is torn or was altered."""
        try:
            return manifest.loads(name, self.target.read(f"{SNAPSHOTS}/{name}"))
        except BadManifest as error:
            log.warning("the manifest of the snapshot of %s cannot be used: %s", manifest.moment_of(name), error)
            return None

    @property
    def newest(self) -> Manifest | None:
        """The newest snapshot with a manifest that can be read."""
        return next((snapshot for snapshot in reversed(self.snapshots.values()) if snapshot), None)

    def names_now(self) -> set[str]:
        """The names of the snapshots that are there now, whoever made them."""
        return manifest.names(self.target.list(SNAPSHOTS))

    # -- writing

    def put(self, source: Path, path: str, chunk_bytes: int) -> File:
        """Write the parts of the file `source` that are not there yet. `path` is its path in the data folder."""
        whole = hashlib.sha256()
        chunks = []
        with source.open("rb") as file:
            while content := file.read(chunk_bytes):
                whole.update(content)
                chunks.append(self._put_chunk(content))
        return File(path, whole.hexdigest(), tuple(chunks))

    def _put_chunk(self, content: bytes) -> Chunk:
        sha256 = manifest.digest(content)
        if sha256 not in self._whole:
            blob = zlib.compress(content, COMPRESSION)
            self._present[sha256] = -1  # a part of it may be there, if this fails
            self.target.write(f"{BLOBS}/{sha256}", blob)
            self._present[sha256] = len(blob)
            self._whole[sha256] = Chunk(sha256, len(content), len(blob))
            self._checked.add(sha256)
        return self._whole[sha256]

    def has(self, file: File) -> bool:
        """Whether all parts of a file are there."""
        return all(chunk.sha256 in self._whole for chunk in file.chunks)

    def add(self, snapshot: Manifest) -> None:
        """Write the manifest: from now on the snapshot is one."""
        name = snapshot.name()
        self.target.write(f"{SNAPSHOTS}/{name}", snapshot.dumps())
        self.snapshots[name] = snapshot

    def check_next(self) -> bool:
        """Read a part that the next snapshot would not write again, one that is not checked yet. Returns False where it
        is not what it was: then the next snapshot writes it.
        """
        unchecked = next((chunk for sha256, chunk in self._whole.items() if sha256 not in self._checked), None)
        if unchecked is None:
            return True
        try:
            self._chunk(unchecked)
        except Damaged as error:
            log.warning("the backup is damaged and is repaired by the next snapshot: %s", error)
            del self._whole[unchecked.sha256]
            return False
        return True

    # -- reading

    def get(self, file: File, destination: Path) -> None:
        """Write a snapshot's file to `destination`. Damaged where a part of it is not what it was."""
        whole = hashlib.sha256()
        with destination.open("wb") as out:
            for chunk in file.chunks:
                content = self._chunk(chunk)
                whole.update(content)
                out.write(content)
        if whole.hexdigest() != file.sha256:
            raise Damaged(f"{file.path} is not what it was")

    def _chunk(self, chunk: Chunk) -> bytes:
        try:
            blob = within(READ_PATIENCE, lambda: self.target.read(f"{BLOBS}/{chunk.sha256}"))
        except TargetUnavailable as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise Damaged("a part is missing") from None
            raise
        try:
            content = zlib.decompressobj().decompress(blob, chunk.size + 1)
        except zlib.error:
            content = b""
        if len(content) != chunk.size or manifest.digest(content) != chunk.sha256:
            raise Damaged("a part is not what it was")
        self._checked.add(chunk.sha256)
        return content

    # -- removing

    def prune(self, keep: int, now: float) -> int:
        """Remove the snapshots that are not to be kept at the time `now` (seconds since the epoch), then the blobs that
        none of the others names. Returns how many snapshots were removed.
        """
        doomed = set(self._not_kept(keep, now))
        if doomed:
            self.target.remove(f"{SNAPSHOTS}/{name}" for name in doomed)
            self.snapshots = {name: snapshot for name, snapshot in self.snapshots.items() if name not in doomed}
        self._remove_orphans()
        return len(doomed)

    def _not_kept(self, keep: int, now: float) -> list[str]:
        """All but the newest `keep`; those that hold what was taken back; and unreadable ones before a readable one."""
        names = list(self.snapshots)
        doomed = names[:-keep]
        for number, name in enumerate(names):
            snapshot = self.snapshots[name]
            later = [other for other in map(self.snapshots.get, names[number + 1 :]) if other]
            if snapshot is None:
                if later:
                    doomed.append(name)
                continue
            cleaner = [other.taken for other in later if other.erased > snapshot.erased]
            if cleaner and now - min(cleaner) >= TAKEN_BACK_SECONDS:
                doomed.append(name)
        return doomed

    def _remove_orphans(self) -> None:
        named = {sha256 for snapshot in self.snapshots.values() if snapshot for sha256 in snapshot.blobs()}
        orphans = self._present.keys() - named
        self.target.remove(f"{BLOBS}/{sha256}" for sha256 in orphans)
        for sha256 in orphans:
            del self._present[sha256]
            self._whole.pop(sha256, None)
