"""PPO with a KL penalty on the policy's LoRA: `train_ppo` is the algorithm on one page, its mathematics is
`ppo_math.py`'s.

Owns the optimizer, β and the checkpoint. What scores a reply is the caller's; so is what becomes of the policy.
"""

import os
from dataclasses import dataclass

import torch

from training import ppo_math, rollout
from training.policy import Batch

LOOKS = 4  # at most this many, at the policy that was scaled back
NEAR = 1.1  # of the KL target, on the samples of one look


class RatioNotOne(Exception):
    """The first minibatch's probability ratio is not 1: old and new log-probabilities do not come from the same
    forward.
    """


@dataclass
class Trajectory:
    """One microbatch with all that its updates need; fp32, (B, T) but where noted."""

    batch: Batch
    old_logprobs: torch.Tensor
    old_values: torch.Tensor
    kl: torch.Tensor
    rewards: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    hidden: torch.Tensor  # (B, T, d), for the value head's warm-up; None afterwards


class Trainer:
    """PPO's state: policy, optimizer, β, iteration and curves; all of it is in the checkpoint."""

    def __init__(self, policy, settings):
        self.policy, self.settings = policy, settings
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(policy.parameters.values()), "lr": settings.ppo_lr},
                {"params": list(policy.value_head.parameters()), "lr": settings.value_lr},
            ],
            eps=1e-5,
        )
        self.beta, self.iteration, self.history = settings.kl_coefficient, 0, []

    @property
    def reached(self):
        """The last rollouts were at the KL target."""
        return bool(self.history) and self.history[-1]["kl"] >= self.settings.kl_target

    def save(self, path):
        partial = path.with_suffix(".partial")
        torch.save(
            {
                "lora": self.policy.state(),
                "value_head": self.policy.value_head.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "beta": self.beta,
                "iteration": self.iteration,
                "history": self.history,
            },
            partial,
        )
        os.replace(partial, path)

    def load(self, path):
        state = torch.load(path, weights_only=True)
        self.policy.load(state["lora"])
        self.policy.value_head.load_state_dict(state["value_head"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("beta", "iteration", "history"):
            setattr(self, name, state[name])


def train_ppo(trainer, choose_prompts, score, end_tokens, on_iteration=lambda trainer, metrics: None):
    """Run PPO iterations until the KL target is reached or the iterations are used up; leaves the policy to publish in
    `trainer.policy`.

    choose_prompts(n, rng) gives n prompts (ids); score(episodes) gives standardised rewards (N,). All randomness is
    drawn from the seed and the iteration's number, so a resumed run does what an unbroken one would have done.
    `on_iteration` may save a checkpoint or raise.
    """
    policy, s = trainer.policy, trainer.settings
    while trainer.iteration < s.ppo_iterations and not trainer.reached:
        rng = rollout.generator(s.seed, "ppo", trainer.iteration)

        # 1. roll the policy out
        prompts = choose_prompts(max(1, s.ppo_episodes // s.ppo_replies), rng)
        episodes = roll_out(policy, prompts, rng, end_tokens, s)

        # 2. score whole replies; a reply that never ends pays a penalty, and each counts by what it is above the others
        # to its prompt
        scores = score(episodes)
        ended = torch.tensor([float(e.ended) for e in episodes])
        penalised = ppo_math.leave_one_out(scores - s.missing_end_penalty * (1 - ended), s.ppo_replies).to(
            policy.device
        )

        # 3. microbatches in the first epoch's order; old log-probabilities come from these same tensors, so the first
        # ratio is 1 exactly.
        #    Replies to one prompt stay together: it is read once for them
        order = [
            i
            for first in rng.sample(range(0, len(episodes), s.ppo_replies), len(prompts))
            for i in range(first, first + s.ppo_replies)
        ]
        rows = [order[i : i + s.ppo_microbatch] for i in range(0, len(order), s.ppo_microbatch)]
        trajectories, sums = zip(
            *(measure(policy, [episodes[i] for i in at], penalised[at], trainer.beta, s) for at in rows), strict=True
        )
        tokens = sum(len(e.completion) for e in episodes)
        metrics = {
            "reward": scores.mean().item(),
            "ended": ended.mean().item(),
            "length": tokens / len(episodes),
            "beta": trainer.beta,
            "entropy": sum(x["entropy"] for x in sums) / tokens,
            **{name: sum(x[name] for x in sums) / len(episodes) for name in ("kl", "kl_k1", "kl_k3")},
        }  # nats a reply
        trainer.iteration += 1
        trainer.history.append(metrics)

        # 4. towards the target: advantages and returns by GAE, whitened over all reply tokens of the iteration;
        # optimise; adapt β
        if not trainer.reached:
            if trainer.iteration == 1:
                warm_up_values(policy, trajectories, s)
            estimate_advantages(policy, trajectories, s)
            metrics["explained_variance"] = explained_variance(trajectories)
            metrics |= optimise(trainer, trajectories, rng)
            trainer.beta = ppo_math.adapted_beta(trainer.beta, metrics["kl"], s.kl_target, len(episodes), s.kl_horizon)
        on_iteration(trainer, metrics)

    # 5. back to the target where the last steps overshot it
    rng = rollout.generator(s.seed, "ppo", "back")
    take_back(
        policy,
        s.kl_target,
        lambda: roll_out(policy, choose_prompts(max(1, s.ppo_episodes // s.ppo_replies), rng), rng, end_tokens, s),
        s,
    )


def roll_out(policy, prompts, rng, end_tokens, s):
    return rollout.sample(
        policy.causal,
        prompts,
        rng,
        replies=s.ppo_replies,
        max_tokens=s.rollout_tokens,
        temperature=s.temperature,
        end_tokens=end_tokens,
    )


def take_back(policy, target, look, s):
    """Scale the update down, along the line to the base (Wortsman et al. 2022), until replies that `look()` samples are
    at the KL `target`: an iteration's steps overshoot it."""
    for _ in range(LOOKS):
        episodes = look()
        kl = sum(policy.totals(episodes, s.ppo_microbatch)["kl"]) / len(episodes)
        if kl <= NEAR * target:
            break
        policy.scale_update((target / kl) ** 0.5)  # KL grows with about the square of the update


@torch.no_grad()
def measure(policy, episodes, scores, beta, s):
    """Old log-probabilities, values, KL and rewards of one microbatch: (Trajectory, {metric: sum over its tokens})."""
    batch = policy.batch(episodes)
    found = policy.compare(batch)
    k1 = ppo_math.kl_k1(found.logprob, found.ref_logprob)
    sums = {
        "kl": found.kl,
        "kl_k1": k1,
        "kl_k3": ppo_math.kl_k3(found.logprob, found.ref_logprob),
        "entropy": found.entropy,
    }
    rewards = ppo_math.token_rewards(scores, k1, batch.mask, beta)
    values = policy.values(found.hidden) * batch.mask
    return Trajectory(batch, found.logprob, values, k1, rewards, None, None, found.hidden.float()), {
        name: x.sum().item() for name, x in sums.items()
    }


def minibatches(trajectories, s):
    """Trajectories in runs of one optimizer step each; how they are cut into microbatches leaves the steps as
    they are.
    """
    per_step = max(1, s.ppo_minibatch // s.ppo_microbatch)
    return [trajectories[i : i + per_step] for i in range(0, len(trajectories), per_step)]


def shares(minibatch):
    """Each trajectory's share of its minibatch's tokens: divided by once, or accumulation would change the update."""
    tokens = [t.batch.mask.sum() for t in minibatch]
    return [n / sum(tokens) for n in tokens]


def warm_up_values(policy, trajectories, s):
    """Fit the value head to the first rollouts' returns before the first policy step (VC-PPO: a cold critic is a known
    cause of collapse).
    """
    optimizer = torch.optim.Adam(policy.value_head.parameters(), lr=s.value_lr, eps=1e-5)
    for _ in range(s.value_warmup):
        for minibatch in minibatches(trajectories, s):
            optimizer.zero_grad()
            for t, share in zip(minibatch, shares(minibatch), strict=True):
                returns = t.rewards.flip(-1).cumsum(-1).flip(-1)  # γ = 1
                (share * 0.5 * ppo_math.masked_mean((policy.values(t.hidden) - returns) ** 2, t.batch.mask)).backward()
            optimizer.step()
    with torch.no_grad():
        for t in trajectories:
            t.old_values = policy.values(t.hidden) * t.batch.mask


def estimate_advantages(policy, trajectories, s):
    """Fill in advantages and returns; whitening is over the whole iteration, not a minibatch."""
    for t in trajectories:
        t.hidden = None
        t.advantages, t.returns = ppo_math.gae(t.rewards, t.old_values, t.batch.mask, 1.0, s.gae_lambda)
    flat = torch.cat([t.advantages[t.batch.mask.bool()] for t in trajectories])
    whitened = ppo_math.masked_whiten(flat, torch.ones_like(flat)).split(
        [int(t.batch.mask.sum()) for t in trajectories]
    )
    for t, values in zip(trajectories, whitened, strict=True):
        t.advantages[t.batch.mask.bool()] = values


def explained_variance(trajectories):
    values, returns = (
        torch.cat([getattr(t, name)[t.batch.mask.bool()] for t in trajectories]) for name in ("old_values", "returns")
    )
    return ppo_math.explained_variance(values, returns, torch.ones_like(values))


def optimise(trainer, trajectories, rng):
    """PPO's epochs over one iteration's trajectories; returns means of the losses' metrics. RatioNotOne when the very
    first ratio is off.
    """
    policy, s = trainer.policy, trainer.settings
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    groups = minibatches(trajectories, s)
    sums, steps = {}, 0

    def means():
        return {name: total / steps for name, total in sums.items()}

    for epoch in range(s.ppo_epochs):
        for minibatch in groups if epoch == 0 else rng.sample(groups, len(groups)):
            trainer.optimizer.zero_grad()
            losses = {}
            for t, share in zip(minibatch, shares(minibatch), strict=True):
                for name, x in accumulate(policy, t, share, s, first=steps == 0).items():
                    losses[name] = losses.get(name, 0.0) + x
            if losses["approx_kl"] > s.kl_stop:
                return means()
            losses["grad_norm"] = torch.nn.utils.clip_grad_norm_(parameters, s.max_grad_norm).item()
            trainer.optimizer.step()
            steps += 1
            for name, x in losses.items():
                sums[name] = sums.get(name, 0.0) + x
    return means()


def accumulate(policy, t, share, s, first):
    """Add one microbatch's gradients, weighted by its share of the minibatch's tokens; returns its share of the losses
    and metrics.
    """
    mask = t.batch.mask
    hidden = policy.hidden(t.batch)
    logprobs = policy.token_logprobs(hidden, t.batch)
    ratio_error = (torch.exp(logprobs.detach() - t.old_logprobs) - 1).abs().max().item()
    if first and not ratio_error <= s.ratio_tolerance:
        raise RatioNotOne(f"the first ratio is off by {ratio_error:.2e}; at most {s.ratio_tolerance:.0e} is accepted")
    surrogate, clip_fraction = ppo_math.policy_loss(logprobs, t.old_logprobs, t.advantages, mask, s.ratio_clip)
    value = ppo_math.value_loss(policy.values(hidden) * mask, t.old_values, t.returns, mask, s.value_clip)
    (share * (surrogate + s.value_coefficient * value)).backward()
    approx_kl = ppo_math.masked_mean(ppo_math.kl_k3(t.old_logprobs, logprobs.detach()), mask)
    values = {"policy_loss": surrogate, "value_loss": value, "clip_fraction": clip_fraction, "approx_kl": approx_kl}
    return {name: (share * x).item() for name, x in values.items()}
