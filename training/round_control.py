"""The frame of a training round: its row in the store, its folder, the order of its phases, the clock that the page
shows, and what ends or interrupts it (pause, stop, erasure).

Knows nothing about what the phases do; that is `round.py`'s. When rounds run is `worker.py`'s.
"""

import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from playground.models import loading
from playground.settings import Settings, fields, nested
from playground.store import STOPPED, LeaseLost, Store, StoreError
from playground.system import memory
from playground.system.messages import Message
from playground.system.safe_logging import Loggable
from training import erase, gpu
from training.preferences import Row

log = logging.getLogger(__name__)

Phase = Literal["collect", "sft", "reward", "ppo", "gate", "publish"]
PHASES: tuple[str, ...] = get_args(Phase)
# settings that belong to this machine: a resumed round takes them from the worker, all others from its row
OF_THIS_MACHINE = {
    *("data_dir", "models_dir", "device", "dtype", "threads", "host", "port", "worker", "gpu_share"),
    *("train_on", "job.minutes", "job.image", "job.namespace", "backup.url"),
}


class RoundEnded(Exception):
    """The round is over before its last phase; the store has the reason."""


class RoundLeft(Exception):
    """The round is left as it is, and whoever has its lease keeps it."""


class BeginsAgain(Exception):
    """Somebody took back a chat that this round has read: it goes back to its first phase without it."""


class RoundControl(ABC):
    """A running round without its phases. A subclass implements `run_phase` and `drop_models`."""

    phases: tuple[str, ...] = PHASES  # in their order
    until: float | None = None  # on the monotonic clock: when to leave the round as it is; a worker has all the time

    def __init__(self, store: Store, settings: Settings, row: Row, owner: str) -> None:
        self.store = store
        self.owner = owner
        self.id: int = row["id"]
        self.phase: str = row["phase"]
        taken = fields(Settings).keys() - OF_THIS_MACHINE
        config = {name: value for name, value in row["config"].items() if name in taken}
        self.settings: Settings = loading.bounded(Settings.like(settings, **nested(config)))
        self.folder = erase.folder_of(settings, self.id)
        self.folder.mkdir(parents=True, exist_ok=True)
        # when the running phase began, moved forward by its pauses: the time of day is for the page alone
        self._began_at = time.time()
        self._began_monotonic = time.monotonic()
        self._timed_phase: str | None = None  # the one whose seconds are counted
        self._eraser = erase.Eraser(store, settings)

    @abstractmethod
    def run_phase(self, phase: str) -> None:
        """Do the work of one phase."""

    @abstractmethod
    def drop_models(self) -> None:
        """Drop everything that was loaded for the round."""

    # -- the order of phases

    def run(self) -> None:
        """Run what is left of the round. At the end it is published, refused, or has too little evidence."""
        gpu.check(self.settings)
        while True:
            try:
                return self._run_phases()
            except BeginsAgain:
                log.info("round %s begins again: somebody took back a chat that it had read", self.id)
                self.phase = "collect"
                self.drop_models()
                memory.release()

    def _run_phases(self) -> None:
        resumed_at = self.phase
        for phase in self.phases[self.phases.index(resumed_at) :]:
            # a later phase than the one resumed at is progress, so failed attempts are counted again
            columns: dict[str, Any] = {} if phase == resumed_at else {"attempts": 1}
            self.store.update_round(
                self.id, self.owner, {"step_seconds": None}, phase=phase, step=0, steps=0, **columns
            )
            log.info("round %s: %s", self.id, Loggable(phase))
            with self._timed(phase):
                self.obey()
                self.run_phase(phase)
            memory.release()

    def end(self, state: str, reason: Message | None) -> NoReturn:
        """End the round in this state, in the middle of its phase."""
        self._record_seconds()
        self.store.end_round(self.id, self.owner, state, reason)
        raise RoundEnded(reason)

    # -- what the page shows

    def progress(self, step: int, steps: int, metrics: Mapping[str, float], **columns: Any) -> None:
        """Record the step of the running phase and a point of each curve in `metrics`, then `obey`."""
        self.store.update_round(self.id, self.owner, self.pace(), step=step, steps=steps, **columns)
        self.store.add_metrics(self.id, step, metrics)
        self.obey()

    def pace(self) -> dict[str, float]:
        """What the page computes the time left from, at each step: the seconds of the phase so far."""
        return {"step_seconds": time.monotonic() - self._began_monotonic}

    def show_part(self, part: str | None) -> None:
        """What the running phase does, within a step or before it has any."""
        with suppress(LeaseLost):  # the next step finds out
            self.record(part=part)

    def record(self, **metrics: Any) -> None:
        """Merge figures into the round's row."""
        self.store.update_round(self.id, self.owner, metrics=metrics)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Record when this phase began and, once it is done, how many seconds it took without its pauses."""
        self._set_began(time.time())
        self._began_monotonic = time.monotonic()
        self._timed_phase = phase
        try:
            yield
        except (RoundEnded, BeginsAgain):  # they are recorded, or nothing is left of what they were spent on
            raise
        except BaseException:  # also where this process is told to end: the next one adds its own
            with suppress(StoreError, LeaseLost):
                self._record_seconds()
            raise
        if self.store.round(self.id)["state"] == "running":
            self._record_seconds()
        self._timed_phase = None

    def _record_seconds(self) -> None:
        """Record how long the running phase has taken."""
        phase = self._timed_phase
        if phase is not None:
            seconds = self.store.round(self.id)["metrics"].get("phase_seconds", {})
            total = seconds.get(phase, 0) + time.monotonic() - self._began_monotonic
            self.record(phase_seconds={**seconds, phase: total})

    def _set_began(self, moment: float) -> None:
        """The running phase began at this time of day (seconds since the epoch)."""
        self._began_at = moment
        self.record(phase_began=moment, paused=False, part=None)

    def resumed_at_step(self, step: int) -> None:
        """The running phase began at `step` and not at 0, which the page needs to know how much time is left."""
        self.record(phase_began=self._began_at, phase_from=step)

    # -- interruptions

    def obey(self) -> None:
        """Do what an admin asked for: wait while the round is to pause, end it if it is to stop. Called wherever a
        round can be left. BeginsAgain where a chat that the round has read was taken back.
        """
        paused = 0.0
        self.check_time(paused=False)
        self._erase()
        while (request := self.store.round_command(self.id)) == "pause":
            self.check_time(paused=True)
            self._erase()
            if not paused:
                log.info("round %s is paused", self.id)
                self.record(paused=True)
            began = time.monotonic()
            time.sleep(self.settings.round.poll_seconds)
            self.store.update_round(self.id, self.owner)  # LeaseLost where another worker has taken it over
            paused += time.monotonic() - began
        if paused:
            log.info("round %s goes on after a pause of %.0f s", self.id, paused)
            self.goes_on(paused)
        if request == "stop":
            log.info("round %s is stopped", self.id)
            self.end("failed", STOPPED)

    def goes_on(self, paused: float) -> None:
        """The round goes on after so many seconds, which its phase did not take."""
        self._set_began(self._began_at + paused)
        self._began_monotonic += paused

    def check_time(self, paused: bool) -> None:
        """RoundLeft where the time for this round is over, and where limited time would be spent on a pause."""
        if self.until is not None and (paused or time.monotonic() >= self.until):
            log.info("round %s is left for now", self.id)
            raise RoundLeft

    def _erase(self) -> None:
        """Erase what people took back. BeginsAgain where this round has read it."""
        if self.store.must_begin_again(self.id):
            # the row first: if the worker is killed after this line, the next one begins at `collect`
            self.store.begin_again(self.id, self.owner)
            erase.remove_all_but_log(self.folder)
            raise BeginsAgain
        self._eraser.step()


def write_json(path: Path, data: object) -> None:
    """Write a file in one step: it is there in full or not at all."""
    partial = Path(f"{path}.partial")
    partial.write_text(json.dumps(data))
    partial.rename(path)
