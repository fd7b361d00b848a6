"""QLoRA with a model of 7 billion parameters beside a chat that serves it in 16 bit: the memory of both processes, and
what a short round takes. The weights are random and made on the device.
"""

import random

import torch
from bitsandbytes.nn import Linear4bit, Params4bit

from benchmarks import gpu, gpu_decode, gpu_side, report
from benchmarks.gpu_round import watched
from playground.decoding.choose_forward import transformers_forward_of
from playground.models import loading, lora, structure
from playground.models.feature_trunk import FeatureTrunk
from playground.system import memory
from training import gpu as gpu_memory
from training import ppo, reward, rollout, selftest, served
from training.policy import PolicyModel
from training.preferences import A, B, CountedVote, Pair, Preferences

TOGETHER_GB = 22  # of a card of 24 GB
VOTES = 25
HELDOUT = 5  # of the votes
PROMPT_TOKENS = 120
ROWS = 16  # replies that are decoded at once


def quantise(model, device):
    """The model with the linear layers of its blocks in nf4, one after the other."""
    for parent in list(structure.blocks(model).modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is not torch.nn.Linear:
                continue
            small = Linear4bit(
                layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=layer.weight.dtype,
                quant_type="nf4", device="meta",
            )  # fmt: skip
            small.bias = layer.bias
            small.weight = Params4bit(
                layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=small
            ).to(device)
            setattr(parent, name, small)
    model.is_loaded_in_4bit = True
    return loading.frozen(model)


def job(settings, device):
    """The settings of the short round."""
    cuda = device.type == "cuda"
    return settings.with_values(
        ppo={
            "quantisation": "nf4", "gradient_checkpointing": True, "iterations": 2, "episodes": 16 if cuda else 8,
            "replies": 4, "minibatch": 8, "microbatch": 4, "rollout_tokens": 32 if cuda else 8, "kl_target": 1e3,
            "value_warmup": 2,
        },
        reward={"quantisation": "nf4", "evidence_confidence": 0.0, "batch": 4},
    )  # fmt: skip


def first_ratio(policy):
    """How far PPO's first ratio would be from 1."""
    batch = policy.batch(selftest.fixed_episodes(policy.causal))
    with selftest.restored(policy.parameters):
        selftest.set_b(policy.parameters, 0.01)
        with torch.no_grad():
            old = policy.logprobs(batch)
        return (torch.exp(policy.logprobs(batch).detach() - old) - 1).abs().max().item()


def votes_on(episodes, vocabulary):
    """Preferences of somebody who likes tokens of the vocabulary's lower half, on pairs of replies in a row."""
    liked = [sum(token < vocabulary // 2 for token in episode.completion) for episode in episodes]
    pairs = [
        Pair(2 * i, 2 * i + 1, A if liked[2 * i] > liked[2 * i + 1] else B, group=f"conversation {i}", vote=i)
        for i in range(len(episodes) // 2)
    ]
    return Preferences(
        replies=[episode.reply for episode in episodes],
        pairs=pairs,
        votes=[CountedVote(pair.vote, pair.group) for pair in pairs],
        heldout=frozenset(pair.group for pair in pairs[:HELDOUT]),
    )


def random_prompts(model, n):
    source = random.Random(0)
    vocabulary = model.config.vocab_size
    return [[source.randrange(vocabulary) for _ in range(PROMPT_TOKENS)] for _ in range(n)]


def short_round(name, policy, shell, own, device):
    """Votes, reward model and PPO; returns (rows, the trained Trainer)."""
    prompts = random_prompts(policy.causal, VOTES)
    with gpu.Stopwatch(device) as written:
        # a card of 24 GB would have room for no more rows
        episodes = policy.rollouts.sample(
            prompts, random.Random(0), replies=2, max_tokens=own.rollout_tokens, temperature=own.chat.temperature,
            end_tokens=frozenset(), rows=ROWS,
        )  # fmt: skip
    with gpu.Stopwatch(device) as fitted:
        trunk = FeatureTrunk(own, shell)
        model, _ = reward.fit(votes_on(episodes, policy.causal.config.vocab_size), trunk, own)
        model.standardise(model.features(trunk, [episode.reply for episode in episodes]))
    memory.release()

    def score(replies):
        return model.reward(model.features(trunk, [episode.reply for episode in replies]))

    trainer = ppo.Trainer(policy, own)
    with gpu.Stopwatch(device) as trained:
        ppo.train_ppo(trainer, lambda n, rng: rng.sample(prompts, n), score, frozenset())
    tokens = sum(len(episode.completion) for episode in episodes)
    moved = any(tensor.any().item() for name, tensor in policy.state().items() if "lora_B" in name)
    return [
        report.row(f"{name} in nf4: rollout, tokens a second", tokens / written.seconds, "tokens/s"),
        report.row(f"{name} in nf4: reward model on {VOTES} votes", fitted.seconds, "s"),
        report.row(f"{name} in nf4: a PPO iteration", trained.seconds / max(trainer.iteration, 1), "s"),
        report.row(f"{name} in nf4: PPO ran and moved the policy", int(trainer.iteration == 2 and moved), "", "≥ 1"),
    ]


def qlora(settings, device, log):
    """Rows: one trunk in nf4 for policy, reference and reward model, beside a chat in 16 bit."""
    own = job(settings, device)
    name = "7B" if device.type == "cuda" else "tiny"
    config = gpu_decode.config(name)
    with gpu_side.running("serve", own, name) as (_, file):
        with gpu.Stopwatch(device) as made:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            trunk = quantise(gpu_decode.build(config, device, dtype), device)
            memory.release()
        shell = lora.tied_copy(trunk)
        policy = PolicyModel(trunk, own)
        weights = gpu.allocated_mb(device)
        selftest.check_policy(policy, own)
        ratio = first_ratio(policy)
        server = gpu_side.wait_until_ready(file)
        memory.release()
        held = gpu.used_mb(device)  # by both processes and their contexts
        with gpu.Stopwatch(device) as whole, watched(device) as peak:
            of_round = short_round(name, policy, shell, own, device)
    together = (held + peak[0]) / 1e3 if device.type == "cuda" else None
    return [
        report.row(f"{name} in nf4: making it on the device", made.seconds, "s"),
        report.row(f"{name} in nf4: first ratio off 1 by", ratio, "", f"≤ {settings.ppo.ratio_tolerance}"),
        report.row(f"{name} in nf4: weights and LoRA", weights / 1e3, "GB"),
        *of_round,
        report.row(f"{name} in nf4: the short round", whole.seconds, "s"),
        report.row(f"{name} in nf4: worker's tensors at most", (whole.peak_mb or 0.0) / 1e3, "GB"),
        report.row(f"{name} in nf4: need that was computed", gpu_memory.need_of(config, own) / 1e9, "GB"),
        report.row(f"{name} in 16 bit: what the chat's process keeps", server["gb"], "GB"),
        report.row("chat in 16 bit and worker in nf4 together, at most", together, "GB", f"≤ {TOGETHER_GB}"),
        *served_in_16_bit(settings, device),
    ]


def served_in_16_bit(settings, device):
    """The row of what the model of the settings says in nf4 and in the format that the chat serves."""
    tokenizer = loading.load_tokenizer(settings)
    trained = loading.load_trunk(settings, "nf4", training=True)
    base = loading.load_trunk(settings)
    prompts = rollout.seed_prompts("train", tokenizer, settings.ppo.rollout_context)[: served.EPISODES]
    episodes = rollout.Rollouts(trained).by_settings(
        settings.with_values(ppo={"rollout_tokens": min(served.TOKENS, settings.rollout_tokens)}),
        prompts, random.Random(0), loading.end_tokens(base, tokenizer), 1,
    )  # fmt: skip
    nats = served.divergence(trained, transformers_forward_of(base), episodes)
    return [report.row("model of the settings: KL of what is served to its trunk in nf4", nats, "nats a token")]


SECTIONS = {"qlora": qlora}
