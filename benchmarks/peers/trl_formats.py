"""One step of each of TRL's trainers on exported data, loaded as a stranger loads it: by its dataset card. Run by TRL's
own Python; of Nudge it knows the writer and the reader of Parquet alone.

`python trl_formats.py JOB` reads a job (JSON) and prints, as its last line, [{"what", "rows", "loss"}].
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from playground.data import files, writers

TRAINERS = {
    "reward": (RewardTrainer, RewardConfig),
    "dpo": (DPOTrainer, DPOConfig),
    "kto": (KTOTrainer, KTOConfig),
    "sft": (SFTTrainer, SFTConfig),
}


def step(job, name, dataset):
    """The loss of one step of a trainer."""
    trainer_kind, config_kind = TRAINERS[name]
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model_kind, more = AutoModelForCausalLM, {}
    if name == "reward":
        model_kind, more = AutoModelForSequenceClassification, {"num_labels": 1}
    model = model_kind.from_pretrained(job["model"], dtype=torch.float32, **more)
    model.config.pad_token_id = tokenizer.pad_token_id
    with tempfile.TemporaryDirectory() as folder:
        config = config_kind(
            output_dir=folder,
            max_steps=1,
            per_device_train_batch_size=4,
            max_length=256,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = trainer_kind(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
        return trainer.train().training_loss


def as_parquet(folder, name):
    """The rows of a folder's file, written and read again as Parquet; how many of them came back as they were."""
    rows = [row for _, row in files.read(Path(folder) / f"{name}.jsonl")]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{name}.parquet"
        with writers.ParquetWriter(path) as file:
            for row in rows:
                file.write(row)
        read = [row for _, row in files.read(path)]
        loaded = len(load_dataset("parquet", data_files=str(path), split="train"))
    same = sum(one == {**other, **parsed(other)} for one, other in zip(rows, read, strict=True))
    return {"what": f"parquet of {name}", "rows": min(loaded, same), "loss": None, "of": len(rows)}


def parsed(row):
    """The columns of a row that Parquet has as JSON texts."""
    return {name: json.loads(row[name]) for name in ("sampling",) if name in row}


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    results = []
    for export in job["exports"]:
        dataset = load_dataset(export["folder"], export["config"], split="train")
        rows = len(dataset)
        for trainer in export["trainers"]:
            loss = step(job, trainer, dataset)
            results.append({"what": f"{trainer} on {export['name']}", "rows": rows, "loss": loss, "of": export["rows"]})
        results.append(as_parquet(export["folder"], export["config"]))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
