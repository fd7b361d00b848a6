"""Reads adapter versions from disk, so that a wrong one cannot load, and says what its files hold.

Whoever can write to the folder may put anything there. So every file is checked (kind, size, hash, content) before it
is used, and whatever is wrong becomes a BadAdapter. How versions are written is `adapters.py`'s.
"""

import hashlib
import json
import math
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Final, TypedDict, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from playground.models.loading import BaseIdentity

WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"
MANIFEST: Final = "manifest.json"
MAX_NORM = 1e3  # Frobenius norm of one tensor; trained ones stay below 10
MAX_TEXT_BYTES = 32 << 20  # largest manifest or config that is read; a model of 70 billion parameters has 300 kB
MAX_HEADER_BYTES = 16 << 20  # of the weights' file
MAX_ERROR_CHARS = 300  # of what an unexpected error says

Tensors = dict[str, torch.Tensor]  # LoRA tensors by name


class BadAdapter(Exception):
    """An adapter version cannot be used; the message says what is wrong with it."""


class Manifest(TypedDict):
    """The content of `manifest.json`."""

    version: int
    parent: int
    round: int
    base: BaseIdentity
    rank: int
    alpha: float
    targets: list[str]
    scores: dict[str, Any]  # what the gate measured
    files: dict[str, dict[str, Any]]  # by file name: its sha256, and the shapes of the weights


class _Strict(BaseModel):
    """Types as they are written: no "4" for 4, no true for 1."""

    model_config = ConfigDict(strict=True, extra="ignore")


Name = Annotated[str, Field(min_length=1, max_length=500)]
Size = Annotated[int, Field(ge=1, le=1 << 32)]


class _Base(_Strict):
    model: str
    hash: str


class _File(_Strict):
    sha256: str


class _Weights(_File):
    shapes: dict[Name, list[Size]]


class _Files(_Strict):
    weights: _Weights = Field(alias=WEIGHTS)
    config: _File = Field(alias=CONFIG)


class _CheckedManifest(_Strict):
    """The part of a manifest that loading relies on."""

    base: _Base
    rank: int = Field(ge=1, le=4096)
    alpha: float = Field(gt=0, le=1e6, allow_inf_nan=False)
    targets: list[Name] = Field(min_length=1, max_length=1000)
    files: _Files


# -- reading


def read(folder: Path | str, *, base_hash: str, expected_sha256: str | None = None) -> tuple[Manifest, Tensors]:
    """The manifest and the tensors of a version, after checking its hashes, its base, its names and shapes, and that
    every value is finite and of sane size. BadAdapter otherwise, whatever is wrong with it.
    """
    folder = Path(folder)
    try:
        return _read(folder, base_hash, expected_sha256)
    except BadAdapter:
        raise
    # whoever can write to the folder can make reading raise anything: RecursionError, MemoryError, a parser's own
    # errors
    except Exception as error:
        raise BadAdapter(f"{folder.name} cannot be read: {in_words(error)}") from None


def _read(folder: Path, base_hash: str, expected_sha256: str | None) -> tuple[Manifest, Tensors]:
    _check_names(folder)
    text = _read_small(folder / MANIFEST)
    raw = _parse(folder / MANIFEST, text)
    try:
        manifest = _CheckedManifest.model_validate(raw)
    except ValidationError as error:
        raise BadAdapter(f"{folder.name} is incomplete: {MANIFEST}: {_first_problem(error)}") from None
    files = manifest.files
    # Rows from before migration 0004 hold the hash of the weights alone, later ones that of the manifest, which holds
    # all hashes. A row of the later kind cannot pass the earlier way: the weights would have to be a file with the
    # manifest's hash, and safetensors reads no such file.
    if expected_sha256 and expected_sha256 not in (hashlib.sha256(text).hexdigest(), files.weights.sha256):
        raise BadAdapter(f"{folder.name} is not the version that was published: its hash is not {expected_sha256[:12]}")
    config_text = _read_small(folder / CONFIG)
    if hashlib.sha256(config_text).hexdigest() != files.config.sha256:
        raise BadAdapter(f"{folder.name}/{CONFIG} does not match the hash in its manifest")
    weights = _read_weights(folder / WEIGHTS, files.weights)
    if manifest.base.hash != base_hash:
        raise BadAdapter(
            f"{folder.name} was trained on {manifest.base.model[:200]} ({manifest.base.hash[:12]}), "
            f"not on the model that is running ({base_hash[:12]})"
        )
    _check_config(folder, manifest, _parse(folder / CONFIG, config_text))
    try:
        tensors = load_tensors(weights)
    except SafetensorError as error:
        raise BadAdapter(f"{folder.name}/{WEIGHTS} cannot be read: {in_words(error)}") from None
    if {name: list(tensor.shape) for name, tensor in tensors.items()} != files.weights.shapes:
        raise BadAdapter(f"{folder.name} holds other tensors than its manifest lists")
    for name, tensor in tensors.items():
        _check_tensor(folder, manifest, name, tensor)
    return cast("Manifest", raw), tensors


def _check_names(folder: Path) -> None:
    """BadAdapter unless the version is three plain files in a folder. Anything else there is from somebody else."""
    if folder.is_symlink():
        raise BadAdapter(f"{folder.name} is a link, not a folder")
    names = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    odd = sorted(names - {WEIGHTS, CONFIG, MANIFEST})
    if odd and MANIFEST in names:
        raise BadAdapter(f"{folder.name} holds {odd[0][:100]!r}, which is no part of a version")
    for name in (MANIFEST, WEIGHTS, CONFIG):
        try:
            mode = os.lstat(folder / name).st_mode
        except OSError as error:
            raise BadAdapter(f"{folder.name} is incomplete: {name}: {error.strerror}") from None
        if not stat.S_ISREG(mode):
            raise BadAdapter(f"{folder.name}/{name} is not a plain file")


def _open(path: Path) -> BufferedReader:
    """A plain file to read. A link that has taken its place since it was checked is not followed."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.fdopen(os.open(path, flags), "rb")


def _read_small(path: Path) -> bytes:
    """The bytes of the manifest or the config."""
    with _open(path) as file:
        text = file.read(MAX_TEXT_BYTES + 1)
    if len(text) > MAX_TEXT_BYTES:
        raise BadAdapter(f"{path.parent.name}/{path.name} has more than {MAX_TEXT_BYTES >> 20} MB")
    return text


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    """The object that a file of JSON holds."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadAdapter(f"{path.parent.name} is incomplete: {path.name} is no JSON: {in_words(error)}") from None
    if not isinstance(content, dict):
        raise BadAdapter(f"{path.parent.name} is incomplete: {path.name} holds no object")
    return content


def _read_weights(path: Path, listed: _Weights) -> bytes:
    """The weights' file. It is read into memory only once its size and hash are those that the manifest lists."""
    values = sum(math.prod(shape) for shape in listed.shapes.values())
    most = 4 * values + MAX_HEADER_BYTES
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise BadAdapter(f"{path.parent.name}/{path.name} has {size:,} bytes; its tensors take at most {most:,}")
        if hashlib.file_digest(file, "sha256").hexdigest() != listed.sha256:
            raise BadAdapter(f"{path.parent.name}/{path.name} does not match the hash in its manifest")
        file.seek(0)
        return file.read()


def _check_config(folder: Path, manifest: _CheckedManifest, config: dict[str, Any]) -> None:
    """BadAdapter unless the config, which other programs read, says what the manifest says."""
    expected = {"r": manifest.rank, "lora_alpha": manifest.alpha, "target_modules": manifest.targets}
    for name, value in expected.items():
        given = config.get(name)
        if given != value or isinstance(given, bool):
            raise BadAdapter(
                f"{folder.name}: {name} is {str(given)[:100]} in {CONFIG} and {str(value)[:100]} in {MANIFEST}"
            )


def _check_tensor(folder: Path, manifest: _CheckedManifest, name: str, tensor: torch.Tensor) -> None:
    """BadAdapter unless a tensor is a LoRA's A (rank, inputs) or B (outputs, rank) of one of the targets, in fp32, and
    of sane size.
    """
    module, _, part = name.rpartition(".lora_")
    rank_axis = {"A.weight": 0, "B.weight": 1}.get(part)
    is_lora = rank_axis is not None and tensor.dim() == 2 and tensor.shape[rank_axis] == manifest.rank
    if not is_lora or module.rpartition(".")[2] not in manifest.targets:
        raise BadAdapter(
            f"{folder.name}: {name[:200]} of shape {tuple(tensor.shape)} does not fit the model: "
            f"rank {manifest.rank} on {str(manifest.targets)[:200]}"
        )
    if tensor.dtype != torch.float32:
        raise BadAdapter(f"{folder.name}: {name[:200]} is {tensor.dtype}; torch.float32 is needed")
    norm = torch.linalg.vector_norm(tensor).item()
    if not norm < MAX_NORM:  # also catches NaN
        raise BadAdapter(f"{folder.name}: {name[:200]} has norm {norm}; at most {MAX_NORM} is accepted")


def in_words(error: Exception) -> str:
    """An unexpected error, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:MAX_ERROR_CHARS]


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"[:MAX_ERROR_CHARS]
