"""PPO iterations of TRL's `PPOTrainer`, and its arithmetic on given tensors; run by TRL's own Python, knows nothing of
Nudge.

`python trl_ppo.py JOB` reads a job (JSON) and prints, as its last line, what `ppo_step` asks of a side: seconds and
tokens of each iteration, the peak memory, and the advantages and losses that TRL's code makes of the job's tensors.
"""

import inspect
import itertools
import json
import resource
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class Scored(torch.nn.Module):
    """A backbone and an fp32 linear score of each hidden state: the form in which TRL takes a reward or a
    value model.
    """

    base_model_prefix = "model"

    def __init__(self, backbone, weight):
        super().__init__()
        self.model, self.head = backbone, torch.nn.Linear(len(weight), 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([weight]))
            self.head.bias.zero_()

    def score(self, hidden):
        return self.head(hidden.float())


class Clock(TrainerCallback):
    """Notes the time, and the processor time so far, when the training starts and after each iteration."""

    def __init__(self):
        self.wall, self.cpu = [], []

    def on_train_begin(self, *_args, **_kwargs):
        self.wall.append(time.monotonic())
        self.cpu.append(time.process_time())

    on_step_end = on_train_begin

    def figures(self):
        """{"seconds", "cpu_seconds"}: a list each, one entry an iteration."""
        return {
            name: [b - a for a, b in itertools.pairwise(times)]
            for name, times in (("seconds", self.wall), ("cpu_seconds", self.cpu))
        }


def counted(generate, tokens):
    """`batch_generation`, noting how many tokens it made."""

    def call(model, queries, *args):
        sequences, scores = generate(model, queries, *args)
        tokens.append(len(queries) * (sequences.shape[1] - queries.shape[1]))
        return sequences, scores

    return call


def train(job, output_dir):
    """`job["ppo_iterations"]` PPO iterations; returns the seconds, the processor's seconds and the tokens of each."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(
        job["pad"]
    )  # TRL masks whatever equals the pad; the model's own also ends turns
    dtype, episodes = getattr(torch, job["dtype"]), job["ppo.episodes"]
    policy = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    frozen = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype).base_model.requires_grad_(False)
    reward, value = (
        Scored(frozen, job["reward_head"]).requires_grad_(False),
        Scored(frozen, [0.0] * len(job["reward_head"])),
    )
    config = PPOConfig(
        output_dir=output_dir,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        num_sample_generations=0,
        seed=job["seed"],
        learning_rate=job["ppo.lr"],
        adam_epsilon=1e-5,
        total_episodes=job["ppo.iterations"] * episodes,
        per_device_train_batch_size=episodes,
        gradient_accumulation_steps=1,
        num_mini_batches=episodes // job["ppo.minibatch"],
        num_ppo_epochs=job["ppo.epochs"],
        local_rollout_forward_batch_size=episodes,
        response_length=job["ppo.rollout_tokens"],
        temperature=job["chat.temperature"],
        stop_token_id=None,
        kl_coef=job["ppo.kl_coefficient"],
        cliprange=job["ppo.ratio_clip"],
        cliprange_value=job["ppo.value_clip"],
        vf_coef=job["ppo.value_coefficient"],
        gamma=1.0,
        lam=job["ppo.gae_lambda"],
    )
    lora = LoraConfig(
        r=job["ppo.lora_rank"],
        lora_alpha=job["ppo.lora_alpha"],
        lora_dropout=0.0,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    prompts = Dataset.from_dict({"input_ids": [p for p in job["prompts"] for _ in range(job["ppo.replies"])]})
    clock, tokens = Clock(), []
    ppo_trainer.batch_generation = counted(ppo_trainer.batch_generation, tokens)
    PPOTrainer(config, tokenizer, policy, None, reward, prompts, value, callbacks=[clock], peft_config=lora).train()
    return {**clock.figures(), "tokens": tokens}


# -- its arithmetic


def passage(first, until):
    """Code of the lines of `PPOTrainer.train` from the first that starts with `first` up to the next that starts with
    `until`.
    """
    lines = inspect.getsource(PPOTrainer.train).splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    end = next(i for i, line in enumerate(lines) if i > start and line.strip().startswith(until))
    return compile(textwrap.dedent("\n".join(lines[start:end])), ppo_trainer.__file__, "exec")


def arithmetic(job):
    """TRL's advantages, returns and losses of the job's tensors: its own text, run in a namespace that gives its
    variables their values.
    """
    t = {name: torch.tensor(x) for name, x in job["tensors"].items()}
    ended = t["mask"] == 0
    scope = {
        **vars(ppo_trainer),
        "args": SimpleNamespace(
            gamma=1.0,
            lam=job["ppo.gae_lambda"],
            cliprange=job["ppo.ratio_clip"],
            cliprange_value=job["ppo.value_clip"],
            vf_coef=job["ppo.value_coefficient"],
        ),
        "padding_mask": ended,
        "padding_mask_p1": ended,
        "rewards": t["rewards"],
        "values": t["values"],
        "responses": t["mask"],
    }
    exec(passage("lastgaelam = 0", "advantages = masked_whiten"), scope)
    quantities = {"GAE advantages": scope["advantages"], "GAE returns": scope["returns"]}
    exec(passage("advantages = masked_whiten", "empty_cache()"), scope)
    quantities["whitened advantages"] = scope["advantages"]

    values = torch.nn.functional.pad(t["new_values"], (0, 1))[..., None]  # a prompt of one token before the reply
    scope |= {
        "context_length": 1,
        "micro_batch_inds": slice(None),
        "vpred_temp": values,
        "new_logprobs": t["logprobs"],
        "mb_logprobs": t["old_logprobs"],
        "mb_advantage": t["advantages"],
        "mb_return": t["returns"],
        "mb_values": t["values"],
    }
    exec(passage("new_logprobs = torch.masked_fill(", "accelerator.backward(loss)"), scope)
    quantities |= {"policy loss": scope["pg_loss"], "value loss": scope["vf_loss"]}
    return {name: x.tolist() for name, x in quantities.items()}


def main(path):
    job = json.loads(Path(path).read_text())
    torch.set_num_threads(job["threads"])
    with tempfile.TemporaryDirectory() as scratch:
        figures = train(job, scratch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**figures, "peak_mb": peak, "arithmetic": arithmetic(job)}))


if __name__ == "__main__":
    main(sys.argv[1])
