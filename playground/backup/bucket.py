"""A bucket of Hugging Face as the file system that `target.py` asks: files written whole, read, listed and removed.

The client's own `HfFileSystem` is not used, for what its source (2.4) does: a missing bucket, or one that the token may
not see, reads as an empty folder there, so that a start would take a lost token for a backup without snapshots; each
read lists the whole folder above the file first; listings are kept, in a dict that several threads of ours would empty
under each other; and a write that fails leaves a temporary file behind.

Here every call goes to the hub. A file is uploaded first and appears under its name, or takes the place of another, by
a second call, so nobody sees a part of it. There is no rename and no compare-and-swap, and none is needed.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from huggingface_hub.errors import BucketBatchError, HfUriError, RemoteEntryNotFoundError
from huggingface_hub.utils import (
    build_hf_headers,
    disable_progress_bars,
    hf_raise_for_status,
    http_backoff,
    parse_hf_uri,
)

from playground.system import hub

PREFIX = "hf://"
SECONDS = 60.0  # that one answer may take


class Bucket:
    """The bucket of `hf://buckets/OWNER/NAME/PATH`; ValueError where the URL names none. Paths are those in it.

    FileNotFoundError where a file is missing; HubError where the bucket is, or the hub does not answer.
    """

    def __init__(self, url: str) -> None:
        try:
            address = parse_hf_uri(url)
        except HfUriError:
            address = None
        if address is None or address.type != "bucket":
            raise ValueError("of the hub a bucket can be used, hf://buckets/OWNER/NAME/FOLDER")
        self.id = address.id
        self.root = address.path_in_repo.strip("/")
        self._api = hub.api()
        disable_progress_bars()  # there would be one in the log for each part of a file

    def invalidate_cache(self) -> None:
        """Nothing is kept."""

    def ls(self, path: str, detail: bool = True) -> list[dict[str, Any]]:
        """The files right in a folder, each with `name`, `size` in bytes and `type`; none where there is no such
        folder.
        """
        prefix = f"{path}/"
        found: list[dict[str, Any]] = []
        # the hub compares beginnings of names, so that lease-old/x is listed with lease
        with hub.asking(self.id, "bucket"), suppress(RemoteEntryNotFoundError):
            for entry in self._api.list_bucket_tree(self.id, prefix=path):
                if entry.type == "file" and entry.path.startswith(prefix) and "/" not in entry.path[len(prefix) :]:
                    found.append({"name": entry.path, "size": entry.size, "type": "file"})
        return found

    def cat_file(self, path: str) -> bytes:
        """What a file says."""
        endpoint = hub.endpoint() or hub.ENDPOINT
        url = f"{endpoint}/buckets/{self.id}/resolve/{quote(path)}"
        headers = build_hf_headers(token=hub.token() or False)
        with hub.asking(self.id, "bucket"):
            answer = http_backoff("GET", url, headers=headers, timeout=SECONDS)
            try:
                hf_raise_for_status(answer)
            except RemoteEntryNotFoundError:
                raise FileNotFoundError(path) from None
            return answer.content

    def pipe_file(self, path: str, content: bytes) -> None:
        """Write a file, in place of one that may be there."""
        with hub.asking(self.id, "bucket"):
            self._api.batch_bucket_files(self.id, add=[(content, path)])

    def rm(self, path: str, recursive: bool = True) -> None:
        """Remove a folder and all that is in it."""
        with hub.asking(self.id, "bucket"), suppress(RemoteEntryNotFoundError):
            entries = list(self._api.list_bucket_tree(self.id, prefix=path, recursive=recursive))
            self.rm_files(entry.path for entry in entries if entry.type == "file" and entry.path.startswith(f"{path}/"))

    def rm_files(self, paths: Iterable[str]) -> None:
        """Remove files, in few calls; one that is not there is no error."""
        doomed = list(paths)
        if not doomed:
            return
        with hub.asking(self.id, "bucket"):
            try:
                self._api.batch_bucket_files(self.id, delete=list(doomed))
            except BucketBatchError as error:
                failed = [failure["path"] for failure in error.failures]
                if any(self._api.get_bucket_paths_info(self.id, failed)):
                    raise
