"""A version for other programs: its adapter as a folder that plain PEFT loads, packed as a zip.

A version's own folder lacks the prefix that PEFT gives its tensors' names, and has a manifest that only this app reads.
"""

import json
import os
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from playground.models import adapters
from playground.models.adapters import Manifest, Tensors

PREFIX = "base_model.model."  # of the tensors' names in PEFT's files
PUBLIC = ("live", "retired", "rolled_back")  # statuses of versions that have been in use

_packing = threading.Lock()


class Packing(Exception):
    """Another version is being packed at the moment."""


def is_public(row: Mapping[str, Any]) -> bool:
    """Whether anybody may have a version (a row of the store): it has been in use, and nobody has withdrawn it."""
    return row["version"] != 0 and row["status"] in PUBLIC and not row["withdrawn"]


def may_reply(row: Mapping[str, Any]) -> bool:
    """Whether a version (a row of the store) may reply to people who compare versions: the base, or a public one."""
    return row["version"] == 0 or is_public(row)


def peft_files(manifest: Manifest, tensors: Tensors) -> dict[str, bytes]:
    """The files of a PEFT adapter, by name: `PeftModel.from_pretrained(base, folder)` loads a folder that has them."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": manifest["base"]["model"],
        "r": manifest["rank"],
        "lora_alpha": manifest["alpha"],
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": manifest["targets"],
        "inference_mode": True,
    }
    readme = (
        f"# Version {manifest['version']}\n\nA LoRA adapter for `{manifest['base']['model']}`, made by Nudge from "
        "people's votes.\n\n```python\nfrom peft import PeftModel\n\n"
        'model = PeftModel.from_pretrained(base, ".")  # base: the AutoModelForCausalLM\n```\n'
    )
    return {
        adapters.WEIGHTS: save({PREFIX + name: tensor for name, tensor in tensors.items()}),
        adapters.CONFIG: json.dumps(config, indent=1).encode(),
        "README.md": readme.encode(),
    }


def packed(adapters_dir: Path, exports_dir: Path, row: Mapping[str, Any], base_hash: str) -> Path:
    """The zip of a public version (a row of the table `policy`), made where it is not there yet.

    A version never changes, so its zip is kept. One is made at a time: Packing while another one is. BadAdapter where
    the version cannot be read, as `adapters.read`.
    """
    file = exports_dir / f"v{row['version']:04d}-{row['sha256'][:16]}.zip"
    if file.exists():
        return file
    if not _packing.acquire(blocking=False):
        raise Packing
    try:
        folder = adapters.place(adapters_dir, row["path"])
        manifest, tensors = adapters.read(folder, base_hash=base_hash, expected_sha256=row["sha256"])
        exports_dir.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for name, content in peft_files(manifest, tensors).items():
                archive.writestr(f"v{row['version']:04d}/{name}", content)
        os.replace(partial, file)
        return file
    finally:
        _packing.release()
