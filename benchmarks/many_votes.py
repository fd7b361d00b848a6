"""The store with a million votes: how long a page of the tab Data, a vote and an import batch take, and what an export
takes in time and memory: `python -m benchmarks.many_votes`.

The votes are written by SQL, five to a chat, by a thousand people; each reply has about 320 characters.
"""

import itertools
import json
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from pydantic import Field

from benchmarks import peer, report
from playground.data import export
from playground.data.export import Export
from playground.settings import Positive, Settings, SettingsError, read
from playground.store import Filters, ImportedRow, Store
from tests.stores import candidate, outcome

TURNS = 5  # of a chat
PEOPLE = 1000
WORDS = "The tide rises and falls twice a day because the moon pulls on the sea, and on a coast with a narrow bay the "
CHOICES = ("a", "b", "tie")
REPEATS = 5


class ManyVotesSettings(Settings):
    """The store with many votes."""

    quick: bool = False
    """20,000 votes."""
    votes: Positive = 1_000_000
    """Votes in the store."""
    side: Path | None = None
    """The folder of a store: export it, as the benchmark does in a process of its own."""
    json_file: str = Field("", alias="json")
    """File to write the rows to."""


def fill(path: Path, votes: int) -> None:
    """A store with `votes` votes."""
    Store(path)
    db = sqlite3.connect(path)
    db.execute("pragma synchronous=off")
    db.execute("begin")
    when = "2026-01-01T00:00:00.000Z"

    def insert(table, columns, rows):
        places = ", ".join("?" * len(columns.split(",")))
        db.executemany(f"insert into {table} ({columns}) values ({places})", rows)

    def messages():
        for n in range(votes):
            chat = n // TURNS + 1
            before = 3 * (n - 1) + 2 if n % TURNS else None  # the left reply of the turn before
            user = 3 * n + 1
            yield user, chat, before, "user", f"Question {n}: why does the sea come and go?", "complete", when
            for side in (1, 2):
                yield user + side, chat, user, "assistant", f"{n}.{side}: {WORDS * 3}", "complete", when

    insert("annotator", "id, kind, created", ((n + 1, "anonymous", when) for n in range(PEOPLE)))
    insert("prompt", "id, sha256, token_ids", [(1, "x", "[1,2,3]")])
    chats = range(-(-votes // TURNS))
    insert("conversation", "id, annotator, created, opened", ((n + 1, n % PEOPLE + 1, when, when) for n in chats))
    insert("message", "id, conversation, parent, role, text, status, created", messages())
    insert(
        "generation",
        "id, message, prompt, policy, base_model, base_hash, template_hash, sampling, seed, token_ids, finish_reason",
        (
            (2 * n + side, 3 * n + 1 + side, 1, 0, "model", "base hash", "t", "{}", n, "[4,5,6]", "end")
            for n in range(votes)
            for side in (1, 2)
        ),
    )
    insert(
        "duel",
        "id, conversation, user_message, left_generation, right_generation, pairing, probability, created",
        ((n + 1, n // TURNS + 1, 3 * n + 1, 2 * n + 1, 2 * n + 2, "same_policy", 1.0, when) for n in range(votes)),
    )
    insert(
        "vote",
        "id, duel, annotator, choice, tags, created",
        (
            (n + 1, n + 1, n // TURNS % PEOPLE + 1, CHOICES[n % 3], '["clearer"]' if n % 4 else None, when)
            for n in range(votes)
        ),
    )
    db.commit()
    db.close()


def milliseconds(action):
    """The median of a few times."""
    seen = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        seen.append(1000 * (time.perf_counter() - start))
    return median(seen)


def vote(store):
    """One turn and its vote, as the chat records them; the seconds of the vote alone."""
    who = store.annotator("somebody new")
    number = store.start_duel(store.new_conversation(who), "Hello", [1, 2], [candidate(1), candidate(2)])
    store.finish_duel(number, [outcome("left", [4]), outcome("right", [5])])
    message = store.duel(number)["left"]["message"]
    start = time.perf_counter()
    store.vote(number, who, "a", message)
    return time.perf_counter() - start


def batch(store, start):
    """An import's transaction."""
    messages = [{"role": "user", "content": "Hello"}]
    rows = [
        ImportedRow(f"{start} {n}", "pair", 1.0, {"messages": messages, "left": WORDS, "right": "x", "choice": "a"})
        for n in range(200)
    ]
    store.add_imported("benchmark", rows)


def pages(store, votes):
    """The rows of the report about pages."""
    middle = votes // 2
    asked = {
        "the newest": (Filters(), None),
        "from the middle": (Filters(), middle),
        "of one person": (Filters(person=7), middle),
        "with a reason that is everywhere": (Filters(tag="clearer"), middle),
        "with a text that is nowhere": (Filters(text="nothing like it"), middle),
        "of one person, with a text that is nowhere": (Filters(person=7, text="nothing like it"), None),
    }
    for what, (filters, before) in asked.items():
        took = milliseconds(lambda filters=filters, before=before: store.judged_page(filters, before, 20))
        yield report.row(f"a page of 20 pairs: {what}", took, "ms", "≤ 250")


def peak_mb():
    """The most memory that this process ever had."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def export_side(folder):
    """What an export takes, in a process of its own: {"seconds", "rows", "mb", "grown_mb"}."""
    store = Store(folder / "nudge.db")
    list(itertools.islice(store.judged_pairs(), 1000))  # a few pages, and all that is imported for them
    before = peak_mb()
    start = time.perf_counter()
    tally = export.write(store, Export("preference"), folder / "out")
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in (folder / "out").iterdir()) >> 20
    return {"seconds": seconds, "rows": tally.rows.total(), "mb": size, "grown_mb": peak_mb() - before}


def run(settings, folder):
    """The rows of the report."""
    votes = 20_000 if settings.quick else settings.votes
    fill(folder / "nudge.db", votes)
    store = Store(folder / "nudge.db")
    size = (folder / "nudge.db").stat().st_size >> 20
    yield report.row(f"the database with {votes:,} votes", size, "MB")
    yield from pages(store, votes)
    yield report.row("a vote", 1000 * median(vote(store) for _ in range(30)), "ms", "≤ 50")
    yield report.row("200 imported pairs", milliseconds(lambda: batch(store, time.perf_counter())), "ms", "≤ 250")
    command = [sys.executable, "-m", "benchmarks.many_votes", "--side", str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=peer.ROOT).stdout
    exported = json.loads(said.splitlines()[-1])
    yield report.row(f"an export of {exported['rows']:,} pairs, {exported['mb']:,} MB", exported["seconds"], "s")
    rate = exported["rows"] / exported["seconds"]
    yield report.row("rows exported a second", rate, "", "≥ 2000")
    yield report.row("memory that the export takes", exported["grown_mb"], "MB", "≤ 100")


def main(argv=None):
    try:
        settings = read(argv, ManyVotesSettings, "python -m benchmarks.many_votes")
    except SettingsError as error:
        sys.exit(str(error))
    if settings.side is not None:
        print(json.dumps(export_side(settings.side)))
        return
    with tempfile.TemporaryDirectory() as folder:
        report.show(list(run(settings, Path(folder))), settings.json_file)


if __name__ == "__main__":
    main()
