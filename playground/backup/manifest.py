"""A manifest: which files a snapshot has, of which blobs each is made, and the hashes of all of them.

Its name begins with its time, so names sort by time, and ends with the hash of its content, so a torn or altered one
is noticed. What it says of a path is checked: it comes from outside.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from playground.store.snapshots import Erasure

NAME = re.compile(r"\d{8}T\d{9}Z-[0-9a-f]{16}\.json")
PATH = re.compile(r"nudge\.db|(adapters/v|rounds/)\d{4,}/[A-Za-z][A-Za-z0-9_]*\.(safetensors|json|txt)")
HASH = re.compile(r"[0-9a-f]{64}")
FORMAT = 1
LARGEST_CHUNK = 1 << 22  # bytes


class BadManifest(Exception):
    """A manifest is torn, was altered, or is of a newer format."""


@dataclass(frozen=True)
class Chunk:
    """A part of a file: the hash and size of what it says, and the size of its blob, in bytes."""

    sha256: str
    size: int
    stored: int


@dataclass(frozen=True)
class File:
    """A file of the data folder: its path in there, the hash of the whole, and its parts in their order."""

    path: str
    sha256: str
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Manifest:
    """One snapshot. `owner`: the id of the data folder. `taken`: seconds since the epoch, with milliseconds. `erased`:
    how many erasures were done then; `erasures`: the newest, done or not, without a word of what was erased.
    `revoked`: the ids of keys that were revoked.
    """

    owner: str
    taken: float
    erased: int
    erasures: tuple[Erasure, ...]
    files: tuple[File, ...]
    revoked: tuple[int, ...] = ()

    def blobs(self) -> dict[str, Chunk]:
        """Every part that the snapshot needs, by its hash."""
        return {chunk.sha256: chunk for file in self.files for chunk in file.chunks}

    def dumps(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}).encode()

    def name(self) -> str:
        """The name of its file."""
        moment = datetime.fromtimestamp(self.taken, UTC).strftime("%Y%m%dT%H%M%S%f")[:-3]
        return f"{moment}Z-{digest(self.dumps())[:16]}.json"


def loads(name: str, content: bytes) -> Manifest:
    """The manifest in a file of this name. BadManifest where it is not whole or not one of ours."""
    if not NAME.fullmatch(name) or digest(content)[:16] != name[-21:-5]:
        raise BadManifest("its content does not fit its name")
    try:
        data = json.loads(content)
        if data["format"] != FORMAT:
            raise BadManifest(f"its format is {data['format']}")
        files = tuple(_file(file) for file in data["files"])
        erasures = tuple(_erasure(erasure) for erasure in data["erasures"])
        revoked = tuple(int(key) for key in data.get("revoked", ()))
        return Manifest(str(data["owner"]), float(data["taken"]), int(data["erased"]), erasures, files, revoked)
    except (ValueError, KeyError, TypeError) as error:
        raise BadManifest(f"it cannot be read: {type(error).__name__}") from None


def _file(data: dict[str, object]) -> File:
    path, sha256, chunks = data["path"], data["sha256"], data["chunks"]
    if not (isinstance(path, str) and PATH.fullmatch(path) and isinstance(chunks, list)):
        raise BadManifest("it names a file that no snapshot has")
    return File(path, _hash(sha256), tuple(_chunk(chunk) for chunk in chunks))


def _erasure(data: dict[str, object]) -> Erasure:
    erasure = Erasure(**data)  # type: ignore[arg-type]
    ids = (erasure.id, erasure.annotator, erasure.conversation or 0)
    if not all(isinstance(value, int) for value in (*ids, erasure.everything)):
        raise BadManifest("an erasure is none")
    return erasure


def _chunk(data: dict[str, object]) -> Chunk:
    size, stored = data["size"], data["stored"]
    if not (isinstance(size, int) and isinstance(stored, int) and 0 <= size <= LARGEST_CHUNK):
        raise BadManifest("a part of a file has a size that none has")
    return Chunk(_hash(data["sha256"]), size, stored)


def _hash(value: object) -> str:
    if not (isinstance(value, str) and HASH.fullmatch(value)):
        raise BadManifest("a hash is none")
    return value


def names(files: Iterable[str]) -> set[str]:
    """Those of these file names that are names of manifests."""
    return {name for name in files if NAME.fullmatch(name)}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def moment_of(name: str, with_seconds: bool = False) -> str:
    """When the snapshot of this name was made, as people read it: "2026-11-27 19:08 UTC". `with_seconds`, "19:08:06",
    tells those of the same minute apart.
    """
    seconds = f":{name[13:15]}" if with_seconds else ""
    return f"{name[:4]}-{name[4:6]}-{name[6:8]} {name[9:11]}:{name[11:13]}{seconds} UTC"
