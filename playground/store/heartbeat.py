"""The beat of whoever holds the lease of a round, raised from a thread of its own: a step may take longer than the
lease.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from playground.store.checks import LeaseLost
from playground.store.errors import StoreUnavailable
from playground.store.rounds import Rounds
from playground.system.repeating import repeating

log = logging.getLogger(__name__)


@contextmanager
def heartbeat(store: Rounds, lease_seconds: float, round_id: int, owner: str) -> Iterator[None]:
    """Renew the lease that `owner` has of a round, three times in `lease_seconds`, while the block runs. It stops where
    another one holds the lease, which the round notices at its next step.
    """

    def beat() -> bool:
        try:
            store.update_round(round_id, owner)
        except LeaseLost:
            return False
        except StoreUnavailable as error:
            log.warning("the lease could not be renewed; trying again: %s", error)
        return True

    with repeating("heartbeat", lease_seconds / 3, beat):
        yield
