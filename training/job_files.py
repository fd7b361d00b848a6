"""What travels between a worker and a job: files in the backup's target, below `jobs/`, in a folder of each job.

`inputs` and `result` are archives as the backup's are: parts with hashes, and a manifest that is written last, so half
of one is none. `progress.json` says how far the job is. What comes back is data from outside: it is checked here, and a
worker reads no file of it that is not named here.
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator

from playground.backup.archive import Archive, Damaged
from playground.backup.manifest import LARGEST_CHUNK, Manifest
from playground.backup.target import Target
from playground.system.messages import from_data
from training.round_control import Phase

FOLDER = "jobs"
Part = Literal["inputs", "result"]
PROGRESS = "progress.json"
RESULT = "result.json"
JOB_LOG = "log.txt"
SERVED = "served.json"  # replies on which the worker measures what its own chat would serve
# the files of a round that come back, with the most bytes that each may have
TEXT, TENSORS = 64 << 20, 4 << 30
RETURNED = {
    RESULT: TEXT,
    JOB_LOG: TEXT,
    SERVED: TEXT,
    "preferences.json": 1 << 30,
    "rules.json": TEXT,
    "gate.json": TEXT,
    "reward.safetensors": TENSORS,
    "people.safetensors": TENSORS,
    "start.safetensors": TENSORS,
    "policy.safetensors": TENSORS,
}
PROGRESS_BYTES = 4 << 20

Count = Annotated[int, Field(ge=0, le=1 << 53)]
Curves = dict[str, list[tuple[Count, float | None]]]  # by name: (step, value)
SomeModel = TypeVar("SomeModel", bound=BaseModel)


class NotThere(Exception):
    """The files of a job are not there (yet)."""


class BadResult(Exception):
    """What a job sent is not what it says, or nothing that a job sends."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShownFigures(BaseModel):
    """The figures that every page shows of a round that runs, among others."""

    phase_began: FiniteFloat | None = None
    phase_from: Count = 0
    phase_seconds: dict[str, FiniteFloat] = {}
    step_seconds: FiniteFloat | None = None
    part: str | None = None


class Progress(_Data):
    """How far a job is: what the row of its round says, and its curves."""

    phase: Phase
    step: Count
    steps: Count
    metrics: dict[str, Any]
    curves: Curves

    @field_validator("metrics")
    @classmethod
    def _can_be_shown(cls, metrics: dict[str, Any]) -> dict[str, Any]:
        ShownFigures.model_validate(metrics)
        return metrics


class Result(Progress):
    """How a job has ended. `trained`: the gate has judged the new policy. `live` is the version it was compared with,
    `base` the hash of the base model; `votes` are those that were used, and whether each was held out.
    """

    state: Literal["trained", "not_enough", "failed"]
    reason: dict[str, Any] | None
    live: Count
    base: str
    votes: list[tuple[Count, bool]]


class GateFigures(BaseModel):
    """What a worker relies on in a job's `gate.json`."""

    model_config = ConfigDict(extra="allow")

    refused_because: list[Any]
    share: float = Field(1.0, gt=0, le=1)
    gain: float
    gain_interval: tuple[float, float]
    kl: float
    prompts: Count


def send(target: Target, key: str, part: Part, files: Mapping[str, Path]) -> None:
    """Write files, by their paths in a data folder. TargetUnavailable."""
    archive = Archive(_place(target, key, part), set())
    sent = tuple(archive.put(file, path, LARGEST_CHUNK) for path, file in files.items())
    archive.add(Manifest(key, time.time(), 0, (), sent))


def receive(target: Target, key: str, part: Part, folder: Path, round_id: int) -> None:
    """Fetch files into `folder`, a data folder, which is made anew. NotThere, BadResult, TargetUnavailable."""
    archive = Archive(_place(target, key, part), set())
    snapshot = archive.newest
    if snapshot is None:
        if archive.snapshots:
            raise BadResult("its manifest is torn or was altered")
        raise NotThere
    if snapshot.owner != key:
        raise BadResult("it is of another job")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    for file in snapshot.files:
        name = file.path.rsplit("/", 1)[-1]
        size = sum(chunk.size for chunk in file.chunks)
        if part == "result" and (file.path != f"rounds/{round_id:04d}/{name}" or size > RETURNED.get(name, -1)):
            raise BadResult(f"{file.path} of {size:,} bytes is nothing that a job returns")
        destination = folder / file.path
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            archive.get(file, destination)
        except Damaged as error:
            raise BadResult(str(error)) from None


def send_progress(target: Target, key: str, progress: Progress) -> None:
    target.write(f"{FOLDER}/{key}/{PROGRESS}", progress.model_dump_json().encode())


def read_progress(target: Target, key: str) -> Progress | None:
    """How far the job is; None where it has not said so, or nothing that can be read. TargetUnavailable."""
    size = target.list(f"{FOLDER}/{key}").get(PROGRESS)
    if size is None or size > PROGRESS_BYTES:
        return None
    try:
        return Progress.model_validate_json(target.read(f"{FOLDER}/{key}/{PROGRESS}"))
    except ValidationError:  # it is being written
        return None


def clear(target: Target) -> None:
    """Remove what is there of all jobs: a server has one at a time."""
    target.remove_folder(FOLDER)


def _place(target: Target, key: str, part: Part) -> Target:
    return target.inside(f"{FOLDER}/{key}/{part}")


# -- the content of what came back


def read_result(folder: Path) -> Result:
    """The `result.json` in a round's folder. BadResult where it is none."""
    result = _read(Result, folder / RESULT)
    try:
        if result.reason is not None:
            str(from_data(result.reason))
    except (KeyError, IndexError, ValueError, TypeError, AttributeError):
        raise BadResult("its reason is no sentence") from None
    return result


def check_gate(folder: Path) -> None:
    """BadResult unless a round's folder has what a version is published from."""
    missing = [name for name in ("start.safetensors", "policy.safetensors", SERVED) if not (folder / name).is_file()]
    if missing:
        raise BadResult(f"{missing[0]} is missing")
    _read(GateFigures, folder / "gate.json")


def _read(kind: type[SomeModel], file: Path) -> SomeModel:
    try:
        return kind.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise BadResult(f"{file.name} is missing") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise BadResult(f"{file.name}: {'.'.join(map(str, first['loc']))}: {first['msg']}"[:300]) from None
