"""Keeps a child process alive: starts it, restarts it with growing pauses when it dies, and ends it with its parent.

What the child does is its own business.
"""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Self

log = logging.getLogger(__name__)

FIRST_DELAY = 1.0  # seconds between the first death of the child and its restart
LONGEST_DELAY = 60.0  # seconds; each further death doubles the delay up to this
STEADY = 60.0  # seconds; after a run this long the delay is short again
LONGEST_PAUSE = 3.0  # seconds; then the child runs for at least as long, even if somebody still waits


class Child:
    """Runs `command` with the environment variables `env` until `stop()`.

    `grace`: seconds that the child has to end by itself before it is killed.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], grace: float = 10.0) -> None:
        self.command = command
        self.env = env
        self.grace = grace
        self.process: subprocess.Popen[bytes] | None = None
        self.ends = 0  # times that the child has ended by itself, or could not be started
        self._stopping = threading.Event()
        self._resume_timer: threading.Timer | None = None  # set while the child is paused
        self._no_pause_before = 0.0  # on the monotonic clock
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep_alive, name="worker", daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def pause(self) -> None:
        """Suspend the child (SIGSTOP) until `resume`, or for LONGEST_PAUSE at most. Only on POSIX systems.

        The child does not notice. Its lease of a round is longer than the pause.
        """
        if os.name != "posix":
            return
        with self._lock:
            paused = self._resume_timer is not None
            too_soon = time.monotonic() <= self._no_pause_before
            if paused or too_soon or self._stopping.is_set():
                return
            self._send(signal.SIGSTOP)
            self._resume_timer = threading.Timer(LONGEST_PAUSE, self._resume_after_longest_pause)
            self._resume_timer.daemon = True
            self._resume_timer.start()

    def resume(self) -> None:
        """Let a paused child go on."""
        with self._lock:
            if self._resume_timer is not None:
                self._resume_timer.cancel()
                self._resume_timer = None
                self._send(signal.SIGCONT)

    def _resume_after_longest_pause(self) -> None:
        self._no_pause_before = time.monotonic() + LONGEST_PAUSE
        self.resume()

    def _send(self, number: int) -> None:
        if self.process and self.is_running:
            self.process.send_signal(number)

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after the grace. Returns when the process has ended."""
        self._stopping.set()
        self.resume()
        with self._lock:
            if self.process:
                self.process.terminate()
        if self.process:
            try:
                self.process.wait(self.grace)
            except subprocess.TimeoutExpired:
                log.warning("the worker did not end within %.0f s; killing it", self.grace)
                self.process.kill()
                self.process.wait()
        self._thread.join()

    def _keep_alive(self) -> None:
        delay = FIRST_DELAY
        while not self._stopping.is_set():
            started = time.monotonic()
            end = self._run_once()
            if self._stopping.is_set():
                return
            self.ends += 1
            was_steady = time.monotonic() - started > STEADY
            delay = FIRST_DELAY if was_steady else min(2 * delay, LONGEST_DELAY)
            log.warning("the worker %s; the chat goes on, it starts again in %.0f s", end, delay)
            self._stopping.wait(delay)

    def _run_once(self) -> str:
        """Run the child until it ends; how it ended, in words. Returns at once where it is to stop."""
        with self._lock:
            if self._stopping.is_set():
                return "is not started any more"
            try:
                # A process group of its own: Ctrl-C in the terminal then reaches only the parent, which ends the child
                # in order.
                self.process = subprocess.Popen(self.command, env=self.env, stdin=subprocess.DEVNULL, process_group=0)
            except OSError as error:  # no memory for another process, say; there may be some later
                return f"could not be started: {error}"
        return f"ended with exit code {self.process.wait()}"
