"""Writes a version merged into its base model as a plain model folder, which `--model` and other programs load:
`python -m training.merge --version 3 --out FOLDER`.

It reads the store and the adapter, and changes neither. In memory it takes the model in fp32.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from pydantic import Field
from transformers import PreTrainedModel

from playground.models import adapter_reading, adapters, loading, lora, model_card, sources
from playground.settings import Settings, SettingsError, read
from playground.store import Store, StoreError


class MergeSettings(Settings):
    """Writes a version merged into its base model."""

    version: int = Field(ge=1)
    """The version to merge."""
    out: Path
    """An empty or a new folder for the merged model."""


class CannotMerge(Exception):
    """The version cannot be written; the message says why."""


def merged(settings: Settings, store: Store, version: int) -> tuple[PreTrainedModel, str]:
    """The base model with a version's LoRA added to its weights, in fp32, and the base's name. CannotMerge where there
    is no such version; BadAdapter where it cannot be read.
    """
    row = store.policy(version)
    if row is None or not row["path"]:
        raise CannotMerge(f"There is no version v{version} in {settings.data_dir}.")
    base = loading.load_trunk(settings.with_values(dtype="float32", device="cpu"))
    manifest, tensors = adapter_reading.read(
        adapters.place(settings.adapters_dir, row["path"]),
        base_hash=loading.base_identity(base, settings)["hash"],
        expected_sha256=row["sha256"],
    )
    peft_model = lora.with_lora(base, rank=manifest["rank"], alpha=manifest["alpha"], targets=manifest["targets"])
    adapters.copy_strictly(tensors, lora.lora_parameters(peft_model))
    return cast("PreTrainedModel", peft_model.merge_and_unload()), manifest["base"]["model"]


def write(settings: MergeSettings, store: Store) -> None:
    """Write the merged model with its tokenizer and its model card, in the number format of the base's files.
    CannotMerge where the folder holds anything.
    """
    if settings.out.exists() and any(settings.out.iterdir()):
        raise CannotMerge(f"{settings.out} is not empty. Pass a new folder with --out.")
    model, base_name = merged(settings, store, settings.version)
    file_format = loading.load_config(sources.source_of(settings)).dtype
    torch.nn.Module.to(model, dtype=file_format if isinstance(file_format, torch.dtype) else torch.float32)
    model.save_pretrained(settings.out)
    loading.load_tokenizer(settings).save_pretrained(settings.out)
    base = model_card.Base.of(base_name, settings)
    facts = model_card.Facts.of(store, settings.version, settings.preferences.annotator_weight)
    (settings.out / model_card.NAME).write_text(model_card.card(facts, base, "merged"), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    try:
        settings = read(argv, MergeSettings, "python -m training.merge")
        write(settings, Store(settings.database, create=False))
    except (SettingsError, StoreError, CannotMerge, adapter_reading.BadAdapter, loading.ModelUnavailable) as error:
        sys.exit(str(error))
    print(f"v{settings.version} is in {settings.out}")


if __name__ == "__main__":
    main()
