"""The disk is full, at each gesture that writes and in a round: on a small file system of its own, a tmpfs. Where none
can be mounted, no file of the app's processes may grow instead, and the rows say so.
"""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks import report
from benchmarks.faults.gestures import GESTURES, Gesture
from benchmarks.faults.live import Live
from benchmarks.faults.people import Answer, PageUnavailable, Person, acknowledged, owner
from benchmarks.faults.running import App, Scene, running, tracebacks, until

MEGABYTES = 48


@contextmanager
def small_disk(folder: Path, megabytes: int = MEGABYTES) -> Iterator[bool]:
    """A tmpfs of this size on `folder`, gone after the `with`; False where none can be mounted."""
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m"]
    mounted = subprocess.run(["mount", *options, "tmpfs", str(folder)], capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted and subprocess.run(["umount", str(folder)], capture_output=True).returncode:
            subprocess.run(["umount", "-l", str(folder)], check=False)  # somebody still has a file open there


@contextmanager
def full(app: App) -> Iterator[None]:
    """Nothing more fits into the app's data folder in the `with`."""
    if not os.path.ismount(app.data.parent):
        with no_growth(app):
            yield
        return
    ballast = app.data / "ballast"
    fill(ballast)
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def no_growth(app: App) -> Iterator[None]:
    """No write to a file succeeds in the app's processes."""
    processes = [psutil.Process(app.process.pid), *app.children()]
    limits = [process.rlimit(resource.RLIMIT_FSIZE) for process in processes]
    with ExitStack() as stack:
        for process, (soft, hard) in zip(processes, limits, strict=True):
            process.rlimit(resource.RLIMIT_FSIZE, (0, hard))
            stack.callback(_limit_again, process, (soft, hard))
        yield


def _limit_again(process: psutil.Process, limits: tuple[int, int]) -> None:
    if process.is_running():
        process.rlimit(resource.RLIMIT_FSIZE, limits)


def fill(ballast: Path) -> None:
    """Write until nothing fits, in ever smaller pieces, so that the last page is taken too."""
    handle = os.open(ballast, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        for size in (1 << 20, 1 << 12, 1):
            while True:
                try:
                    os.write(handle, b"x" * size)
                except OSError:
                    break
    finally:
        os.close(handle)


@dataclass
class Outcome:
    """What was seen while nothing could be written, and after."""

    said: int = 0
    warnings: list[str] = field(default_factory=list)
    bad_status: list[str] = field(default_factory=list)
    blank: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    not_again: list[str] = field(default_factory=list)

    def judge(self, name: str, answer: Answer) -> None:
        if answer.status in (0, 500):
            self.bad_status.append(name)
        elif answer.kept or answer.in_words:
            self.said += 1
        else:
            self.blank.append(name)
        self.warnings += answer.warnings[:1]


def one(app: App, gesture: Gesture, outcome: Outcome) -> None:
    """A person of its own: first the gesture without room, then with it."""
    page = owner(app) if gesture.name == "train now" else Person(app.url)
    gesture.ready(page)
    with full(app):
        answer = gesture.do(page)
        outcome.judge(gesture.name, answer)
    if gesture.name in ("vote", "change the vote") and acknowledged(answer) and app.counted(page.message) is None:
        outcome.lost.append(gesture.name)
    # nothing of what was kept before may be gone either
    if (
        gesture.ready.__name__ == "voted"
        and gesture.name not in ("undo", "delete the chat")
        and app.counted(page.message) is None
    ):
        outcome.lost.append(f"the vote before {gesture.name}")
    if not answer.kept and not gesture.do(page).kept:
        outcome.not_again.append(gesture.name)


def arriving(app: App, outcome: Outcome) -> None:
    """Somebody new opens the page on a full disk: a page, or a sentence."""
    with full(app):
        try:
            outcome.judge("arrive", Person(app.url).loaded())
        except PageUnavailable as error:
            outcome.bad_status.append(f"arrive ({error})")


def run(scene: Scene) -> list[dict]:
    """The section's rows."""
    folder = scene.folder("disk")
    mounted = folder / "small"
    mounted.mkdir()
    with small_disk(mounted) as really:
        if not really:
            scene.log("disk: no file system can be mounted here; no file of the app may grow instead")
        how = "disk full" if really else "no file may grow (nothing can be mounted)"
        return gestures(scene, folder, mounted, how) + a_round(scene, folder, mounted, how)


def gestures(scene: Scene, folder: Path, mounted: Path, how: str) -> list[dict]:
    """Each gesture that writes."""
    outcome, chosen = Outcome(), GESTURES[::4] if scene.quick else GESTURES
    with running(folder / "app", scene.model(), {"worker": False}, data=mounted / "data") as app:
        app.data.mkdir(exist_ok=True)
        for gesture in chosen:
            one(app, gesture, outcome)
        arriving(app, outcome)
        with full(app):
            ready_when_full = app.ready()
        ready_after = until(lambda: app.ready() == 200, 10)
        broken = tracebacks(app.said())
    n = len(chosen) + 1
    scene.log(
        f"disk: {outcome}; /readyz {ready_when_full} when full, 200 after: {bool(ready_after)}; tracebacks {broken[:8]}"
    )
    return [
        report.row(f"{how}: gestures that were kept or refused in a sentence", outcome.said, "", f"≥ {n}"),
        report.row(f"{how}: status 500 or none {_names(outcome.bad_status)}", len(outcome.bad_status), "", "≤ 0"),
        report.row(f"{how}: acknowledged and lost {_names(outcome.lost)}", len(outcome.lost), "", "≤ 0"),
        report.row(
            f"{how}: does not work once there is room {_names(outcome.not_again)}",
            len(outcome.not_again) + (not ready_after),
            "",
            "≤ 0",
        ),
        report.row(f"{how}: tracebacks in the log", len(broken), "", "≤ 0"),
    ]


def a_round(scene: Scene, folder: Path, mounted: Path, how: str) -> list[dict]:
    """A round that runs into a full disk, then one that does not."""
    live = Live(scene)
    data = mounted / "data"
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(live.fresh(), data)
    with running(
        folder / "round", live.model, {**live.options, "round.auto": False, "round.lease-seconds": 4}, data=data
    ) as app:
        owner(app).event("train-now")
        until(lambda: app.rows("select 1 from round where id = 2 and phase is not null"), 60, pause=0.3)
        with full(app):
            until(lambda: False, 10)
        lives, wanted = app.alive and app.ready() == 200, 2
        over = "select 1 from round where id = {} and state not in ('requested', 'running')"
        ended = bool(until(lambda: app.rows(over.format(2)), 120, pause=0.5))
        if ended and app.rows("select 1 from round where id = 2 and state = 'failed'"):
            wanted = 3
            owner(app).event("train-now")
            until(lambda: app.rows(over.format(3)), 120, pause=0.5)
        state = app.rows("select state, reason from round where id = ?", wanted)
    scene.log(f"disk: the round after a full disk: {state}")
    fine = bool(state) and state[0][0] in ("published", "refused", "not_enough")
    return [
        report.row(f"{how} in a round: the chat goes on", int(lives), "", "≥ 1"),
        report.row(f"{how} in a round: it, or the next one, comes to its end", int(ended and fine), "", "≥ 1"),
    ]


def _names(names: list[str]) -> str:
    return f"({', '.join(names)})" if names else ""
