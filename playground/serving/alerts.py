"""Tells whoever operates the server what has happened: a round was published or refused, a version was rolled back, the
worker ended by itself, or something is wrong with the backup. Only numbers and times are in it.

It looks at the store, the worker and the backup every few seconds; how the events are posted is
`playground/system/webhook.py`'s.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from playground.backup import Backup
from playground.store import Row, Store, StoreError, now
from playground.system.child import Child
from playground.system.webhook import Event

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0  # between two looks
# within which a worker that keeps ending is reported once, and a backup's trouble that comes again
REPEAT_SECONDS = 600.0
REPORTED = ("published", "refused")  # states of a round that are reported


class Alerts:
    """`send` is called with each event, from a thread of its own between `start()` and `close()`. What has happened
    before is not reported.
    """

    def __init__(
        self,
        store: Store,
        send: Callable[[Event], None],
        worker: Child | None = None,
        clock: Callable[[], float] = time.monotonic,
        backup: Backup | None = None,
    ) -> None:
        self.store = store
        self.send = send
        self.worker = worker
        self.clock = clock
        self.backup = backup
        self._state = ""  # of the store at the last look
        self._last_round: int | None = None  # the newest that has ended; None until the first look
        self._last_event = 0  # the newest of the versions' events
        self._ends = 0  # of the worker
        self._worker_alerted = float("-inf")  # when, on `clock`
        self._backup_is_alerted = False  # of the trouble that there is now
        self._backup_alerted = float("-inf")  # when, on `clock`
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        self._closing.set()

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except StoreError:  # logged by the store; what is missed is reported at a later look
                pass
            except Exception:
                log.exception("looking for events failed; trying again")
            if self._closing.wait(LOOK_SECONDS):
                return

    def look(self) -> None:
        """Report what has happened since the last look. StoreError where the store cannot answer."""
        self._look_at_worker()
        self._look_at_backup()
        state = self.store.state()
        if state == self._state:
            return
        first = self._last_round is None
        rounds = self.store.ended_rounds(after=self._last_round or 0)
        versions = self.store.lost_versions(after=self._last_event)
        self._last_round = rounds[-1]["id"] if rounds else self._last_round or 0
        self._last_event = versions[-1]["id"] if versions else self._last_event
        self._state = state
        if first:
            return
        for row in rounds:
            if row["state"] in REPORTED:
                self.send(of_round(row))
        for row in versions:
            self.send(of_version(row))

    def _look_at_worker(self) -> None:
        if self.worker is None or self.worker.ends == self._ends:
            return
        self._ends = self.worker.ends
        if self.clock() - self._worker_alerted > REPEAT_SECONDS:
            self._worker_alerted = self.clock()
            text = "The training worker has ended by itself; it is started again."
            self.send({"event": "worker_down", "time": now(), "ends": self._ends, "text": text})

    def _look_at_backup(self) -> None:
        """Tell once of each trouble, not at each look."""
        trouble = self.backup.status().trouble if self.backup else None
        if self.backup is None or trouble is None:
            self._backup_is_alerted = False
        elif not self._backup_is_alerted and self.clock() - self._backup_alerted > REPEAT_SECONDS:
            self._backup_is_alerted, self._backup_alerted = True, self.clock()
            age = round(self.backup.age())
            self.send({"event": "backup_late", "time": now(), "age": age, "text": str(trouble)})


def of_round(row: Row) -> dict[str, Any]:
    """The event of a round that has ended."""
    text = f"Round {row['id']} was {row['state']}"
    text += f": version v{row['version']}." if row["version"] is not None else "."
    event = f"round_{row['state']}"
    return {"event": event, "time": row["ended"], "round": row["id"], "version": row["version"], "text": text}


def of_version(row: Row) -> dict[str, Any]:
    """The event of a version that had to make room for another one."""
    text = f"Version v{row['version']} was {row['what'].replace('_', ' ')}; v{row['live']} answers now."
    return {"event": f"version_{row['what']}", "time": row["created"], "version": row["version"], "text": text}
