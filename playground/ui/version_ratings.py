"""The ratings of versions for all pages, made beside them: no page waits while they are computed."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence

from playground.models.ratings import Duels, Rating, rate
from playground.store import Store, StoreError
from playground.ui.handlers import Row

log = logging.getLogger(__name__)

RATING_SECONDS = 15.0  # for which the ratings are kept: they take up to a second beside the decoder


class VersionRatings:
    """Keeps what was computed last, and the votes that it was made of."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()  # held for a look, never while anything is read or computed
        self._thread: threading.Thread | None = None  # that computes, or has computed last
        self._ratings: Mapping[int, Rating] = {}
        self._votes: Sequence[Row] = []  # that `_ratings` are made of
        self._rated_at = float("-inf")  # when that was last begun, on the monotonic clock, in seconds

    def current(self, history: Sequence[Row], most_weight: float) -> Mapping[int, Rating]:
        """The ratings that are known. Where they are older than a quarter of a minute, new ones are begun, which a
        later call has. `history`: rows of `Store.version_history`; `most_weight`: as `rate`.
        """
        with self._lock:
            is_old = time.monotonic() - self._rated_at > RATING_SECONDS
            if is_old and not (self._thread and self._thread.is_alive()):
                before = {row["version"]: row["before"] or 0 for row in history}
                self._rated_at = time.monotonic()
                self._thread = threading.Thread(
                    target=self._rate, args=(before, most_weight), name="ratings", daemon=True
                )
                self._thread.start()
            return self._ratings

    def wait(self) -> None:
        """Until the ratings that were begun are there."""
        if self._thread:
            self._thread.join()

    def invalidate(self) -> None:
        """Begin new ratings at the next call."""
        self._rated_at = float("-inf")

    def _rate(self, before: Mapping[int, int], most_weight: float) -> None:
        """Compute the ratings where the votes have changed. Those that are known stay where the store cannot answer."""
        try:
            votes = self.store.version_duels()
            if votes != self._votes:
                self._ratings = rate([Duels(**row) for row in votes], before, most_weight)
                self._votes = votes
        except StoreError as error:
            log.warning("versions are not rated: %s", error)
        except Exception:
            log.exception("versions are not rated")
