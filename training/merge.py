"""Writes a version merged into its base model as a plain model folder, which `--model` and other programs load:
`python -m training.merge --version 3 --out FOLDER`. With `--adapter` it is the adapter alone, as plain PEFT loads it;
with `--push OWNER/NAME` the folder is pushed to the hub, too.

It reads the store and the adapter, and changes neither. In memory it takes the model in fp32.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from pydantic import Field
from transformers import PreTrainedModel

from playground.models import adapter_reading, adapters, export, loading, lora, model_card, sources
from playground.models.adapter_reading import BadAdapter, Manifest, Tensors
from playground.settings import Settings, SettingsError, read
from playground.store import Row, Store, StoreError
from playground.system import pushing
from playground.system.hub import HubError
from playground.system.pushing import Push

# files of a model or an adapter that an earlier push may have made
FILES = re.compile(
    r"(adapter_(config|model)|model(-\d+-of-\d+)?(\.safetensors\.index)?|(generation_)?config|special_tokens_map|"
    r"added_tokens|vocab|merges|tokenizer(_config)?|chat_template)\.(json|safetensors|txt|model|jinja)"
)


class MergeSettings(Settings):
    """Writes a version merged into its base model."""

    version: int = Field(ge=1)
    """The version to merge."""
    out: Path
    """An empty or a new folder for the merged model."""
    adapter: bool = False
    """Write the adapter alone, as PEFT loads it."""
    push: str = ""
    """Push the folder to this model of the hub (OWNER/NAME), which is made private. HF_TOKEN is the token."""
    public: bool = False
    """Push to a model that everybody can see."""
    force: bool = False
    """Push also to a model that was not pushed from here."""


class CannotMerge(Exception):
    """The version cannot be written; the message says why."""


EXPECTED = (SettingsError, StoreError, CannotMerge, BadAdapter, loading.ModelUnavailable, HubError)


def merged(settings: Settings, store: Store, version: int) -> tuple[PreTrainedModel, str]:
    """The base model with a version's LoRA added to its weights, in fp32, and the base's name. CannotMerge where there
    is no such version; BadAdapter where it cannot be read.
    """
    row = _row(settings, store, version)
    base = loading.load_trunk(settings.with_values(dtype="float32", device="cpu"))
    manifest, tensors = _read(settings, base, row)
    peft_model = lora.with_lora(base, rank=manifest["rank"], alpha=manifest["alpha"], targets=manifest["targets"])
    adapters.copy_strictly(tensors, lora.lora_parameters(peft_model))
    return cast("PreTrainedModel", peft_model.merge_and_unload()), manifest["base"]["model"]


def _row(settings: Settings, store: Store, version: int) -> Row:
    row = store.policy(version)
    if row is None or not row["path"]:
        raise CannotMerge(f"There is no version v{version} in {settings.data_dir}.")
    return row


def _read(settings: Settings, base: PreTrainedModel, row: Row) -> tuple[Manifest, Tensors]:
    return adapter_reading.read(
        adapters.place(settings.adapters_dir, row["path"]),
        base_hash=loading.base_identity(base, settings)["hash"],
        expected_sha256=row["sha256"],
    )


def write(settings: MergeSettings, store: Store) -> None:
    """Write the merged model with its tokenizer, or the adapter, and its model card. CannotMerge where the folder
    holds anything.
    """
    if settings.out.exists() and any(settings.out.iterdir()):
        raise CannotMerge(f"{settings.out} is not empty. Pass a new folder with --out.")
    if settings.adapter:
        _write_adapter(settings, store)
    else:
        _write_merged(settings, store)


def _write_adapter(settings: MergeSettings, store: Store) -> None:
    row = _row(settings, store, settings.version)
    manifest, tensors = _read(settings, loading.load_trunk(settings), row)
    card = _card(settings, store, manifest["base"]["model"], "adapter")
    settings.out.mkdir(parents=True, exist_ok=True)
    for name, content in export.peft_files(manifest, tensors, card).items():
        (settings.out / name).write_bytes(content)


def _write_merged(settings: MergeSettings, store: Store) -> None:
    """In the number format of the base's files."""
    model, base_name = merged(settings, store, settings.version)
    file_format = loading.load_config(sources.source_of(settings)).dtype
    torch.nn.Module.to(model, dtype=file_format if isinstance(file_format, torch.dtype) else torch.float32)
    model.save_pretrained(settings.out)
    loading.load_tokenizer(settings).save_pretrained(settings.out)
    (settings.out / model_card.NAME).write_text(_card(settings, store, base_name, "merged"), encoding="utf-8")


def _card(settings: MergeSettings, store: Store, base_name: str, kind: model_card.Kind) -> str:
    base = model_card.Base.of(base_name, settings)
    facts = model_card.Facts.of(store, settings.version, settings.preferences.annotator_weight)
    return model_card.card(facts, base, kind)


def main(argv: Sequence[str] | None = None) -> None:
    try:
        settings = read(argv, MergeSettings, "python -m training.merge")
        push = Push(settings.push, "model", settings.public, settings.force) if settings.push else None
        if push:
            pushing.check(push)
        write(settings, Store(settings.database, create=False))
        print(f"v{settings.version} is in {settings.out}")
        if push:
            print(pushing.send(push, settings.out, FILES).said())
    except EXPECTED as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
