"""Where products of matrices may run: at any time one thread has a team of helpers.

OpenMP gives every thread that computes on several cores a team of its own and keeps it as long as the thread lives. As
soon as two teams together have more threads than there are cores, libgomp lets all of them sleep between two products
instead of wait, which halves the decoder's speed. So the decoder's thread has the only team that stays; whatever else
computes in the same process does it `apart` or on one core.
"""

import threading

import torch


def use(threads):
    """Let this thread compute on so many cores. A thread of torch's takes, at its first product, the number that any
    thread set last; so that first.
    """
    torch.get_num_threads()
    torch.set_num_threads(threads)


def apart(threads, work):
    """`work()` on `threads` cores in a thread that ends with it, team and all; returns what it returns and raises what
    it raises.
    """
    ended = {}

    def run():
        use(threads)
        try:
            ended["result"] = work()
        except BaseException as error:  # whoever waits is the one to hear of it
            ended["error"] = error

    thread = threading.Thread(target=run, name="apart")
    thread.start()
    thread.join()
    if "error" in ended:
        raise ended["error"]
    return ended["result"]
