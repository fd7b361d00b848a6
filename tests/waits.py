"""Waits for what another thread or process does. No test relies on how soon that is."""

import threading
import time

STEP_PAUSE = 0.005  # seconds between two looks of an engine that stands still


def until(true, seconds=20):
    """Wait until `true()` is; what it gave then."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
    return found


def stand_still(engine, when):
    """Have an engine write nothing more while `when()` is true, until the Event that is returned is set."""
    step, go_on = engine.step, threading.Event()

    def step_or_wait():
        if go_on.is_set() or not when():
            return step()
        time.sleep(STEP_PAUSE)
        return True

    engine.step = step_or_wait
    return go_on
