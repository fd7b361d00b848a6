"""What fuzz aims at and what it must not see: the routes and handlers of the app, a victim with secrets, and files
that hold some.
"""

import secrets
import threading
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.gestures import configure
from benchmarks.faults.mutate import Handler
from benchmarks.faults.people import Person
from benchmarks.faults.running import App

# -- what can be aimed at


def routes(app: object) -> list[tuple[str, str]]:
    """Every (path, method) that an ASGI app has, those of what is mounted in it and of what it wraps included."""
    endpoints, seen, todo = set(), set(), [(app, "")]
    while todo:
        thing, prefix = todo.pop()
        if (id(thing), prefix) in seen:
            continue
        seen.add((id(thing), prefix))
        if not hasattr(thing, "endpoint"):
            prefix += getattr(thing, "path", "")  # a mount
        # what is mounted, middleware's app by any of its usual names, FastAPI's included router
        inner = (getattr(thing, name, None) for name in ("app", "asgi", "inner", "original_router"))
        todo += [(part, prefix) for part in inner if part is not None and not isinstance(part, str)]
        for route in getattr(thing, "routes", None) or []:
            todo.append((route, prefix))
            if hasattr(route, "endpoint"):
                endpoints |= {(prefix + route.path, method) for method in getattr(route, "methods", None) or {"GET"}}
    return sorted(endpoints)


def all_routes(model: Path) -> list[tuple[str, str]]:
    """The routes of this app as it is built, and of Gradio alone, so that what is in front of Gradio hides none
    of them.
    """
    import gradio
    from gradio.routes import App as GradioApp

    from playground import server
    from playground.chat.session import Chat
    from playground.models import loading
    from playground.serving.engine import Engine
    from playground.settings import Settings
    from playground.store import Store

    settings = Settings(model=str(model), threads=1, dtype="float32", decode_format="float32", _env_file=None)
    store = Store()
    engine = Engine(store, settings, loading.load_trunk(settings), loading.load_tokenizer(settings))
    ours = routes(server.create(settings, store, engine, Chat(store, engine, settings)))
    with gradio.Blocks() as empty:
        pass
    return sorted({*ours, *routes(GradioApp.create_app(empty))})


def handlers(config: dict) -> list[Handler]:
    """The handlers that /config lists."""
    return [
        Handler(d["id"], len(d["inputs"]), bool(d["queue"]), tuple(tuple(t) for t in d["targets"]))
        for d in config["dependencies"]
    ]


# -- what must not be seen


@dataclass
class PlantedSecrets:
    """Secrets by where they are; `seen` names those that an answer holds."""

    marks: dict[str, bytes]

    def seen(self, answer: bytes) -> list[str]:
        return [where for where, mark in self.marks.items() if mark in answer]


def mark() -> str:
    return f"mark{secrets.token_hex(8)}"


class Victim:
    """Somebody with secrets, who goes on chatting while others attack."""

    def __init__(self, app: App):
        self.marks = {name: mark() for name in ("a chat", "a comment", "a system prompt")}
        self.page = Person(app.url, "victim", address="127.0.0.2")
        self.kept = self.page.turn(f"My secret is {self.marks['a chat']}", "a")
        said = [
            self.page.event("comment", [None, f"because {self.marks['a comment']}"], "submit"),
            configure(self.page, f"You keep {self.marks['a system prompt']}"),
        ]
        self.said = [answer.status for answer in said]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._chat, daemon=True)

    def chat(self, turns: int) -> None:
        """Turns that a round can learn from."""
        for i in range(turns):
            self.page.turn(f"{self.marks['a chat']}: tell me about thing {i}", "ab"[i % 2])

    def start(self) -> "Victim":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._over.set()
        self._thread.join(60)

    def _chat(self) -> None:
        page = self.page
        page.client.timeout = 15
        while not self._over.wait(3):
            page.turn(f"Again {self.marks['a chat']}", "b")


def plant(app: App, victim: Victim) -> PlantedSecrets:
    """Secrets in files: beside the app, in its working directory, and its own."""
    marks = {name: text.encode() for name, text in victim.marks.items()}
    for where, path in (
        ("a file of the working directory", app.folder / "secret.txt"),
        ("a file elsewhere", app.folder.parent / "elsewhere.txt"),
    ):
        marks[where] = mark().encode()
        path.write_bytes(marks[where] + b"\n")
    return PlantedSecrets(
        {
            **marks,
            ".env": ENV_MARK.encode(),
            "the database": b"SQLite format 3\x00",
            "a file of the system": b"root:x:0:0:",
        }
    )


ENV_MARK = mark()


def targets(app: App) -> list[str]:
    """Files that nobody may read."""
    paths = [
        app.folder / ".env",
        app.folder / "secret.txt",
        app.folder.parent / "elsewhere.txt",
        app.database,
        Path(f"{app.database}-wal"),
        app.log,
        *sorted((app.data / "rounds").rglob("*.json"))[:4],
        *sorted((app.data / "rounds").rglob("*.txt"))[:2],
    ]
    return [*map(str, paths), "/etc/passwd", "/proc/self/environ", "/proc/self/cmdline", ".env", "data/nudge.db"]
