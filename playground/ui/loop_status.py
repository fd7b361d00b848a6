"""The state of the loop of votes and training at one moment: what the status bar and the training tab show."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from playground.backup import Backup, Status
from playground.serving.engine import Engine
from playground.settings import Settings, SettingsError, overridden
from playground.store import Store, is_fine_tuning
from playground.ui.handlers import Row

LAST_VOTES = 20  # votes over which the hit rate of the reward model is shown
SMALLEST_BASIS = 0.05  # share of a phase that must be done before the time left is estimated
# settings, or groups of them, on which the time of a round depends; figures of one that say where it trained
DECIDES_TIME = (
    *("model", "device", "dtype", "threads", "train_on", "chat.reply_tokens"),
    *("sft", "reward", "ppo", "gate"),
)
PLACES = ("job", "left_gpu")


@dataclass(frozen=True)
class TimeLeft:
    """Minutes until the running round ends, or until its phase does, where no round before says how long the others
    take.
    """

    minutes: float
    of_round: bool


@dataclass(frozen=True)
class LoopStatus:
    """The loop at one moment. `settings` include what an admin changed; `rounds` are rows, newest first; `curves` and
    `policy` (a row) are those of the newest round.
    """

    settings: Settings
    rounds: Sequence[Row]
    curves: Mapping[str, Sequence[tuple[int, float | None]]]  # name: (step, value) of each PPO iteration
    policy: Row | None
    new_votes: int  # since the last round began
    live_version: int
    forecasts: tuple[int, int] = (0, 0)  # hits and calls of the reward model among the last votes
    trial: Row | None = None  # of `policy`, with the votes so far: wins, losses, ties
    backup: Status | None = None  # None where there is none
    queue: Row | None = None  # how far the prompt queue is; None where there is none
    read_at: float = field(default_factory=time.time)  # seconds since the epoch

    @classmethod
    def read(cls, settings: Settings, store: Store, engine: Engine, backup: Backup | None = None) -> "LoopStatus":
        """Read the status from the store. StoreError where it cannot answer."""
        rounds = store.rounds()
        newest = rounds[0] if rounds else None
        policy = store.round_policy(newest["id"]) if newest else None
        return cls(
            settings=with_overrides(settings, store),
            rounds=rounds,
            curves=store.metrics(newest["id"]) if newest else {},
            policy=policy,
            new_votes=store.new_votes(),
            live_version=engine.live.version,
            forecasts=store.forecasts(LAST_VOTES),
            trial=trial_of(store, policy["version"]) if policy else None,
            backup=backup.status() if backup else None,
            queue=store.queue_progress() if settings.queue.prompts else None,
        )

    @property
    def round(self) -> Row | None:
        """The newest round."""
        return self.rounds[0] if self.rounds else None

    @property
    def state(self) -> str:
        return self.round["state"] if self.round else "idle"

    @property
    def active(self) -> bool:
        return self.state in ("requested", "running")

    @property
    def pausing(self) -> bool:
        """Whether an admin has asked the active round to pause, or it is paused."""
        return self.round is not None and self.state == "running" and self.round["wish"] == "pause"

    @property
    def stopping(self) -> bool:
        """Whether an admin has asked the active round to stop."""
        return self.round is not None and self.active and self.round["wish"] == "stop"

    @property
    def phase_share(self) -> float | None:
        """How much of the newest round's phase is done, from 0 to 1; None where it is not known."""
        if self.round is None or not self.round["steps"]:
            return None
        return min(self.round["step"] / self.round["steps"], 1.0)

    @property
    def last_whole_round(self) -> Row | None:
        """The newest round on votes that went through all phases in one go; it says how long they take."""
        for row in self.rounds:
            resumed = row["metrics"].get("phase_from")  # in the middle of PPO, whose first part nobody may have timed
            if row["state"] in ("published", "refused") and not is_fine_tuning(row) and not resumed:
                return row
        return None

    @property
    def time_left(self) -> TimeLeft | None:
        """How long the running round, or its phase, will still take; None before there is a basis for it."""
        row = self.round
        if row is None or self.state != "running" or self.pausing or self.stopping:
            return None
        seconds = self._phase_seconds_left(row)
        before = self.last_whole_round
        took = before["metrics"].get("phase_seconds", {}) if before and _alike(before, row) else {}
        if row["phase"] not in took:
            return None if seconds is None else TimeLeft(seconds / 60, of_round=False)
        if seconds is None:
            seconds = max(took[row["phase"]] - self._seconds_since(row["metrics"].get("phase_began")), 0)
        phases = list(took)
        later = sum(took[phase] for phase in phases[phases.index(row["phase"]) + 1 :])
        return TimeLeft((seconds + later) / 60, of_round=True)

    def _seconds_since(self, moment: float | None) -> float:
        """Since a time of day, which the clock may have been set back to; 0 where it is not known."""
        return max(self.read_at - moment, 0.0) if moment else 0.0

    def _phase_seconds_left(self, row: Row) -> float | None:
        """Until the running phase ends, if it keeps its pace; None where too little of it is done."""
        began = row["metrics"].get("phase_began")  # seconds since the epoch
        done = row["step"]
        if row["phase"] == "ppo":  # a resumed round began at a later step
            done -= row["metrics"].get("phase_from") or 0
        if not began or done <= 0 or done < SMALLEST_BASIS * row["steps"]:
            return None
        elapsed = self._seconds_since(began)
        until_step = min(row["metrics"].get("step_seconds") or elapsed, elapsed)  # the last one; it takes its time
        return max(until_step / done * (row["steps"] - row["step"]) - (elapsed - until_step), 0)


def _alike(before: Row, row: Row) -> bool:
    """Whether a round on votes takes as long as one before it, by their settings and by where they train."""
    if is_fine_tuning(row) or any(bool(before["metrics"].get(key)) != bool(row["metrics"].get(key)) for key in PLACES):
        return False
    names = {*before["config"], *row["config"]}
    return all(
        before["config"].get(name) == row["config"].get(name)
        for name in names
        if name in DECIDES_TIME or name.partition(".")[0] in DECIDES_TIME
    )


def trial_of(store: Store, version: int) -> Row | None:
    """The trial of a version with the votes so far (wins, losses, ties), or None where it had none."""
    row = store.trial(version)
    return row and {**row, **store.votes_on_trial(row)}


def with_overrides(settings: Settings, store: Store) -> Settings:
    """The settings as the next round has them. What an admin changed and does not fit (any more) is left out, as the
    worker does.
    """
    try:
        return overridden(settings, store.overrides())
    except SettingsError:
        return settings
