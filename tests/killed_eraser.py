"""An eraser that is killed (SIGKILL, by itself): `python -m tests.killed_eraser METHOD` dies where it calls this method
of the store. Its settings are in the environment.
"""

import os
import signal
import sys

from playground.settings import read
from playground.store import Store
from training.erase import Eraser

if __name__ == "__main__":
    setattr(Store, sys.argv[1], lambda *_args, **_kwargs: os.kill(os.getpid(), signal.SIGKILL))
    settings = read([], prog="python -m tests.killed_eraser")
    Eraser(Store(settings.database), settings).step()
