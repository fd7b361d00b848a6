"""The worker process: decides when a round runs, holds its lease, and survives being killed.

`run_once(store, settings, owner)` is the unit of work; sleeping, signals and priority stand outside it. `python -m
training.worker` loops,
`--once` runs one round now and exits 0 when it was published, 3 when it was refused, 4 without enough evidence, 1 when
it failed.
"""

import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress

import psutil
import torch

from playground.models.loading import ModelUnavailable
from playground.settings import Settings, SettingsError, overridden, read
from playground.store import LeaseLost, Store, StoreError, StoreLost, StoreUnavailable
from playground.store.reasons import broken
from playground.system import discreet, memory
from playground.system.messages import Message, UserFacingError
from training.erase import Eraser
from training.forecast import Forecaster
from training.round import MAX_ATTEMPTS, Round, RoundEnded

log = logging.getLogger("training.worker")

# seconds for which the worker waits for another process that holds the database: nobody waits for the worker
PATIENCE = 60.0
STORE_PAUSE = 10.0  # seconds until it looks for work again where the store could not answer

EXIT_CODES = {"published": 0, "refused": 3, "not_enough": 4}


class WorkerSettings(Settings):
    """The training worker of Nudge."""

    once: bool = False
    """Run one round now and exit."""


def run_once(store, settings, owner, auto=True, kind=Round, before=lambda: None):
    """Run or resume one round (of a `kind` of Round) if there is one to run, calling `before` first; returns its final
    row, or None when there was nothing to do.

    Whatever goes wrong in a round ends that round with the reason; only losing the lease, a store that cannot answer
    (StoreUnavailable), or being told to stop leaves it to the next worker.
    """
    settings = with_overrides(store, settings)
    auto_votes = settings.round_votes if auto and settings.auto_train else None
    row = store.take_round(
        owner,
        lease_seconds=settings.lease_seconds,
        auto_votes=auto_votes,
        config=settings.model_dump(mode="json", include=set(Settings.model_fields)),
        seed=settings.seed,
    )
    if row is None:
        return None
    before()
    log.info("round %s starts at %s", row["id"], row["phase"])
    try:
        with heartbeat(store, settings, row["id"], owner), logged(settings.rounds_dir / f"{row['id']:04d}" / "log.txt"):
            if row["attempts"] > MAX_ATTEMPTS:
                store.end_round(
                    row["id"],
                    owner,
                    "failed",
                    Message(
                        "The worker died {n} times in phase {phase}; its log says why.",
                        n=MAX_ATTEMPTS,
                        phase=row["phase"],
                    ),
                )
            else:
                run_logged(kind(store, settings, row, owner))
    except RoundEnded:
        pass
    except LeaseLost as error:
        log.warning("another worker has taken over: %s", error)
    except StoreUnavailable as error:
        log.warning("round %s stays where it is: %s", row["id"], error)
        with suppress(StoreUnavailable):
            store.release_round(row["id"], owner)
        raise
    except Exception as error:
        store.end_round(row["id"], owner, "failed", why_failed(error, store.round(row["id"])["phase"]))
    except BaseException:
        with suppress(StoreUnavailable):
            store.release_round(row["id"], owner)
        raise
    finally:
        gc.collect()
    row = store.round(row["id"])
    eraser = Eraser(store, settings)
    eraser.tidy()
    eraser.step()  # what waited for this round
    log.info("round %s is %s%s", row["id"], row["state"], f": {row['reason']}" if row["reason"] else "")
    return row


def run_logged(this):
    """Run a round; what breaks it is told in its own log, which is open now."""
    try:
        this.run()
    except (RoundEnded, LeaseLost):
        raise
    except Exception:
        log.exception("round %s failed", this.id)
        raise


def why_failed(error, phase):
    """The reason that a broken round ends with, in one sentence."""
    kind, _, message = discreet.said(error).partition(": ")
    return broken(kind, phase, error.message if isinstance(error, UserFacingError) else message)


def with_overrides(store, settings):
    """The settings with what an admin changed; where that does not fit (any more), as they were, with a line in the
    log.
    """
    try:
        return overridden(settings, store.overrides())
    except SettingsError as error:
        log.warning("what was changed on the page is left out: %s", error)
        return settings


@contextmanager
def logged(file):
    """What training says meanwhile goes to `file` too, after what an earlier worker said there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handler, logger = logging.FileHandler(file, encoding="utf-8"), logging.getLogger("training")
    handler.setFormatter(discreet.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def heartbeat(store, settings, round_id, owner):
    """Renew the lease from a thread of its own, since a training step may take longer than the lease."""
    done = threading.Event()

    def beat():
        while not done.wait(settings.lease_seconds / 3):
            try:
                store.update_round(round_id, owner)
            except LeaseLost:
                return  # the round notices at its next step
            except StoreUnavailable as error:
                log.warning("the lease could not be renewed; trying again: %s", error)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def main(argv=None):
    discreet.log_to(sys.stderr, "%(asctime)s %(name)s %(message)s")
    try:
        settings = read(argv, WorkerSettings, "python -m training.worker")
    except SettingsError as error:
        sys.exit(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    be_quiet(settings)
    memory.return_freed()
    memory.keep_few_primitives()
    owner = f"{socket.gethostname()}:{os.getpid()}"
    try:
        # the app makes the database: where it was moved away from under a running app, a new one in its place would be
        # in the way
        store = Store(settings.database, patience=PATIENCE, create=False)
        if settings.once:
            store.request_round()
            sys.exit(wait_for_round(store, settings, owner))
        parent = os.getppid()
        forecaster, eraser = Forecaster(store, settings), Eraser(store, settings)
        eraser.tidy()
        while os.getppid() == parent:  # a worker whose server is gone ends
            if not step(store, settings, owner, forecaster, eraser):
                time.sleep(settings.poll_seconds)
    except KeyboardInterrupt:
        sys.exit(0)
    except (ModelUnavailable, StoreError) as error:
        sys.exit(str(error))


def step(store, settings, owner, forecaster, eraser):
    """Erase what people took back, and run a round or forecast some votes; whether there was anything to do. Where the
    store cannot answer it waits; StoreLost where that is in vain."""
    try:
        eraser.step()
        return run_once(store, settings, owner, before=forecaster.rest) is not None or forecaster.step()
    except StoreLost:
        raise
    except StoreUnavailable as error:
        log.warning("the database cannot be used; looking again in %.0f s: %s", STORE_PAUSE, error)
        time.sleep(STORE_PAUSE)
        return False


def wait_for_round(store, settings, owner):
    """Run the requested round, waiting out the lease of a worker that may hold it; returns the exit code."""
    wanted = store.request_round()
    while (row := store.round(wanted))["state"] in ("requested", "running"):
        if run_once(store, settings, owner, auto=False) is None:
            time.sleep(settings.poll_seconds)
    why = f". {row['reason']}" if row["reason"] else ""
    print(f"Round {row['id']}: {row['state']}{why}")
    return EXIT_CODES.get(row["state"], 1)


def be_quiet(settings):
    """Train at the lowest priority: beside a chat, `nice 19` with all threads leaves it more speed than equal shares of
    threads do.
    """
    torch.set_num_threads(settings.threads)
    psutil.Process().nice(19 if os.name == "posix" else psutil.IDLE_PRIORITY_CLASS)


if __name__ == "__main__":
    main()
