"""`python -m benchmarks.faults`: every section in turn, and one table of what held.

A section that fails itself is a row that falls short; the next one runs all the same. `--only fuzz,disk` takes those
alone.
"""

import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from pydantic import Field

from benchmarks import report
from benchmarks.faults.running import Scene
from playground.settings import Settings, SettingsError, read

SECTIONS = ("fuzz", "kills", "disk", "database", "tampered", "clock", "architectures", "limits")
# what the issue calls them: disk holds "disk full", database "locked, replaced, deleted", tampered the adapters
ALIASES = {"adapters": "tampered", "locked": "database"}
WHOLE_MINUTES = 90  # after which no further section begins


class FaultsSettings(Settings):
    """The app under attack, kills, full disks, tampered files, a wrong clock and odd models."""

    quick: bool = False
    """Far smaller counts; minutes in all."""
    json_file: str = Field("", alias="json")
    """File to write the rows to."""
    only: str = ""
    """Sections to run, with commas between: fuzz, kills, disk, database, tampered, clock, architectures, limits.
    Empty: all.
    """
    requests: int = Field(0, ge=0)
    """Requests of fuzz; 0 takes 10,000, or 900 with --quick."""
    kills: int = Field(0, ge=0)
    """Kills; 0 takes 200, or 8 with --quick."""
    default_model: bool = False
    """Architectures: the usual model too, where `make setup` made it."""
    keep: bool = False
    """Leave what the sections wrote, logs and databases, in the folder that is named at the end."""


def chosen(only: str) -> list[str]:
    """The sections that `only` names, in their usual order; SettingsError where one is unknown."""
    names = {ALIASES.get(name.strip(), name.strip()) for name in only.split(",") if name.strip()}
    if unknown := names - set(SECTIONS):
        raise SettingsError(f"--only: {', '.join(sorted(unknown))} is no section; there are {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if not names or name in names]


def run(
    settings: FaultsSettings, scratch: Path, log=lambda text: print(text, file=sys.stderr, flush=True)
) -> list[dict]:
    """The rows of every chosen section."""
    counts = {"requests": settings.requests, "kills": settings.kills, "default_model": int(settings.default_model)}
    scene = Scene(scratch, settings.quick, settings.seed, log, counts)
    rows, began = [], time.monotonic()
    for name in chosen(settings.only):
        if time.monotonic() - began > 60 * WHOLE_MINUTES:
            rows.append(report.row(f"{name}: not run, the time was up", None, "", "≤ 0"))
            continue
        start = time.monotonic()
        log(f"-- {name}")
        rows += section(name, scene)
        log(f"-- {name} took {time.monotonic() - start:.0f} s")
        if settings.json_file:  # what is known so far, should the rest be broken off
            Path(settings.json_file).write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    return rows


def section(name: str, scene: Scene) -> list[dict]:
    """The rows of one section; where the section itself breaks, a row that says so."""
    try:
        return importlib.import_module(f"benchmarks.faults.{name}").run(scene)
    except Exception as error:
        scene.log(traceback.format_exc())
        why = f"{type(error).__name__}: {str(error)[-160:]}"
        return [report.row(f"{name}: the section broke off, {why}", 1, "", "≤ 0")]


def main(argv: list[str] | None = None) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what runs is taken down
    # what the machine has set for an app of its own is none of the app's under test
    for name in [name for name in os.environ if name.startswith("NUDGE_")]:
        del os.environ[name]
    # the harness itself works on one thread: a second one would spin against the app it watches
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        settings = read(argv, FaultsSettings, "python -m benchmarks.faults")
        scratch = Path(tempfile.mkdtemp(prefix="nudge-faults-"))
        try:
            report.show(run(settings, scratch), settings.json_file)
        finally:
            if settings.keep:
                print(f"kept in {scratch}", file=sys.stderr)
            else:
                shutil.rmtree(scratch, ignore_errors=True)
    except SettingsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
