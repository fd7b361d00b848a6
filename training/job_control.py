"""The job of a round at Hugging Face: its inputs are sent, it is started or found again, followed and ended.

Which job it is stands in the round's row. Calls to the hub are `hf_jobs.py`'s, what travels is `job_files.py`'s, and
what is made of the result is `job_round.py`'s.
"""

import hashlib
import logging
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from playground.backup.target import Target, TargetUnavailable
from playground.models import adapters
from playground.settings import Settings
from playground.store import Store
from playground.system.messages import Message, UserFacingError
from training import erase, job_files
from training.hf_jobs import HFJobs, HubRefused, HubUnavailable, JobState
from training.job_files import Progress
from training.preferences import Row
from training.round import Round

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

FIRST_PAUSE, LONGEST_PAUSE = 2.0, 30.0  # seconds between two looks at a job; each is longer than the one before
ENDING_SECONDS = 30.0  # in which a job that was cancelled may end
MOST_SENT = 3  # jobs of one round; each that reads a chat which is taken back meanwhile is paid for nothing
LOG_LINES, LOG_CHARS = 15, 2000  # of a failed job's log that are kept in the reason
OWN_METRICS = ("job", "jobs_sent", "paused")  # that a job does not change


class JobFailed(UserFacingError):
    """The job of a round did not bring what the round needs."""


@dataclass(frozen=True)
class SentJob:
    """The job of a round, as the round's row has it. `sent`: when, in seconds since the epoch; `seconds`: how long it
    has run; `minutes`: after how many it is ended. Without an `id` it may not have started.
    """

    key: str
    flavour: str
    sent: float
    id: str = ""
    url: str = ""
    stage: str = "waiting"
    seconds: float = 0.0
    usd_per_minute: float | None = None
    minutes: int | None = None  # None: it was sent before this was kept


def tidy(store: Store, settings: Settings) -> None:
    """Remove from the target what a round that has ended left there, as where its worker was killed right after."""
    row = store.last_round()
    if not settings.backup.url or (row and row["state"] == "running" and row["metrics"].get("job")):
        return
    clear(Target(settings.backup.url))


class JobControl(Round):
    """A round with a job, which may not be sent yet. BadTarget where `backup.url` is none."""

    def __init__(self, store: Store, settings: Settings, row: Row, owner: str, hub: HFJobs | None = None) -> None:
        super().__init__(store, settings, row, owner)
        self.hub = hub or HFJobs(settings.job.namespace)
        self.target = Target(settings.backup.url)
        self.job = SentJob(**row["metrics"]["job"]) if row["metrics"].get("job") else None
        self._sent: int = row["metrics"].get("jobs_sent") or 0
        self._shown: Progress | None = None
        self.partial = settings.data_dir / erase.JOB_FILES

    @property
    def sent_job(self) -> SentJob:
        assert self.job is not None
        return self.job

    def _remember(self, job: SentJob) -> None:
        self.job = job
        self.record(job=asdict(job), jobs_sent=self._sent)

    # -- sending

    def send(self) -> None:
        """Write what the job needs to the target. A round that has begun on this machine begins again."""
        if self.phase != "collect":
            self.store.begin_again(self.id, self.owner)
            erase.remove_all_but_log(self.folder)
            self.phase = "collect"
        if self._sent >= MOST_SENT:
            raise JobFailed("Each of its jobs had read a chat that was taken back meanwhile.")
        key = f"{self.id:04d}-{secrets.token_hex(8)}"
        # before the copy: what is taken back from now on is known to have been read
        self.store.record_read_conversations(self.id)
        files = self._inputs()
        self.patiently(lambda: job_files.clear(self.target))
        self.patiently(lambda: job_files.send(self.target, key, "inputs", files))
        shutil.rmtree(self.partial)
        self._sent += 1
        self._remember(SentJob(key, self.settings.job_flavour, time.time(), minutes=self.settings.job.minutes))

    def _inputs(self) -> dict[str, Path]:
        """A copy of the database without what a round has no use for, and the live version: files by their paths in a
        data folder.
        """
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(mode=0o700)
        database = self.partial / self.settings.database.name
        self.store.copy_to(database)
        copy = Store(database)
        copy.keep_for_round(self.id)
        live = copy.live_policy()
        copy.close()
        files = {database.name: database}
        if live["version"]:
            folder = adapters.place(self.settings.adapters_dir, live["path"])
            files |= {f"adapters/{folder.name}/{file.name}": file for file in sorted(folder.iterdir())}
        return files

    def start(self) -> None:
        """Start the job, or find it where a worker ended before it wrote down the id. Others of this round end."""
        place = hashlib.sha256(self.settings.backup.url.encode()).hexdigest()[:12]
        label = f"{place}-{self.id:04d}"
        job = self.sent_job
        arguments = ["--round-id", str(self.id), "--key", job.key, "--backup.url", self.settings.backup.url]

        def started() -> JobState:
            for other in self.hub.of_round(label):
                if other.key == job.key:
                    return other
                if not other.is_over:
                    self.hub.cancel(other.id)
            return self.hub.start(
                flavour=job.flavour,
                image=self.settings.job.image,
                arguments=arguments,
                minutes=self.settings.job.minutes,
                round_label=label,
                key=job.key,
            )

        state = self.patiently(started)
        log.info("round %s trains on %s: %s", self.id, job.flavour, state.url)
        self._remember(replace(job, id=state.id, url=state.url, stage=state.stage))
        try:
            price = self.hub.usd_per_minute(job.flavour)
        except (HubUnavailable, HubRefused) as error:
            log.warning("what %s costs is not known: %s", job.flavour, error)
            return
        self._remember(replace(self.sent_job, usd_per_minute=price))

    # -- following

    def follow(self) -> None:
        """Show how far the job is until it has completed. JobFailed where it ends otherwise, or takes too long."""
        pause = FIRST_PAUSE
        silent_since = time.monotonic()
        while True:
            self.obey()
            state = self._look()
            if state and state.stage == "completed":
                return
            if state and state.is_over:
                raise self.failed(Message("The job ended by itself. {words}", words=state.words))
            if state:
                self._check_deadline()
                silent_since = time.monotonic()
            else:
                self._check_patience(silent_since)
            self.wait(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)

    def _look(self) -> JobState | None:
        """The job now, which is shown with its progress; None where nobody answers."""
        try:
            state = self.hub.look(self.sent_job.id)
            progress = job_files.read_progress(self.target, self.sent_job.key)
        except (HubUnavailable, TargetUnavailable) as error:
            log.warning("job %s cannot be looked at: %s", self.sent_job.id, error)
            return None
        self._remember(replace(self.sent_job, stage=state.stage, seconds=state.seconds))
        if progress and progress != self._shown:
            self.show(progress)
        self.store.update_round(self.id, self.owner, attempts=1)  # a worker that sees the job gets further
        return state

    def show(self, progress: Progress) -> None:
        """Take over how far the job is into the round's row and curves."""
        metrics = {name: value for name, value in progress.metrics.items() if name not in OWN_METRICS}
        columns = {"phase": progress.phase, "step": progress.step, "steps": progress.steps}
        self.store.update_round(self.id, self.owner, metrics, **columns)
        points: dict[int, dict[str, float | None]] = {}
        for name, curve in progress.curves.items():
            for step, value in curve:
                points.setdefault(step, {})[name] = value
        for step, values in points.items():
            self.store.add_metrics(self.id, step, values)
        self._shown = progress

    def _check_deadline(self) -> None:
        """JobFailed where the job, which has not ended, takes too long."""
        minutes = self.settings.job.minutes
        if time.time() > self.sent_job.sent + 60 * minutes:
            raise self.failed(Message("The job took more than the {limit} minutes of job.minutes.", limit=minutes))

    def _check_patience(self, since: float) -> None:
        """JobFailed where nobody has answered since then (monotonic): this worker's own time, since the machine may
        have slept while the job went on.
        """
        minutes = self.settings.job.minutes
        if time.monotonic() > since + 60 * minutes:
            raise JobFailed("Neither the hub nor the backup answered for {limit} minutes.", limit=minutes)

    def goes_on(self, paused: float) -> None:
        """As of any round. The job has not waited, and says itself when its phase began."""
        self.record(paused=False)

    def wait(self, seconds: float) -> None:
        """Wait, and do meanwhile what an admin asks for."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, self.settings.round.poll_seconds))
            self.obey()

    def patiently(self, call: Callable[[], Answer]) -> Answer:
        """The answer of hub or target, asked again with growing pauses until there is one, or patience is over."""
        pause = FIRST_PAUSE
        since = time.monotonic()
        while True:
            self.obey()
            try:
                return call()
            except (HubUnavailable, TargetUnavailable) as error:
                log.warning("asking again in %.0f s: %s", pause, error)
            self._check_patience(since)
            self.wait(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)

    def failed(self, reason: Message) -> JobFailed:
        """The error of a job with the last lines of its log."""
        lines: list[str] = []
        if self.job and self.job.id:
            try:
                lines = self.hub.last_lines(self.job.id, LOG_LINES)
            except (HubUnavailable, HubRefused) as error:
                log.warning("the log of job %s cannot be read: %s", self.job.id, error)
        if not lines:
            return JobFailed(reason)
        return JobFailed("{reason} Its log ends:\n{lines}", reason=reason, lines="\n".join(lines)[-LOG_CHARS:])

    def end_job(self) -> None:
        """Cancel the job where it runs, and remove what travelled."""
        if self.job and self.job.id and self.job.stage in ("waiting", "running"):
            cancel(self.hub, self.job.id)
        clear(self.target)


def cancel(hub: HFJobs, job: str) -> None:
    """End a job, and wait a little until it has: a job that runs may still write. What fails is only said: the hub ends
    the job after its minutes.
    """
    end = time.monotonic() + ENDING_SECONDS
    try:
        hub.cancel(job)
        while not hub.look(job).is_over and time.monotonic() < end:
            time.sleep(FIRST_PAUSE)
        log.info("job %s is cancelled", job)
    except (HubUnavailable, HubRefused) as error:
        log.warning("job %s could not be cancelled: %s", job, error)


def clear(target: Target) -> None:
    """Remove what travelled. What fails is only said: it is tried again after each round and at each start."""
    try:
        job_files.clear(target)
    except TargetUnavailable as error:
        log.warning("the files of the job could not be removed: %s", error)
