"""SIGKILL to the server, the worker or both at random moments while people chat and vote and rounds run, with a
published version live.
"""

import json
import random
import secrets
import signal
import socket
import threading
import time
from dataclasses import dataclass, field

from benchmarks import report
from benchmarks.faults.live import Live
from benchmarks.faults.people import PageUnavailable, Person, acknowledged
from benchmarks.faults.running import App, DidNotStart, Scene, rows, send_signal, until

PEOPLE = 3
MINUTES = 60  # after which no further kill is made
ROUND_SECONDS = 60  # for which a round is waited for
CHOICES = ("a", "b", "tie", "both_bad", "skip")


@dataclass
class Ledger:
    """What the server has answered as accepted: {message: the choices that its vote may have now}."""

    votes: dict[str, set] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tried(self, text: str, choice: str) -> None:
        """A vote is on its way: from now on it may be in the store, acknowledged or not."""
        with self.lock:
            if text in self.votes:
                self.votes[text].add(choice)

    def accepted(self, text: str, choice: str) -> None:
        with self.lock:
            self.votes[text] = {choice}

    def lost(self, database) -> list[str]:
        """Messages whose vote was acknowledged and does not count in the database."""
        with self.lock:
            promised = {text: set(choices) for text, choices in self.votes.items()}
        counted = dict(
            rows(
                database,
                "select m.text, v.choice from vote v join duel d on d.id = v.duel"
                " join message m on m.id = d.user_message where v.superseded_by is null order by v.id",
            )
        )
        return [text for text, choices in promised.items() if counted.get(text) not in choices]


class Voter(threading.Thread):
    """Chats and votes for as long as there is a server, with one cookie over all its lives; changes a vote now and
    then.
    """

    def __init__(self, app: App, ledger: Ledger, rng: random.Random, address: str):
        super().__init__(daemon=True)
        self.app, self.ledger, self.rng, self.address = app, ledger, rng, address
        self.cookies, self.over, self.refused = {}, threading.Event(), 0

    def run(self) -> None:
        page = None
        while not self.over.is_set():
            if page is None or page.url != self.app.url:
                page = self._open()
                if page is None:
                    self.over.wait(0.3)
                    continue
            self._turn(page)
            page = page if self.app.alive else None

    def _open(self) -> Person | None:
        url = self.app.url
        if not url or not self.app.alive:
            return None
        try:
            page = Person(url, cookies=self.cookies, timeout=30, address=self.address)
        except PageUnavailable:
            return None
        self.cookies = {c.name: c.value for c in page.client.cookies.jar}
        page.loaded()  # so that a pair that waits for its vote can be voted on
        return page

    def _turn(self, page: Person) -> None:
        text = f"Tell me about {secrets.token_hex(6)}"
        if not page.send(text).kept:
            self._vote(page, None)  # a pair that was cut off may be in the way
            self.over.wait(0.2)
            return
        self._vote(page, text)
        if self.rng.random() < 0.25:
            self._vote(page, text)

    def _vote(self, page: Person, text: str | None) -> None:
        choice = self.rng.choice(CHOICES)
        if text:
            self.ledger.tried(text, choice)
        if acknowledged(page.vote(choice)) and text:
            self.ledger.accepted(text, choice)


@dataclass
class KillReport:
    """What was found after the kills."""

    kills: int = 0
    restarts: int = 0
    lost: set = field(default_factory=set)
    corrupt: int = 0
    not_live: int = 0
    mute: int = 0
    not_started: int = 0
    in_rounds: int = 0


def run(scene: Scene) -> list[dict]:
    """The section's rows."""
    wanted, live = scene.count("kills", 200, 8), Live(scene)
    options = {**live.options, "round.lease-seconds": 5, "port": free_port()}
    app = App(scene.folder("kills"), live.model, options, data=live.fresh())
    ledger, seen, rng = Ledger(), KillReport(), random.Random(scene.seed)
    voters = [Voter(app, ledger, random.Random(f"{scene.seed}/{i}"), f"127.0.0.{10 + i}") for i in range(PEOPLE)]
    try:
        app.start()
        for voter in voters:
            voter.start()
        slaughter(scene, app, ledger, seen, rng, wanted)
        for voter in voters:
            voter.over.set()
        for voter in voters:
            voter.join(60)
        app.stop()
        check_file(app, ledger, seen)
        rounds = app.rows("select state, count(*) from round group by state")
    finally:
        for voter in voters:
            voter.over.set()
        app.kill()
    scene.log(f"kills: {seen}; {len(ledger.votes)} votes acknowledged; rounds {rounds}")
    return [
        report.row("kills: of server, worker or both", seen.kills, "", f"≥ {wanted}"),
        report.row("kills: times the server was started again", seen.restarts),
        report.row("kills: votes acknowledged", len(ledger.votes), "", f"≥ {wanted // 4}"),
        report.row("kills: acknowledged votes lost", len(seen.lost), "", "≤ 0"),
        report.row("kills: integrity checks that failed", seen.corrupt, "", "≤ 0"),
        report.row("kills: starts that failed", seen.not_started, "", "≤ 0"),
        report.row("kills: restarts without the published version", seen.not_live, "", "≤ 0"),
        report.row("kills: restarts after which no message was answered", seen.mute, "", "≤ 0"),
        report.row("kills: rounds that began meanwhile", sum(n for _, n in rounds) - 1, "", "≥ 1"),
        report.row("kills: in the middle of a round", seen.in_rounds, "", f"≥ {wanted // 20}"),
    ]


def slaughter(scene: Scene, app: App, ledger: Ledger, seen: KillReport, rng: random.Random, wanted: int) -> None:
    """Kill until `wanted` processes have died, starting the server again whenever it is gone."""
    end = time.monotonic() + 60 * MINUTES
    while seen.kills < wanted and time.monotonic() < end:
        seen.in_rounds += wait_for_the_moment(app, rng)
        worker, whom = app.worker(), rng.choices(("worker", "server", "both"), (6, 3, 2))[0]
        if worker is None and whom == "worker":
            whom = "server"  # it is not up again yet
        if whom in ("worker", "both") and worker:
            seen.kills += send_signal(worker.pid, signal.SIGKILL)
        if whom in ("server", "both"):
            seen.kills += send_signal(app.process.pid, signal.SIGKILL)
            app.process.wait()
            check_file(app, ledger, seen)
            again(app, seen)
        if seen.kills % 20 == 0:
            scene.log(f"  {seen.kills} kills, {len(ledger.votes)} votes acknowledged, {len(seen.lost)} lost")
    if not app.alive:
        again(app, seen)


def wait_for_the_moment(app: App, rng: random.Random) -> bool:
    """Until the next kill: mostly soon, at times later, now and then in the middle of a round; returns whether a round
    is seen to run.
    """
    kind = rng.choices(("soon", "later", "in a round"), (78, 10, 12))[0]
    if kind == "in a round":
        now = time.time()  # a round whose worker was killed still says that it is running, but its lease is old
        working = "select 1 from round where state = 'running' and phase is not null and heartbeat > ?"
        reached = until(lambda: app.rows(working, now), ROUND_SECONDS, pause=0.3)
        time.sleep(rng.uniform(0, 5))
        return bool(reached)
    time.sleep(rng.uniform(4, 12) if kind == "later" else rng.uniform(0.2, 2))
    return False


def check_file(app: App, ledger: Ledger, seen: KillReport) -> None:
    """What is on disk now, before anybody repairs it."""
    seen.corrupt += rows(app.database, "pragma integrity_check") != [("ok",)]
    seen.lost |= set(ledger.lost(app.database))


def again(app: App, seen: KillReport) -> None:
    """Start the server again, and see that the published version is what answers."""
    try:
        app.start()
    except DidNotStart:
        seen.not_started += 1
        app.start()
    seen.restarts += 1
    seen.not_live += not until(lambda: published_answers(app), 15, pause=0.3)
    if seen.restarts % 4 == 1:
        seen.mute += not answers(app)


def published_answers(app: App) -> bool:
    """Whether the version that answers is the store's, and no longer the base."""
    status, body = app.get("/readyz")
    live = app.rows("select version from policy where status = 'live'")[0][0]
    return status == 200 and live > 0 and json.loads(body)["version"] == live


def answers(app: App) -> bool:
    try:
        return Person(app.url).send(f"Are you there? {secrets.token_hex(4)}").kept
    except PageUnavailable:
        return False


def free_port() -> int:
    """A port that is free now; the same for every start, as it is for people."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]
