"""Hugging Face's hub as this app asks it: with the token of HF_TOKEN alone, never one that another program saved, and
with errors that say what to do. What is asked, and what for, is up to others.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    BucketNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from playground.system.messages import Message, UserFacingError

Kind = Literal["dataset", "model", "bucket"]

ENDPOINT = "https://huggingface.co"
REFUSALS = (401, 403)  # HTTP statuses
REFUSED = 400  # the same: something is wrong with what was sent
CHANGED = 412  # the same: the branch is not at the commit that a change was made for
REASON_CHARS = 500


class HubError(UserFacingError):
    """The hub did not do what was asked."""


def token() -> str | None:
    """The token of the person who runs this, or None."""
    return os.environ.get("HF_TOKEN", "").strip() or None


def endpoint() -> str | None:
    """The address of another hub than huggingface.co, or None."""
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or None


def api() -> HfApi:
    """The hub's client. Without HF_TOKEN it asks as nobody."""
    return HfApi(endpoint=endpoint(), token=token() or False)


@contextmanager
def asking(name: str, kind: Kind) -> Iterator[None]:
    """Around calls about the repository or bucket `name` (OWNER/NAME): every error of the client is a HubError."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        message = _in_words(error, name, kind)
        if message is None:
            raise
        # the client's own message may quote addresses with a signature
        raise HubError(message) from None


def _in_words(error: Exception, name: str, kind: Kind) -> Message | None:
    """What a person is told of an error; None where it is none of the hub's client."""
    match error:
        case GatedRepoError():
            page = f"{endpoint() or ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
            return Message(
                "{name} is gated: accept its terms at {page}, and set HF_TOKEN to a token of that account.",
                name=name,
                page=page,
            )
        case RepositoryNotFoundError() | BucketNotFoundError() if token():
            return Message("The hub has no {name} that the token in HF_TOKEN may see.", name=name)
        case RepositoryNotFoundError() | BucketNotFoundError():
            return Message(
                "The hub has no {name}. If it is private, set HF_TOKEN to a token that may see it.", name=name
            )
        case RevisionNotFoundError():
            return Message("{name} has no such revision.", name=name)
        case RemoteEntryNotFoundError():
            return Message("{name} has no such file or folder.", name=name)
        case OfflineModeIsEnabled():
            return Message("The hub is not asked, since HF_HUB_OFFLINE is set.")
        case HfHubHTTPError() if error.response.status_code in REFUSALS and token() is None:
            return Message("The hub does not let us do this to {name}: set HF_TOKEN to a token that may.", name=name)
        case HfHubHTTPError() if error.response.status_code in REFUSALS:
            return Message("The hub does not let the token in HF_TOKEN do this to {name}.", name=name)
        case HfHubHTTPError() if error.response.status_code == CHANGED:
            return Message("Somebody else has changed {name} meanwhile. Push again.", name=name)
        case HfHubHTTPError() if error.response.status_code == REFUSED:
            return Message("The hub refuses it: {reason}", reason=(error.server_message or "")[:REASON_CHARS])
        case HfHubHTTPError():
            status = error.response.status_code
            return Message("The hub answers with the error {status}. Try again later.", status=status)
        case httpx2.HTTPError() | LocalEntryNotFoundError() | ConnectionError():
            return Message("The hub cannot be reached. Try again once the network is there.")
        case ValueError():  # by which the client says what the hub, or itself, finds wrong with a card or a name
            return Message("The hub refuses it: {reason}", reason=str(error)[:REASON_CHARS])
        case _:
            return None
