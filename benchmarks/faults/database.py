"""What happens to the database from outside: locked by another process, replaced, deleted, its WAL deleted, its locks
dropped. Does the person get an error, and is nothing lost?
"""

import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report
from benchmarks.faults.gestures import text
from benchmarks.faults.people import Answer, Person, acknowledged
from benchmarks.faults.running import App, Scene, running, until

LOCKED_SECONDS = 20
ANSWER_SECONDS = 8
LOCK = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
db.execute("begin exclusive")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""
READ = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('select count(*) from vote').fetchall()"
# other code in the app's own process that looks at the file: whenever the trigger is there, it opens and closes the
# database
NOSY = """
import os, sys, threading, time
def look():
    while True:
        if os.path.exists({trigger!r}):
            open({database!r}, "rb").close()
            os.unlink({trigger!r})
        time.sleep(0.05)
if any(str(part).endswith("app.py") for part in sys.orig_argv):
    threading.Thread(target=look, daemon=True).start()
"""
LOGGED = re.compile(r"^.*\b(WARNING|ERROR|CRITICAL)\b.*(database|nudge\.db|WAL|store|disk)", re.I | re.M)


@dataclass
class Reaction:
    """What the app did after the harm. `lost`: acknowledged votes."""

    answers: list[Answer]
    ready: int
    logged: bool
    lost: int

    @property
    def in_words(self) -> bool:
        """Whether each gesture was refused by a sentence; one whose vote is truly in the file may be accepted."""
        return all(answer.in_words for answer in self.answers)


def run(scene: Scene) -> list[dict]:
    """The section's rows."""
    rows = locked(scene)
    for name, harm in HARMS.items():
        rows += harmed(scene, name, harm)
    return rows


# -- locked


def locked(scene: Scene) -> list[dict]:
    """Another process holds the write lock: gestures answer in words within seconds, and all works again after."""
    seconds = LOCKED_SECONDS
    with running(scene.folder("locked"), scene.model(), {"worker": False}) as app:
        page = Person(app.url, timeout=60)
        message = text()
        page.send(message)
        holder = subprocess.Popen(
            [sys.executable, "-c", LOCK, str(app.database), str(seconds)], stdout=subprocess.PIPE, text=True
        )
        try:
            holder.stdout.readline()
            began = time.monotonic()
            voted = page.vote("a")
            statuses = [app.ready()]
            new = Person(app.url, timeout=60) if time.monotonic() - began < seconds - 9 else None
            sent = new.send(text()) if new else None
            statuses.append(app.ready() if time.monotonic() - began < seconds else 0)
        finally:
            holder.terminate()
            holder.wait()
        answers = [answer for answer in (voted, sent) if answer]
        lost = acknowledged(voted) and app.counted(message) is None
        again = until(lambda: app.ready() == 200, 20) and page.vote("a").kept and app.counted(message) == "a"
        slowest = max(answer.seconds for answer in answers)
        scene.log(f"locked: {[(a.status, round(a.seconds, 1), a.warnings[:1]) for a in answers]}; /readyz {statuses}")
    return [
        report.row("locked: the slowest gesture's answer", slowest, "s", f"≤ {ANSWER_SECONDS}"),
        report.row(
            "locked: gestures that got no sentence", sum(not (a.in_words or a.kept) for a in answers), "", "≤ 0"
        ),
        report.row("locked: /readyz says 503 meanwhile", int(503 in statuses), "", "≥ 1"),
        report.row("locked: acknowledged votes lost", int(lost), "", "≤ 0"),
        report.row("locked: afterwards the same vote counts", int(bool(again)), "", "≥ 1"),
    ]


# -- the file is not what it was


def replaced(app: App) -> None:
    """Another database is in its place, as after a restored backup."""
    copy = app.database.with_name("copy.db")
    source, target = sqlite3.connect(app.database), sqlite3.connect(copy)
    source.backup(target)
    source.close()
    target.close()
    copy.rename(app.database)


def deleted(app: App) -> None:
    for file in sorted(app.data.glob("nudge.db*")):
        file.unlink()


def wal_deleted(app: App) -> None:
    Path(f"{app.database}-wal").unlink(missing_ok=True)


def locks_dropped(app: App) -> None:
    """Code in the app's own process opens and closes the file; then another process, the last one by the locks,
    closes it and takes the WAL away.
    """
    trigger = app.folder / "look"
    trigger.touch()
    until(lambda: not trigger.exists(), 10)
    subprocess.run(
        [
            sys.executable,
            "-c",
            READ + "; db.close()",
            str(app.database),
        ],
        check=False,
    )


HARMS: dict[str, Callable[[App], None]] = {
    "replaced": replaced,
    "deleted": deleted,
    "WAL deleted": wal_deleted,
    "locks dropped": locks_dropped,
}


def harmed(scene: Scene, name: str, harm: Callable[[App], None]) -> list[dict]:
    """Votes before, at and after the harm; then the app is killed and the file is looked at."""
    folder = scene.folder(name.replace(" ", "-"))
    plugin = folder / "plugin"
    plugin.mkdir()
    app = App(folder / "app", scene.model(), {"worker": False}, environ={"PYTHONPATH": str(plugin)})
    (plugin / "sitecustomize.py").write_text(NOSY.format(trigger=str(app.folder / "look"), database=str(app.database)))
    try:
        app.start()
        seen, before, after = watched(app, harm)
    finally:
        app.kill()  # not in order: what was acknowledged is on disk already
    seen.lost = lost(app, before, after, seen.answers, kept_before=name in ("WAL deleted", "locks dropped"))
    # a vote that was accepted and is in the file did no harm: the app noticed nothing because there was nothing to
    # notice
    harmless = name == "locks dropped" and not seen.lost and all(answer.kept for answer in seen.answers)
    fine = 3 if harmless else seen.in_words + (seen.ready == 503) + seen.logged
    scene.log(
        f"{name}: {[(a.status, round(a.seconds, 1), a.warnings[:1]) for a in seen.answers]}; "
        f"/readyz {seen.ready}; logged {seen.logged}; lost {seen.lost}"
    )
    return [
        report.row(f"{name}: acknowledged votes lost", seen.lost, "", "≤ 0"),
        report.row(f"{name}: refused in words, /readyz 503, in the log", fine, "of 3", "≥ 3"),
    ]


def watched(app: App, harm: Callable[[App], None]) -> tuple[Reaction, list[str], list[str]]:
    """(the app's reaction, messages voted on before, messages voted on after)."""
    people = [Person(app.url, timeout=60) for _ in range(3)]
    messages = [text() for _ in people]
    for page, message in zip(people, messages, strict=True):
        page.send(message)
    people[0].vote("a")
    position = app.said_so_far()
    harm(app)
    answers = [page.vote("b") for page in people[1:]]
    ready = until(lambda: app.ready() == 503, 5, pause=0.3) and 503 or app.ready()
    return Reaction(answers, ready, bool(LOGGED.search(app.said(position))), 0), messages[:1], messages[1:]


def lost(app: App, before: list[str], after: list[str], answers: list[Answer], kept_before: bool) -> int:
    """Votes that were answered as accepted and are in no file: those after the harm, and where the harm left the
    file, those before it.
    """
    promised = [message for message, answer in zip(after, answers, strict=True) if acknowledged(answer)] + (
        before if kept_before else []
    )
    if not app.database.exists():
        return len(promised)
    saved = app.folder / "looked-at.db"
    for end in ("", "-wal"):
        if (file := Path(f"{app.database}{end}")).exists():
            shutil.copy(file, f"{saved}{end}")
    try:
        return sum(app.counted(message) is None for message in promised)
    except sqlite3.Error:
        return len(promised)
