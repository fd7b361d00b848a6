"""PPO's parts on a GPU: what a rollout and an update take, how often they wait for the device, and whether a checkpoint
goes on elsewhere.
"""

import contextlib
import copy
import random
import warnings

import torch

from benchmarks import gpu, report
from playground.models import loading
from training import ppo, rollout
from training.policy import PolicyModel
from training.rollout import Episode


@contextlib.contextmanager
def counted_waits(device):
    """Counts how often the program waits for the device; `count[0]` is the number afterwards, None on a CPU."""
    count = [None]
    if device.type != "cuda":
        yield count
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield count
        finally:
            torch.cuda.set_sync_debug_mode(before)
    count[0] = sum("synchroniz" in str(warning.message) for warning in caught)


def prompts_of(tokenizer, settings, n):
    return rollout.seed_prompts("train", tokenizer, settings.ppo.rollout_context)[:n]


def update(trainer, episodes, device):
    """Measure and optimise once on episodes; returns (Stopwatch, number of waits)."""
    settings = trainer.settings
    with gpu.Stopwatch(device) as watch, counted_waits(device) as waits:
        trajectories = []
        for start in range(0, len(episodes), settings.ppo.microbatch):
            part = episodes[start : start + settings.ppo.microbatch]
            scores = torch.randn(len(part), generator=torch.Generator().manual_seed(start)).to(device)
            trajectories.append(ppo.measure(trainer.policy, part, scores, trainer.beta, settings)[0])
        ppo.estimate_advantages(trajectories, settings)
        ppo.optimise(trainer, trajectories, random.Random(0))
    return watch, waits[0]


def parts(settings, device, log):
    """Rows: one rollout, and one update with small and with large microbatches."""
    tokenizer = loading.load_tokenizer(settings)
    policy = PolicyModel(loading.load_trunk(settings, training=True), settings)
    end_tokens = loading.end_tokens(policy.causal, tokenizer)
    prompts = prompts_of(tokenizer, settings, settings.ppo.episodes // settings.ppo.replies)
    ppo.roll_out(policy, prompts, random.Random(0), end_tokens, settings)  # warms up
    with gpu.Stopwatch(device) as watch:
        episodes = ppo.roll_out(policy, prompts, random.Random(1), end_tokens, settings)
    tokens = sum(len(episode.completion) for episode in episodes)
    rows = [
        report.row("rollout: one iteration's replies", watch.seconds, "s"),
        report.row("rollout: tokens a second", tokens / watch.seconds),
        report.row("rollout: milliseconds a step", 1e3 * watch.seconds / settings.rollout_tokens, "ms"),
    ]
    start = copy.deepcopy(policy.state())
    for size in (settings.ppo.microbatch, settings.ppo.minibatch):
        policy.load(start)
        trainer = ppo.Trainer(policy, settings.with_values(ppo={"microbatch": size}))
        update(trainer, episodes, device)  # warms up
        watch, waits = update(trainer, episodes, device)
        rows += [
            report.row(f"update, microbatches of {size}", watch.seconds, "s"),
            report.row(f"update, microbatches of {size}: waits for the device", waits),
            report.row(f"update, microbatches of {size}: peak of tensors", watch.peak_mb, "MB"),
        ]
    return rows


def train_once(trainer, prompts, end_tokens):
    """One more PPO iteration, whose reward is a short reply."""

    def score(episodes: list[Episode]) -> torch.Tensor:
        return torch.tensor([-float(len(episode.completion)) for episode in episodes])

    trainer.settings = trainer.settings.with_values(ppo={"iterations": trainer.iteration + 1})
    ppo.train_ppo(trainer, lambda n, rng: rng.sample(prompts, n), score, end_tokens)


def resume(settings, device, log):
    """Rows: a checkpoint of each device holds the same on the other one, and PPO goes on from it."""
    settings = settings.with_values(
        ppo={"episodes": 8, "replies": 2, "rollout_tokens": 8, "minibatch": 8, "microbatch": 4, "value_warmup": 1}
    )
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = loading.load_tokenizer(settings)
    trainers = {}
    for name in (str(device), "cpu"):
        own = settings.with_values(device=name, dtype="float32")
        policy = PolicyModel(loading.load_trunk(own, training=True), own)
        trainers[f"{name}, {len(trainers)}"] = ppo.Trainer(policy, own)
    end_tokens = loading.end_tokens(policy.causal, tokenizer)
    prompts = prompts_of(tokenizer, settings, 16)
    rows = []
    (here_name, here), (there_name, there) = trainers.items()
    for before, after, what in ((here, there, f"{here_name} to {there_name}"), (there, here, "and back")):
        file = settings.data_dir / "ppo.pt"
        train_once(before, prompts, end_tokens)
        before.save(file)
        after.load(file)
        state = after.policy.state()
        same = all(torch.equal(tensor, state[name]) for name, tensor in before.policy.state().items())
        iteration = after.iteration
        train_once(after, prompts, end_tokens)
        went_on = after.iteration == iteration + 1
        rows.append(report.row(f"checkpoint, {what}: same tensors, goes on", int(same and went_on), "", "≥ 1"))
    return rows


SECTIONS = {"ppo": parts, "resume": resume}
