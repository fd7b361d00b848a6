"""`app.py` with a model that streams at a pace of the tests' own, on every machine alike: quickly, but a message that
asks for something long is answered slowly, until there is a vote on it. While the file HELD is there, replies have
words and stand still, however long a test takes. Replies are as long as they may be: one that the tiny model ends at
once, by chance, would leave a test waiting for it to grow.
"""

import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HELD = Path("held")  # in the app's working directory
HELD_TOKENS = 12  # of each reply that stands still
QUICK, SLOW = 0.005, 0.15  # seconds a token
RELOAD_SECONDS = 60  # for which replies go on while a page loads anew: a busy machine may take longer than usual


def pace():
    """Have every step of the engine that decodes take as long as the last message asks for."""
    from playground.chat import session
    from playground.chat.session import Chat
    from playground.serving.engine import Engine

    start, step, send, vote = Engine.start, Engine.step, Chat.send, Chat.vote
    seconds = QUICK

    def start_without_ends(self):
        self.end_tokens = frozenset()
        return start(self)

    def paced_step(self):
        if self._running:
            time.sleep(seconds)
        return stands_still(self._running) or step(self)

    def paced_send(self, annotator, text, *args, **kwargs):
        nonlocal seconds
        seconds = SLOW if "long" in str(text) else QUICK
        return send(self, annotator, text, *args, **kwargs)

    def paced_vote(self, *args, **kwargs):
        nonlocal seconds
        try:
            return vote(self, *args, **kwargs)
        finally:
            seconds = QUICK

    Engine.start, Engine.step = start_without_ends, paced_step
    Chat.send, Chat.vote = paced_send, paced_vote
    session.BACKGROUND_SECONDS = RELOAD_SECONDS


def stands_still(streams):
    """Whether a test holds these replies, all of which have words enough and none of which is told to end."""
    ready = [min(stream.tokens()) >= HELD_TOKENS and not stream.stopping.is_set() for stream in streams]
    return bool(ready) and all(ready) and HELD.exists()


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    pace()
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
