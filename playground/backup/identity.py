"""Ids of a data folder, each in a file of it: by the one in `backup.json`, which a restore takes over, an app tells its
own snapshots from another folder's; by the one in `server.json`, which stays in the folder, two servers that were
restored from the same snapshots tell who is who. `server.json` also names the snapshots that the database goes on from.
"""

import json
import os
import uuid
from pathlib import Path

FILE = "backup.json"
SERVER_FILE = "server.json"


def of(data_dir: Path) -> str:
    """The id of this data folder's content, which is made once."""
    return _of(data_dir / FILE)


def server_of(data_dir: Path) -> str:
    """The id of the server that has this data folder, which is made once. The folder is made, too."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _of(data_dir / SERVER_FILE)


def base_of(data_dir: Path) -> list[str]:
    """The names of the newest snapshots that the database in this folder goes on from, the older one first; none where
    that is not known.
    """
    try:
        return [str(name) for name in json.loads((data_dir / SERVER_FILE).read_text())["snapshots"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []


def write_base(data_dir: Path, names: list[str]) -> None:
    """Say what `base_of` returns from now on."""
    _write(data_dir / SERVER_FILE, server_of(data_dir), snapshots=names)


def exists(data_dir: Path) -> bool:
    """Whether this data folder was saved before, or restored."""
    return (data_dir / FILE).exists()


def write(data_dir: Path, identity: str) -> None:
    """Give the folder the id of the one whose snapshot was restored into it."""
    _write(data_dir / FILE, identity)


def _of(file: Path) -> str:
    try:
        return str(json.loads(file.read_text())["id"])
    except (FileNotFoundError, ValueError, KeyError):
        _write(file, uuid.uuid4().hex)
        return _of(file)


def _write(file: Path, identity: str, **more: list[str]) -> None:
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(json.dumps({"id": identity, **more}))
    os.replace(partial, file)
