"""A round that trains as a job on a machine of Hugging Face, as the worker sees it: it sends a copy of what the round
needs, follows the job, and publishes what came back as it would publish its own.

The database never leaves for writing. A job that fails, or sends something else than a round's files, is a failed
round. How a job is sent and followed is `job_control.py`'s.
"""

import json
import logging
import shutil
import time
from pathlib import Path

from playground.backup.target import Target
from playground.models import adapter_reading
from playground.settings import Settings
from playground.store import LeaseLost, Store, StoreUnavailable
from playground.system import memory
from playground.system.messages import Message, from_data
from training import erase, gpu, job_files
from training.hf_jobs import HFJobs
from training.job_control import FIRST_PAUSE, JobControl, SentJob, cancel, clear
from training.job_files import BadResult, NotThere, Progress, Result
from training.preferences import Row
from training.rollout import Episode
from training.round import Round
from training.round_control import BeginsAgain, write_json

log = logging.getLogger(__name__)

LANDING_SECONDS = 120.0  # after a job's end in which its files may still come


def make(store: Store, settings: Settings, row: Row, owner: str) -> Round:
    """The round of this row, where the settings say that rounds train."""
    if settings.job_flavour:
        return JobRound(store, settings, row, owner)
    return BroughtBack(store, settings, row, owner) if row["metrics"].get("job") else Round(store, settings, row, owner)


class JobRound(JobControl):
    """A round whose phases but for the last run in a job."""

    def run(self) -> None:
        """As of any round. JobFailed, HubRefused or BadTarget where the job brings nothing. Where this worker ends, or
        loses the round or the store, the job goes on, and the next worker takes it up.
        """
        try:
            while not self._run():
                log.info("round %s is sent again: somebody took back a chat that its job had read", self.id)
                self.end_job()
                self.job = None
                self.phase = "collect"
                self.drop_models()
                memory.release()
                self.record(job=None)
        except (StoreUnavailable, LeaseLost):
            raise
        except Exception:
            self.end_job()
            raise
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)
        self.end_job()

    def _run(self) -> bool:
        """Train and publish; False where the round has to begin again."""
        try:
            if self.job is None:
                self.send()
            if not self.sent_job.id:
                self.start()
            self.follow()
            self._take_over(self._result())
            gpu.check(self.settings)
            self._run_phases()
        except BeginsAgain:
            return False
        return True

    # -- taking over

    def _result(self) -> Result:
        """Fetch the result into the round's folder. JobFailed where there is none, or one that cannot be used."""
        end = time.monotonic() + LANDING_SECONDS
        while True:
            try:
                self.patiently(self._receive)
                folder = erase.folder_of(self.settings.with_values(data_dir=self.partial), self.id)
                result = job_files.read_result(folder)
                if result.state == "trained":
                    job_files.check_gate(folder)
                break
            except NotThere:
                if time.monotonic() > end:
                    raise self.failed(Message("The job has ended, and its result has not come.")) from None
                self.wait(FIRST_PAUSE)
            except BadResult as error:
                raise self.failed(Message("What the job sent cannot be used: {why}.", why=str(error))) from None
        erase.remove_all_but_log(self.folder)
        for file in folder.iterdir():
            if file.name == job_files.JOB_LOG:
                _append_once(self.folder / file.name, file.read_bytes())
            elif file.name != job_files.RESULT:
                shutil.move(file, self.folder / file.name)
        return result

    def _receive(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        job_files.receive(self.target, self.sent_job.key, "result", self.partial, self.id)

    def _take_over(self, result: Result) -> None:
        """Record what the job found, and go on after it: where another version answers by now, with the gate."""
        self.show(Progress(**{name: getattr(result, name) for name in Progress.model_fields}))
        self.store.record_used_votes(self.id, result.votes)
        reason = from_data(result.reason) if result.reason else None
        if result.state == "failed":
            raise self.failed(reason or Message("The job failed."))
        if result.state == "not_enough":
            self.end("not_enough", reason)
        if result.base != self.models.base["hash"]:
            raise self.failed(Message("The job trained another base model than the one that answers here."))
        same = result.live == self.store.live_policy()["version"]
        self.phase = "publish" if same else "gate"

    def _gate(self) -> None:
        super()._gate()
        (self.folder / job_files.SERVED).unlink(missing_ok=True)  # measured here

    def _publish(self) -> None:
        """As of any round, with the served KL measured on this machine, whose chat will serve it."""
        file = self.folder / job_files.SERVED
        if file.exists():
            report = json.loads((self.folder / "gate.json").read_text())
            self.models.policy_of_the_gate(report.get("share", 1.0))
            episodes = [Episode(prompt, completion, False) for prompt, completion in json.loads(file.read_text())]
            served_kl = self.served_kl(episodes)
            write_json(self.folder / "gate.json", {**report, "served_kl": served_kl})
            self.record(served_kl=served_kl)
            file.unlink()
        super()._publish()

    def _write_version(self, report: Row) -> tuple[int, Path, str]:
        """As of any round; a version from elsewhere is read back as the server reads it before anything else is done
        with it. BadAdapter where it is no use.
        """
        version, path, sha256 = super()._write_version(report)
        adapter_reading.read(path, base_hash=self.models.base["hash"], expected_sha256=sha256)
        return version, path, sha256


def _append_once(log_file: Path, content: bytes) -> None:
    """Add to a log what it does not end with: a worker that goes on after a job fetches its result again."""
    there = log_file.read_bytes() if log_file.exists() else b""
    if not there.endswith(content):
        log_file.write_bytes(there + content)


class BroughtBack(Round):
    """A round that had been sent away by a server which now trains here: it begins again."""

    def run(self) -> None:
        job = SentJob(**self.store.round(self.id)["metrics"]["job"])
        if job.id:
            cancel(HFJobs(self.settings.job.namespace), job.id)
        if self.settings.backup.url:
            clear(Target(self.settings.backup.url))
        self.store.begin_again(self.id, self.owner)
        self.record(job=None, jobs_sent=None)
        erase.remove_all_but_log(self.folder)
        self.phase = "collect"
        super().run()
