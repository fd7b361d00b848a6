"""The worker process: decides when a round runs, holds its lease, and survives being killed.

`run_once(store, settings, owner)` is the unit of work; sleeping and signals are outside it; what each
program that trains begins with is in `program.py`. `python -m
training.worker` loops. `--once` runs one round now and exits 0 when it was published, 3 when it was refused, 4 without
enough evidence, 1 when it failed.
"""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from playground.models.loading import ModelUnavailable
from playground.settings import Settings, SettingsError, jobs, overridden
from playground.store import LeaseLost, Store, StoreError, StoreLost, StoreUnavailable, is_fine_tuning
from playground.store.heartbeat import heartbeat
from playground.store.reasons import LEFT, broken
from playground.system import memory, safe_logging
from playground.system.messages import Message, UserFacingError
from playground.system.safe_logging import Loggable
from training import job_control, job_round, program
from training.erase import Eraser, folder_of
from training.forecast import Forecaster
from training.preferences import Row
from training.program import ProgramSettings
from training.round import Round
from training.round_control import RoundEnded, RoundLeft

log = logging.getLogger("training.worker")
SomeSettings = TypeVar("SomeSettings", bound=Settings)
MakeRound = Callable[[Store, Settings, Row, str], Round]

MAX_ATTEMPTS = 3  # a round that was taken more often without getting further has failed
STORE_PAUSE = 10.0  # seconds until the worker looks for work again after the store could not answer
REST_AFTER = 300.0  # seconds without work after which the worker keeps no model in memory

EXIT_CODES = {"published": 0, "refused": 3, "not_enough": 4}


class WorkerSettings(ProgramSettings):
    """The training worker of Nudge."""

    once: bool = False
    """Run one round now and exit."""


def run_once(
    store: Store,
    settings: Settings,
    owner: str,
    auto: bool = True,
    kind: MakeRound = job_round.make,
    before: Callable[[], None] = lambda: None,
) -> Row | None:
    """Run or resume one round if there is one to run, and return its final row; None when there was nothing to do.
    `kind` makes the round, by default one that trains where the settings say; `before` is called before it starts. With
    `auto`, new votes can start a round.

    An error in a round ends that round with the reason. A lost lease, a store that cannot answer (StoreUnavailable) or
    a signal to stop leaves the round to the next worker.
    """
    settings = with_overrides(store, settings)
    auto_votes = settings.round.votes if auto and settings.round.auto else None
    row = store.take_round(
        owner,
        lease_seconds=settings.round.lease_seconds,
        auto_votes=auto_votes,
        config=settings.recorded(),
        seed=settings.seed,
    )
    if row is None:
        return None
    before()
    if is_fine_tuning(row):
        store.end_round(row["id"], owner, "failed", LEFT)
        return store.round(row["id"])
    return run_taken(store, settings, row, owner, kind)


def run_taken(store: Store, settings: Settings, row: Row, owner: str, kind: MakeRound = Round) -> Row:
    """Run a round (its row) whose lease `owner` has just taken, and return its final row. Errors as in `run_once`."""
    round_id = row["id"]
    log.info("round %s starts at %s", round_id, Loggable(row["phase"]))
    beating = heartbeat(store, settings.round.lease_seconds, round_id, owner)
    try:
        with beating, logged(folder_of(settings, round_id) / "log.txt"):
            if row["attempts"] > MAX_ATTEMPTS:
                died = Message(
                    "The worker died {n} times in phase {phase}; its log says why.", n=MAX_ATTEMPTS, phase=row["phase"]
                )
                store.end_round(round_id, owner, "failed", died)
            else:
                run_logged(kind(store, settings, row, owner))
    except (RoundEnded, RoundLeft):
        pass
    except LeaseLost as error:
        log.warning("another worker has taken over: %s", error)
    except StoreUnavailable as error:
        log.warning("round %s stays where it is: %s", round_id, error)
        with suppress(StoreUnavailable):
            store.release_round(round_id, owner)
        raise
    except Exception as error:
        store.end_round(round_id, owner, "failed", why_failed(error, store.round(round_id)["phase"]))
    except BaseException:
        with suppress(StoreUnavailable):
            store.release_round(round_id, owner)
        raise
    finally:
        memory.release()
    row = store.round(round_id)
    eraser = Eraser(store, settings)
    eraser.tidy()
    eraser.step()  # erasures may have waited for this round to end
    reason = f": {row['reason']}" if row["reason"] else ""
    log.info("round %s: %s%s", round_id, Loggable(row["state"].replace("_", " ")), reason)
    return row


def run_logged(running: Round) -> None:
    """Run a round, and write the error that ends it to its log, which is open now."""
    try:
        running.run()
    except (RoundEnded, RoundLeft, LeaseLost):
        raise
    except Exception:
        log.exception("round %s failed", running.id)
        raise


def why_failed(error: Exception, phase: str) -> Message:
    """The reason for the end of a round that failed, in one sentence."""
    kind, _, message = safe_logging.describe_error(error).partition(": ")
    return broken(kind, phase, error.message if isinstance(error, UserFacingError) else message)


def own_name() -> str:
    """The name under which this process holds a lease."""
    return f"{socket.gethostname()}:{os.getpid()}"


def with_overrides(store: Store, settings: SomeSettings) -> SomeSettings:
    """The settings with an admin's changes. Where these are not valid (any more), the settings without them, and a
    line in the log.
    """
    try:
        return overridden(settings, store.overrides())
    except SettingsError as error:
        log.warning("what was changed on the page is left out: %s", error)
        return settings


@contextmanager
def logged(file: Path) -> Iterator[None]:
    """Append the log lines of training to `file` too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("training")
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(safe_logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


def main(argv: Sequence[str] | None = None) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = program.begin(argv, WorkerSettings, "python -m training.worker")
    try:
        jobs.check(settings, os.environ)
    except SettingsError as error:
        sys.exit(str(error))
    program.prepare(settings)
    owner = own_name()
    try:
        # Only the app creates the database. If somebody moved it away while the app runs, a new one would be in the way
        # when it is moved back.
        store = Store(settings.database, patience=program.PATIENCE, create=False)
        if settings.once:
            store.request_round()
            sys.exit(wait_for_round(store, settings, owner))
        forecaster = Forecaster(store, settings)
        eraser = Eraser(store, settings)
        eraser.tidy()
        job_control.tidy(store, settings)
        idle_since = time.monotonic()
        while True:
            if step(store, settings, owner, forecaster, eraser):
                idle_since = time.monotonic()
            else:
                if time.monotonic() - idle_since > REST_AFTER:
                    forecaster.rest()
                time.sleep(settings.round.poll_seconds)
    except KeyboardInterrupt:
        sys.exit(0)
    except (ModelUnavailable, StoreError) as error:
        sys.exit(str(error))


def step(store: Store, settings: Settings, owner: str, forecaster: Forecaster, eraser: Eraser) -> bool:
    """Erase what people took back, then run a round or else forecast some votes; returns whether there was anything to
    do. Where the store cannot answer, it waits; StoreLost where waiting cannot help.
    """
    try:
        eraser.step()
        if run_once(store, settings, owner, before=forecaster.rest) is not None:
            job_control.tidy(store, settings)
            return True
        return forecaster.step()
    except StoreLost:
        raise
    except StoreUnavailable as error:
        log.warning("the database cannot be used; looking again in %.0f s: %s", STORE_PAUSE, error)
        time.sleep(STORE_PAUSE)
        return False


def wait_for_round(store: Store, settings: Settings, owner: str) -> int:
    """Run a round on votes, waiting out the lease of a worker that may hold it, and a fine-tuning on a file; returns
    the exit code.
    """
    wanted = store.request_round()
    while (row := store.round(wanted))["state"] in ("requested", "running") or is_fine_tuning(row):
        if run_once(store, settings, owner, auto=False) is None:
            time.sleep(settings.round.poll_seconds)
        if is_fine_tuning(row):
            wanted = store.request_round()  # the same one while it runs
    reason = f". {row['reason']}" if row["reason"] else ""
    print(f"Round {row['id']}: {row['state']}{reason}")
    return EXIT_CODES.get(row["state"], 1)


if __name__ == "__main__":
    main()
