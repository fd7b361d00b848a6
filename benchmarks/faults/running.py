"""The app under test: `python app.py` as a process in a folder of its own, its log, its memory, its database; and a
tiny model with a published version.

Everything here is the harness's view from outside. The database is read in this process, which is never the app's: to
open it cannot cost the app its locks.
"""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 600  # a busy machine imports torch and gradio slowly
ADMIN_LINK = re.compile(r"admin link.*?(https?://\S+)", re.I)
TINY = {"dtype": "float32", "threads": 1, "decode-format": "float32", "chat.reply-tokens": 24, "chat.stream-hz": 30}
ENVIRON = {"HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"}


class DidNotStart(Exception):
    """The app ended, or said nothing, before it listened; the message has the end of its log."""


def flags_of(options: dict) -> list[str]:
    """{"round.auto": False, "threads": 1} as `--no-round.auto --threads 1`."""
    flags = []
    for name, value in options.items():
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", str(value)]
    return flags


class App:
    """One `python app.py`; `folder` is its working directory and holds `data/` and `app.log` (its stderr), which
    grows over restarts.
    """

    def __init__(
        self,
        folder: Path,
        model: Path,
        options: dict | None = None,
        environ: dict | None = None,
        data: Path | None = None,
    ):
        self.folder, self.data = folder, data or folder / "data"
        folder.mkdir(parents=True, exist_ok=True)
        self.options = {"model": model, "data-dir": self.data, "port": 0, **TINY, **(options or {})}
        # what is uploaded goes with the folder too
        self.environ = {**os.environ, **ENVIRON, "GRADIO_TEMP_DIR": str(folder / "gradio"), **(environ or {})}
        self.log = folder / "app.log"
        self.process, self.url, self.admin_link = None, "", ""
        self.owner_cookies = None  # of the browser that opened the admin link

    # -- its life

    def start(self) -> "App":
        """Start it and return once it listens; DidNotStart otherwise."""
        command = [sys.executable, str(ROOT / "app.py"), *flags_of(self.options)]
        self.url = self.admin_link = ""
        with self.log.open("ab") as log:
            # in a group of its own, so that Ctrl-C reaches the benchmark alone, which then takes down what it started
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                process_group=0,
            )
        threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()
        if not until(lambda: self.url or self.process.poll() is not None, START_SECONDS) or not self.url:
            self.kill()
            raise DidNotStart(self.said()[-2000:])
        return self

    def _listen(self, process: subprocess.Popen) -> None:
        """Read what it prints for as long as it lives: its address, and the admin link where there is one."""
        for line in process.stdout:
            if match := ADMIN_LINK.search(line):
                self.admin_link = match[1]
            elif line.startswith("Nudge is at "):
                self.url = line.split()[-1]

    def stop(self) -> None:
        """End it in order; by force after half a minute."""
        if self.process is None or self.process.poll() is not None:
            return self.kill()
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL to it and to every process that it started."""
        if self.process is None:
            return
        for process in [*self.children(), self.process]:
            send_signal(process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def worker(self) -> psutil.Process | None:
        """The training worker, while there is one."""
        for child in self.children():
            try:
                if "training.worker" in child.cmdline():
                    return child
            except psutil.Error:
                continue
        return None

    # -- what it says of itself

    def said(self, since: int = 0) -> str:
        """Its log from a position (bytes) on."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(since)
            return log.read().decode(errors="replace")

    def said_so_far(self) -> int:
        """The position where the log ends now."""
        return self.log.stat().st_size if self.log.exists() else 0

    def megabytes(self) -> float:
        """Resident memory of the server's process alone."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def get(self, path: str, timeout: float = 10) -> tuple[int, str]:
        """(status, body) of a plain GET; (0, reason) where nothing answered."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")
        except OSError as error:
            return 0, str(error)

    def ready(self) -> int:
        """The status of /readyz."""
        return self.get("/readyz")[0]

    # -- its database

    @property
    def database(self) -> Path:
        return self.data / "nudge.db"

    def rows(self, sql: str, *values) -> list[tuple]:
        return rows(self.database, sql, *values)

    def counted(self, text: str) -> str | None:
        """The choice of the vote that counts on the pair that answers the message `text`, straight from the file."""
        rows = self.rows(
            "select v.choice from vote v join duel d on d.id = v.duel join message m on m.id = d.user_message"
            " where m.text = ? and v.superseded_by is null order by v.id desc limit 1",
            text,
        )
        return rows[0][0] if rows else None


def rows(database: Path, sql: str, *values) -> list[tuple]:
    """Rows of a query on a database file, through a connection of its own."""
    db = sqlite3.connect(database, timeout=30)
    try:
        return db.execute(sql, values).fetchall()
    finally:
        db.close()


def until(condition: Callable[[], object], seconds: float, pause: float = 0.05) -> object:
    """What `condition` gives once it is true, or its last answer after `seconds`."""
    end = time.monotonic() + seconds
    while not (result := condition()) and time.monotonic() < end:
        time.sleep(pause)
    return result


def send_signal(pid: int, number: int) -> bool:
    """Whether the process was still there to get it."""
    try:
        os.kill(pid, number)
        return True
    except ProcessLookupError:
        return False


@contextmanager
def running(*args, **options) -> Iterator[App]:
    """An App that runs inside the `with`, and nothing of it after."""
    app = App(*args, **options)
    try:
        yield app.start()
    finally:
        app.stop()


TRACEBACK = re.compile(r"^Traceback \(most recent call last\):", re.M)


def tracebacks(log: str) -> list[str]:
    """The last line of each traceback in a log, which names the exception."""
    errors = []
    for part in TRACEBACK.split(log)[1:]:
        lines = [line for line in part.splitlines() if line.strip()]
        ends = (
            line
            for line in lines
            if re.match(r"[\w.]+(Error|Exception|Interrupt|Exit|Refused|\w*)\b(:|$)", line) and not line.startswith(" ")
        )
        errors.append(next(ends, lines[-1] if lines else "")[:300])
    return errors


@dataclass
class Scene:
    """What every section works with: where, how much, and where it logs. `apps` of a section are its own."""

    scratch: Path
    quick: bool
    seed: int
    log: Callable[[str], None]
    counts: dict = field(default_factory=dict)

    def count(self, name: str, full: int, quick: int) -> int:
        """How often: as asked for on the command line, else the full or the quick count."""
        return self.counts.get(name) or (quick if self.quick else full)

    def folder(self, name: str) -> Path:
        """An empty folder of a section."""
        path = self.scratch / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def model(self) -> Path:
        """A tiny random model, made once."""
        from tests.tiny import tiny_folder

        path = self.scratch / "tiny-model"
        if not (path / "config.json").exists():
            tiny_folder(path)
        return path
