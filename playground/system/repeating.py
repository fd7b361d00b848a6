"""Something that is done again and again in a thread of its own, while a block runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(name: str, seconds: float, call: Callable[[], bool]) -> Iterator[None]:
    """Call `call` every so many seconds, in a thread of this name, while the block runs or until it returns False. The
    block's end waits for a call under way.
    """
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(seconds) and call():
            pass

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
