"""The files of a folder as one commit in a repository of the hub. What the files are is up to others.

A repository is written to where it is new, where it is empty, or where its card has MARKER, so where we made it; any
other only by force. A new one is private, and one that is public is never written to unless that is asked for.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import DatasetInfo, ModelInfo

from playground.system import hub
from playground.system.hub import HubError, Kind

CARD = "README.md"
MARKER = "<!-- Pushed by Nudge: the next push replaces this file and those that belong to it. -->"
NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
OF_THE_HUB = {".gitattributes"}  # a new repository has it


@dataclass(frozen=True)
class Push:
    """Where to: `name` is OWNER/NAME. `public`: whether everybody may see it. `force`: also where it is not ours."""

    name: str
    kind: Kind
    public: bool = False
    force: bool = False


@dataclass(frozen=True)
class Pushed:
    """What became of it. `changed`: whether there was anything to commit."""

    url: str
    changed: bool
    private: bool

    def said(self) -> str:
        """In a line."""
        seen_by = "private" if self.private else "public"
        return f"{self.url} ({seen_by}) {'has it now' if self.changed else 'had all of it already'}."


def check(push: Push) -> None:
    """HubError where this cannot be pushed: ask before the files are made."""
    with hub.asking(push.name, push.kind):
        _ours(push)


def send(push: Push, folder: Path, earlier: re.Pattern[str]) -> Pushed:
    """Commit all files of `folder`, its card among them; what has not changed is not sent. Files of the repository
    whose names are `earlier`, so which an earlier push may have made, and that are not in the folder are removed.
    HubError.
    """
    with hub.asking(push.name, push.kind):
        info = _ours(push)
        api = hub.api()
        if info is None:
            api.create_repo(push.name, repo_type=push.kind, private=not push.public)
            info = _info(api, push)
            assert info is not None, "it was made this moment"
        names = {path.name for path in folder.iterdir() if path.is_file()}
        gone = [name for name in _names(info) if name not in names and earlier.fullmatch(name)]
        commit = api.create_commit(
            push.name,
            [
                *(CommitOperationAdd(name, folder / name) for name in sorted(names)),
                *(CommitOperationDelete(name) for name in gone),
            ],
            commit_message="Push from Nudge",
            repo_type=push.kind,
            parent_commit=info.sha,
        )
    prefix = "datasets/" if push.kind == "dataset" else ""
    url = f"{hub.endpoint() or hub.ENDPOINT}/{prefix}{push.name}"
    return Pushed(url, commit.oid != info.sha, bool(info.private))


def _ours(push: Push) -> DatasetInfo | ModelInfo | None:
    """The repository, where we may write to it; None where there is none yet. HubError."""
    if not NAME.fullmatch(push.name):
        raise HubError("A repository of the hub is named like OWNER/NAME.")
    if hub.token() is None:
        raise HubError("Set HF_TOKEN to a token that may write to {name}.", name=push.name)
    api = hub.api()
    info = _info(api, push)
    if info is None:
        return None
    if not info.private and not push.public:
        raise HubError("Everybody can see {name}. Pass --public to push to it all the same.", name=push.name)
    if set(_names(info)) <= OF_THE_HUB or push.force or _has_marker(api, push, info):
        return info
    raise HubError(
        "{name} was not pushed from here. Name another repository, or pass --force to replace its files.",
        name=push.name,
    )


def _info(api: HfApi, push: Push) -> DatasetInfo | ModelInfo | None:
    try:
        info = api.repo_info(push.name, repo_type=push.kind)
    except RepositoryNotFoundError:
        return None
    assert isinstance(info, DatasetInfo | ModelInfo)
    return info


def _names(info: DatasetInfo | ModelInfo) -> list[str]:
    return [file.rfilename for file in info.siblings or []]


def _has_marker(api: HfApi, push: Push, info: DatasetInfo | ModelInfo) -> bool:
    if CARD not in _names(info):
        return False
    with tempfile.TemporaryDirectory(prefix="nudge-hub-") as folder:
        path = api.hf_hub_download(push.name, CARD, repo_type=push.kind, revision=info.sha, local_dir=folder)
        return MARKER in Path(path).read_text(encoding="utf-8", errors="replace")
