"""The clock jumps an hour back and forth (libfaketime; monotonic time goes on): chats keep their order, a dead
worker's round is taken over, a living one keeps its own.
"""

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks import report
from benchmarks.faults.live import Live
from benchmarks.faults.people import Person, owner
from benchmarks.faults.running import (
    ROOT,
    App,
    Scene,
    flags_of,
    running,
    send_signal,
    until,
)

LEASE_SECONDS = 5
START_SECONDS = 60  # a worker that starts again imports torch first
UP_SECONDS = 300  # the second worker is waited for
LIBRARIES = (
    "/usr/lib/*/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
    "/usr/local/lib/faketime/libfaketimeMT.so.1",
)
# libfaketime before 0.9.11 moves what Python's time.sleep waits for on the monotonic clock, too, which then fails with
# EINVAL (wolfcw/libfaketime issue 426); Python runs this file at each start
SLEEP = """import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds)
"""
ACTIVE = "select id, owner, attempts, phase from round where state = 'running'"


class Clock:
    """The wall clock of every process that has `environ`; `set` moves it at once."""

    def __init__(self, folder: Path):
        library = next((str(path) for pattern in LIBRARIES for path in Path("/").glob(pattern[1:])), None)
        if library is None:
            raise FileNotFoundError("libfaketime is missing; apt-get install faketime")
        self._file = folder / "clock"
        (folder / "sitecustomize.py").write_text(SLEEP)
        self.set("+0")
        self.environ = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "PYTHONPATH": str(folder),
        }

    def set(self, offset: str) -> None:
        """From now on the clock is off by `offset`, as "-1h"; in one step, so that nobody reads half a line."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{offset}\n")
        fresh.rename(self._file)

    def seen(self) -> float:
        """By how many seconds a process with `environ` is off: the proof that it works."""
        process = subprocess.run(
            [sys.executable, "-c", "import time; print(time.time(), time.monotonic())"],
            env={**os.environ, **self.environ},
            capture_output=True,
            text=True,
            check=True,
        )
        return float(process.stdout.split()[0]) - time.time()


def run(scene: Scene) -> list[dict]:
    """The section's rows."""
    live, clock = Live(scene), Clock(scene.folder("clock"))
    clock.set("-1h")
    off = clock.seen()
    clock.set("+0")
    options = {
        **live.options,
        "round.auto": False,
        "round.lease-seconds": LEASE_SECONDS,
        "round.poll-seconds": 0.2,
        "ppo.iterations": 10_000,
        "ppo.episodes": 64,
        "ppo.kl-target": 1e6,
        "ppo.kl-stop": 1e6,
    }
    with running(scene.scratch / "clock" / "app", live.model, options, environ=clock.environ, data=live.fresh()) as app:
        out_of_order = chats(app, clock)
        kept, taken = rounds(scene, app, clock)
        shown = chat_on_top(app, Person(app.url))
    return [
        report.row("clock: seconds that a process is off when it is set an hour back", off, "s", "≤ -3590"),
        report.row(f"clock: new chats not on top and open {_names(out_of_order)}", len(out_of_order), "", "≤ 0"),
        report.row("clock an hour forward: a living worker keeps its round", kept, "", "≥ 1"),
        report.row(
            "clock an hour back: until a dead worker's round is taken over, its start included",
            taken,
            "s",
            f"≤ {LEASE_SECONDS + START_SECONDS}",
        ),
        report.row("clock: afterwards a chat is shown", int(shown), "", "≥ 1"),
    ]


# -- chats


def chat_on_top(app: App, page: Person) -> bool:
    """Begin a chat: whether it heads the list and is what a reload shows."""
    page.loaded()
    page.event("sidebar-new")
    text = f"chat {secrets.token_hex(5)}"
    page.turn(text, "a")
    again = page.loaded().text
    heads = re.findall(r'"choices":\s*\[\[?\s*"([^"]*)"', again)  # of the chats, and of the reasons
    return text in heads and again.count(text) > 1  # in the list and in the panes


def chats(app: App, clock: Clock) -> list[str]:
    """Offsets of the clock under which a new chat was not on top."""
    page, wrong = Person(app.url), []
    for offset in ("+0", "-1h", "+1h", "-1h"):
        clock.set(offset)
        if not chat_on_top(app, page):
            wrong.append(offset)
    clock.set("+0")
    return wrong


# -- rounds


def rounds(scene: Scene, app: App, clock: Clock) -> tuple[int | None, float | None]:
    """(1 where the living worker kept its round, else 0; seconds until the dead one's was taken over). None where no
    round began.
    """
    owner(app).event("train-now")
    before = until(lambda: app.rows(f"{ACTIVE} and phase = 'ppo'"), 300, pause=0.3)
    if not before:
        scene.log(f"clock: no round began: {app.rows('select id, state, reason from round')}")
        return None, None
    with second_worker(app) as looking:
        clock.set("+1h")
        until(lambda: holder(app) != holder_of(before), 3 * LEASE_SECONDS, pause=0.3)
    after = app.rows(ACTIVE)
    kept = int(holder_of(after) == holder_of(before)) if looking else None  # nobody was there to take it
    scene.log(f"clock: before {before}, an hour later {after}")
    clock.set("-1h")
    time.sleep(0.5)
    return kept, taken_over(scene, app)


def taken_over(scene: Scene, app: App) -> float:
    """Seconds from the worker's death until another one holds its round; twice the bar where that does not come."""
    before, began, limit = app.rows(ACTIVE), time.monotonic(), 2 * (LEASE_SECONDS + START_SECONDS)
    if worker := app.worker():
        send_signal(worker.pid, signal.SIGKILL)

    taken = until(lambda: holder(app) not in (None, holder_of(before)), limit, pause=0.3)
    scene.log(f"clock: dead worker's round {before}, then {app.rows(ACTIVE)}")
    return time.monotonic() - began if taken else float(limit)


def holder_of(active: list[tuple]) -> tuple | None:
    """(id, owner, attempts) of the round that runs; None where none does."""
    return active[0][:3] if active else None


def holder(app: App) -> tuple | None:
    return holder_of(app.rows(ACTIVE))


@contextmanager
def second_worker(app: App) -> Iterator[bool]:
    """Another worker that looks for work all the time; whether it is up and looking when the `with` begins."""
    command = [
        sys.executable,
        "-m",
        "training.worker",
        *flags_of({k: v for k, v in app.options.items() if k not in ("port", "worker")}),
    ]
    process = subprocess.Popen(
        command,
        cwd=app.folder,
        env={**app.environ, "PYTHONPATH": os.pathsep.join([app.environ["PYTHONPATH"], str(ROOT)])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: process.poll() is not None or _has_open(process.pid, app.database), UP_SECONDS, pause=0.2)
        time.sleep(1)
        yield process.poll() is None and _has_open(process.pid, app.database)
    finally:
        process.kill()
        process.wait()


def _has_open(pid: int, file: Path) -> bool:
    try:
        return any(Path(opened.path) == file for opened in psutil.Process(pid).open_files())
    except psutil.Error:
        return False


def _names(names: list[str]) -> str:
    return f"({', '.join(names)})" if names else ""
