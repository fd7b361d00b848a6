"""The place where snapshots are kept: a folder behind any fsspec URL, or in a bucket of the hub (`bucket.py`), with
files that are written whole, read, listed and removed. What the files are is up to `archive.py`.
"""

import copy
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from playground.backup.bucket import PREFIX, Bucket
from playground.system.messages import UserFacingError
from playground.system.safe_logging import describe_error

Answer = TypeVar("Answer")

PROBE = "probe"  # a file that is there for a moment
OBJECT_STORES = {"s3", "gs", "abfs", "oss"}  # protocols under which the first part of a path is a bucket
READ_PATIENCE = 120.0  # seconds that a read at the start may take; a part of a file has at most 4 MB


class BadTarget(UserFacingError):
    """No file system belongs to the URL, or its package is missing."""


class TargetUnavailable(Exception):
    """The target did not do what was asked: it cannot be reached, is full, or does not let us in."""


class Target:
    """The folder at `url`, such as `file:///mnt/copies`, `s3://bucket/nudge` or `hf://buckets/owner/name/nudge`.

    BadTarget where nothing can ever be kept there. All other errors of the file system are TargetUnavailable.
    """

    def __init__(self, url: str) -> None:
        protocol = url.partition("://")[0]
        self.files: AbstractFileSystem | Bucket
        try:
            if url.startswith(PREFIX):
                self.files = Bucket(url)
                self.root = self.files.root
            else:
                self.files, self.root = url_to_fs(url)
        except ImportError as error:  # fsspec names the package: "Install s3fs to access S3"
            raise BadTarget(
                "backup.url begins with {protocol}://, for which a Python package is missing: {error}.",
                protocol=protocol,
                error=str(error).rstrip("."),
            ) from None
        except Exception as error:
            raise BadTarget(
                "backup.url cannot be used: {error}. It is like file:///folder, s3://bucket/folder or "
                "hf://buckets/owner/name/folder.",
                error=str(error).rstrip(".") if isinstance(error, ValueError) else type(error).__name__,
            ) from None
        self._above = os.path.dirname(self.root)  # on a disk that may not be mounted

    def inside(self, folder: str) -> "Target":
        """A folder of this one as a target of its own."""
        inner = copy.copy(self)
        inner.root = self._path(folder)
        return inner

    def list(self, folder: str) -> dict[str, int]:
        """The names of the files in a folder, each with its size in bytes; none where there is no such folder."""

        self._check_mounted()

        def listed() -> dict[str, int]:
            self.files.invalidate_cache()
            try:
                entries = self.files.ls(self._path(folder), detail=True)
            except FileNotFoundError:
                self._check_bucket()
                return {}
            return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in entries if entry["type"] == "file"}

        return self._asked(listed)

    def read(self, name: str) -> bytes:
        return self._asked(lambda: self.files.cat_file(self._path(name)))

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if self.root else name

    def _check_bucket(self) -> None:
        """Raise where it is the bucket of an object store that is missing, and not a folder in it: else a wrong name
        would read as a backup without snapshots.
        """
        protocols = self.files.protocol if isinstance(self.files, AbstractFileSystem) else ()
        if not OBJECT_STORES.isdisjoint([protocols] if isinstance(protocols, str) else protocols):
            with suppress(PermissionError):  # a key for one folder of a bucket that is there
                self.files.ls(self.root.partition("/")[0], detail=True)

    def _check_mounted(self) -> None:
        """TargetUnavailable where the folder above a folder of this machine is missing: a disk is not mounted."""
        if isinstance(self.files, LocalFileSystem) and not os.path.isdir(self._above):
            raise TargetUnavailable(f"there is no folder {self._above}")

    def write(self, name: str, content: bytes) -> None:
        """Write a file. Where it fails in the middle, a part of the file may be there."""
        self._check_mounted()
        path = self._path(name)

        def written() -> None:
            if isinstance(self.files, LocalFileSystem):
                _make_private_folder(path.rsplit("/", 1)[0])
            self.files.pipe_file(path, content)

        self._asked(written)

    def try_to_write(self) -> None:
        """Write a small file and remove it. TargetUnavailable where nothing can be written."""
        self.write(PROBE, b"nudge")
        self.remove([PROBE])

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; one that is not there is no error."""
        files, paths = self.files, map(self._path, names)
        if isinstance(files, Bucket):
            self._asked(partial(files.rm_files, paths))
            return
        for path in paths:
            self._asked(partial(_remove, files, path))

    def remove_folder(self, folder: str) -> None:
        """Remove a folder and all that is in it; one that is not there is no error."""
        self._check_mounted()

        def removed() -> None:
            self.files.invalidate_cache()
            with suppress(FileNotFoundError):
                self.files.rm(self._path(folder), recursive=True)

        self._asked(removed)

    @staticmethod
    def _asked(call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except Exception as error:  # each file system has errors of its own, whose messages may quote keys
            raise TargetUnavailable(describe_error(error)) from error


def _remove(files: AbstractFileSystem, path: str) -> None:
    with suppress(FileNotFoundError):
        files.rm_file(path)


def within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """The answer of `call`, which may never come: TargetUnavailable after `seconds`; its thread is left to itself."""
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            answers.append(call())
        except BaseException as error:
            errors.append(error)

    asking = threading.Thread(target=ask, name="backup-read", daemon=True)
    asking.start()
    asking.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TargetUnavailable(f"no answer within {seconds:.0f} s")
    return answers[0]


def _make_private_folder(path: str) -> None:
    """Make a folder of this machine, and what is missing above it, which nobody but the owner can open."""
    if not os.path.isdir(path):
        _make_private_folder(os.path.dirname(path))
        os.mkdir(path, 0o700)
