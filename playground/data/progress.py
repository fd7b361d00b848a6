"""How far a long command is, on standard error: one line that changes in a terminal, elsewhere a line now and then."""

import sys
import time
from typing import TextIO

IN_TERMINAL = 0.2  # seconds between two lines
ELSEWHERE = 10.0


class Progress:
    """Counts rows and tells how many there are; used in a `with` block, which ends the line."""

    def __init__(self, what: str, total: int | None = None, out: TextIO | None = None) -> None:
        self.what = what
        self.total = total
        self.rows = 0
        self._out = sys.stderr if out is None else out
        self._terminal = self._out.isatty()
        self._next = time.monotonic() + (IN_TERMINAL if self._terminal else ELSEWHERE)
        self._said = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._said and self._terminal:
            self._out.write("\n")

    def step(self) -> None:
        """One more row."""
        self.rows += 1
        if self.rows % 50 == 0 and time.monotonic() >= self._next:
            self._say()

    def _say(self) -> None:
        total = f" of about {self.total:,}" if self.total else ""
        line = f"{self.what}: {self.rows:,}{total}"
        self._out.write(f"\r{line}" if self._terminal else f"{line}\n")
        self._out.flush()
        self._said = True
        self._next = time.monotonic() + (IN_TERMINAL if self._terminal else ELSEWHERE)
