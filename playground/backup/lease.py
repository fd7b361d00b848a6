"""Which of several servers answers and records where they share the target of a backup: the one that holds the lease.
The others only show what there is, and watch.

**How.** A server claims by a file of its own, `lease/NUMBER-ID`, whose number is one more than the highest that is
there, and rewrites it while it lives. The lease is that of the claim with the highest name. Nobody writes another's
file, so all that is asked of a file system is that a file is written whole and is listed once it is written, which a
folder, S3 and the hub's buckets do; none of them needs to compare and swap. Two that claim at the same moment write two
files, wait for SETTLE seconds and list them: both see the same highest name.

**What it guarantees.** A server that comes while another one lives does not record beside it. One that was taken for
dead (it stood still, or could not reach the target, for `lease_seconds`) sees the higher claim at its next look and
stops to record; until then, which is at most `lease_seconds` / 3 after it is back, both record. The same holds where a
claim takes longer than SETTLE to be listed. Where one of two servers cannot reach the target, nothing can tell it. In
all these cases no snapshot is overwritten: the one that sees the other's stops to save (`keeper.py`). It looks before a
snapshot and again before the manifest; one that stands still between that look and the write adds its snapshot, and
then it is the other one that stops to save.

A server that saves nothing gives its claim back and goes on looking. It records, as it says on the page, until another
server with the same database claims. Then it stops to record like one that was taken for dead, and may claim again.

One that was taken for dead and finds no claim, since the other server has ended too, has the lease again. What the
other one saved is not in its database: where it runs on, it stops to save; where it is started, the newest snapshot is
restored (`starting.py`).

Whether the holder is alive is told by changes of its file on our own clock. The time of day in it serves where a server
begins to look: a claim that is STALE times older than it may be is dead, whatever the clocks differ.
"""

import json
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playground.backup import identity
from playground.backup.target import Target, TargetUnavailable, within

log = logging.getLogger(__name__)

FOLDER = "lease"
NAME = re.compile(r"\d{10}-[0-9a-f]{32}")
SETTLE = 1.0  # seconds between a claim and the look that decides
STALE = 10  # times `lease_seconds`, by the time of day
PATIENCE = 15.0  # seconds that a start waits for the target

Holder = Literal["we", "another", "unknown"]


@dataclass
class Seen:
    """Another's claim: its file's name and content, and since when that has not changed, on our clock."""

    name: str
    content: bytes
    since: float


class Lease:
    """The lease of the servers at `target`, as the server with this data folder sees it. A database that is not the one
    of the server that holds it, so that its snapshots are not either, has nothing to do with it: "unknown".

    `database`: that of this server, which may not be there. `clock` (seconds), `wall` (the time of day, seconds since
    the epoch) and `sleep` are the machine's.
    """

    clock = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
    sleep = staticmethod(time.sleep)

    def __init__(self, target: Target, database: Path, lease_seconds: float) -> None:
        self.target = target
        self.lease_seconds = lease_seconds
        self.holder: Holder = "unknown"
        self.took_over = False  # whether the claim before ours was another server's
        self._database = database
        self._data_dir = database.parent
        self._own: str | None = None  # the name of our claim
        self._only_watches = False
        self._beat = 0
        self._looking = threading.Lock()
        self._seen: Seen | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # -- at the start and at the end

    def begin(self, patience: float = PATIENCE) -> Holder:
        """Claim the lease if nobody else has it; who holds it then. "unknown" where the target does not answer for
        `patience` seconds.
        """
        try:
            self.holder = within(patience, self._look)
        except TargetUnavailable as error:
            log.warning("who holds the lease is not known: %s", error)
        return self.holder

    def start(self, lost: Callable[[], None], won: Callable[[], None]) -> None:
        """Keep looking, in a thread. `lost` is called when another server has the lease from now on, `won` when this
        one has it after another one.
        """
        self._thread = threading.Thread(target=self._run, args=(lost, won), name="lease", daemon=True)
        self._thread.start()

    def close(self, patience: float = PATIENCE) -> None:
        """Give the lease back, so that another server has it at its next look. Call it after the last snapshot."""
        self._stopping.set()
        self._give_back(patience)

    def give_up(self, patience: float = PATIENCE) -> None:
        """Give the lease back, and go on looking without a claim until another server has had the lease."""
        self._only_watches = True
        self._give_back(patience)

    def _give_back(self, patience: float) -> None:
        if self._own is None:
            return
        try:
            within(patience, self._withdraw)
        except TargetUnavailable as error:
            log.warning("the lease could not be given back; it ends by itself: %s", error)

    # -- looking

    def _run(self, lost: Callable[[], None], won: Callable[[], None]) -> None:
        while not self._stopping.wait(self.lease_seconds / 3):
            self.step(lost, won)

    def step(self, lost: Callable[[], None], won: Callable[[], None]) -> None:
        """Look once, and tell what has changed. Where the target does not answer, nothing has."""
        before = self.holder
        try:
            self.holder = within(self.lease_seconds, self._look)
        except TargetUnavailable as error:
            log.warning("the lease could not be looked at: %s", error)
            return
        if self.holder == "another" and before != "another":
            log.warning("another server holds the lease")
            lost()
        elif self.holder == "we" and before == "another":
            log.warning("the server that held the lease is gone; this one takes over")
            won()

    def is_anothers_now(self) -> bool:
        """Whether another server has claimed after this one, which has the lease. TargetUnavailable."""
        return self._own is not None and self._claims()[-1:] not in ([], [self._own])

    def _look(self) -> Holder:
        """Look, and do what follows: claim, renew or withdraw. TargetUnavailable."""
        if not self._looking.acquire(blocking=False):
            raise TargetUnavailable("it has not answered an earlier look yet")
        try:
            return self._looked()
        finally:
            self._looking.release()

    def _claims(self) -> list[str]:
        """The names of all claims, the highest last."""
        return sorted(name for name in self.target.list(FOLDER) if NAME.fullmatch(name))

    def _looked(self) -> Holder:
        if self._only_watches:
            return self._watched()
        names = self._claims()
        highest = names[-1] if names else None
        own = self._own
        if own is not None:
            if highest in (None, own):
                self._write(own)
                return "we"
            self._withdraw()
        if highest is None:
            return self._claim(1)
        is_ours = highest.endswith(self._id)  # of this data folder's server before it was restarted
        content = None if is_ours else self._read(highest)
        if is_ours or (content is not None and self._is_dead(highest, content)):
            self.took_over = not is_ours
            return self._claim(int(highest.partition("-")[0]) + 1)
        return "unknown" if content and self._is_strangers(content) else "another"

    def _watched(self) -> Holder:
        """Look without a claim. Once another server has the lease, this one waits for it as every other one does."""
        names, self._own = self._claims(), None
        own = [name for name in names if name.endswith(self._id)]  # as where it could not be removed at first
        self.target.remove(f"{FOLDER}/{name}" for name in own)
        others = [name for name in names if name not in own]
        content = self._read(others[-1]) if others else None
        if content is None or self._is_strangers(content):
            return "unknown"
        self._only_watches = False
        return "another"

    @property
    def _id(self) -> str:
        return identity.server_of(self._data_dir)

    def _claim(self, number: int) -> Holder:
        """Claim with this number, and decide. The holder removes the claims before its own."""
        own = f"{number:010d}-{self._id}"
        self._write(own)
        self.sleep(SETTLE)
        names = self._claims()
        if names[-1:] != [own]:
            self.target.remove([f"{FOLDER}/{own}"])
            return "another"
        self._own = own
        self.target.remove(f"{FOLDER}/{name}" for name in names[:-1])
        return "we"

    def _write(self, name: str) -> None:
        self._beat += 1
        folder = identity.of(self._data_dir) if identity.exists(self._data_dir) else ""
        content = json.dumps({"time": round(self.wall(), 3), "beat": self._beat, "folder": folder})
        self.target.write(f"{FOLDER}/{name}", content.encode())

    def _withdraw(self) -> None:
        own, self._own = self._own, None
        self.target.remove([f"{FOLDER}/{own}"])

    def _read(self, name: str) -> bytes | None:
        """Another's claim; None where it has just ended, which the next look finds."""
        try:
            return self.target.read(f"{FOLDER}/{name}")
        except TargetUnavailable as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def _is_strangers(self, content: bytes) -> bool:
        """Whether the claim is of a server with another database than the one that is here."""
        folder = _of(content, "folder")
        return self._database.exists() and bool(folder) and folder != identity.of(self._data_dir)

    def _is_dead(self, name: str, content: bytes) -> bool:
        """Whether the claim of this name has not changed for `lease_seconds`, or is of long ago."""
        if self._seen is None or (self._seen.name, self._seen.content) != (name, content):
            self._seen = Seen(name, content, self.clock())
        is_silent = self.clock() - self._seen.since >= self.lease_seconds
        written = _of(content, "time")
        is_old = isinstance(written, float) and self.wall() - written > STALE * self.lease_seconds
        return is_silent or is_old


def _of(content: bytes, key: str) -> object:
    """A value in a claim; None where that is only half written."""
    try:
        return json.loads(content)[key]
    except (ValueError, KeyError, TypeError):
        return None
