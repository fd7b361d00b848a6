"""A child process that is kept alive: started, restarted with growing pauses when it dies, ended with its parent. What
it does is its own affair.
"""

import logging
import os
import signal
import subprocess
import threading
import time

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two starts
LONGEST_HOLD = 3.0  # seconds; then the child goes on for as long, whoever still waits
STEADY = 60.0  # seconds after which a run counts as good and the pause is short again


class Child:
    """Runs `command` in the environment `env` until `stop()`; `grace` is the time in seconds it has to end by
    itself.
    """

    def __init__(self, command, env, grace=10.0):
        self.command, self.env, self.grace = command, env, grace
        self.process = None
        self._stopping, self._timer, self._rest_until = threading.Event(), None, 0.0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep_alive, name="worker", daemon=True)

    def start(self):
        self._thread.start()
        return self

    def hold(self):
        """Let the child stand still until `release`, or for a few seconds at most. It does not notice; its lease is
        longer.
        """
        with self._lock:
            if (
                self._timer is None
                and time.monotonic() > self._rest_until
                and not self._stopping.is_set()
                and os.name == "posix"
            ):
                self._send(signal.SIGSTOP)
                self._timer = threading.Timer(LONGEST_HOLD, self._release_for_long)
                self._timer.daemon = True
                self._timer.start()

    def release(self):
        """Let it go on."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
                self._timer = None
                self._send(signal.SIGCONT)

    def _release_for_long(self):
        self._rest_until = time.monotonic() + LONGEST_HOLD
        self.release()

    def _send(self, number):
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)

    def stop(self):
        """SIGTERM, then SIGKILL after the grace; returns when the process is gone."""
        self._stopping.set()
        self.release()
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

    def _keep_alive(self):
        pause = FIRST_PAUSE
        while True:
            with self._lock:
                if self._stopping.is_set():
                    return
                # a group of its own, so that Ctrl-C in the terminal reaches the parent alone, which then ends the child
                # in order
                self.process = subprocess.Popen(self.command, env=self.env, stdin=subprocess.DEVNULL, process_group=0)
            began = time.monotonic()
            code = self.process.wait()
            if self._stopping.is_set():
                return
            pause = FIRST_PAUSE if time.monotonic() - began > STEADY else min(2 * pause, LONGEST_PAUSE)
            log.warning("the worker ended with exit code %s; the chat goes on, it starts again in %.0f s", code, pause)
            self._stopping.wait(pause)
