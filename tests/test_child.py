"""A child process that is paused while somebody waits, and never for long."""

import signal
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from playground.system import child
from playground.system.child import Child
from tests.waits import until


@pytest.fixture
def counting():
    """A child that is always at work."""
    worker = Child([sys.executable, "-c", "import time\nwhile True: time.sleep(0.01)"], None).start()
    until(lambda: worker.process)
    yield worker
    worker.stop()


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
    now, sent, send = [1000.0], [], counting._send
    monkeypatch.setattr(child, "LONGEST_PAUSE", 0.3)
    monkeypatch.setattr(child, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(counting, "_send", lambda number: (sent.append(number), send(number)))
    counting.pause()
    until(lambda: sent == [signal.SIGSTOP, signal.SIGCONT])
    until(lambda: status(counting) != psutil.STATUS_STOPPED)
    counting.pause()  # too soon
    assert len(sent) == 2
    now[0] += 1
    counting.pause()
    assert sent[2] == signal.SIGSTOP


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
