"""`app.py` with a model that streams at a pace of the tests' own, on every machine alike: quickly, but a message that
asks for something long is answered so slowly that a test can do things meanwhile.
"""

import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUICK, SLOW = 0.005, 0.15  # seconds a token


def pace():
    """Have every step of the engine that decodes take as long as the last message asks for."""
    from playground.chat.session import Chat
    from playground.serving.engine import Engine

    step, send = Engine.step, Chat.send
    seconds = QUICK

    def paced_step(self):
        if self._running:
            time.sleep(seconds)
        return step(self)

    def paced_send(self, annotator, text, *args, **kwargs):
        nonlocal seconds
        seconds = SLOW if "long" in str(text) else QUICK
        return send(self, annotator, text, *args, **kwargs)

    Engine.step, Chat.send = paced_step, paced_send


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    pace()
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
