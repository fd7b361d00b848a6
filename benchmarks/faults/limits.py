"""Everything a stranger can send too much of: what it costs the server's memory, and whether somebody else can vote
meanwhile.
"""

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import report
from benchmarks.faults.people import PageUnavailable, Person
from benchmarks.faults.raw import Request, fetch
from benchmarks.faults.running import App, Scene, running, until

BACK_SECONDS = 25  # in which memory must have come back
GROWTH, LEFT, VOTE_SECONDS = 100, 50, 2  # MB, MB, seconds
MB = 1 << 20


class Crowd:
    """The attacker's means: the app's port, and a page to know the handlers by."""

    def __init__(self, app: App):
        self.port = int(app.url.rsplit(":", 1)[1])
        self.page = Person(app.url, "attacker")

    def headers(self, cookie: str | None = "") -> list[tuple[bytes, bytes]]:
        """As a browser on this page has them; `cookie` None for an invented one, "" for the attacker's own."""
        host = f"127.0.0.1:{self.port}"
        cookie = f"nudge_id={secrets.token_urlsafe(32)}" if cookie is None else cookie or self.page.cookie
        pairs = {
            "Host": host,
            "Origin": f"http://{host}",
            "Sec-Fetch-Site": "same-origin",
            "Cookie": cookie,
            "Content-Type": "application/json",
        }
        return [(name.encode(), value.encode()) for name, value in pairs.items()]

    def send_body(self, session: str, text: str = "Hello") -> bytes:
        return json.dumps({**self.page.body("send", [text, None]), "session_hash": session}).encode()

    def post(self, path: str, body: bytes, cookie: str | None = "", timeout: float = 60) -> int:
        """The status of a POST."""
        return fetch(self.port, Request("POST", path.encode(), self.headers(cookie), body), timeout).status

    def together(self, jobs: list[Callable[[], object]]) -> list:
        """What all of them give, run at once."""
        results, threads = [], []
        for job in jobs:
            threads.append(threading.Thread(target=lambda job=job: results.append(job()), daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        return results

    def connect(self, stack: ExitStack) -> socket.socket:
        return stack.enter_context(socket.create_connection(("127.0.0.1", self.port), timeout=10))


# -- the attacks; each returns a description for the log


def upload(crowd: Crowd, n: int) -> str:
    """A file of `n` MB."""
    size = n * MB
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="big.bin"\r\n\r\n'
    request = (
        Request("POST", b"/gradio_api/upload", crowd.headers())
        .header("Content-Type", "multipart/form-data; boundary=x")
        .header("Content-Length", str(size + len(head)))
    )
    with ExitStack() as stack:
        sock = crowd.connect(stack)
        sent = 0
        try:
            sock.sendall(request.encode() + head)
            for _ in range(size // MB):
                sock.sendall(b"a" * MB)
                sent += 1
            answer = sock.recv(200)
        except OSError as error:
            answer = type(error).__name__.encode()
    return f"{sent} MB taken, {answer[:40]!r}"


def big_json(crowd: Crowd, n: int) -> str:
    body = b'{"data": [' + b"[1]," * (n * MB // 4) + b'1], "fn_index": 4, "session_hash": "x"}'
    return str([crowd.post(path, body) for path in ("/gradio_api/run/predict", "/gradio_api/queue/join")])


def long_name(crowd: Crowd, n: int) -> str:
    body = json.dumps(crowd.page.body("admin-enter", ["a" * (n * MB), "password"])).encode()
    return str(crowd.post("/gradio_api/run/predict", body))


def sign_ins(crowd: Crowd, n: int) -> str:
    body = [json.dumps(crowd.page.body("admin-enter", [f"name {i}", "password"])).encode() for i in range(n)]
    return counted(crowd.together([lambda b=b: crowd.post("/gradio_api/run/predict", b) for b in body]))


def sessions(crowd: Crowd, n: int) -> str:
    """Pages that are opened under invented session names and never seen again."""
    load = next(
        d
        for d in crowd.page.config["dependencies"]
        if any(event == "load" for _, event in d["targets"]) and not d["queue"]
    )
    body = {"data": [None] * len(load["inputs"]), "event_data": None, "fn_index": load["id"], "trigger_id": None}
    return counted(
        [
            crowd.post("/gradio_api/run/predict", json.dumps({**body, "session_hash": secrets.token_hex(6)}).encode())
            for _ in range(n)
        ]
    )


def messages(crowd: Crowd, n: int) -> str:
    """Invented people send at once."""
    return counted(
        crowd.together(
            [
                lambda: crowd.post("/gradio_api/queue/join", crowd.send_body(secrets.token_hex(6)), None)
                for _ in range(n)
            ]
        )
    )


def joins(crowd: Crowd, n: int) -> str:
    """One cookie, many messages."""
    return counted([crowd.post("/gradio_api/queue/join", crowd.send_body(secrets.token_hex(6))) for _ in range(n)])


def unread(crowd: Crowd, n: int) -> str:
    """Streams of answers that are opened and never read."""
    with ExitStack() as stack:
        for _ in range(n):
            session, cookie = secrets.token_hex(6), f"nudge_id={secrets.token_urlsafe(32)}"
            crowd.post("/gradio_api/queue/join", crowd.send_body(session, "Hello " * 300), cookie)
            sock = crowd.connect(stack)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            try:
                sock.sendall(
                    Request(
                        "GET",
                        f"/gradio_api/queue/data?session_hash={session}".encode(),
                        [*crowd.headers(cookie), (b"Connection", b"keep-alive")],
                    ).encode()
                )
            except OSError:
                continue
        time.sleep(5)
    return "opened and left"


def slow_bodies(crowd: Crowd, n: int) -> str:
    """Bodies that come a byte a second."""
    with ExitStack() as stack:
        socks = [crowd.connect(stack) for _ in range(n)]
        dead = 0
        for sock in socks:
            sock.sendall(
                Request("POST", b"/gradio_api/run/predict", crowd.headers()).header("Content-Length", "100000").encode()
            )
        for _ in range(10):
            time.sleep(1)
            for sock in socks:
                try:
                    sock.sendall(b" ")
                except OSError:
                    dead += 1
    return f"{dead} bytes refused"


@dataclass(frozen=True)
class Attack:
    """`do` with `n`, or `few` with --quick; `name` has a place for it."""

    name: str
    n: int
    few: int
    do: Callable[[Crowd, int], str]


ATTACKS = [
    Attack("an upload of {n} MB", 300, 60, upload),
    Attack("{n} MB of JSON, twice", 114, 20, big_json),
    Attack("a sign-in name of {n} MB", 100, 20, long_name),
    Attack("{n} sign-ins at once", 40, 40, sign_ins),
    Attack("{n} invented sessions", 1300, 200, sessions),
    Attack("{n} invented cookies send", 80, 80, messages),
    Attack("{n} joins by one cookie", 300, 80, joins),
    Attack("{n} streams never read", 60, 15, unread),
    Attack("{n} slow bodies", 120, 40, slow_bodies),
]


def counted(statuses: list) -> str:
    return str({status: statuses.count(status) for status in sorted(set(statuses))})


# -- what it does to the others


@dataclass
class Watched:
    """What was seen during one attack. `votes` are the seconds that each vote of a well-behaved person took."""

    peak: float = 0.0
    votes: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    deaf: int = 0  # times that /healthz did not answer in 5 s


class Bystander(threading.Thread):
    """Somebody who has a pair before them and changes their vote, over and over; and a probe of /healthz and of the
    memory.
    """

    def __init__(self, app: App, page: Person):
        super().__init__(daemon=True)
        self.app, self.page, self.seen, self.over = app, page, Watched(), threading.Event()
        self._memory = threading.Thread(target=self._weigh, daemon=True)

    def run(self) -> None:
        self._memory.start()
        i = 0
        while not self.over.is_set() and self.app.alive:
            answer = self.page.vote("ab"[i % 2])
            self.seen.votes.append(answer.seconds)
            if not answer.kept:
                self.seen.refused.append(f"{answer.status} {answer.warnings[:1]}")
            self.seen.deaf += self.app.get("/healthz", timeout=5)[0] != 200
            i += 1
            self.over.wait(0.7)
        self._memory.join()

    def _weigh(self) -> None:
        while not self.over.wait(0.1) and self.app.alive:
            self.seen.peak = max(self.seen.peak, self.app.megabytes())

    def stop(self) -> Watched:
        self.over.set()
        self.join(60)
        return self.seen


def run(scene: Scene) -> list[dict]:
    """The section's rows."""
    rows = []
    with running(scene.folder("limits"), scene.model(), {"worker": False}) as app:
        page = Person(app.url, address="127.0.0.2")
        page.turn("Hello", "a")
        for _ in range(5):
            page.vote("b")
        for attack in ATTACKS:
            n = attack.few if scene.quick else attack.n
            name = attack.name.format(n=f"{n:,}")
            if not app.alive:
                rows.append(report.row(f"limits: {name}: not run, the app has ended", None, "", "≤ 0"))
                continue
            rows += one(scene, app, page, name, lambda crowd, attack=attack, n=n: attack.do(crowd, n))
        rows.append(report.row("limits: what was uploaded and is still on disk", disk_megabytes(app), "MB", "≤ 1"))
        rows.append(report.row("limits: afterwards somebody new can chat", int(new_can_chat(app)), "", "≥ 1"))
    return rows


def one(scene: Scene, app: App, page: Person, name: str, attack: Callable[[Crowd], str]) -> list[dict]:
    """One attack beside one bystander."""
    before, bystander = app.megabytes(), Bystander(app, page)
    bystander.start()
    try:
        said = attack(Crowd(app))
    except PageUnavailable as error:
        said = f"the attacker's page did not open: {error}"
    seen = bystander.stop()
    until(lambda: not app.alive or app.megabytes() <= before + LEFT, BACK_SECONDS, pause=0.5)
    left = app.megabytes() - before if app.alive else None
    slowest = max(seen.votes, default=None)
    scene.log(
        f"limits: {name}: {said}; +{seen.peak - before:.0f} MB, then {left if left is None else round(left)} MB; "
        f"{len(seen.votes)} votes, refused {seen.refused[:2]}, deaf {seen.deaf}"
    )
    return [
        report.row(f"limits: {name}: memory at its peak", max(seen.peak - before, 0.0), "MB", f"≤ {GROWTH}"),
        report.row(f"limits: {name}: memory that stays", left, "MB", f"≤ {LEFT}"),
        report.row(f"limits: {name}: another's slowest vote meanwhile", slowest, "s", f"≤ {VOTE_SECONDS}"),
        report.row(f"limits: {name}: votes refused, /healthz deaf", len(seen.refused) + seen.deaf, "", "≤ 0"),
    ]


def disk_megabytes(app: App) -> float:
    """What lies in the folder that Gradio puts uploads into."""
    uploads = Path(app.environ["GRADIO_TEMP_DIR"])
    return sum(file.stat().st_size for file in uploads.rglob("*") if file.is_file()) / MB


def new_can_chat(app: App) -> bool:
    try:
        sent, voted = Person(app.url, address="127.0.0.3").turn("Hello again", "a")
    except PageUnavailable:
        return False
    return sent.kept and voted.kept
