"""What people give as `--model`, made into what transformers can load, or refused in one sentence that says what to do.

Looks into folders and files before anything is loaded; turns a GGUF file and a PEFT adapter into an ordinary folder,
once, under the models' folder. Which model is meant, and how it runs, is `loading.py`'s.
"""

import hashlib
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
import transformers
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import cached_file, find_adapter_config_file

log = logging.getLogger(__name__)

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
LFS = b"version https://git-lfs.github.com/spec/"
LFS_BYTES = 1024  # a pointer is smaller
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
NO_LANGUAGE_MODEL = re.compile(
    r"Classification|QuestionAnswering|MultipleChoice|MaskedLM|Reward"
)  # in the name of an architecture
HEADER_BYTES = 100 << 20  # more, and a safetensors header is no header
MB = 1 << 20


class ModelUnavailable(Exception):
    """The base model cannot be had or used; the message says why and what to do."""


def usable(source: str, models_dir: Path) -> str:
    """The hub id or folder that transformers loads for what a person gave: itself, or a folder converted from it.
    ModelUnavailable where none can.
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


def on_hub(hub_id: str) -> bool:
    """Whether a model is in the hub's cache on this machine, or the hub can be reached and has it."""
    try:
        return cached_file(hub_id, "config.json") is not None
    except OSError:
        return False


def _is_adapter_on_hub(hub_id):
    try:
        return find_adapter_config_file(hub_id) is not None
    except OSError:
        return False


def check_config(source: str, config: dict) -> None:
    """ModelUnavailable unless this content of config.json is of a language model that transformers knows."""
    kind, architectures = config.get("model_type"), config.get("architectures") or []
    name = architectures[0] if architectures else kind
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
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or any(
        NO_LANGUAGE_MODEL.search(architecture) for architecture in architectures
    ):
        raise ModelUnavailable(
            f"{source} is a {name}, which writes no replies: pass --model a causal language model, such as a chat "
            "(instruct) model."
        )


# -- folders and files


def _usable_file(file, models_dir):
    if file.suffix.lower() == ".gguf":
        return _from_gguf(file, models_dir)
    raise ModelUnavailable(f"{file} is a file and no GGUF: pass --model the folder it is in.")


def _usable_folder(folder, models_dir):
    files = sorted(file for file in folder.iterdir() if file.is_file())
    if not files:
        raise ModelUnavailable(f"{folder} is empty: pass --model a folder with config.json, weights and a tokenizer.")
    for file in files:
        _check_downloaded(file)
    if (folder / "adapter_config.json").exists():
        return _merged(folder, models_dir)
    ggufs = [file for file in files if file.suffix.lower() == ".gguf"]
    if ggufs and not (folder / "config.json").exists():
        if len(ggufs) > 1:
            raise ModelUnavailable(
                f"{folder} holds several GGUF files: pass --model one of {', '.join(file.name for file in ggufs)}, "
                "with its folder."
            )
        return _from_gguf(ggufs[0], models_dir)
    check_config(str(folder), _config_of(folder))
    _check_weights(folder)
    if not _has_tokenizer(folder):
        raise ModelUnavailable(
            f"{folder} has no tokenizer: put the model's tokenizer.json and tokenizer_config.json beside its weights."
        )
    return folder


def _check_downloaded(file):
    """Git leaves a pointer where Git LFS did not fetch a file."""
    if file.stat().st_size < LFS_BYTES and file.read_bytes().startswith(LFS):
        raise ModelUnavailable(
            f"{file} is a Git LFS pointer and not the file itself: run `git lfs pull` in its folder, or download the "
            "model again."
        )


def _config_of(folder):
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


def _has_tokenizer(folder):
    return any((folder / name).exists() for name in TOKENIZERS)


def _check_weights(folder):
    """ModelUnavailable unless the weights that transformers would load are there, whole as far as their
    headers tell.
    """
    if (folder / "model.safetensors").exists():
        _check_safetensors(folder / "model.safetensors")
    elif (folder / "model.safetensors.index.json").exists():
        for shard in _shards(folder / "model.safetensors.index.json"):
            _check_safetensors(shard)
    elif (folder / "pytorch_model.bin.index.json").exists():
        _shards(folder / "pytorch_model.bin.index.json")
    elif not (folder / "pytorch_model.bin").exists():
        raise ModelUnavailable(
            f"{folder} has no weights: put the model's model.safetensors into it, or download the model again."
        )


def _shards(index):
    """The files that an index names; ModelUnavailable where one is missing."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelUnavailable(f"{index} cannot be read ({error}): download it again.") from None
    for name in names:
        if not (index.parent / name).exists():
            raise ModelUnavailable(f"{index.parent / name} is missing: download it again.")
    return [index.parent / name for name in names]


def _check_safetensors(file):
    size = file.stat().st_size
    with file.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
        header = opened.read(header_bytes) if header_bytes <= min(size, HEADER_BYTES) else b""
    try:
        entries = json.loads(header)
        wanted = (
            8
            + header_bytes
            + max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelUnavailable(f"{file} is damaged: its header cannot be read; download it again.") from None
    if size != wanted:
        raise ModelUnavailable(
            f"{file} is cut off or damaged: it has {size:,} bytes and its header says {wanted:,}; download it again."
        )


# -- conversions, each made once


def _converted(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, which `make(partial)` fills if it is not there yet; a torn one never appears."""
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            partial = Path(scratch) / "converted"
            make(partial)
            if not folder.exists():  # another process may have been faster
                partial.rename(folder)
    except OSError as error:
        raise ModelUnavailable(
            f"{folder} cannot be written ({error.strerror or error}): pass --models-dir a folder with room that can be "
            "written to."
        ) from None
    return folder


def convert_gguf(file: Path, folder: Path) -> Path:
    """The model and tokenizer of a GGUF file, dequantised to bf16, as a folder of transformers'. ModelUnavailable where
    transformers cannot read it.
    """

    def make(partial):
        try:
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                dtype=torch.bfloat16,
                quantization_config=transformers.GgufConfig(dequantize=True),
            )
        except Exception as error:  # its reader raises whatever it stumbles over
            raise ModelUnavailable(
                f"{file} cannot be read as GGUF ({_first_line(error)}): download it again, or pass --model a folder "
                "with "
                "safetensors weights."
            ) from None
        tokenizer.save_pretrained(partial)
        model.save_pretrained(partial)

    return _converted(folder, make)


def _from_gguf(file, models_dir):
    _check_downloaded(file)
    stat = file.stat()
    digest = _sha256(str(file), stat.st_size, stat.st_mtime_ns)
    folder = models_dir / f"{file.stem}-{digest[:12]}"
    if not folder.exists():
        log.info("converting %s to %s, once", file, folder)
    return convert_gguf(file, folder)


def _merged(adapter, models_dir):
    """The base of a PEFT adapter with the adapter merged into it, in fp32 and then in the base's own format; named and
    hashed by both.
    """
    try:
        config = PeftConfig.from_pretrained(adapter)
    except Exception as error:
        raise ModelUnavailable(
            f"{adapter}/adapter_config.json cannot be read ({_first_line(error)}): download it again."
        ) from None
    base_name = config.base_model_name_or_path
    if not base_name:
        raise ModelUnavailable(
            f"{adapter}/adapter_config.json names no base_model_name_or_path: write the folder or hub id of its base "
            "there."
        )
    if config.is_prompt_learning:
        raise ModelUnavailable(
            f"{adapter} is a {config.peft_type.value} adapter, which cannot be merged into its base: pass --model a "
            "LoRA or a whole model."
        )
    try:
        base = usable(base_name, models_dir)
    except ModelUnavailable as error:
        raise ModelUnavailable(f"{adapter} is an adapter of {base_name}, which cannot be used: {error}") from None
    digest = hashlib.sha256(_fingerprint(base).encode())
    for file in sorted(adapter.iterdir()):
        if file.is_file():
            stat = file.stat()
            digest.update(f"{file.name} {_sha256(str(file), stat.st_size, stat.st_mtime_ns)}".encode())
    folder = models_dir / f"{Path(base).name}+{adapter.resolve().name}-{digest.hexdigest()[:12]}"
    if not folder.exists():
        log.info("merging the adapter %s into %s as %s, once", adapter, base, folder)
    return _converted(folder, lambda partial: _merge(adapter, base, partial))


def _merge(adapter, base, partial):
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        if getattr(config, "quantization_config", None):
            raise ModelUnavailable(
                f"{adapter} names {base} as its base, which is quantised, and merging would lose most of it: write the "
                "base's "
                "unquantised original into its adapter_config.json."
            )
        tokenizer = AutoTokenizer.from_pretrained(adapter if _has_tokenizer(adapter) else base, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
        own_embeddings = any("embed" in name or "wte" in name for name in _tensor_names(adapter))
        if own_embeddings and len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            merged = PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
    except ModelUnavailable:
        raise
    except Exception as error:
        raise ModelUnavailable(
            f"{adapter} cannot be merged into its base {base} ({_first_line(error)}): check that this is the base it "
            "was trained on, "
            "or pass --model a whole model."
        ) from None
    own_format = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    merged.to(own_format).save_pretrained(partial)
    tokenizer.save_pretrained(partial)


def _tensor_names(adapter):
    file = adapter / "adapter_model.safetensors"
    if not file.exists():
        return []
    _check_safetensors(file)
    with file.open("rb") as opened:
        return list(json.loads(opened.read(int.from_bytes(opened.read(8), "little"))))


def _fingerprint(base):
    """A text that tells one base from another without reading all of its weights: sizes, beginnings and ends of its
    files; a hub id is its own.
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


@lru_cache(maxsize=64)
def _sha256(path, _size, _modified):
    """Of a file that is read again once its size or time of change is another."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error):
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
