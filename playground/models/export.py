"""A version for other programs: its adapter as a folder that plain PEFT loads, packed as a zip.

A version's own folder lacks the prefix that PEFT gives its tensors' names, and has a manifest that only this app reads.
"""

import errno
import json
import logging
import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors.torch import save

from playground.models import adapter_reading, adapters, model_card
from playground.models.adapter_reading import Manifest, Tensors

log = logging.getLogger(__name__)

PREFIX = "base_model.model."  # of the tensors' names in PEFT's files
PUBLIC = ("live", "retired", "rolled_back")  # statuses of versions that have been in use

PARTIAL = ".partial"  # suffix of a zip that is being written
KEPT_SECONDS = 3600  # the figures on a card are not older
MOST_FILES = 20  # zips that are kept
MOST_BYTES = 1 << 30  # of all of them together
PATIENCE = 5.0  # seconds that a call waits for the one before it
MOST_CALLERS = 5  # at once; each holds one of the server's threads
FULL = (errno.ENOSPC, errno.EDQUOT)

_packing = threading.Lock()  # held while a zip is written, opened or removed
_callers = threading.BoundedSemaphore(MOST_CALLERS)


class Packing(Exception):
    """Other versions are being packed at the moment."""


class CannotPack(Exception):
    """The disk did not take a zip; `is_full`: since there is no room."""

    def __init__(self, is_full: bool) -> None:
        super().__init__("the disk is full" if is_full else "the disk cannot be written")
        self.is_full = is_full


def is_public(row: Mapping[str, Any]) -> bool:
    """Whether anybody may have a version (a row of the store): it has been in use, and nobody has withdrawn it."""
    return row["version"] != 0 and row["status"] in PUBLIC and not row["withdrawn"]


def may_reply(row: Mapping[str, Any]) -> bool:
    """Whether a version (a row of the store) may reply to people who compare versions: the base, or a public one."""
    return row["version"] == 0 or is_public(row)


def peft_files(manifest: Manifest, tensors: Tensors, card: str) -> dict[str, bytes]:
    """The files of a PEFT adapter, by name: `PeftModel.from_pretrained(base, folder)` loads a folder that has them, and
    the model card.
    """
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
    return {
        adapter_reading.WEIGHTS: save({PREFIX + name: tensor for name, tensor in tensors.items()}),
        adapter_reading.CONFIG: json.dumps(config, indent=1).encode(),
        model_card.NAME: card.encode(),
    }


def opened(
    adapters_dir: Path,
    exports_dir: Path,
    row: Mapping[str, Any],
    base_hash: str,
    card: Callable[[Manifest], str],
    clock: Callable[[], float] = time.time,
) -> BinaryIO:
    """The zip of a public version (a row of the table `policy`), open for reading; packed where it is not there yet.
    `card(manifest)` writes its model card.

    A version never changes, but people's votes on it do, which stand on the card: its zip is kept for the rest of the
    hour, or until `prune` removes it; one that is open can be read to its end all the same. Packing while others are
    packed for too long, CannotPack where the disk does not take it, BadAdapter where the version cannot be read, as
    `adapter_reading.read`.
    """
    of_version = f"v{row['version']:04d}-{row['sha256'][:16]}"
    file = exports_dir / f"{of_version}-{int(clock() // KEPT_SECONDS)}.zip"
    with suppress(OSError):  # it is not there yet, or was removed this moment
        return _reopened(file)
    if not _callers.acquire(blocking=False):
        raise Packing
    try:
        if not _packing.acquire(timeout=PATIENCE):
            raise Packing
        try:
            if not file.exists():
                manifest, tensors = _read(adapters_dir, row, base_hash)
                _pack(file, row["version"], peft_files(manifest, tensors, card(manifest)))
                _remove_others(file, exports_dir.glob(f"{of_version}*.zip"))
                prune(exports_dir, keep=file)
            return _reopened(file)
        except OSError as error:
            log.error("v%s cannot be packed: %s", row["version"], error)
            raise CannotPack(is_full=error.errno in FULL) from None
        finally:
            _packing.release()
    finally:
        _callers.release()


def _read(adapters_dir: Path, row: Mapping[str, Any], base_hash: str) -> tuple[Manifest, Tensors]:
    folder = adapters.place(adapters_dir, row["path"])
    return adapter_reading.read(folder, base_hash=base_hash, expected_sha256=row["sha256"])


def _pack(file: Path, version: int, files: Mapping[str, bytes]) -> None:
    """Write a zip that appears only once it is complete; OSError where the disk does not take it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(PARTIAL)
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for name, content in files.items():
                archive.writestr(f"v{version:04d}/{name}", content)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _remove_others(file: Path, files: Iterable[Path]) -> None:
    """Remove the zips of earlier hours; one that cannot be removed now is `prune`'s."""
    for other in files:
        if other != file:
            with suppress(OSError):
                other.unlink()


def _reopened(file: Path) -> BinaryIO:
    """A zip that is there, which counts as the newest one from now on. OSError where it is not."""
    opened_file = file.open("rb")
    with suppress(OSError):  # a disk that cannot be written can be read from
        os.utime(file)
    return opened_file


def prune(exports_dir: Path, keep: Path | None = None) -> None:
    """Remove what a killed server left half-written, and of the zips those that were used longest ago: `MOST_FILES` and
    `MOST_BYTES` stay, and `keep` does in any case.
    """
    try:
        for partial in exports_dir.glob(f"*{PARTIAL}"):
            partial.unlink()
        zips = [(file != keep, -file.stat().st_mtime, file) for file in exports_dir.glob("*.zip")]
        kept_bytes = 0
        for place, (_, _, file) in enumerate(sorted(zips)):
            kept_bytes += file.stat().st_size
            if file != keep and (place >= MOST_FILES or kept_bytes > MOST_BYTES):
                kept_bytes -= file.stat().st_size
                file.unlink()
    except OSError as error:
        log.warning("old downloads cannot be removed: %s", error)
