"""A round as a job on another machine: `python -m training.job --round-id 3 --key KEY --backup.url URL`.

It fetches a copy of the database, trains the round in it as any other, tells now and then how far it is, and sends back
what the worker publishes from. It ends with exit code 0 wherever the worker can read from its result how the round
ended. Whoever sent it is `job_round.py`; what travels is `job_files.py`'s.
"""

import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from pydantic import Field

from playground.backup.target import BadTarget, Target, TargetUnavailable
from playground.settings import Settings
from playground.store import Store, StoreError
from playground.system.messages import UserFacingError
from playground.system.repeating import repeating
from training import job_files, program, worker
from training.erase import folder_of
from training.job_files import BadResult, NotThere, Progress, Result
from training.program import ProgramSettings
from training.rollout import Episode
from training.round import Round
from training.round_control import write_json
from training.served import EPISODES

log = logging.getLogger("training.job")

PROGRESS_SECONDS = 10.0  # between two looks whether there is something to tell


class JobProgramSettings(ProgramSettings):
    """A training round of Nudge as a job on another machine."""

    round_id: int = Field(ge=1)
    """The round to train."""
    key: str = Field(pattern=r"^[0-9a-z-]{1,64}$")
    """The name of its folder at `backup.url`."""


class OtherBase(UserFacingError):
    """The base model of this machine is another one than that of the chat."""


class RoundInJob(Round):
    """A round that leaves its version to whoever sent it."""

    def _collect(self) -> None:
        if self.models.base["hash"] != self.store.last_base_hash():  # no vote would count
            raise OtherBase(
                "The base model {model} is another one here than where people chat.", model=self.models.base["model"]
            )
        super()._collect()

    def served_kl(self, episodes: Sequence[Episode]) -> float:
        """As of any round; the worker measures again what its own chat serves, on the replies that are kept here."""
        kept = [[episode.prompt, episode.completion] for episode in episodes[:EPISODES]]
        write_json(self.folder / job_files.SERVED, kept)
        return super().served_kl(episodes)

    def _publish(self) -> None:
        write_result(self.store, self.settings, self.id, self.models.base["hash"])


def write_result(store: Store, settings: Settings, round_id: int, base: str = "") -> None:
    """Write how the round ended, or that it is trained where it has not, to `result.json` in its folder."""
    row = store.round(round_id)
    result = Result(
        **progress_of(store, round_id).model_dump(),
        state="trained" if row["state"] == "running" else row["state"],
        reason=asdict(row["reason"]) if row["reason"] else None,
        live=store.live_policy()["version"],
        base=base,
        votes=store.used_votes(round_id),
    )
    (folder_of(settings, round_id) / job_files.RESULT).write_text(result.model_dump_json())


def progress_of(store: Store, round_id: int) -> Progress:
    """How far a round is."""
    row = store.round(round_id)
    metrics = json.loads(json.dumps(row["metrics"]))
    return Progress(
        phase=row["phase"], step=row["step"], steps=row["steps"], metrics=metrics, curves=store.metrics(round_id)
    )


@contextmanager
def telling(target: Target, key: str, store: Store, round_id: int) -> Iterator[None]:
    """Tell how far the round is, from a thread, while the block runs. What cannot be told is told later."""
    sent: Progress | None = None

    def tell() -> bool:
        nonlocal sent
        try:
            progress = progress_of(store, round_id)
            if progress != sent:
                job_files.send_progress(target, key, progress)
                sent = progress
        except (StoreError, TargetUnavailable) as error:
            log.warning("how far the round is could not be told: %s", error)
        return True

    with repeating("progress", PROGRESS_SECONDS, tell):
        yield


def run(settings: JobProgramSettings, target: Target) -> None:
    """Train the round in the data folder of `settings`, which is made. NotThere, BadResult, TargetUnavailable and
    StoreError where it cannot begin or its result cannot be sent.
    """
    round_id = settings.round_id
    job_files.receive(target, settings.key, "inputs", settings.data_dir, round_id)
    store = Store(settings.database, patience=program.PATIENCE, create=False)
    row = store.round(round_id)
    with telling(target, settings.key, store, round_id):
        ended = worker.run_taken(store, settings, row, row["owner"], RoundInJob)
    if ended["state"] != "running":
        write_result(store, settings, round_id)
    folder = folder_of(settings, round_id)
    files = {f"rounds/{folder.name}/{name}": folder / name for name in job_files.RETURNED if (folder / name).is_file()}
    job_files.send(target, settings.key, "result", files)


def main(argv: Sequence[str] | None = None) -> None:
    settings = program.begin(argv, JobProgramSettings, "python -m training.job")
    program.prepare(settings)
    try:
        with tempfile.TemporaryDirectory(prefix="nudge-") as folder:
            own = settings.with_values(data_dir=Path(folder) / "data", train_on="here")
            run(own, Target(settings.backup.url))
    except NotThere:
        sys.exit(f"There is no job {settings.key} at {settings.backup.url}.")
    except (BadResult, BadTarget, TargetUnavailable, StoreError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
