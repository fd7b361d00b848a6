"""`app.py` with a model that adds a token to every running reply each PACE seconds, on every machine alike."""

import os
import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def pace(seconds):
    """Have every step of the engine that decodes take this much longer."""
    from playground.serving.engine import Engine

    step = Engine.step

    def paced(self):
        if self._running:
            time.sleep(seconds)
        return step(self)

    Engine.step = paced


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    if "--help" not in sys.argv:
        pace(float(os.environ["PACE"]))
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
