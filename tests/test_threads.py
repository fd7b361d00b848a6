"""Products of matrices outside the decoder's thread."""

import threading

import pytest
import torch

from playground.system.threads import run_in_own_thread, set_threads


def test_work_runs_on_its_own_number_of_cores_in_a_thread_that_ends():
    before, here = torch.get_num_threads(), threading.current_thread()
    there, threads = run_in_own_thread(1, lambda: (threading.current_thread(), torch.get_num_threads()))
    assert there is not here and not there.is_alive()
    assert threads == 1 and torch.get_num_threads() == before


def test_its_errors_are_the_callers():
    with pytest.raises(KeyError, match="gone"):
        run_in_own_thread(1, lambda: {}["gone"])


def test_a_thread_keeps_its_number_whatever_another_sets_later():
    before, found, set_here, set_there = torch.get_num_threads(), [], threading.Event(), threading.Event()

    def first():
        set_threads(2)
        set_here.set()
        set_there.wait(10)
        found.append((torch.ones(8) @ torch.ones(8), torch.get_num_threads()))

    thread = threading.Thread(target=first)
    thread.start()
    set_here.wait(10)
    set_threads(1)
    set_there.set()
    thread.join()
    set_threads(before)
    assert found[0][1] == 2
