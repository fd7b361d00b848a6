"""A lane of their own for streams: threads that votes, ticks and page loads never wait for.

A generator of updates spends its life waiting: for room, for the next word, for its turn to paint. In the pool of
threads that every other gesture uses, forty of them are a full house.
"""

import threading

import anyio

ROOM = 64  # streams that run at once besides those that wait; more of them share the threads and are painted less often
EVENTS = (
    1024  # streams that Gradio starts at once: a person who waits is told so by our handler, which has to run for that
)
END = object()


class Lane:
    """Drives generators in at most `threads` threads."""

    def __init__(self, threads):
        self.threads = threads
        self._limiter = None  # made on the server's event loop, where it is used

    async def drive(self, updates):
        """The items of a generator, each made in a thread of the lane. Where the page goes away the generator is closed
        in a thread, since closing may take as long as the model's next step."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self.threads)
        try:
            while (update := await anyio.to_thread.run_sync(next, updates, END, limiter=self._limiter)) is not END:
                yield update
        except BaseException:
            threading.Thread(target=updates.close, name="linger", daemon=True).start()
            raise
