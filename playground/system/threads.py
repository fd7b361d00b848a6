"""Which thread may compute on several cores: at any time only one thread keeps a team of OpenMP threads.

OpenMP gives every thread that computes on several cores a team of its own and keeps it as long as the thread lives. As
soon as two teams together have more threads than there are cores, libgomp lets all of them sleep between two matrix
products instead of spin, which halves the decoder's speed. So the decoder's thread has the only lasting team. Other
work in the same process runs on one core or in `run_in_own_thread`.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def set_threads(threads: int) -> None:
    """Let torch compute on this many cores in the calling thread.

    At its first product a thread takes the number that any thread set last. Asking for the number first prevents that.
    """
    torch.get_num_threads()
    torch.set_num_threads(threads)


def run_in_own_thread(threads: int, work: Callable[[], T]) -> T:
    """Call `work()` on `threads` cores in a new thread, whose team of threads ends with it.

    Waits for it, returns what `work` returns and raises what it raises.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        set_threads(threads)
        try:
            results.append(work())
        except BaseException as error:  # raised again below, in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, name="own-threads")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
