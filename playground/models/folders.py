"""Whether a folder holds a language model that transformers can load, found out before anything is loaded.

Each check raises `ModelUnavailable` with one sentence that says what to do. Nothing is changed on disk; that is
`conversions.py`'s. Which folder is meant is `sources.py`'s.
"""

import json
import re
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how a pointer begins
LFS_POINTER_BYTES = 1024  # a pointer is smaller
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
# in the name of an architecture that writes no text
NO_LANGUAGE_MODEL = re.compile(r"Classification|QuestionAnswering|MultipleChoice|MaskedLM|Reward")
MAX_HEADER_BYTES = 100 << 20  # of a safetensors file


class ModelUnavailable(Exception):
    """The base model cannot be had or used; the message says why and what to do."""


def check_config(source: str, config: dict[str, Any]) -> None:
    """ModelUnavailable unless this content of config.json is of a language model that transformers knows."""
    kind = config.get("model_type")
    architectures = config.get("architectures") or []
    if not kind:
        raise ModelUnavailable(
            f"{source}/config.json names no model_type: download the model again, or pass --model another one."
        )
    if kind not in CONFIG_MAPPING_NAMES:
        if config.get("auto_map"):
            raise ModelUnavailable(
                f"{source} brings code of its own (trust_remote_code), which is never run here: "
                "pass --model one of an architecture that transformers has itself."
            )
        raise ModelUnavailable(
            f"{source} is a {kind} model, which transformers {transformers.__version__} does not know: pass --model "
            "another one."
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or any(map(NO_LANGUAGE_MODEL.search, architectures)):
        name = architectures[0] if architectures else kind
        raise ModelUnavailable(
            f"{source} is a {name}, which writes no replies: pass --model a causal language model, such as a chat "
            "(instruct) model."
        )


def check_model(folder: Path) -> None:
    """ModelUnavailable unless the folder has the config, weights and tokenizer of a language model."""
    check_config(str(folder), read_config(folder))
    _check_weights(folder)
    if not has_tokenizer(folder):
        raise ModelUnavailable(
            f"{folder} has no tokenizer: put the model's tokenizer.json and tokenizer_config.json beside its weights."
        )


def check_downloaded(file: Path) -> None:
    """ModelUnavailable where Git left a pointer because Git LFS did not fetch the file."""
    if file.stat().st_size < LFS_POINTER_BYTES and file.read_bytes().startswith(LFS_POINTER):
        raise ModelUnavailable(
            f"{file} is a Git LFS pointer and not the file itself: run `git lfs pull` in its folder, or download the "
            "model again."
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json; ModelUnavailable where there is none."""
    file = folder / "config.json"
    if not file.exists():
        raise ModelUnavailable(
            f"{folder} has no config.json: pass --model a folder as save_pretrained writes it, or a GGUF file."
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise ModelUnavailable(f"{file} cannot be read ({error}): download it again.") from None
    return config


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in TOKENIZERS)


def _check_weights(folder: Path) -> None:
    """ModelUnavailable unless the weights that transformers would load are there, complete as far as their headers
    tell.
    """
    if (folder / "model.safetensors").exists():
        read_safetensors_header(folder / "model.safetensors")
    elif (folder / "model.safetensors.index.json").exists():
        for shard in _shards(folder / "model.safetensors.index.json"):
            read_safetensors_header(shard)
    elif (folder / "pytorch_model.bin.index.json").exists():
        _shards(folder / "pytorch_model.bin.index.json")
    elif not (folder / "pytorch_model.bin").exists():
        raise ModelUnavailable(
            f"{folder} has no weights: put the model's model.safetensors into it, or download the model again."
        )


def _shards(index: Path) -> list[Path]:
    """The files that an index names; ModelUnavailable where one is missing."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelUnavailable(f"{index} cannot be read ({error}): download it again.") from None
    shards = [index.parent / name for name in names]
    for shard in shards:
        if not shard.exists():
            raise ModelUnavailable(f"{shard} is missing: download it again.")
    return shards


def read_safetensors_header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file, by tensor name; ModelUnavailable where it cannot be read, or where the file has
    another size than the header says.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
        header = opened.read(header_bytes) if header_bytes <= min(size, MAX_HEADER_BYTES) else b""
    try:
        entries = json.loads(header)
        data_bytes = max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
        expected_size = 8 + header_bytes + data_bytes
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelUnavailable(f"{file} is damaged: its header cannot be read; download it again.") from None
    if size != expected_size:
        raise ModelUnavailable(
            f"{file} is cut off or damaged: it has {size:,} bytes and its header says {expected_size:,}; "
            "download it again."
        )
    return entries
