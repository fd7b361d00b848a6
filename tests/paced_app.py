"""`app.py` with a model that streams at a pace of the tests' own, on every machine alike: quickly, but a message that
asks for something long is answered so slowly that a test can do things meanwhile; one that asks for something very
long, more slowly still, until there is a vote on it. Replies are as long as they may be: one that the tiny model ends
at once, by chance, would leave a test waiting for it to grow.
"""

import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUICK, SLOW, SLOWER = 0.005, 0.15, 0.5  # seconds a token


def pace():
    """Have every step of the engine that decodes take as long as the last message asks for."""
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
        return step(self)

    def paced_send(self, annotator, text, *args, **kwargs):
        nonlocal seconds
        seconds = SLOWER if "very long" in str(text) else SLOW if "long" in str(text) else QUICK
        return send(self, annotator, text, *args, **kwargs)

    def paced_vote(self, *args, **kwargs):
        nonlocal seconds
        try:
            return vote(self, *args, **kwargs)
        finally:
            seconds = QUICK

    Engine.start, Engine.step = start_without_ends, paced_step
    Chat.send, Chat.vote = paced_send, paced_vote


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    pace()
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
