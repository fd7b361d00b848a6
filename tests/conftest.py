"""Fixtures that many files share: the app as a subprocess and the browser before it. And one thread for each process.

Tiny models are slower on two threads than on one; and where two processes compute at once, threads that wait for each
other take all the time there is (40 replies of the tiny model: 1 s on one thread, 58 s on two beside another process).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in what tests start

from tests.browsing import app, browser, paced, size, visit  # noqa: E402

__all__ = ["app", "browser", "paced", "size", "visit"]
