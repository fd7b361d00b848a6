"""A GGUF file, or a PEFT adapter with its base, made into an ordinary folder of transformers', once, under the models'
folder.

The folder's name has a hash of what it was made from, so that changed files are converted again.
"""

import hashlib
import logging
import tempfile
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
import transformers
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from playground.models import folders, structure
from playground.models.folders import ModelUnavailable

log = logging.getLogger(__name__)

MB = 1 << 20


def _convert_once(folder: Path, convert: Callable[[Path], None]) -> Path:
    """`folder`, which `convert(partial)` fills if it is not there yet; it appears only once it is complete."""
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            partial = Path(scratch) / "converted"
            convert(partial)
            if not folder.exists():  # another process may have been faster
                partial.rename(folder)
    except OSError as error:
        raise ModelUnavailable(
            f"{folder} cannot be written ({error.strerror or error}): pass --models-dir a folder with room that can be "
            "written to."
        ) from None
    return folder


# -- GGUF


def from_gguf(file: Path, models_dir: Path) -> Path:
    """The folder of a GGUF file's model; ModelUnavailable where it cannot be made."""
    folders.check_downloaded(file)
    folder = models_dir / f"{file.stem}-{_sha256_of(file)[:12]}"
    if not folder.exists():
        log.info("converting %s to %s, once", file, folder)
    return convert_gguf(file, folder)


def convert_gguf(file: Path, folder: Path) -> Path:
    """Write the model and tokenizer of a GGUF file, dequantised to bf16, to `folder`. ModelUnavailable where
    transformers cannot read the file.
    """

    def convert(partial: Path) -> None:
        try:
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                dtype=torch.bfloat16,
                quantization_config=transformers.GgufConfig(dequantize=True),
            )
        except Exception as error:  # its reader may raise anything on a damaged file
            raise ModelUnavailable(
                f"{file} cannot be read as GGUF ({first_line(error)}): download it again, or pass --model a folder "
                "with safetensors weights."
            ) from None
        tokenizer.save_pretrained(partial)
        model.save_pretrained(partial)

    return _convert_once(folder, convert)


# -- PEFT adapters


def base_of_adapter(adapter: Path) -> str:
    """The folder or hub id of the base that a PEFT adapter names; ModelUnavailable where it names none or cannot be
    merged.
    """
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except Exception as error:
        raise ModelUnavailable(
            f"{adapter}/adapter_config.json cannot be read ({first_line(error)}): download it again."
        ) from None
    if not config.base_model_name_or_path:
        raise ModelUnavailable(
            f"{adapter}/adapter_config.json names no base_model_name_or_path: write the folder or hub id of its base "
            "there."
        )
    if config.is_prompt_learning:
        raise ModelUnavailable(
            f"{adapter} is a {config.peft_type.value} adapter, which cannot be merged into its base: pass --model a "
            "LoRA or a whole model."
        )
    return config.base_model_name_or_path


def merge_adapter(adapter: Path, base: str, models_dir: Path) -> Path:
    """The folder of `base` (a folder or hub id) with the adapter merged into it: added in fp32, saved in the base's own
    format. The folder's name has a hash of both. ModelUnavailable where they cannot be merged.
    """
    digest = hashlib.sha256(_fingerprint(base).encode())
    for file in sorted(adapter.iterdir()):
        if file.is_file():
            digest.update(f"{file.name} {_sha256_of(file)}".encode())
    folder = models_dir / f"{Path(base).name}+{adapter.resolve().name}-{digest.hexdigest()[:12]}"
    if not folder.exists():
        log.info("merging the adapter %s into %s as %s, once", adapter, base, folder)
    return _convert_once(folder, lambda partial: _merge(adapter, base, partial))


def _merge(adapter: Path, base: str, partial: Path) -> None:
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        if getattr(config, "quantization_config", None):
            raise ModelUnavailable(
                f"{adapter} names {base} as its base, which is quantised, and merging would lose most of it: write the "
                "base's unquantised original into its adapter_config.json."
            )
        tokenizer_source = adapter if folders.has_tokenizer(adapter) else base
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_source, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
        own_embeddings = any("embed" in name or "wte" in name for name in _tensor_names(adapter))
        if own_embeddings and len(tokenizer) > structure.input_embeddings(model).num_embeddings:
            model.resize_token_embeddings(len(tokenizer))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            merged = PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
    except ModelUnavailable:
        raise
    except Exception as error:
        raise ModelUnavailable(
            f"{adapter} cannot be merged into its base {base} ({first_line(error)}): check that this is the base it "
            "was trained on, or pass --model a whole model."
        ) from None
    own_format = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    merged.to(own_format).save_pretrained(partial)
    tokenizer.save_pretrained(partial)


def _tensor_names(adapter: Path) -> list[str]:
    file = adapter / "adapter_model.safetensors"
    return list(folders.read_safetensors_header(file)) if file.exists() else []


# -- which files a folder was made from


def _fingerprint(base: str) -> str:
    """A text that tells one base from another without reading all of its weights: a hash of the sizes, beginnings and
    ends of its files. A hub id is its own fingerprint.
    """
    folder = Path(base)
    if not folder.is_dir():
        return base
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file():
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode())
            with file.open("rb") as opened:
                digest.update(opened.read(MB))
                opened.seek(max(0, size - MB))
                digest.update(opened.read(MB))
    return digest.hexdigest()


def _sha256_of(file: Path) -> str:
    stat = file.stat()
    return _cached_sha256(str(file), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _cached_sha256(path: str, _size: int, _modified_ns: int) -> str:
    """The hash of a file, which is read again once its size or time of change is another."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: Exception) -> str:
    """What an error says, in one line without a full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
