"""What is left after kills and lost disks: scripted people vote in a process of their own, which is killed at random
moments; at times its disk is taken away too, and the next process begins with an empty folder and the backup.

`python -m benchmarks.durability [--quick] [--json FILE]`. Promised: no acknowledged vote is lost by a kill, none older
than `backup.interval` by a lost disk, and what is restored is what was saved.
"""

import argparse
import hashlib
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import report
from benchmarks.durability_people import settings_of
from playground.backup import Backup

INTERVAL = 3.0  # seconds; the default is 60
CURRENT = """select m.text, v.choice from vote v join duel d on d.id = v.duel
    join message m on m.id = d.user_message where v.superseded_by is null"""
VOTES = "select * from vote order by id"


@dataclass
class Life:
    """A process of people who vote on a disk, until it is killed or ended."""

    folder: Path  # the disk
    url: str
    accepted: Path
    process: subprocess.Popen = field(init=False)

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "benchmarks.durability_people"]
        self.process = subprocess.Popen(
            [*command, str(self.folder), self.url, str(INTERVAL), str(self.accepted)], stderr=subprocess.DEVNULL
        )

    def voting(self) -> bool:
        """Wait until somebody has voted; False where the process ended before."""
        before = self.accepted.stat().st_size if self.accepted.exists() else 0
        while self.process.poll() is None:
            if self.accepted.exists() and self.accepted.stat().st_size > before:
                return True
            time.sleep(0.01)
        return False

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait()


def accepted_votes(file: Path) -> dict[str, tuple[str, float]]:
    """{message: (choice, when it was acknowledged)}."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {text: (choice, float(at)) for text, choice, at in map(str.split, lines)}


def query(database: Path, sql: str) -> list[tuple]:
    with closing(sqlite3.connect(database)) as db:
        return db.execute(sql).fetchall()


def digest(folder: Path) -> str:
    """A hash of every row of the database and of every version."""
    sha256 = hashlib.sha256()
    with closing(sqlite3.connect(folder / "nudge.db")) as db:
        for line in db.iterdump():
            sha256.update(line.encode())
    for file in sorted(folder.glob("adapters/v*/*")):
        sha256.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return sha256.hexdigest()


def restored(folder: Path, url: str) -> Backup:
    """A new folder with what the backup has."""
    backup = Backup(settings_of(folder, url, INTERVAL))
    backup.restore()
    return backup


def kills(work: Path, wanted: int, rng: random.Random) -> list[dict]:
    """SIGKILL while people vote and snapshots are made, always on one disk."""
    folder, url, accepted = work / "disk", (work / "target").as_uri(), work / "accepted.txt"
    lost, unsound, not_started = set(), 0, 0
    for number in range(wanted):
        life = Life(folder, url, accepted)
        if rng.random() < 0.8:
            not_started += not life.voting()
            time.sleep(rng.uniform(0, 1.0))
        else:
            time.sleep(rng.uniform(0, 1.0))  # in the middle of a start
        life.end(signal.SIGKILL)
        if not (folder / "nudge.db").exists():
            continue
        unsound += query(folder / "nudge.db", "pragma integrity_check") != [("ok",)]
        counted = dict(query(folder / "nudge.db", CURRENT)) if accepted.exists() else {}
        lost |= {text for text, (choice, _) in accepted_votes(accepted).items() if counted.get(text) != choice}
        if number % 20 == 19:
            print(f"  {number + 1} kills, {len(accepted_votes(accepted))} votes, {len(lost)} lost", flush=True)
    votes = len(accepted_votes(accepted))
    life = Life(folder, url, accepted)
    life.voting()
    code = life.end(signal.SIGTERM)
    restored(work / "restored", url)
    return [
        report.row("kills", wanted, "", f"≥ {wanted}"),
        report.row("kills: votes acknowledged", votes, "", f"≥ {5 * wanted}"),
        report.row("kills: acknowledged votes lost", len(lost), "", "≤ 0"),
        report.row("kills: databases that are damaged", unsound, "", "≤ 0"),
        report.row("kills: starts that failed", not_started, "", "≤ 0"),
        report.row("kills: the end after them has failed", code, "", "≤ 0"),
        report.row(
            "kills: restored store differs from the disk", int(digest(work / "restored") != digest(folder)), "", "≤ 0"
        ),
    ]


def lost_disks(work: Path, wanted: int, rng: random.Random) -> list[dict]:
    """The process is killed and its disk is gone, or it ends in order and its disk is gone."""
    url, accepted = (work / "target").as_uri(), work / "accepted.txt"
    oldest, differing_votes, differing_stores, saved, lost_before = 0.0, 0, 0, 0, set()
    for number in range(wanted):
        folder = work / f"disk{number}"
        life = Life(folder, url, accepted)
        life.voting()
        time.sleep(rng.uniform(0, 3 * INTERVAL))
        in_order = number % 4 == 3
        gone_at = time.time()
        life.end(signal.SIGTERM if in_order else signal.SIGKILL)
        fresh = work / f"restored{number}"
        restored(fresh, url)
        counted = dict(query(fresh / "nudge.db", CURRENT))
        if in_order:
            differing_stores += digest(fresh) != digest(folder)
        else:
            there = set(query(folder / "nudge.db", VOTES))
            differing_votes += sum(row not in there for row in query(fresh / "nudge.db", VOTES))
        lost = {text for text, (choice, _) in accepted_votes(accepted).items() if counted.get(text) != choice}
        ages = [gone_at - at for text, (_, at) in accepted_votes(accepted).items() if text in lost - lost_before]
        oldest = max([oldest, *ages])
        lost_before |= lost  # they stay lost: later disks begin without them
        saved = len(counted)
        shutil.rmtree(folder)
        shutil.rmtree(fresh)
        print(f"  disk {number + 1}: {len(ages)} votes lost, the oldest {max(ages, default=0):.1f} s old", flush=True)
    return [
        report.row("lost disks", wanted, "", f"≥ {wanted}"),
        report.row("lost disks: votes there at the end", saved, "", f"≥ {wanted}"),
        report.row("lost disks: votes lost", len(lost_before)),
        report.row("lost disks: age of the oldest lost vote", oldest, "s", f"≤ {INTERVAL}"),
        report.row("lost disks: restored votes that differ", differing_votes, "", "≤ 0"),
        report.row("lost disks: stores that differ after an end in order", differing_stores, "", "≤ 0"),
        *truncated(work, url),
    ]


def truncated(work: Path, url: str) -> list[dict]:
    """The newest snapshot is torn: what is restored is the one before it."""
    newest = max((work / "target" / "snapshots").iterdir())
    content = newest.read_bytes()
    newest.unlink()
    restored(work / "before", url)
    newest.write_bytes(content[: len(content) // 2])
    said = int(restored(work / "torn", url).status().notices != ())
    differs = int(digest(work / "torn") != digest(work / "before"))
    return [
        report.row("torn snapshot: restored store differs from the one before", differs, "", "≤ 0"),
        report.row("torn snapshot: said", said, "", "≥ 1"),
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durability", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 kills and 4 lost disks, about a minute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="", help="file for the rows")
    options = parser.parse_args(argv)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as work:
        for part in ("kills", "disks"):
            (Path(work) / part).mkdir()
        rows = kills(Path(work) / "kills", 10 if options.quick else 200, rng)
        rows += lost_disks(Path(work) / "disks", 4 if options.quick else 20, rng)
    report.show(rows, options.json)


if __name__ == "__main__":
    main()
