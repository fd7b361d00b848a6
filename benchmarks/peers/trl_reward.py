"""TRL's `RewardTrainer` with a LoRA on the same base, trained on given pairs; run by TRL's own Python, knows nothing of
Nudge.

`python trl_reward.py JOB` reads a job (JSON) and prints, as its last line, the scores of the job's replies and the
seconds that the training took.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer


def conversation(prompt, reply):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]


def train(job, output_dir):
    """The trained model and its tokenizer. `job["pairs"]`: [(prompt, chosen reply, rejected reply)]."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    pairs = [
        {"chosen": conversation(prompt, chosen), "rejected": conversation(prompt, rejected)}
        for prompt, chosen, rejected in job["pairs"]
    ]
    config = RewardConfig(
        output_dir=output_dir,
        num_train_epochs=job["epochs"],
        learning_rate=job["lr"],
        per_device_train_batch_size=job["batch"],
        max_length=job["max_tokens"],
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=job["seed"],
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    lora = LoraConfig(
        task_type="SEQ_CLS",
        r=job["rank"],
        lora_alpha=job["alpha"],
        target_modules="all-linear",
        modules_to_save=["score"],
    )
    trainer = RewardTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer, peft_config=lora
    )
    trainer.train()
    return trainer.model.eval(), tokenizer


@torch.no_grad()
def score(model, tokenizer, replies, max_tokens):
    """Scores of [(prompt, reply)], in the order given. Each is read alone, so that
    padding, which equals the model's end token, cannot move the place that is scored.
    """
    texts = [tokenizer.apply_chat_template(conversation(*reply), tokenize=False) for reply in replies]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][:max_tokens] for text in texts]
    scores = []
    for row in ids:
        hidden = model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long))
        scores.append(hidden.logits[0, 0].item())
    return scores


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    with tempfile.TemporaryDirectory() as output_dir:
        start = time.monotonic()
        model, tokenizer = train(job, output_dir)
        seconds = time.monotonic() - start
    scores = score(model, tokenizer, job["replies"], job["max_tokens"])
    print(json.dumps({"scores": scores, "seconds": seconds}))


if __name__ == "__main__":
    main()
