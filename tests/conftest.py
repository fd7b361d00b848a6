"""Fixtures that many files share: the app as a subprocess and the browser before it. One thread for each process, and
starts of our own programs by a fork (`fork_server.py`).

Tiny models are slower on two threads than on one; and where two processes compute at once, threads that wait for each
other take all the time there is (40 replies of the tiny model: 1 s on one thread, 58 s on two beside another process).
"""

import gc
import importlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

# before torch is imported, here and in what tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from playground.store import database  # noqa: E402
from tests import fork_server  # noqa: E402
from tests.browsing import app, browser, left, paced, size, visit  # noqa: E402
from tests.migrated import Migrated  # noqa: E402

__all__ = ["app", "browser", "left", "paced", "size", "visit"]

if sys.platform == "linux":
    subprocess.Popen = fork_server.Popen
database.migrations = Migrated(database.migrations)


@pytest.fixture(autouse=True)
def one_thread():
    """A test that computed on more threads, or ran a program that does, leaves none of them to the next."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def drawn_alike(request, monkeypatch):
    """What a test draws in its own process is the same in each run: of a hundred replies of the tiny model with chance
    seeds, one or two end at once, which most tests do not expect.
    """
    seed = request.node.nodeid
    random.seed(seed)
    monkeypatch.setattr(random, "SystemRandom", lambda: random.Random(seed))


# Files that take longest, the longest first. They begin first, so that all processes end at about the same time.
SLOW = (
    "test_browser_gestures",
    "test_browser_loop",
    "test_browser_shown",
    "test_app",
    "test_pages_benchmark",
    "test_gpu_benchmark",
    "test_loop",
    "test_selftest",
    "test_benchmarks",
    "test_browser_order",
    "test_browser_languages",
    "test_browser_data",
    "test_hf_jobs",
    "test_browser",
    "test_worker",
    "test_types",
    "test_round",
    "test_waiting",
    "test_browser_first_chat",
    "test_browser_admins",
    "test_ppo",
    "test_round_commands",
    "test_early_votes",
    "test_browser_people",
    "test_zero_gpu",
    "test_rounds_in_a_row",
    "test_quick_imports",
    "test_allowlist",
    "test_comparing",
    "test_reward",
    "test_provider_sign_in",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files, and put these files first."""
    for item in items:
        if _file(item) in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: SLOW.index(_file(item)) if _file(item) in SLOW else len(SLOW))


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session):
    """Collections of garbage would look through all that is imported, for half a second each."""
    gc.disable()
    if session.config.getoption("dist", "no") == "no":  # the process that only hands out tests imports no torch
        importlib.import_module("playground.models")  # before any import of transformers
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def _file(item: pytest.Item) -> str:
    return Path(item.path).stem
