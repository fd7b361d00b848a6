"""What has to be there before rounds can train on machines of Hugging Face. It is asked at the start, so that nobody
votes for a round that can never run.
"""

from collections.abc import Mapping
from pathlib import Path

from playground.settings.explain import SettingsError
from playground.settings.root import Settings

BUCKETS = "hf://buckets/"


def check(settings: Settings, environ: Mapping[str, str]) -> None:
    """SettingsError where `train_on` names a machine of Hugging Face and a job on it could not run."""
    if not settings.job_flavour:
        return
    train_on = f"train_on is {settings.train_on}"
    if not settings.backup.url:
        raise SettingsError(
            f"{train_on}, which needs backup.url: a round travels by it. Set NUDGE_BACKUP_URL to a bucket, such as "
            "hf://buckets/OWNER/NAME/nudge, or NUDGE_TRAIN_ON=here."
        )
    if not settings.backup.url.startswith(BUCKETS):
        raise SettingsError(
            f"{train_on}, and backup.url is no bucket of Hugging Face, the only place that its machines reach with the "
            "token alone. Take one, such as hf://buckets/OWNER/NAME/nudge."
        )
    if not environ.get("HF_TOKEN"):
        raise SettingsError(
            f"{train_on}, which needs HF_TOKEN in the environment, as a secret of the Space: a token that may run jobs "
            "and write to the bucket of backup.url."
        )
    if not (settings.job.image or environ.get("SPACE_ID")):
        raise SettingsError(f"{train_on}, and this is no Space: name an image that has this app with job.image.")
    if settings.model and Path(settings.model).exists():
        raise SettingsError(
            f"{train_on}, and the model {settings.model} is on this machine alone: pass --model its id on the hub."
        )
