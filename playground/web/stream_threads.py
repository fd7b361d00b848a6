"""Threads for streams alone, so that votes, timer ticks and page loads never wait for a stream.

A streaming handler spends most of its time waiting: for memory, for the next token, for its turn to update the page.
In the thread pool that all other handlers use, forty of them would leave no thread for anybody else.
"""

import threading
from collections.abc import AsyncGenerator, Generator
from typing import Final, TypeVar

import anyio

EXTRA_STREAMS = (
    64  # threads besides those for waiting messages; more streams than threads update their pages less often
)
# streams that Gradio starts at once: our own handler tells a person that they have to wait, so it has to run for that
MAX_STREAMS = 1024

Update = TypeVar("Update")


class _Exhausted:
    """What `next` returns at the end of a generator."""


_EXHAUSTED: Final = _Exhausted()


class StreamThreads:
    """Runs generators in at most `threads` threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._limiter: anyio.CapacityLimiter | None = None  # created on the server's event loop, where it is used

    async def run(self, updates: Generator[Update, None, None]) -> AsyncGenerator[Update, None]:
        """Yield the items of a generator, each computed in one of the threads. When the page goes away, a thread of its
        own closes the generator, since closing may take as long as the model's next step.
        """
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self.threads)
        try:
            while True:
                update = await anyio.to_thread.run_sync(next, updates, _EXHAUSTED, limiter=self._limiter)
                if isinstance(update, _Exhausted):
                    return
                yield update
        except BaseException:
            threading.Thread(target=updates.close, name="finish in background", daemon=True).start()
            raise
