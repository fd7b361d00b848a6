"""Our PPO iteration beside TRL 1.12's (`trl.experimental.ppo`), and our arithmetic beside TRL's: speed, memory,
equality.

Alike on both sides: the base model and its number format, the threads, the prompts (the same ones in every iteration,
several replies to each), the replies' length (nothing ends a reply, so every one has all its tokens), the LoRA on all
linear layers, epochs, episodes of an optimizer step, temperature, clipping, malloc's thresholds and oneDNN's cache, and
the reward: a frozen copy of the base with a fixed random head, one forward over each reply. The sides run in turn, each
in a process of its own; a process's first iteration warms it up and is not counted.

Not alike, each side in its own way:
- Where a CPU has no bf16, ours multiplies by the frozen weights in int8, in rollouts and in updates
(`--ppo.multiply-in trunk` keeps updates in fp32). TRL has nothing of the kind.
- Ours prefills a prompt once for all replies to it, and cuts optimizer steps into microbatches, which changes memory
and nothing else.
- TRL has one prompt a reply, keeps the logits of every step of the generation, and computes the prompt's logits in
every forward. It counts
  `gradient_accumulation_steps` over the batch, so that microbatches would leave one step an epoch: here a minibatch is
  one forward, and is of 8, for TRL's memory grows with it and ours does not.
- Our values are a head on the policy's trunk. TRL runs a value model of its own: here a head on the reward model's
frozen copy of the base,
  less work and memory than in its own example, which trains a whole value model. Its reference is, as ours, the policy
  with the LoRA off.
- TRL does not clip gradients, and takes old log-probabilities from the generation; ours come from a forward of their
own.

TRL gets what is fastest for it on a CPU: all rollouts in one batch, no checkpointing, no mixed precision, no samples,
no reports. It needs no workaround there but a pad token that occurs nowhere, since it masks whatever equals the pad.

The arithmetic is TRL's own text, cut out of the installed `PPOTrainer.train` and run on the same tensors. Replies have
different lengths there; rewards and values are 0 after the end and one mask marks it, whereas TRL itself scores, and
learns the value of, the position after the end. TRL's whitening divides by n − 1 and ours by n: that known factor is
taken out.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pydantic import Field
from transformers import AutoConfig

from benchmarks import cpu_kind, peer, report
from benchmarks.report import Log, Row
from playground.models import loading, sources
from playground.settings import Positive, PPOSettings, Settings, SettingsError, read
from playground.system import memory
from training import ppo_math, rollout

PEER, PINS = (
    "trl-1.12",
    ["trl==1.12.0", "datasets==5.2.0", *peer.pins_of("accelerate", "peft", "torch", "transformers")],
)
Command = Sequence[str | Path]
Figures = dict[str, Any]  # what a process printed: seconds and tokens of its iterations, peak memory, TRL's arithmetic

UNUSED_TOKEN = 3  # SmolLM2's <repo_name>: in no prompt, and as good as never sampled


class SmallPPOSettings(PPOSettings):
    """PPO in sizes that TRL has memory for."""

    episodes: int = Field(32, ge=2)
    """Replies sampled in each iteration."""
    minibatch: Positive = 8
    """Episodes in each optimizer step; TRL's memory grows with it."""


class PpoStepSettings(Settings):
    """Our PPO iteration beside TRL's."""

    quick: bool = False
    """8 episodes of 16 tokens, one process of each side, in minutes."""
    ppo: SmallPPOSettings = SmallPPOSettings()
    """How the policy is trained."""
    cpu: cpu_kind.Name = ""
    """Both sides as if the CPU had AVX2 alone (avx2), or AVX512 with VNNI but without bf16 and AMX (avx512)."""
    json_file: str = Field("", alias="json")
    """File for the rows, as JSON."""
    iterations: Positive = 3
    """Iterations that count, in each process."""
    repeats: Positive = 2
    """Processes of each side, in turn."""


# -- what is asked of both


def sizes(settings):
    """The settings as both sides read them: one number format, the CPU, and nothing that would end an
    iteration early.
    """
    if settings.quick:
        settings = settings.with_values(ppo={"episodes": 8, "rollout_tokens": 16}, repeats=1)
    endless = {"kl_target": 1e9, "kl_stop": 1e9}
    settings = settings.with_values(model=sources.resolve(settings), device="cpu", ppo=endless)
    dtype = str(loading.trunk_dtype(settings)).removeprefix("torch.")
    return settings.with_values(
        dtype=dtype, ppo={"iterations": settings.iterations + 1, "rollout_tokens": settings.rollout_tokens}
    )


def make_job(settings, prompts, width):
    """What a side's process reads: the peer all of it, ours the prompts and the head beside its settings. `width`: of
    the hidden states.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    head = torch.randn(width, generator=generator) / (width + 1) ** 0.5
    names = (
        "model",
        "dtype",
        "threads",
        "seed",
        "chat.temperature",
        "ppo.rollout_tokens",
        "ppo.lora_rank",
        "ppo.lora_alpha",
        "ppo.iterations",
        "ppo.episodes",
        "ppo.replies",
        "ppo.minibatch",
        "ppo.epochs",
        "ppo.lr",
        "ppo.kl_coefficient",
        "ppo.ratio_clip",
        "ppo.value_clip",
        "ppo.value_coefficient",
        "ppo.gae_lambda",
    )
    return {
        **{name: value for name, value in settings.flat().items() if name in names},
        "prompts": prompts,
        "reward_head": head.tolist(),
        "pad": UNUSED_TOKEN,
        "tensors": {name: x.tolist() for name, x in example().items()},
    }


def example(rows=8, tokens=48, seed=0):
    """Tensors of a made-up minibatch, (B, T): replies of different lengths, ratios beyond the clip, rewards and values
    0 after the end.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(scale):
        return scale * torch.randn(rows, tokens, generator=generator)

    lengths = torch.tensor([tokens, *torch.randint(1, tokens, (rows - 1,), generator=generator).tolist()])
    mask = (torch.arange(tokens) < lengths[:, None]).float()
    old, values = noise(1.0) - 2, noise(0.5) * mask
    return {
        "mask": mask,
        "rewards": noise(0.3) * mask,
        "values": values,
        "new_values": (values + noise(0.3)) * mask,
        "returns": noise(1.0) * mask,
        "old_logprobs": old,
        "logprobs": old + noise(0.2),
        "advantages": noise(1.0) * mask,
    }


def our_arithmetic(tensors: Mapping[str, Any], settings: PpoStepSettings) -> dict[str, torch.Tensor]:
    """What `ppo_math` makes of the tensors; the whitening as TRL scales it."""
    t = {name: torch.as_tensor(x) for name, x in tensors.items()}
    advantages, returns = ppo_math.gae(t["rewards"], t["values"], t["mask"], 1.0, settings.ppo.gae_lambda)
    n = t["mask"].sum()
    return {
        "GAE advantages": advantages,
        "GAE returns": returns,
        "whitened advantages": ppo_math.masked_whiten(advantages, t["mask"]) * ((n - 1) / n).sqrt(),
        "policy loss": ppo_math.policy_loss(
            t["logprobs"], t["old_logprobs"], t["advantages"], t["mask"], settings.ppo.ratio_clip
        )[0],
        "value loss": ppo_math.value_loss(
            t["new_values"], t["values"], t["returns"], t["mask"], settings.ppo.value_clip
        ),
    }


# -- running them


def commands(python: Path, job_file: Path) -> dict[str, Command]:
    """The command of each side."""
    return {
        "ours": [sys.executable, "-m", "benchmarks.ppo_side", job_file],
        "TRL": [python, peer.ROOT / "benchmarks" / "peers" / "trl_ppo.py", job_file],
    }


def measure(settings: PpoStepSettings, sides: Mapping[str, Command], log: Log = print) -> dict[str, list[Figures]]:
    """{side: what its processes printed}; the sides in turn, so that noise hits both."""
    environment = {
        **os.environ,
        **settings.environ(),
        "OMP_NUM_THREADS": str(settings.threads),
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "MALLOC_MMAP_THRESHOLD_": str(memory.MMAP_THRESHOLD),
        "MALLOC_TRIM_THRESHOLD_": str(memory.TRIM_THRESHOLD),
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": memory.ONEDNN_CACHE,
    }  # as in the worker
    by_side = {side: [] for side in sides}
    for _ in range(settings.repeats):
        for side, command in sides.items():
            figures = json.loads(peer.run(command, environment).splitlines()[-1])
            by_side[side].append(figures)
            seconds = ", ".join(f"{s:.1f}" for s in figures["seconds"])
            log(
                f"{side}: {seconds} s an iteration, the first to warm up; peak {figures['peak_mb']:.0f} MB; load "
                f"{os.getloadavg()[0]:.1f}"
            )
    return by_side


def rows_of(
    by_side: Mapping[str, Sequence[Figures]], tensors: Mapping[str, Any], settings: PpoStepSettings
) -> list[Row]:
    """The table: medians over all iterations but each process's first; the highest peak."""

    def per_second(processes: Sequence[Figures], clock: str) -> float:
        return median(n / s for p in processes for n, s in list(zip(p["tokens"], p[clock], strict=True))[1:])

    speed = {side: per_second(processes, "seconds") for side, processes in by_side.items()}
    by_cpu_second = {side: per_second(processes, "cpu_seconds") for side, processes in by_side.items()}
    peak = {side: max(p["peak_mb"] for p in processes) for side, processes in by_side.items()}
    rows = [report.row(f"{side}: tokens of replies, rollout and update", speed[side], "tokens/s") for side in by_side]
    rows.append(report.row("speed, ours to TRL's", speed["ours"] / speed["TRL"], "×", "≥ 2"))
    rows.append(
        report.row(
            "the same by processor time, which a busy machine changes less",
            by_cpu_second["ours"] / by_cpu_second["TRL"],
            "×",
        )
    )
    rows += [report.row(f"{side}: peak memory", peak[side], "MB") for side in by_side]
    rows.append(report.row("peak memory, ours to TRL's", peak["ours"] / peak["TRL"], "×", "≤ 0.5"))
    theirs, ours = by_side["TRL"][0]["arithmetic"], our_arithmetic(tensors, settings)
    for what, value in ours.items():
        difference = (value - torch.tensor(theirs[what])).abs().max().item()
        rows.append(report.row(f"{what}: largest difference", difference, "", "≤ 0.00001"))
    return rows


def run(settings: PpoStepSettings, log: Log = print) -> list[Row]:
    """The rows."""
    python, settings = peer.python(settings, PEER, PINS, log), sizes(settings)
    tokenizer = loading.load_tokenizer(settings)
    seeds = rollout.seed_prompts("train", tokenizer, settings.ppo.rollout_context)
    prompts = rollout.choose(
        [], seeds, settings.ppo.episodes // settings.ppo.replies, rollout.generator(settings.seed, "ppo_step")
    )
    width = AutoConfig.from_pretrained(settings.model).hidden_size
    with tempfile.TemporaryDirectory() as folder:
        job_file = Path(folder) / "job.json"
        job = make_job(settings, prompts, width)
        job_file.write_text(json.dumps(job))
        return rows_of(measure(settings, commands(python, job_file), log), job["tensors"], settings)


def main(argv: Sequence[str] | None = None) -> None:
    try:
        settings = read(argv, PpoStepSettings, "python -m benchmarks.ppo_step")
        cpu_kind.limit(settings.cpu, "benchmarks.ppo_step", sys.argv[1:] if argv is None else argv)
        rows = run(settings)
    except (SettingsError, peer.SideFailed, loading.ModelUnavailable) as error:
        sys.exit(str(error))
    report.show(rows, settings.json_file)


if __name__ == "__main__":
    main()
