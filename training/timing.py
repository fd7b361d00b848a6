"""How many seconds the parts of a round take, for its row and its log."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

ShowPart = Callable[[str | None], None]


class PartSeconds(dict[str, float]):
    """{part: seconds}; a part that runs several times adds up. `show_part` gets the name of each part that begins, and
    None when it has ended.
    """

    def __init__(self, show_part: ShowPart = lambda part: None) -> None:
        super().__init__()
        self._show_part = show_part

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure what is done in this context."""
        self._show_part(name)
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self[name] = self.get(name, 0.0) + seconds
            log.debug("%s: %.2f s", name, seconds)
        self._show_part(None)
