"""Workers that are killed (SIGKILL, by themselves) inside a given phase.

`python -m tests.crashing_worker` reads a phase from each line of its input, runs a worker with `--once` as a process of
its own, and prints that one's exit code. The workers are forked from a process that has imported what they need, since
that takes longer than most phases.
"""

import os
import signal
import sys
import traceback

from playground.models import adapters
from training import ppo, worker
from training.round import Round


def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def after(function):
    """The function, and then the end, before anyone learns that it was done."""
    return lambda *args, **kwargs: (function(*args, **kwargs), die())


def on_second_checkpoint(save):
    def saving(trainer, path):
        save(trainer, path)
        if trainer.iteration == 2:
            die()

    return saving


def run(phase):
    """Be a worker that dies in this phase."""
    if phase == "ppo":
        ppo.Trainer.save = on_second_checkpoint(ppo.Trainer.save)
    elif phase == "publish":
        adapters.write = after(adapters.write)
    else:
        setattr(Round, f"_{phase}", after(getattr(Round, f"_{phase}")))
    worker.main(["--once"])


def forked(phase):
    """The exit code of a worker that was forked to die in this phase; a signal's number is negative."""
    child = os.fork()
    if not child:
        try:
            run(phase)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for line in sys.stdin:
        print(forked(line.strip()), flush=True)
