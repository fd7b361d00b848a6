"""A GPU that the chat and the training worker share.

Processes take turns on a GPU, and `nice` does not change whose turn it is. So the worker makes room by itself: while
replies stream it rests after each unit of work (a microbatch, a step of the rollouts), and works for a set share of the
time. Elsewhere than in a worker on a GPU, `between_units` does nothing.
"""

import mmap
import struct
import time
from collections.abc import Callable
from pathlib import Path

FRESH = 0.25  # seconds after which a sign that was not shown again is over: the server may have died
LONGEST_UNIT = 0.2  # seconds; of a longer one no more is counted, so no rest is longer than that of such a unit
LOOK = 0.001  # seconds between two looks whether replies still stream

_MOMENT = struct.Struct("d")


class StreamingSign:
    """By which the server says that replies stream: the time of day, in a file that both processes have mapped."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a+b") as opened:
            opened.truncate(_MOMENT.size)
            self._memory = mmap.mmap(opened.fileno(), _MOMENT.size)

    def show(self) -> None:
        """Replies stream now."""
        _MOMENT.pack_into(self._memory, 0, time.time())

    def shown(self) -> bool:
        """Whether replies have streamed within the last FRESH seconds."""
        (moment,) = _MOMENT.unpack_from(self._memory)
        return 0 <= time.time() - moment < FRESH


class GpuShare:
    """Keeps a process to `share` of the time while `is_streaming()`.

    `wait_for_gpu` returns when all that the process has given the GPU is done: it would go on working in the rest
    otherwise.
    """

    def __init__(
        self,
        is_streaming: Callable[[], bool],
        share: float,
        wait_for_gpu: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.is_streaming = is_streaming
        self.rest_per_work = (1 - share) / share
        self.wait_for_gpu = wait_for_gpu
        self.clock = clock
        self.sleep = sleep
        self._began = clock()  # when the unit began

    def rest(self) -> None:
        """A unit of work is done: rest as long as the share asks for, or until no reply streams any more."""
        if self.is_streaming():
            self.wait_for_gpu()
            now = self.clock()
            end = now + min(now - self._began, LONGEST_UNIT) * self.rest_per_work
            while self.clock() < end and self.is_streaming():
                self.sleep(LOOK)
        self._began = self.clock()


_of_this_process: GpuShare | None = None


def keep_to(share: GpuShare | None) -> None:
    """From now on `between_units` keeps this process to the share; None: it works all the time."""
    global _of_this_process
    _of_this_process = share


def between_units() -> None:
    """Called by training between two units of work on the model."""
    if _of_this_process:
        _of_this_process.rest()
