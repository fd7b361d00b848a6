"""The beat of whoever holds the lease of a round, raised from a thread of its own: a step may take longer than the
lease.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from playground.store.checks import LeaseLost
from playground.store.errors import StoreUnavailable
from playground.store.rounds import Rounds

log = logging.getLogger(__name__)


@contextmanager
def heartbeat(store: Rounds, lease_seconds: float, round_id: int, owner: str) -> Iterator[None]:
    """Renew the lease that `owner` has of a round, three times in `lease_seconds`, while the block runs. It stops where
    another one holds the lease, which the round notices at its next step.
    """
    done = threading.Event()

    def beat() -> None:
        while not done.wait(lease_seconds / 3):
            try:
                store.update_round(round_id, owner)
            except LeaseLost:
                return
            except StoreUnavailable as error:
                log.warning("the lease could not be renewed; trying again: %s", error)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
