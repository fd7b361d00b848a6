"""The id of a data folder, in its file `backup.json`: by it an app tells its own snapshots from another folder's."""

import json
import os
import uuid
from pathlib import Path

FILE = "backup.json"


def of(data_dir: Path) -> str:
    """The id of this data folder, which is made once."""
    try:
        return str(json.loads((data_dir / FILE).read_text())["id"])
    except (FileNotFoundError, ValueError, KeyError):
        write(data_dir, uuid.uuid4().hex)
        return of(data_dir)


def exists(data_dir: Path) -> bool:
    """Whether this data folder was saved before, or restored."""
    return (data_dir / FILE).exists()


def write(data_dir: Path, identity: str) -> None:
    """Give the folder the id of the one whose snapshot was restored into it."""
    partial = data_dir / f"{FILE}.partial"
    partial.write_text(json.dumps({"id": identity}))
    os.replace(partial, data_dir / FILE)
