"""Jobs of Hugging Face: machines that are paid by the minute. The only module that asks the hub about them.

What a job does is `job.py`'s, when one is sent and what is made of it `job_round.py`'s.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import httpx2
from huggingface_hub import HfApi, JobInfo, Volume
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from playground.system import hub
from playground.system.messages import UserFacingError
from playground.system.safe_logging import describe_error

Answer = TypeVar("Answer")
Stage = Literal["waiting", "running", "completed", "failed"]

UV_IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
SOURCE = "/nudge"  # where a job finds the Space's files
PROGRAM = ("python", "-m", "training.job")
UV_RUN = ("uv", "run", "--no-project", "--python", "3.12", "--with-requirements", f"{SOURCE}/requirements.txt")
STAGES: dict[str, Stage] = {"SCHEDULING": "waiting", "RUNNING": "running", "COMPLETED": "completed"}  # others: failed
TRY_LATER = (408, 429)  # codes of answers, besides 500 and more, after which the same question may be answered
REFUSED_CHARS = 300  # that are kept of what the hub says
LINE_CHARS = 300  # of a line of a job's log
ROUND, KEY = "nudge-round", "nudge-key"  # labels of a job


class HubUnavailable(Exception):
    """The hub did not answer, or not now."""


class HubRefused(UserFacingError):
    """The hub does not do what was asked, and would not later: no right, no credit, no such machine or job."""


@dataclass(frozen=True)
class JobState:
    """A job as the hub tells of it. `seconds`: how long it has run; `words`: what the hub says, or nothing."""

    id: str
    key: str
    stage: Stage
    seconds: float
    url: str
    words: str

    @property
    def is_over(self) -> bool:
        return self.stage in ("completed", "failed")


class HFJobs:
    """The jobs of `namespace`, or where that is empty of the user whose token `HF_TOKEN` is.

    Every method raises HubUnavailable or HubRefused.
    """

    def __init__(self, namespace: str = "", api: HfApi | None = None) -> None:
        self._api = api or hub.api()
        self._given = namespace

    @cached_property
    def _namespace(self) -> str:
        """Who pays. The client would ask for it at each call, and the hub answers that a few times a minute alone."""
        return self._given or str(_asked(self._api.whoami)["name"])

    def start(
        self, *, flavour: str, image: str, arguments: list[str], minutes: int, round_label: str, key: str
    ) -> JobState:
        """Start `PROGRAM` with these arguments, which everybody with access to the job may read; the token goes as a
        secret. Without an `image`, uv runs the files of this Space as they are in the revision that runs.
        """
        volumes = None if image else [self._source(os.environ["SPACE_ID"])]
        command = [*(() if image else UV_RUN), *PROGRAM, *arguments]
        token = hub.token()

        def started() -> JobInfo:
            return self._api.run_job(
                image=image or UV_IMAGE,
                command=command,
                env=None if image else {"PYTHONPATH": SOURCE},
                secrets={"HF_TOKEN": token} if token else None,
                flavor=flavour,
                timeout=60 * minutes,
                labels={"name": f"nudge-{round_label}", ROUND: round_label, KEY: key},
                volumes=volumes,
                namespace=self._namespace,
            )

        return _state(_asked(started))

    def _source(self, space: str) -> Volume:
        """The files of a Space in the revision that runs now."""
        runtime = _asked(lambda: self._api.get_space_runtime(space))
        revision = runtime.raw.get("sha") or _asked(lambda: self._api.space_info(space)).sha
        return Volume(type="space", source=space, mount_path=SOURCE, revision=revision, read_only=True)

    def of_round(self, round_label: str) -> list[JobState]:
        """The jobs that were ever started for a round."""

        def listed() -> list[JobInfo]:
            return list(self._api.list_jobs(labels={ROUND: round_label}, namespace=self._namespace))

        return [_state(job) for job in _asked(listed)]

    def look(self, job: str) -> JobState:
        """The job with this id now."""
        return _state(_asked(lambda: self._api.inspect_job(job_id=job, namespace=self._namespace)))

    def last_lines(self, job: str, lines: int) -> list[str]:
        """The last lines of what a job has written, at most `lines`."""

        def fetched() -> list[str]:
            return list(self._api.fetch_job_logs(job_id=job, tail=lines, namespace=self._namespace))

        return [line.rstrip()[:LINE_CHARS] for line in _asked(fetched)][-lines:]

    def cancel(self, job: str) -> None:
        """End a job; one that has ended already is no error to the hub."""
        _asked(lambda: self._api.cancel_job(job_id=job, namespace=self._namespace))

    def usd_per_minute(self, flavour: str) -> float | None:
        """What a machine of this kind costs, or None where the hub has none or prices it otherwise."""
        for machine in _asked(self._api.list_jobs_hardware):
            if machine.name == flavour and machine.unit_label == "minute":
                return float(machine.unit_cost_usd)
        return None


def _state(job: JobInfo) -> JobState:
    labels: dict[str, Any] = job.labels or {}
    seconds = (job.durations and job.durations.running_secs) or 0
    return JobState(
        id=job.id,
        key=str(labels.get(KEY, "")),
        stage=STAGES.get(str(getattr(job.status.stage, "value", job.status.stage)), "failed"),
        seconds=float(seconds),
        url=job.url,
        words=(job.status.message or "")[:REFUSED_CHARS],
    )


def _asked(call: Callable[[], Answer]) -> Answer:
    try:
        return call()
    except OfflineModeIsEnabled:
        raise HubRefused("The hub is not asked, since HF_HUB_OFFLINE is set.") from None
    except HfHubHTTPError as error:
        code = error.response.status_code
        if code >= 500 or code in TRY_LATER:
            raise HubUnavailable(f"the hub answers {code}") from error
        words = (error.server_message or "").strip()[:REFUSED_CHARS]
        raise HubRefused(
            "Hugging Face refuses the job ({code}): {words}", code=code, words=words or describe_error(error)
        ) from error
    except (httpx2.HTTPError, OSError) as error:
        raise HubUnavailable(describe_error(error)) from error
