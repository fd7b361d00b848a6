"""The disk is full: on a small file system of its own (tmpfs; where it cannot be mounted, the whole section says so),
at each gesture that writes and in a round.
"""

import os
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import report
from benchmarks.faults.gestures import GESTURES, Gesture
from benchmarks.faults.live import Live
from benchmarks.faults.people import Answer, Gone, Person, acknowledged, owner
from benchmarks.faults.running import App, Scene, running, tracebacks, until

MEGABYTES = 48


@contextmanager
def small_disk(folder: Path, megabytes: int = MEGABYTES):
    """A tmpfs of this size on `folder`, gone after the `with`."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True, capture_output=True
    )
    try:
        yield folder
    finally:
        if subprocess.run(["umount", str(folder)], capture_output=True).returncode:
            subprocess.run(["umount", "-l", str(folder)], check=False)  # somebody still has a file open there


@contextmanager
def full(folder: Path):
    """Not a byte is left in the `with`."""
    ballast = folder / "ballast"
    fill(ballast)
    try:
        yield
    finally:
        ballast.unlink()


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
    told: list[str] = field(default_factory=list)
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
        self.told += answer.warnings[:1]


def one(app: App, gesture: Gesture, outcome: Outcome) -> None:
    """A person of its own: first the gesture without room, then with it."""
    page = (owner if gesture.name == "train now" else Person)(app.url)
    gesture.ready(page)
    with full(app.data):
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
    with full(app.data):
        try:
            outcome.judge("arrive", Person(app.url).loaded())
        except Gone as error:
            outcome.bad_status.append(f"arrive ({error})")


def run(scene: Scene) -> list[dict]:
    """The section's rows."""
    folder = scene.folder("disk")
    mounted = folder / "small"
    mounted.mkdir()
    try:
        with small_disk(mounted):
            return gestures(scene, folder, mounted) + a_round(scene, folder, mounted)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip()
        return [
            report.row(
                f"disk full: not run, no file system of its own can be mounted here ({said[-80:]})", None, "", "≤ 0"
            )
        ]


def gestures(scene: Scene, folder: Path, mounted: Path) -> list[dict]:
    """Each gesture that writes."""
    outcome, chosen = Outcome(), GESTURES[::4] if scene.quick else GESTURES
    with running(folder / "app", scene.model(), {"worker": False}, data=mounted / "data") as app:
        app.data.mkdir(exist_ok=True)
        for gesture in chosen:
            one(app, gesture, outcome)
        arriving(app, outcome)
        with full(app.data):
            ready_when_full = app.ready()
        ready_after = until(lambda: app.ready() == 200, 10)
        broken = tracebacks(app.said())
    n = len(chosen) + 1
    scene.log(
        f"disk: {outcome}; /readyz {ready_when_full} when full, 200 after: {bool(ready_after)}; tracebacks {broken[:8]}"
    )
    return [
        report.row("disk full: gestures that were kept or refused in a sentence", outcome.said, "", f"≥ {n}"),
        report.row(f"disk full: status 500 or none {_names(outcome.bad_status)}", len(outcome.bad_status), "", "≤ 0"),
        report.row(f"disk full: acknowledged and lost {_names(outcome.lost)}", len(outcome.lost), "", "≤ 0"),
        report.row(
            f"disk full: does not work once there is room {_names(outcome.not_again)}",
            len(outcome.not_again) + (not ready_after),
            "",
            "≤ 0",
        ),
        report.row("disk full: tracebacks in the log", len(broken), "", "≤ 0"),
    ]


def a_round(scene: Scene, folder: Path, mounted: Path) -> list[dict]:
    """A round that runs into a full disk, then one that does not."""
    live = Live(scene)
    data = mounted / "data"
    subprocess.run(["cp", "-rT", str(live.fresh()), str(data)], check=True)
    with running(
        folder / "round", live.model, {**live.options, "auto-train": False, "lease-seconds": 4}, data=data
    ) as app:
        owner(app).event("train-now")
        until(lambda: app.rows("select 1 from round where id = 2 and phase is not null"), 60, pause=0.3)
        with full(data):
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
        report.row("disk full in a round: the chat goes on", int(lives), "", "≥ 1"),
        report.row("disk full in a round: it, or the next one, comes to its end", int(ended and fine), "", "≥ 1"),
    ]


def _names(names: list[str]) -> str:
    return f"({', '.join(names)})" if names else ""
