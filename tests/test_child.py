"""A child process that is paused while somebody waits, and never for long."""

import sys
import time

import psutil
import pytest

from playground.system import child
from playground.system.child import Child


@pytest.fixture
def counting():
    """A child that is always at work."""
    worker = Child([sys.executable, "-c", "import time\nwhile True: time.sleep(0.01)"], None).start()
    until(lambda: worker.process)
    yield worker
    worker.stop()


def until(true):
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def status(worker):
    return psutil.Process(worker.process.pid).status()


def test_it_stands_still_until_it_is_released(counting):
    counting.pause()
    counting.pause()
    until(lambda: status(counting) == psutil.STATUS_STOPPED)
    counting.resume()
    until(lambda: status(counting) != psutil.STATUS_STOPPED)
    counting.resume()


def test_it_goes_on_by_itself_when_the_wait_is_long(counting, monkeypatch):
    monkeypatch.setattr(child, "LONGEST_PAUSE", 0.3)
    counting.pause()
    until(lambda: status(counting) == psutil.STATUS_STOPPED)
    until(lambda: status(counting) != psutil.STATUS_STOPPED)
    counting.pause()  # too soon
    assert status(counting) != psutil.STATUS_STOPPED
    until(lambda: (counting.pause(), status(counting) == psutil.STATUS_STOPPED)[1])


def test_it_can_be_ended_while_it_stands_still(counting):
    counting.pause()
    began = time.monotonic()
    counting.stop()
    assert counting.process.poll() is not None and time.monotonic() - began < 5


def test_a_start_that_fails_is_tried_again(monkeypatch, tmp_path):
    """The thread that keeps the child alive ended with the error, so the worker never came back."""
    monkeypatch.setattr(child, "FIRST_DELAY", 0.05)
    program = tmp_path / "program"
    worker = Child([str(program)], {}).start()
    time.sleep(0.1)
    assert worker.process is None
    program.write_text("#!/bin/sh\nsleep 60\n")
    program.chmod(0o755)
    until(lambda: worker.process and worker.process.poll() is None)
    worker.stop()
