"""Published adapter versions: written to disk so that an incomplete one cannot exist, and loaded as models.

A version is a folder `vNNNN/` with `adapter_model.safetensors`, `adapter_config.json` and, written last,
`manifest.json`, and nothing else. A folder without a manifest counts as not there. The manifest holds the hashes of the
two others, so its own hash, which is in the store, is that of the whole version.

Reading and all its checks are `adapter_reading.py`'s. Which version is live is a row in the store; this module does not
know it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from playground.models import lora
from playground.models.adapter_reading import CONFIG, MANIFEST, WEIGHTS, BadAdapter, Manifest, Tensors, read
from playground.models.loading import BaseIdentity
from playground.models.lora import LoraPool, LoraShape

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


def place(adapters_dir: Path, path: str) -> Path:
    """The folder of a version that was published at `path`. It is looked for in today's `adapters_dir` first: that may
    have been moved with the rest of the data since, or the app may have been started from another directory.
    """
    here = adapters_dir / Path(path).name
    return here if here.exists() else Path(path)


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
