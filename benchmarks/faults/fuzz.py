"""Odd requests over every route and handler, as a stranger, a person and the owner, while a victim chats: does
anything break, leak or stay in memory?
"""

import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import report
from benchmarks.faults.aims import (
    ENV_MARK,
    PlantedSecrets,
    Victim,
    all_routes,
    handlers,
    mark,
    plant,
    targets,
)
from benchmarks.faults.mutate import AimedRequest, Mutator, Surface
from benchmarks.faults.people import PageUnavailable, Person, acknowledged, owner
from benchmarks.faults.raw import Response, fetch
from benchmarks.faults.running import (
    ENVIRON,
    App,
    Scene,
    flags_of,
    running,
    tracebacks,
    until,
)

THREADS = 6
EXAMPLES = 12  # of each kind of finding that are logged
IDLE_SECONDS = 90  # within which memory must have come back
NAMED = re.compile(rb"/[\w./-]{0,300}/gradio/[0-9a-f]{64}/[^\"'\\\s,<>]{1,200}")  # a file in Gradio's cache
SHORT_ROUND = {
    "round.auto": False,
    "ppo.iterations": 2,
    "ppo.episodes": 16,
    "ppo.minibatch": 16,
    "ppo.rollout-tokens": 8,
    "gate.prompts": 8,
    "reward.evidence-confidence": 0.0,
    "device": "cpu",
    "worker": False,
}


# -- the run


@dataclass
class Tally:
    """What was seen; examples of each kind are kept for the log."""

    statuses: Counter = field(default_factory=Counter)
    counts: Counter = field(default_factory=Counter)
    examples: dict = field(default_factory=dict)
    slowest: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, what: str) -> None:
        with self.lock:
            self.counts[kind] += 1
            if len(kept := self.examples.setdefault(kind, [])) < EXAMPLES:
                kept.append(what)

    def take(self, number: int, aimed: AimedRequest, answer: Response, planted: PlantedSecrets, healthy) -> None:
        """Judge one answer."""
        with self.lock:
            self.statuses[answer.status] += 1
            if answer.outcome == "answered":
                self.slowest = max(self.slowest, answer.seconds)
        described = f"{number} {aimed.role}: {aimed.request} → {answer.status} {answer.body[:120]!r}"
        if answer.status in (500, 501, 502, 504, 505, 507):
            self.note("status 500", described)
        if answer.status == 503 and healthy():
            self.note("status 503 of a healthy server", described)
        if answer.outcome == "timeout" and not aimed.request.unfinished:
            self.note("no answer", described)
        if aimed.role != "owner":
            for where in planted.seen(answer.everything):
                self.note("foreign data", f"{where}: {described}")


def attack(
    app: App,
    surface: Surface,
    planted: PlantedSecrets,
    requests: list,
    tally: Tally,
    mutator: Mutator,
    number: int,
    n: int,
) -> None:
    """Send `requests`, then odd ones up to `n`; ask at once, and whatever `n` says, for a file that an answer names."""
    port = int(app.url.rsplit(":", 1)[1])
    pending = list(reversed(requests))
    sent = 0
    while app.alive and (sent < n or pending):
        aimed = pending.pop() if pending else mutator.draw()
        # from many addresses, so that a limit on each does not keep all the rest from being tried
        address = f"127.0.{mutator.rng.randrange(1, 9)}.{mutator.rng.randrange(1, 250)}"
        answer = fetch(port, aimed.request, address=address)
        sent += 1
        tally.take(number + sent, aimed, answer, planted, lambda: app.ready() == 200)
        for path in set(NAMED.findall(answer.body)):
            name = path.decode("latin-1")
            if name not in surface.leads:
                surface.leads.append(name)
                follow = mutator.file()
                follow.target = b"/gradio_api/file=" + path
                pending.append(mutator.aim(mutator.rng.choice(("stranger", "person")), follow))


def in_threads(
    app: App,
    surface: Surface,
    planted: PlantedSecrets,
    tally: Tally,
    seed: int,
    n: int,
    plain: list,
    threads: int = THREADS,
) -> None:
    """`n` requests by several connections at once; those of `plain` first."""
    jobs = []
    for i in range(threads):
        mutator = Mutator(random.Random(f"{seed}/{i}/{n}"), surface)
        share = n // threads + (i < n % threads)
        jobs.append(
            threading.Thread(
                target=attack, args=(app, surface, planted, plain[i::threads], tally, mutator, i * n, share)
            )
        )
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()


def a_round(app: App) -> None:
    """One round on the victim's votes, in a worker process of its own: what it leaves on disk and on the page is
    aimed at too.
    """
    command = [
        sys.executable,
        "-m",
        "training.worker",
        "--once",
        *flags_of({k: v for k, v in app.options.items() if k != "port"}),
    ]
    subprocess.run(
        command,
        cwd=app.folder,
        env={**os.environ, **ENVIRON, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )


def run(scene: Scene) -> list[dict]:
    """The section's rows."""
    n, folder = scene.count("requests", 10_000, 900), scene.folder("fuzz")
    folder = folder / "app"
    folder.mkdir()
    (folder / ".env").write_text(f"SECRET_OF_SOMEBODY={ENV_MARK}\n")
    known = all_routes(scene.model())
    # strangers ask for it by a name of its own, as behind a proxy
    with running(folder, scene.model(), {**SHORT_ROUND, "allowed-hosts": "nudge.example"}) as app:
        victim = Victim(app)
        victim.chat(scene.count("victim_turns", 24, 8))
        a_round(app)
        planted = plant(app, victim)
        people = [Person(app.url, f"person {i}") for i in range(12)]
        surface = Surface(
            app.url.split("//")[1],
            known,
            handlers(people[0].config),
            targets(app),
            victim.page.session,
            {"person": [p.cookie for p in people if p.cookie], "owner": [c for c in [owner(app).cookie] if c]},
        )
        return measured(scene, app, surface, planted, victim, n)


def measured(scene: Scene, app: App, surface: Surface, planted: PlantedSecrets, victim: Victim, n: int) -> list[dict]:
    """Plain requests first, which warm everything up, then odd ones; then wait until it has quietened down."""
    tally, began = Tally(), time.monotonic()
    mutator = Mutator(random.Random(scene.seed), surface)
    plain = [*mutator.plain(), *mutator.known()]
    position = app.said_so_far()
    victim.start()
    in_threads(app, surface, planted, tally, scene.seed, min(len(plain), n), plain)
    before = app.megabytes() if app.alive else None
    in_threads(app, surface, planted, tally, scene.seed, max(n - len(plain), 0), [])
    victim.stop()
    after = settled(app, before) if app.alive else None
    broken = tracebacks(app.said(position))
    for line in broken:
        tally.note("tracebacks", line)
    scene.log(
        f"fuzz: {sum(tally.statuses.values())} requests over {len(surface.routes)} routes and "
        f"{len(surface.handlers)} handlers in {time.monotonic() - began:.0f} s; statuses "
        f"{dict(sorted(tally.statuses.items()))}; slowest answer {tally.slowest:.1f} s"
    )
    scene.log(f"  files in Gradio's cache that answers named, and that were asked for: {surface.leads[:8]}")
    for kind, examples in tally.examples.items():
        for example in examples:
            scene.log(f"  {kind}: {example}")
    return rows(tally, n, before, after, app)


def settled(app: App, before: float) -> float:
    """The server's megabytes once idle: the last of what was seen until it was near `before` again."""
    until(lambda: app.megabytes() <= before + 50, IDLE_SECONDS, pause=1)
    return app.megabytes()


def rows(tally: Tally, n: int, before: float | None, after: float | None, app: App) -> list[dict]:
    """As the table has them."""
    kinds = {
        "status 500": "answers of status 500",
        "status 503 of a healthy server": "answers of status 503 while /readyz said 200",
        "tracebacks": "tracebacks in the log",
        "foreign data": "answers with somebody else's data or a file",
        "no answer": "requests without an answer in 20 s",
    }
    growth = None if after is None else after - before
    sent = sum(tally.statuses.values())
    # a door that is shut for all of them would hide what is behind it
    at_the_door = sum(tally.statuses[status] for status in (0, 400, 404, 405, 421, 429))
    return [
        report.row("fuzz: requests sent", sent, "", f"≥ {n}"),
        report.row("fuzz: share that got as far as the gestures and pages", 1 - at_the_door / sent, "", "≥ 0.2"),
        *(report.row(f"fuzz: {what}", tally.counts[kind], "", "≤ 0") for kind, what in kinds.items()),
        report.row("fuzz: memory once idle, over that before", growth, "MB", "≤ 50"),
        report.row("fuzz: afterwards a message is answered and a vote counts", int(still_chats(app)), "", "≥ 1"),
    ]


def still_chats(app: App) -> bool:
    """Whether somebody new can chat and vote."""
    if not app.alive:
        return False
    text = f"Still there? {mark()}"
    try:
        sent, voted = Person(app.url, "afterwards", address="127.0.0.3").turn(text, "b")
    except PageUnavailable:
        return False
    return sent.kept and acknowledged(voted) and app.counted(text) == "b"
