"""Published adapter versions on disk: written so that an incomplete one cannot exist, read so that a wrong one cannot
load.

A version is a folder `vNNNN/` with `adapter_model.safetensors`, `adapter_config.json` and, written last,
`manifest.json`, and nothing else. A folder without a manifest counts as not there. The manifest holds the hashes of the
two others, so its own hash, which is in the store, is that of the whole version. Which version is live is a row in the
store; this module does not know it.
"""

import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Final, TypedDict, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from transformers import PreTrainedModel

from playground.models import lora
from playground.models.loading import BaseIdentity
from playground.models.lora import LoraPool, LoraShape

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


# -- writing


def write(
    root: Path | str,
    version: int,
    tensors: Mapping[str, torch.Tensor],
    *,
    rank: int,
    alpha: float,
    targets: Iterable[str],
    base: BaseIdentity,
    parent: int,
    round_id: int,
    scores: dict[str, Any],
) -> tuple[Path, str]:
    """Write version `version` under `root` and return its folder and the sha256 of its manifest. A complete folder of
    the same round and gate, from before a crash, is kept; any other that is there is replaced: no database knows it.

    `tensors` are LoRA tensors (fp32) by name; `scores` is what the gate measured.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"v{version:04d}"
    origin = {"parent": parent, "round": round_id, "base": base, "scores": scores}
    if _has_origin(final / MANIFEST, origin):
        return final, _sha256(final / MANIFEST)
    shutil.rmtree(final, ignore_errors=True)
    partial = root / f".v{version:04d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    targets = sorted(targets)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial / WEIGHTS)
    peft_config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base["model"],
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets,
    }
    (partial / CONFIG).write_text(json.dumps(peft_config, indent=1))
    files: dict[str, dict[str, Any]] = {name: {"sha256": _sha256(partial / name)} for name in (WEIGHTS, CONFIG)}
    files[WEIGHTS]["shapes"] = {name: list(tensor.shape) for name, tensor in tensors.items()}
    manifest: Manifest = {
        "version": version,
        "parent": parent,
        "round": round_id,
        "base": base,
        "rank": rank,
        "alpha": alpha,
        "targets": targets,
        "scores": scores,
        "files": files,
    }
    for name in files:
        _fsync(partial / name)
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _fsync(partial / MANIFEST)
    _fsync(partial)
    os.rename(partial, final)
    _fsync(root)
    return final, _sha256(final / MANIFEST)


def _has_origin(manifest: Path, origin: dict[str, Any]) -> bool:
    """Whether there is a manifest that says all this."""
    try:
        written = json.loads(manifest.read_bytes())
        return all(written[name] == value for name, value in json.loads(json.dumps(origin)).items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- reading


def place(adapters_dir: Path, path: str) -> Path:
    """The folder of a version that was published at `path`. It is looked for in today's `adapters_dir` first: that may
    have been moved with the rest of the data since, or the app may have been started from another directory.
    """
    here = adapters_dir / Path(path).name
    return here if here.exists() else Path(path)


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


# -- as a model


def load(
    folder: Path | str,
    base: PreTrainedModel,
    *,
    base_hash: str,
    expected_sha256: str | None = None,
    pool: LoraPool | None = None,
) -> PreTrainedModel:
    """A version as a frozen model of its own over the tensors of `base` (a bare trunk), which stays as it is.
    BadAdapter as `read`.

    Give a `pool` over the same base where versions come and go.
    """
    manifest, tensors = read(folder, base_hash=base_hash, expected_sha256=expected_sha256)
    return build(manifest, tensors, pool or LoraPool(base))


def build(manifest: Manifest, tensors: Tensors, pool: LoraPool) -> PreTrainedModel:
    """What `read` returned as a frozen model from the pool; BadAdapter where it does not fit the pool's base."""
    odd = sorted(set(manifest["targets"]) - set(lora.linear_targets(pool.base)))
    if odd:
        raise BadAdapter(f"the adapter does not fit the model: {odd[0][:100]!r} is no linear layer of it")
    model = pool.acquire(LoraShape(manifest["rank"], manifest["alpha"], tuple(manifest["targets"])))
    try:
        copy_strictly(tensors, lora.lora_parameters(model))
    except BadAdapter:
        pool.release(model)
        raise
    return model.requires_grad_(False)


def copy_strictly(tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]) -> None:
    """Copy `tensors` into `parameters`; BadAdapter unless names and shapes are exactly equal."""
    if tensors.keys() != parameters.keys():
        odd = sorted(tensors.keys() ^ parameters.keys())
        raise BadAdapter(f"the adapter does not fit the model: {len(odd)} names differ, for example {odd[0]}")
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise BadAdapter(f"{name} has shape {tuple(tensors[name].shape)}; the model needs {tuple(parameter.shape)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
