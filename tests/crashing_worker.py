"""A worker that is killed (SIGKILL, by itself) inside the phase it is told: `python -m tests.crashing_worker PHASE
--once`.
"""

import os
import signal
import sys

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


if __name__ == "__main__":
    phase = sys.argv.pop(1)
    if phase == "ppo":
        ppo.Trainer.save = on_second_checkpoint(ppo.Trainer.save)
    elif phase == "publish":
        adapters.write = after(adapters.write)
    else:
        setattr(Round, f"_{phase}", after(getattr(Round, f"_{phase}")))
    worker.main()
