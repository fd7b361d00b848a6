"""Published adapter versions on disk: written so that a torn one cannot exist, read so that a wrong one cannot load.

A version is a folder `vNNNN/` with `adapter_model.safetensors`, `adapter_config.json` and, written last,
`manifest.json`, and nothing else. A folder without a manifest does not exist. The manifest holds the hashes of the two
others, so its own hash, which is in the store, is that of the whole version. This module knows nothing about who is
live; that is a row in the store.
"""

import hashlib
import json
import math
import os
import shutil
import stat
import weakref
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file

from playground.models import loading

WEIGHTS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "manifest.json"
NORM_BOUND = 1e3  # Frobenius norm of one tensor; trained ones stay below 10
TEXT_BYTES = 32 << 20  # largest manifest or config that is read; a model of 70 billion parameters has 300 kB
SLACK_BYTES = 16 << 20  # of the weights' file, for its header
SAID_CHARS = 300  # of what an unexpected error says


class BadAdapter(Exception):
    """An adapter version cannot be used; the message says what is wrong with it."""


class _Strict(BaseModel):
    """Types as they are written: no "4" for 4, no true for 1."""

    model_config = ConfigDict(strict=True, extra="ignore")


Name = Annotated[str, Field(min_length=1, max_length=500)]


class _Base(_Strict):
    model: str
    hash: str


class _File(_Strict):
    sha256: str


class _Weights(_File):
    shapes: dict[Name, list[Annotated[int, Field(ge=1, le=1 << 32)]]]


class _Files(_Strict):
    weights: _Weights = Field(alias=WEIGHTS)
    config: _File = Field(alias=CONFIG)


class _Manifest(_Strict):
    """What of a manifest the loader goes by."""

    base: _Base
    rank: int = Field(ge=1, le=4096)
    alpha: float = Field(gt=0, le=1e6, allow_inf_nan=False)
    targets: list[Name] = Field(min_length=1, max_length=1000)
    files: _Files


def write(root, version, tensors, *, rank, alpha, targets, base, parent, round_id, scores):
    """Write version `version` under `root` and return (folder, sha256 of its manifest). A complete folder from before a
    crash is kept.

    `tensors` maps names to LoRA tensors (fp32); `base` is {"model", "hash"}; `scores` is what the gate measured.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"v{version:04d}"
    if (final / MANIFEST).exists():
        return final, _sha256(final / MANIFEST)
    partial = root / f".v{version:04d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial / WEIGHTS)
    peft_config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base["model"],
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(targets),
    }
    (partial / CONFIG).write_text(json.dumps(peft_config, indent=1))
    files = {name: {"sha256": _sha256(partial / name)} for name in (WEIGHTS, CONFIG)}
    files[WEIGHTS]["shapes"] = {k: list(v.shape) for k, v in tensors.items()}
    manifest = {
        "version": version,
        "parent": parent,
        "round": round_id,
        "base": base,
        "rank": rank,
        "alpha": alpha,
        "targets": sorted(targets),
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


def place(adapters_dir: Path, path: str) -> Path:
    """The folder of a version that was published at `path`: below the adapters' folder of now, which may have been
    moved with the rest of the data since, or the app started elsewhere.
    """
    here = Path(adapters_dir) / Path(path).name
    return here if here.exists() else Path(path)


def read(folder, *, base_hash, expected_sha256=None):
    """Return (manifest, tensors) of a version after checking its hashes, its base, its names and shapes, and that every
    value is finite and of sane size. BadAdapter otherwise, whatever is wrong with it."""
    folder = Path(folder)
    try:
        return _read(folder, base_hash, expected_sha256)
    except BadAdapter:
        raise
    # whoever can write the folder can have it raise anything: RecursionError, MemoryError, what a parser of files
    # raises
    except Exception as error:
        raise BadAdapter(f"{folder.name} cannot be read: {in_words(error)}") from None


def _read(folder, base_hash, expected_sha256):
    _check_names(folder)
    text = _text(folder / MANIFEST)
    raw = _parsed(folder / MANIFEST, text)
    try:
        manifest = _Manifest.model_validate(raw)
    except ValidationError as error:
        raise BadAdapter(f"{folder.name} is incomplete: {MANIFEST}: {_first_problem(error)}") from None
    files = manifest.files
    # Rows of before migration 0004 hold the hash of the weights alone, later ones that of the manifest, which holds all
    # hashes. A row of the later kind cannot be met the earlier way: the weights would have to be a file with the
    # manifest's hash, which is none that safetensors reads.
    if expected_sha256 and expected_sha256 not in (hashlib.sha256(text).hexdigest(), files.weights.sha256):
        raise BadAdapter(f"{folder.name} is not the version that was published: its hash is not {expected_sha256[:12]}")
    config_text = _text(folder / CONFIG)
    if hashlib.sha256(config_text).hexdigest() != files.config.sha256:
        raise BadAdapter(f"{folder.name}/{CONFIG} does not match the hash in its manifest")
    weights = _checked_bytes(folder / WEIGHTS, files.weights)
    if manifest.base.hash != base_hash:
        raise BadAdapter(
            f"{folder.name} was trained on {manifest.base.model[:200]} ({manifest.base.hash[:12]}), "
            f"not on the model that is running ({base_hash[:12]})"
        )
    _check_config(folder, manifest, _parsed(folder / CONFIG, config_text))
    try:
        tensors = load_tensors(weights)
    except SafetensorError as error:
        raise BadAdapter(f"{folder.name}/{WEIGHTS} cannot be read: {in_words(error)}") from None
    if {k: list(v.shape) for k, v in tensors.items()} != files.weights.shapes:
        raise BadAdapter(f"{folder.name} holds other tensors than its manifest lists")
    for name, tensor in tensors.items():
        _check_tensor(folder, manifest, name, tensor)
    return raw, tensors


def _check_names(folder):
    """A version is three plain files in a folder; whatever else is there, somebody else has put there."""
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


def _open(path):
    """A plain file to read; a link that has taken its place meanwhile is not followed."""
    return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)), "rb")


def _text(path):
    """The bytes of a small file."""
    with _open(path) as file:
        text = file.read(TEXT_BYTES + 1)
    if len(text) > TEXT_BYTES:
        raise BadAdapter(f"{path.parent.name}/{path.name} has more than {TEXT_BYTES >> 20} MB")
    return text


def _parsed(path, text):
    """The object that a file of JSON holds."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadAdapter(f"{path.parent.name} is incomplete: {path.name} is no JSON: {in_words(error)}") from None
    if not isinstance(found, dict):
        raise BadAdapter(f"{path.parent.name} is incomplete: {path.name} holds no object")
    return found


def _checked_bytes(path, listed):
    """The weights' file, read only once it is known to be the one that the manifest lists."""
    most = 4 * sum(math.prod(shape) for shape in listed.shapes.values()) + SLACK_BYTES
    with _open(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise BadAdapter(f"{path.parent.name}/{path.name} has {size:,} bytes; its tensors take at most {most:,}")
        if hashlib.file_digest(file, "sha256").hexdigest() != listed.sha256:
            raise BadAdapter(f"{path.parent.name}/{path.name} does not match the hash in its manifest")
        file.seek(0)
        return file.read()


def _check_config(folder, manifest, config):
    """The config that other programs read says what the manifest says."""
    wanted = {"r": manifest.rank, "lora_alpha": manifest.alpha, "target_modules": manifest.targets}
    for name, value in wanted.items():
        if config.get(name) != value or isinstance(config.get(name), bool):
            found = str(config.get(name))[:100]
            raise BadAdapter(f"{folder.name}: {name} is {found} in {CONFIG} and {str(value)[:100]} in {MANIFEST}")


def _check_tensor(folder, manifest, name, tensor):
    """A tensor is a LoRA's A (rank, inputs) or B (outputs, rank) of one of the targets, in fp32, and of sane size."""
    module, _, part = name.rpartition(".lora_")
    axis = {"A.weight": 0, "B.weight": 1}.get(part)
    is_lora = axis is not None and tensor.dim() == 2 and tensor.shape[axis] == manifest.rank
    if not is_lora or module.rpartition(".")[2] not in manifest.targets:
        raise BadAdapter(
            f"{folder.name}: {name[:200]} of shape {tuple(tensor.shape)} does not fit the model: "
            f"rank {manifest.rank} on {str(manifest.targets)[:200]}"
        )
    if tensor.dtype != torch.float32:
        raise BadAdapter(f"{folder.name}: {name[:200]} is {tensor.dtype}; torch.float32 is needed")
    norm = torch.linalg.vector_norm(tensor).item()
    if not norm < NORM_BOUND:  # also catches NaN
        raise BadAdapter(f"{folder.name}: {name[:200]} has norm {norm}; at most {NORM_BOUND} is accepted")


def in_words(error):
    """An error that nobody foresaw, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:SAID_CHARS]


def _first_problem(error):
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"[:SAID_CHARS]


def load(folder, base, *, base_hash, expected_sha256=None, forms=None):
    """A version as a frozen model of its own over the tensors of `base` (a bare trunk), which it leaves as it is.
    BadAdapter as `read`.

    `forms` are Forms over the same base, where versions come and go.
    """
    return build(*read(folder, base_hash=base_hash, expected_sha256=expected_sha256), forms or Forms(base))


def build(manifest, tensors, forms):
    """What `read` returned as a frozen model; BadAdapter where it does not fit the model of `forms`."""
    if odd := sorted(set(manifest["targets"]) - set(loading.linear_targets(forms.base))):
        raise BadAdapter(f"the adapter does not fit the model: {odd[0][:100]!r} is no linear layer of it")
    model = forms.take(manifest["rank"], manifest["alpha"], tuple(manifest["targets"]))
    try:
        copy_strictly(tensors, loading.lora_parameters(model))
    except BadAdapter:
        forms.give_back(model)
        raise
    return model.requires_grad_(False)


class Forms:
    """Layers with a LoRA over the tensors of `base`, ready to take a version's. To make them is a tenth of a second of
    nothing but Python, during which a decoder in the same process gets on ten times as slowly; so some are made ahead,
    and those of a version that is gone serve the next.
    """

    def __init__(self, base):
        self.base, self._first, self._spare, self._taken = base, {}, defaultdict(list), weakref.WeakKeyDictionary()

    def prepare(self, n, *shape):
        """Have `n` of this shape (rank, alpha, targets) ready."""
        self._spare[shape] += [self._make(shape) for _ in range(n)]

    def take(self, *shape):
        model = self._spare[shape].pop() if self._spare[shape] else self._make(shape)
        self._taken[model] = shape
        return model

    def give_back(self, model):
        """Nothing runs this model any more. One that did not come from here is let go of."""
        if model in self._taken:
            self._spare[self._taken.pop(model)].append(model)

    def _make(self, shape):
        if shape not in self._first:
            rank, alpha, targets = shape
            self._first[shape] = loading.with_lora(
                loading.shell(self.base), rank=rank, alpha=alpha, targets=targets
            ).get_base_model()
        return loading.shell(self._first[shape])


def copy_strictly(tensors, parameters):
    """Copy `tensors` into `parameters` (both name -> tensor); BadAdapter unless names and shapes are exactly equal."""
    if tensors.keys() != parameters.keys():
        odd = sorted(tensors.keys() ^ parameters.keys())
        raise BadAdapter(f"the adapter does not fit the model: {len(odd)} names differ, for example {odd[0]}")
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise BadAdapter(f"{name} has shape {tuple(tensors[name].shape)}; the model needs {tuple(parameter.shape)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _fsync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
