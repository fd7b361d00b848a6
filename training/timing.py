"""How many seconds the parts of a round take, for its row and its log."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


class PartSeconds(dict[str, float]):
    """{part: seconds}; a part that runs several times adds up."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure what is done in this context."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self[name] = self.get(name, 0.0) + seconds
            log.debug("%s: %.2f s", name, seconds)
