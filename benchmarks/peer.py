"""A peer's Python in an environment of its own, made by the benchmark, and how its side is run."""

import json
import os
import subprocess
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Log
from playground.settings import Settings

ROOT = Path(__file__).parent.parent
STAMP = "pins.txt"  # in an environment: what was installed into it


class SideFailed(Exception):
    """A side of the comparison could not be set up or run; the message ends with what it said."""


def pins_of(*names: str) -> list[str]:
    """Our own pinned lines of these packages: a peer gets the versions that we have."""
    ours = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    return [line for line in ours if line.split("==")[0] in names]


def python(settings: Settings, name: str, pins: Sequence[str], log: Log = print, cmake_arguments: str = "") -> Path:
    """The interpreter of DATA/benchmarks/NAME; made again where the stamp does not say that just these pins
    are in it. What is compiled for it gets the arguments, and is not kept for another environment then.
    """
    folder = _folder(settings, name)
    interpreter = folder / "bin" / "python"
    if not is_made(settings, name, pins):
        log(f"making {folder} with {', '.join(pins)}")
        venv.create(folder, with_pip=True, clear=True)
        install = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if cmake_arguments:
            run([*install, "--no-cache-dir", *pins], {**os.environ, "CMAKE_ARGS": cmake_arguments})
        else:
            run([*install, *pins], os.environ)
        (folder / STAMP).write_text("\n".join(pins))
    return interpreter


def is_made(settings: Settings, name: str, pins: Sequence[str]) -> bool:
    """Whether `python` has made this environment before."""
    stamp = _folder(settings, name) / STAMP
    return stamp.exists() and stamp.read_text() == "\n".join(pins)


def _folder(settings: Settings, name: str) -> Path:
    return (settings.data_dir / "benchmarks" / name).absolute()


def run(command: Sequence[str | Path], environment: Mapping[str, str]) -> str:
    """Standard output of a command; SideFailed with the end of what it said when it fails."""
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SideFailed(f"{' '.join(map(str, command))} failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout


def run_job(command: Sequence[str | Path], job: dict[str, Any], threads: int) -> Any:
    """What a script that reads its job from a file says in its last line, as JSON; on `threads` threads."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        return json.loads(run([*command, file.name], {**os.environ, "OMP_NUM_THREADS": str(threads)}).splitlines()[-1])
