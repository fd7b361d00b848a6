"""Data folders with a backup, and what is in its target, for the tests of the backup."""

import hashlib
import sqlite3
import threading
from contextlib import closing

import pytest

from playground.backup import Backup, manifest
from playground.settings import Settings
from playground.store import Store

INTERVAL = 1.0  # seconds, the shortest


class Folder:
    """A data folder with a store, whose backup is stepped by hand and not by its thread."""

    def __init__(self, path, url, keep=20, patience=20.0):
        self.settings = Settings(_env_file=None, data_dir=path, backup={"url": url, "interval": INTERVAL, "keep": keep})
        self.backup = Backup(self.settings)
        self.backup.restore(patience)
        self.store = Store(self.settings.database)
        self.backup._thread = threading.Thread()
        self.backup.start(self.store)

    def save(self):
        """Make the snapshot that is due, as if the interval had passed."""
        self.backup._progress.began = self.backup._progress.not_before = float("-inf")
        self.backup._progress.pruned = float("-inf")
        self.backup._step()
        return self.backup.status()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target"


@pytest.fixture
def url(target):
    return target.as_uri()


@pytest.fixture
def folder(tmp_path, url):
    return Folder(tmp_path / "first", url)


def rows(database):
    """A hash of every row of every table."""
    with closing(sqlite3.connect(database)) as db:
        return hashlib.sha256("\n".join(db.iterdump()).encode()).hexdigest()


def snapshots(target):
    return sorted((target / "snapshots").iterdir())


def blobs(target):
    return {path.name for path in (target / "blobs").iterdir()}


def newest(target):
    return manifest.loads(snapshots(target)[-1].name, snapshots(target)[-1].read_bytes())


def adapter(folder, version, content=b"weights"):
    path = folder.settings.adapters_dir / f"v{version:04d}"
    path.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "adapter_config.json", "manifest.json"):
        (path / name).write_bytes(content + name.encode())


def own_blobs(target):
    """The blobs that the newest snapshot alone names."""
    first = snapshots(target)[0]
    return newest(target).blobs().keys() - manifest.loads(first.name, first.read_bytes()).blobs().keys()


def torn_blob(target):
    path = target / "blobs" / min(own_blobs(target))
    path.write_bytes(path.read_bytes()[:-20])


def deaf(*_, **__):
    raise OSError("no route to host")
