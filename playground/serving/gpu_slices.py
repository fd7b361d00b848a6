"""Trains a round on the GPU of a ZeroGPU Space, which comes for a minute at a time: one slice of the round after the
other, each in a program of its own that leaves the round where it is (`training/round_slice.py`).

This holds the lease of the round between two slices, so that no worker takes it. Where there is no quota, no GPU, or no
progress, it gives the lease up: the worker then goes on with the round on the CPU.
"""

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any

from playground.settings import Settings, space
from playground.store import STOPPED, LeaseLost, Row, Store, StoreError
from playground.store.heartbeat import heartbeat
from playground.system.messages import Message
from playground.system.safe_logging import describe_error

log = logging.getLogger(__name__)

OWNER = "zero-gpu:"  # how the name begins under which the lease of a round on ZeroGPU is held
COMMAND = (sys.executable, "-m", "training.round_slice")
IDLE_SLICES = 2  # slices in a row that may end without progress
REASON_CHARS = 300  # that are kept of what ZeroGPU says
ENDING_SECONDS = 5.0  # that `close` waits

NOT_GIVEN = Message("ZeroGPU gave no GPU, so this round went on on the CPU.")
NO_PROGRESS = Message("The minute that ZeroGPU gives at a time was too short, so this round went on on the CPU.")

Run = Callable[[Sequence[str], Mapping[str, str], int], int]  # as `zero_gpu.run`


class GPUSlices:
    """`run` starts a program with the GPU; `environ` are the variables that make it this app's."""

    def __init__(self, store: Store, settings: Settings, run: Run, environ: Mapping[str, str]) -> None:
        self.store = store
        self.settings = settings
        self._run = run
        self._environ = environ
        self._owner = f"{OWNER}{socket.gethostname()}:{os.getpid()}"
        self._caller: tuple[int, Context] | None = None  # the admin whose quota it is, and the context of a request
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # one begin at a time
        self._stopping = threading.Event()

    def begin(self, settings: Settings, annotator: int) -> None:
        """Ask for a round, in an admin's request, and train it on the GPU with these settings, on this admin's quota.
        One that a worker has begun stays where it is.
        """
        with self._lock:
            row = None
            if not (self._thread and self._thread.is_alive()):
                row = self.store.take_round(
                    self._owner,
                    lease_seconds=settings.round.lease_seconds,
                    auto_votes=0,  # makes a round where there is none, in the same step
                    config=settings.recorded(),
                    seed=settings.seed,
                )
            self.store.request_round()  # which marks it as one that a person asked for
            if row is not None:
                self._caller = annotator, copy_context()
                self._thread = threading.Thread(target=self._train, args=[row["id"]], name="gpu slices", daemon=True)
                self._thread.start()

    def renew(self, annotator: int) -> None:
        """Keep the context of this request of the admin who began: what a request says of a visitor's quota expires."""
        if self._caller and self._caller[0] == annotator:
            self._caller = annotator, copy_context()

    def close(self) -> None:
        """Leave the round to the worker of the next start. The program of a slice ends with this process."""
        self._stopping.set()
        with suppress(StoreError):  # without a beat a worker takes the round over, only later
            row = self.store.last_round()
            if row and row["owner"] == self._owner:
                self.store.release_round(row["id"], self._owner)
        if self._thread:
            self._thread.join(ENDING_SECONDS)

    # -- the thread

    def _train(self, round_id: int) -> None:
        lease_seconds = self.settings.round.lease_seconds
        try:
            with heartbeat(self.store, lease_seconds, round_id, self._owner):
                left = self._slices(round_id)
            if left:
                log.warning("round %d goes on on the CPU: %s", round_id, left["left_gpu"])
                self.store.update_round(round_id, self._owner, metrics=left)
                self.store.release_round(round_id, self._owner)
        except LeaseLost as error:
            log.info("round %d is not trained on the GPU any more: %s", round_id, error)
        except StoreError as error:  # without a beat, a worker takes the round over
            log.warning("round %d is left to the worker: %s", round_id, error)
        finally:
            self._caller = None

    def _slices(self, round_id: int) -> dict[str, Any] | None:
        """Train until the round is over or this app ends. Where it has to go on on the CPU: why, as figures of the
        round.
        """
        idle = 0
        while not self._stopping.is_set():
            row = self.store.round(round_id)
            if row["state"] != "running":
                return None
            if row["wish"] == "stop":
                self.store.end_round(round_id, self._owner, "failed", STOPPED)
                return None
            if row["wish"] == "pause":
                self.store.update_round(round_id, self._owner, metrics={"paused": True})
                self._stopping.wait(self.settings.round.poll_seconds)
                continue
            try:
                code = self._slice(round_id)
            except Exception as error:  # what `spaces` raises for want of quota or of a GPU is not one kind of error
                return {"left_gpu": NOT_GIVEN.dumps(), "left_gpu_words": describe(error)}
            if code == space.NO_GPU:
                return {"left_gpu": NOT_GIVEN.dumps()}
            after = self.store.round(round_id)
            idle = 0 if _progress(after) != _progress(row) or after["wish"] else idle + 1
            if idle == IDLE_SLICES:
                return {"left_gpu": NO_PROGRESS.dumps()}
        return None

    def _slice(self, round_id: int) -> int:
        """Run one slice, in the context of the newest request of the caller; returns its exit code."""
        assert self._caller is not None
        command = [*COMMAND, "--round-id", str(round_id), "--owner", self._owner]
        _, context = self._caller
        code = context.copy().run(self._run, command, self._environ, self.settings.port)
        log.info("a slice of round %d ended with exit code %d", round_id, code)
        return code


def _progress(row: Row) -> tuple[Any, ...]:
    """What the next slice does not do again: phases, and iterations of PPO."""
    return row["state"], row["phase"], row["step"] if row["phase"] == "ppo" else 0


def describe(error: Exception) -> str:
    """What ZeroGPU says in an error of Gradio's, which is for its visitors to read; of any other error its kind."""
    title, message = getattr(error, "title", None), getattr(error, "message", None)
    if isinstance(title, str) and isinstance(message, str):
        return f"{title}: {message}"[:REASON_CHARS]
    return describe_error(error)[:REASON_CHARS]
