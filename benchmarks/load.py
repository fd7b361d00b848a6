"""What the server takes from 1, 4, 16 and 64 people who chat and vote at once while a round trains, and from one who
floods it meanwhile.

`python -m benchmarks.load [--quick] [--json FILE]`. The app is `python app.py` with its worker, as a process. People
come over its OpenAI API, each with a key and an address of their own: that takes the way of the page (one turn at a
time, the same line, limits and records), says how many tokens a reply has, and costs the measured machine the least.
What the page alone has, the place in the line in words, one more person reads there. `--quick` takes a tiny model.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import psutil
from pydantic import Field

from benchmarks import load_people, report
from benchmarks.faults import people as page_people
from benchmarks.faults.running import ROOT, App, running, until
from benchmarks.load_people import Seen
from playground.models import loading
from playground.people import keys
from playground.settings import Settings, SettingsError, read
from playground.store import Store
from playground.system.threads import run_in_own_thread
from training import rollout, simulate
from training.annotators import Person, brevity
from training.simulate import SimulateSettings

SIZES = (1, 4, 16, 64)
VOTE_BARS = {16: "≤ 250", 64: "≤ 500"}  # ms, the 99th percentile
LEAST_SHARE = "≥ 0.5"
KEPT_MB = 50  # that may stay besides keys and values of earlier turns
ADDED_MB = 20  # that the same crowd may add when it comes again
QUICK_TOKENS = 24
QUICK_TIMES = 12  # that a line is said in one message, so that the keys and values of few people have room at once
SETTLING = 30.0  # seconds in which memory may go back; threads and what they hold end after ten
SEED_VOTES = 24  # before anybody comes, so that a round begins
IN_LINE = ("before you", "you are next")
# a round that goes on for as long as people chat: it asks for no evidence, and moves too little to reach its end
ENDLESS = {
    "round.votes": SEED_VOTES,
    "reward.evidence-confidence": 0,
    "ppo.iterations": 10_000,
    "ppo.lr": 1e-7,
    "ppo.kl-step": 1e6,
    "ppo.kl-target": 1e6,
}
QUICK = {"dtype": "float32", "decode-format": "float32", "threads": 1, "kv-cache-mb": 1, "ppo.episodes": 16}


class LoadSettings(Settings):
    """Many people at once, and one who floods."""

    quick: bool = False
    """A tiny model, and short replies."""
    json_file: str = Field("", alias="json")
    """File to write the rows to."""
    turns: int = Field(2, ge=1)
    """Messages of each person in a crowd."""
    tokens: int = Field(64, ge=1)
    """Longest reply, in tokens."""


@dataclass
class Crowd:
    """What a crowd met, and how long it was there in seconds."""

    seen: list[Seen]
    seconds: float

    def all(self, name: str) -> list[float]:
        """The times of this name of all people."""
        return [value for seen in self.seen for value in getattr(seen, name)]

    @property
    def errors(self) -> list[str]:
        return [error for seen in self.seen for error in seen.errors]

    @property
    def rates(self) -> list[float]:
        """Turns a second of each person."""
        return [seen.turns / seen.seconds if seen.turns else 0.0 for seen in self.seen]

    @property
    def tokens_per_second(self) -> float:
        return sum(seen.tokens for seen in self.seen) / self.seconds

    @property
    def waits(self) -> int:
        """Turns in which somebody was told to wait."""
        return sum(seen.waited for seen in self.seen)


class Watch:
    """Looks at the app from outside, four times a second: memory of server and worker, and whether a round trains."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.server, self.worker = 0.0, 0.0  # MB at most
        self.looks, self.training = 0, 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ending.wait(0.25):
            self.server = max(self.server, self.app.megabytes())
            self.worker = max(self.worker, worker_megabytes(self.app))
            self.looks += 1
            self.training += trains(self.app)


def worker_megabytes(app: App) -> float:
    """Resident memory of the worker; 0 where there is none."""
    try:
        worker = app.worker()
        return worker.memory_info().rss / 2**20 if worker else 0.0
    except psutil.Error:
        return 0.0


def trains(app: App) -> bool:
    """Whether the newest round is in PPO."""
    return app.rows("select state, phase from round order by id desc limit 1") == [("running", "ppo")]


# -- the app


def prepared(settings: LoadSettings, folder: Path, log: Callable[[str], None]) -> tuple[list[str], dict]:
    """A data folder with votes for a round and with keys; (the keys, the options of an app on it)."""
    if settings.quick:
        from tests.tiny import tiny_folder

        model, machine = str(tiny_folder(folder / "model")), QUICK
    else:
        model = settings.model
        machine = {"dtype": settings.dtype, "decode-format": settings.decode_format, "threads": settings.threads}
        machine["kv-cache-mb"] = settings.kv_cache_mb
    data = folder / "data"
    own = {"model": model, "data_dir": data, "models_dir": settings.models_dir.resolve()}
    job = SimulateSettings.like(settings, **own, votes=SEED_VOTES, chat={"reply_tokens": min(settings.tokens, 48)})
    store = Store(job.database)
    log(f"{SEED_VOTES} votes for a round")
    run_in_own_thread(job.threads, lambda: fill(store, job, log))
    given = [keys.new_key() for _ in range(max(SIZES) + 1)]
    for number, key in enumerate(given):
        store.add_key(f"person {number}", key)
    options = {"model": model, "models-dir": own["models_dir"], "chat.reply-tokens": settings.tokens}
    return given, {**options, "chat.stream-hz": settings.chat.stream_hz, **machine, **ENDLESS}


def fill(store: Store, job: SimulateSettings, log: Callable[[str], None]) -> None:
    """Votes of somebody who likes short replies, on replies of the model."""
    trunk, tokenizer = loading.load_trunk(job), loading.load_tokenizer(job)
    simulate.make_duels(store, job, trunk, tokenizer, {"brevity": Person(brevity)}, log)


# -- crowds


@contextmanager
def flooded(url: str, key: str, tokens: int) -> Iterator[Counter]:
    """Somebody floods the server inside the `with`; afterwards the Counter has how often they got which status."""
    counts: Counter = Counter()
    command = [sys.executable, "-m", "benchmarks.load_people", url, key, str(tokens)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stdout.readline() == "flooding\n"
        time.sleep(1)  # until all its connections are there
        yield counts
        said, _ = process.communicate(timeout=120)
        counts.update(json.loads(said))
    finally:
        process.kill()
        process.wait()


def come(app: App, given: list[str], lines: list[str], turns: int, tokens: int) -> Crowd:
    began = time.perf_counter()
    seen = load_people.crowd(app.url, given, lines, turns, tokens)
    return Crowd(seen, time.perf_counter() - began)


class AtThePage(threading.Thread):
    """One more person, at the page, who chats among all others until the page shows a place in the line, or until
    they have `left`.
    """

    def __init__(self, app: App) -> None:
        super().__init__(daemon=True)
        self.person = page_people.Person(app.url, address="127.0.2.1", timeout=load_people.TIMEOUT)
        self.left = threading.Event()
        self.saw_place = False

    def run(self) -> None:
        while not self.saw_place and not self.left.is_set():
            sent, _ = self.person.turn("What is a river?")
            self.saw_place = any(words in sent.text for words in IN_LINE)
        self.person.close()


def visit_page(app: App) -> None:
    """One person at the page, one turn."""
    person = page_people.Person(app.url, address="127.0.2.1", timeout=load_people.TIMEOUT)
    person.turn("What is a river?")
    person.close()


# -- rows


def crowd_rows(people: int, crowd: Crowd) -> list[dict]:
    """Rows of a crowd without anybody who misbehaves."""
    who = f"{people} {'person' if people == 1 else 'people'}"
    first = crowd.all("first_token")
    return [
        report.row(f"{who}: first token, median", median(first) if first else None, "s"),
        report.row(f"{who}: first token, 95 % within", percentile(first, 95), "s"),
        report.row(f"{who}: tokens a second together", crowd.tokens_per_second),
        report.row(f"{who}: turns that waited in line", crowd.waits),
        *vote_rows(who, people, crowd),
    ]


def flood_rows(people: int, calm: Crowd, crowd: Crowd, statuses: Counter) -> list[dict]:
    """Rows of a crowd beside somebody who floods, to the same crowd without."""
    who = f"{people} and one who floods"
    share = min(crowd.rates) / (sum(calm.rates) / (people + 1))
    sent, answered = sum(statuses.values()), statuses["200"]
    return [
        report.row(f"{who}: the slowest person's rate to the fair share", share, "×", LEAST_SHARE),
        report.row(f"{who}: messages of the one that were refused", f"{sent - answered} of {sent}"),
        *vote_rows(who, people, crowd),
    ]


def vote_rows(who: str, people: int, crowd: Crowd) -> list[dict]:
    """How long votes took, and everything that went wrong."""
    votes = [1e3 * seconds for seconds in crowd.all("votes")]
    return [
        report.row(f"{who}: vote, median", percentile(votes, 50), "ms"),
        report.row(f"{who}: vote, 95 % within", percentile(votes, 95), "ms"),
        report.row(f"{who}: vote, 99 % within", percentile(votes, 99), "ms", VOTE_BARS.get(people)),
        report.row(f"{who}: errors", len(crowd.errors), "", "≤ 0"),
    ]


def percentile(values: list[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def memory_rows(before: float, watch: Watch, after: float, kv_cache_mb: int) -> list[dict]:
    """What stays may be what earlier turns are kept in, and a little more."""
    return [
        report.row("server: memory before the people", before, "MB"),
        report.row("server: memory at its most", watch.server, "MB"),
        report.row("worker: memory at its most", watch.worker, "MB"),
        report.row("server: memory that stays once they have left", after - before, "MB", f"≤ {KEPT_MB + kv_cache_mb}"),
    ]


# -- the whole


def measure(settings: LoadSettings, log: Callable[[str], None] = print) -> list[dict]:
    """All rows."""
    if settings.quick:
        settings = settings.with_values(tokens=min(settings.tokens, QUICK_TOKENS))
    turns, tokens = settings.turns, settings.tokens
    lines = (rollout.SEED_PROMPTS / "train.txt").read_text().splitlines()
    if settings.quick:
        lines = [" ".join([line] * QUICK_TIMES) for line in lines]
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as scratch:
        given, options = prepared(settings, Path(scratch), log)
        with running(Path(scratch), Path(options["model"]), options) as app:
            come(app, given[:1], lines, 1, tokens)  # what the first turn of all allocates is no load, nor what
            visit_page(app)  # the first page does
            log("waiting until a round trains")
            if not until(lambda: trains(app), 600):
                log(f"no round trains: {app.rows('select state, phase, reason from round')}")
            before = app.megabytes()
            with Watch(app) as watch:
                for people in SIZES:
                    rows += one_size(app, people, given, lines, turns, tokens, log)
            after = settled(app, before)
            rows += memory_rows(before, watch, after, int(options["kv-cache-mb"]))
            rows.append(
                report.row("share of the time in which a round trained", watch.training / watch.looks, "", "≥ 0.9")
            )
    return rows


def one_size(
    app: App, people: int, given: list[str], lines: list[str], turns: int, tokens: int, log: Callable[[str], None]
) -> list[dict]:
    """A crowd of this size, then the same beside one who floods. Among the largest one is somebody at the page."""
    log(f"{people} at once")
    largest = people == SIZES[-1]
    at_the_page = AtThePage(app) if largest else None
    if at_the_page:
        at_the_page.start()
    calm = come(app, given[:people], lines, turns, tokens)
    rows = crowd_rows(people, calm)
    if at_the_page:
        at_the_page.left.set()
        at_the_page.join()
        shown = int(at_the_page.saw_place) if calm.waits else None
        rows.append(report.row("one more at the page, told the place in the line", shown, "", "≥ 1"))
    left = settled(app, 0) if largest else 0.0
    log(f"{people} at once, and one who floods")
    with flooded(app.url, given[-1], tokens) as statuses:
        crowd = come(app, given[:people], lines, turns, tokens)
    rows += flood_rows(people, calm, crowd, statuses)
    if largest:
        added = settled(app, left) - left
        rows.append(report.row("server: memory that the second crowd of this size added", added, "MB", f"≤ {ADDED_MB}"))
    for error in Counter([*calm.errors, *crowd.errors]).most_common(5):
        log(f"  {error[1]} times: {error[0]}")
    return rows


def settled(app: App, before: float) -> float:
    """The server's memory in MB once it is back, or after SETTLING seconds in which only a probe asks."""

    def is_back() -> bool:
        httpx.get(f"{app.url}/readyz", timeout=load_people.TIMEOUT, trust_env=False)
        return app.megabytes() <= before

    until(is_back, SETTLING, 1)
    return app.megabytes()


def main(argv: list[str] | None = None) -> None:
    try:
        settings = read(argv, LoadSettings, "python -m benchmarks.load")
    except SettingsError as error:
        sys.exit(str(error))
    report.show(measure(settings), settings.json_file)


if __name__ == "__main__":
    main()
