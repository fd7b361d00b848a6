"""A dataset of Hugging Face's hub as rows: which of its files belong to a split, and the rows of these, file by file.

A file is downloaded whole, since Parquet is read from its end, and removed once it is read. Where a repository has no
Parquet of its own, the branch is read into which the hub converts most datasets. What rows mean is left to others.
"""

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi
from huggingface_hub.errors import HfUriError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import HfUri, parse_hf_uri

from playground.data import columns, files, parquet
from playground.data.raw_rows import BadRow, CannotRead, Numbered, Row
from playground.store import Origin
from playground.system import hub
from playground.system.messages import UserFacingError

PREFIX = "hf://"
PAGE = "https://"  # of a dataset in the browser
CONVERTED = "refs/convert/parquet"  # the hub's own branch
TRAIN = "train"  # the split that is taken where several are there
PARQUET = ".parquet"
ENDINGS = (PARQUET, ".jsonl", ".json", ".csv")
NOT_DATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "package.json")
MOST_BYTES = 4 << 30  # of a file
MOST_LISTED = 10_000  # files of a repository
RESERVE_BYTES = 256 << 20  # of the disk that a download leaves free
NAMED = 12  # splits, folders or kinds of files that an error names
SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(-[0-9a-f]{16})?")


class CannotReadDataset(CannotRead, UserFacingError):
    """A dataset of the hub cannot be read; the message says what to do."""


@dataclass(frozen=True)
class Found:
    """A data file of a repository. `folder`: where the files of its part are; `split`: that it belongs to."""

    path: str
    size: int  # bytes
    folder: str
    split: str

    @classmethod
    def of(cls, path: str, size: int) -> "Found":
        """`data/train-00000-of-00002.parquet`, `data/train.jsonl`, or `default/train/0000.parquet` as the hub converts
        them.
        """
        place = PurePosixPath(path)
        if place.stem.isdigit() and place.parent.name:
            return cls(path, size, _folder(place.parent.parent), place.parent.name.removeprefix("partial-"))
        shard = SHARD.fullmatch(place.stem)
        return cls(path, size, _folder(place.parent), shard[1] if shard else place.stem)


def _folder(path: PurePosixPath) -> str:
    return "" if str(path) == "." else str(path)


@dataclass(frozen=True)
class Dataset:
    """One split of a dataset, at one commit. `name` is the repository with the beginning of the commit."""

    id: str
    commit: str
    license: str | None
    files: tuple[Found, ...]

    @property
    def name(self) -> str:
        return f"{self.id}@{self.commit[:7]}"

    @property
    def split(self) -> str:
        return self.files[0].split

    @property
    def origin(self) -> Origin:
        """Where the rows come from, for ever: the address holds the commit."""
        folder = f"/{self.files[0].folder}" if self.files[0].folder else ""
        return Origin(f"{PREFIX}datasets/{self.id}@{self.commit}{folder}", self.split, self.license)

    def rows(self) -> Numbered:
        """The rows of all files, counted through. CannotReadDataset where a file cannot be had, or where the first
        row has no columns that are known.
        """
        before = 0
        with tempfile.TemporaryDirectory(prefix="nudge-hub-") as folder:
            for file in self.files:
                path = self._download(file, Path(folder))
                number = 0
                for number, row in _read(path, file, self.name):
                    if before == 0 and number == 1:
                        self._check_columns(row)
                    yield before + number, row
                before += number
                path.unlink()

    def _check_columns(self, row: Row | BadRow) -> None:
        if isinstance(row, BadRow):
            return
        try:
            columns.kind_of(row)
        except BadRow as error:
            raise CannotReadDataset("{name}: {reason}", name=self.name, reason=str(error)) from None

    def _download(self, file: Found, folder: Path) -> Path:
        _check_size(self.name, file)
        with _asking(self.id):
            path = hub.api().hf_hub_download(
                self.id, file.path, repo_type="dataset", revision=self.commit, local_dir=folder
            )
        return Path(path)


def is_address(where: str | Path) -> bool:
    """Whether this names a dataset of the hub, and not a file."""
    return isinstance(where, str) and where.startswith((PREFIX, PAGE))


def find(where: str, split: str | None = None) -> Dataset:
    """The dataset at `hf://datasets/OWNER/NAME[@REVISION][/PATH]`, or at the address of its page; its split `train`, or
    the only one, where `split` is None. CannotReadDataset says why there is none, and what to name in its place.
    """
    address = _parsed(where)
    with _asking(address.id):
        api = hub.api()
        info = api.dataset_info(address.id, revision=address.revision)
        license = _license(info.card_data.get("license") if info.card_data else None)
        commit, found = _data_files(api, address, str(info.sha))
    chosen = _of_split(address, found, split)
    if chosen[0].path.endswith(PARQUET):
        parquet.pyarrow()  # before anything is downloaded
    _check_size(address.id, chosen[0])
    return Dataset(address.id, commit, license, chosen)


def _parsed(where: str) -> HfUri:
    try:
        address = parse_hf_uri(where, endpoint=hub.endpoint())
    except HfUriError:
        address = None
    if address is None or address.type != "dataset" or "/" not in address.id:
        raise CannotReadDataset(
            "{where} is no dataset of the hub. One is named like hf://datasets/OWNER/NAME, with @REVISION and /PATH "
            "behind it where you want those.",
            where=where,
        )
    return address


@contextmanager
def _asking(name: str) -> Iterator[None]:
    try:
        with hub.asking(name, "dataset"):
            yield
    except hub.HubError as error:
        raise CannotReadDataset(error.message) from None


def _license(value: object) -> str | None:
    """The licence that a card names; some name several."""
    if isinstance(value, list):
        return ", ".join(str(one) for one in value)[:200] or None
    return str(value)[:200] if value else None


# -- which files


def _data_files(api: HfApi, address: HfUri, commit: str) -> tuple[str, list[Found]]:
    """The data files that an address names, and the commit that they are of."""
    found = _listed(api, address.id, commit, address.path_in_repo)
    if any(file.path.endswith(PARQUET) for file in found):
        return commit, [file for file in found if file.path.endswith(PARQUET)]
    if address.revision is None and not address.path_in_repo:
        try:
            converted = str(api.dataset_info(address.id, revision=CONVERTED).sha)
        except RevisionNotFoundError:
            return commit, found
        return converted, _listed(api, address.id, converted, "") or found
    return commit, found


def _listed(api: HfApi, dataset: str, commit: str, path: str) -> list[Found]:
    """The data files at this path, which may be that of one file."""
    if path:
        named = api.get_paths_info(dataset, path, revision=commit, repo_type="dataset")
        if named and isinstance(named[0], RepoFile):
            return [Found.of(named[0].path, named[0].size)]
    found = []
    other = set()
    tree = api.list_repo_tree(dataset, path or None, recursive=True, revision=commit, repo_type="dataset")
    for number, entry in enumerate(tree):
        if number == MOST_LISTED:
            raise CannotReadDataset("{name} has too many files; add the folder of those that you want.", name=dataset)
        if isinstance(entry, RepoFile):
            place = PurePosixPath(entry.path)
            if place.suffix in ENDINGS and place.name not in NOT_DATA:
                found.append(Found.of(entry.path, entry.size))
            else:
                other.add(place.suffix or place.name)
    if not found and path:
        raise CannotReadDataset(
            "{name} has no data files there that can be read ({known}). It has: {other}.",
            name=dataset,
            known=", ".join(ENDINGS),
            other=_some(other),
        )
    return sorted(found, key=lambda file: file.path)


def _of_split(address: HfUri, found: list[Found], split: str | None) -> tuple[Found, ...]:
    """The files of one split, and of one folder."""
    if not found:
        raise CannotReadDataset(
            "{name} has no data files that can be read ({known}).", name=address.id, known=", ".join(ENDINGS)
        )
    splits = {file.split for file in found}
    wanted = split or (TRAIN if TRAIN in splits and len(splits) > 1 else min(splits))
    if (split is None and len(splits) > 1 and TRAIN not in splits) or wanted not in splits:
        raise CannotReadDataset(
            "{name} has these splits; name one with --split: {splits}", name=address.id, splits=_some(splits)
        )
    chosen = tuple(file for file in found if file.split == wanted)
    folders = {file.folder for file in chosen}
    if len(folders) > 1:
        raise CannotReadDataset(
            "{name} has several folders with this split; add one of them to the address: {folders}",
            name=address.id,
            folders=_some(folder or "/" for folder in folders),
        )
    return chosen


def _some(names: Iterable[str]) -> str:
    first = sorted(names)
    more = ", …" if len(first) > NAMED else ""
    return ", ".join(first[:NAMED]) + more


# -- a file


def _check_size(name: str, file: Found) -> None:
    if file.size > MOST_BYTES:
        raise CannotReadDataset(
            "{name}: {file} is too large: it has {size} GB, and at most {most} GB can be read.",
            name=name,
            file=file.path,
            size=f"{file.size / (1 << 30):.1f}",
            most=MOST_BYTES >> 30,
        )
    if shutil.disk_usage(tempfile.gettempdir()).free < file.size + RESERVE_BYTES:
        raise CannotReadDataset(
            "{name}: there is no room for {file} in the folder for temporary files. Set TMPDIR to another.",
            name=name,
            file=file.path,
        )


def _read(path: Path, file: Found, name: str) -> Numbered:
    """The rows of a downloaded file; its errors name the file of the dataset."""
    try:
        yield from files.read(path)
    except CannotRead as error:
        reason = str(error).replace(str(path), file.path)
        raise CannotReadDataset("{name}: {reason}", name=name, reason=reason) from None
