"""Published adapter versions on disk: written so that a torn one cannot exist, read so that a wrong one cannot load.

A version is a folder `vNNNN/` with `adapter_model.safetensors`, `adapter_config.json` and, written last, `manifest.json`. A folder
without a manifest does not exist. This module knows nothing about who is live; that is a row in the store.
"""

import hashlib
import json
import os
import shutil
import weakref
from collections import defaultdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from playground import models

WEIGHTS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "manifest.json"
NORM_BOUND = 1e3  # Frobenius norm of one tensor; trained ones stay below 10


class BadAdapter(Exception):
    """An adapter version cannot be used; the message says what is wrong with it."""


def write(root, version, tensors, *, rank, alpha, targets, base, parent, round_id, scores):
    """Write version `version` under `root` and return (folder, sha256 of its weights). A complete folder from before a crash is kept.

    `tensors` maps names to LoRA tensors (fp32); `base` is {"model", "hash"}; `scores` is what the gate measured.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"v{version:04d}"
    if (final / MANIFEST).exists():
        return final, json.loads((final / MANIFEST).read_text())["files"][WEIGHTS]["sha256"]
    partial = root / f".v{version:04d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial / WEIGHTS)
    peft_config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base["model"], "r": rank,
                   "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "target_modules": sorted(targets)}
    (partial / CONFIG).write_text(json.dumps(peft_config, indent=1))
    files = {name: {"sha256": _sha256(partial / name)} for name in (WEIGHTS, CONFIG)}
    files[WEIGHTS]["shapes"] = {k: list(v.shape) for k, v in tensors.items()}
    manifest = {"version": version, "parent": parent, "round": round_id, "base": base, "rank": rank, "alpha": alpha,
                "targets": sorted(targets), "scores": scores, "files": files}
    for name in files:
        _fsync(partial / name)
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _fsync(partial / MANIFEST)
    _fsync(partial)
    os.rename(partial, final)
    _fsync(root)
    return final, files[WEIGHTS]["sha256"]


def read(folder, *, base_hash, expected_sha256=None):
    """Return (manifest, tensors) of a version after checking its hashes, its base, its names and shapes, and that every value is
    finite and of sane size. BadAdapter otherwise."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files, base, _ = manifest["files"], manifest["base"], [manifest[k] for k in ("rank", "alpha", "targets")]
        base_model, its_hash, shapes = base["model"], base["hash"], files[WEIGHTS]["shapes"]
        for name in (WEIGHTS, CONFIG):
            if _sha256(folder / name) != files[name]["sha256"]:
                raise BadAdapter(f"{folder.name}/{name} does not match the hash in its manifest")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadAdapter(f"{folder.name} is incomplete: {error}") from None
    if expected_sha256 and files[WEIGHTS]["sha256"] != expected_sha256:
        raise BadAdapter(f"{folder.name} is not the version that was published: {files[WEIGHTS]['sha256'][:12]}, not {expected_sha256[:12]}")
    if its_hash != base_hash:
        raise BadAdapter(f"{folder.name} was trained on {base_model} ({its_hash[:12]}), "
                         f"not on the model that is running ({base_hash[:12]})")
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise BadAdapter(f"{folder.name}/{WEIGHTS} cannot be read: {error}") from None
    if {k: list(v.shape) for k, v in tensors.items()} != shapes:
        raise BadAdapter(f"{folder.name} holds other tensors than its manifest lists")
    for name, tensor in tensors.items():
        norm = torch.linalg.vector_norm(tensor.float()).item()
        if not norm < NORM_BOUND:  # also catches NaN
            raise BadAdapter(f"{folder.name}: {name} has norm {norm}; at most {NORM_BOUND} is accepted")
    return manifest, tensors


def load(folder, base, *, base_hash, expected_sha256=None, forms=None):
    """A version as a frozen model of its own over the tensors of `base` (a bare trunk), which it leaves as it is. BadAdapter as `read`.

    `forms` are Forms over the same base, where versions come and go.
    """
    manifest, tensors = read(folder, base_hash=base_hash, expected_sha256=expected_sha256)
    model = (forms or Forms(base)).take(manifest["rank"], manifest["alpha"], tuple(manifest["targets"]))
    copy_strictly(tensors, models.lora_parameters(model))
    return model.requires_grad_(False)


class Forms:
    """Layers with a LoRA over the tensors of `base`, ready to take a version's. To make them is a tenth of a second of nothing but Python, during
    which a decoder in the same process gets on ten times as slowly; so some are made ahead, and those of a version that is gone serve the next."""

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
            self._first[shape] = models.with_lora(models.shell(self.base), rank=rank, alpha=alpha, targets=targets).get_base_model()
        return models.shell(self._first[shape])


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
