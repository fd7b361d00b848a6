"""Posts events as JSON to one address, from a thread of its own: whoever has an event never waits for the target.

What an event is, is up to others. The address may hold a secret, so no log line has it.
"""

import json
import logging
import threading
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any, Self

from playground.system.safe_logging import Loggable

log = logging.getLogger(__name__)

Event = Mapping[str, Any]  # values that JSON has

MOST_EVENTS = 100  # that wait; of more the oldest are dropped
FIRST_PAUSE = 1.0  # seconds after the first failure; each further one doubles it
LONGEST_PAUSE = 300.0  # seconds
TRIES = 12  # of one event, over about half an hour
ANSWER_SECONDS = 10.0  # that the target has to answer


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The target is the one in the settings; where it points elsewhere, that counts as a failure."""

    def redirect_request(self, *_: object) -> None:
        return None


def post(url: str, body: bytes) -> None:
    """Post JSON. OSError, HTTPException or ValueError where the target cannot be reached or does not take it."""
    opener = urllib.request.build_opener(_NoRedirect)
    headers = {"content-type": "application/json", "user-agent": "nudge"}
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    with opener.open(request, timeout=ANSWER_SECONDS):
        pass


class Webhook:
    """Posts to `url` from `start()` to `close()`. `first_pause`: seconds."""

    def __init__(self, url: str, send: Callable[[str, bytes], None] = post, first_pause: float = FIRST_PAUSE) -> None:
        self.url = url
        self._send = send
        self._first_pause = first_pause
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._lock = threading.Lock()
        self._arrived = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        """End the thread. What has not been posted is dropped."""
        self._closing.set()
        self._arrived.set()

    def put(self, event: Event) -> None:
        """Have an event posted as soon as that is possible. Never waits."""
        with self._lock:
            self._events.append(event)
        self._arrived.set()

    @property
    def waiting(self) -> int:
        """How many events are not posted yet."""
        return len(self._events)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._arrived.wait()
            self._arrived.clear()
            while self._events and not self._closing.is_set():
                event = self._events[0]
                self._deliver(event)
                with self._lock:
                    if self._events and self._events[0] is event:  # else it made room for a newer one
                        self._events.popleft()

    def _deliver(self, event: Event) -> None:
        """Post an event, again and again where that fails, with growing pauses."""
        body = json.dumps(event, ensure_ascii=False).encode()
        pause = self._first_pause
        for tries in range(1, TRIES + 1):
            try:
                self._send(self.url, body)
                return
            except (OSError, HTTPException, ValueError) as error:
                log.warning("an alert could not be posted (try %d): %s", tries, Loggable(type(error).__name__))
            if self._closing.wait(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE)
        log.error("an alert is dropped after %d tries", TRIES)
