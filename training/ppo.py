"""PPO with a KL penalty on the policy's LoRA. `train_ppo` is the algorithm on one page; its mathematics is
`ppo_math.py`'s.

The optimizer, β and the checkpoint are `trainer.py`'s. How a reply is scored and what becomes of the policy are the
caller's.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from playground.models.loading import EndTokens
from playground.settings import Settings
from training import kl_target, ppo_math, repetition, rollout
from training.policy import Batch, PolicyModel
from training.rollout import Episode
from training.trainer import Metrics, Trainer

ChoosePrompts = Callable[[int, random.Random], list[list[int]]]
Score = Callable[[list[Episode]], torch.Tensor]


class RatioNotOne(Exception):
    """The first minibatch's probability ratio is not 1: old and new log-probabilities do not come from the same
    forward.
    """


@dataclass
class Trajectory:
    """One microbatch with all that its updates need; fp32."""

    batch: Batch
    old_logprobs: torch.Tensor  # (B, T)
    old_values: torch.Tensor  # (B, T)
    kl: torch.Tensor  # (B, T)
    rewards: torch.Tensor  # (B, T)
    hidden: torch.Tensor  # (B, T, d), for the value head's warm-up; emptied by `estimate_advantages`
    advantages: torch.Tensor  # (B, T); empty until `estimate_advantages`
    returns: torch.Tensor  # (B, T); empty until `estimate_advantages`


def train_ppo(
    trainer: Trainer,
    choose_prompts: ChoosePrompts,
    score: Score,
    end_tokens: EndTokens,
    on_iteration: Callable[[Trainer, Metrics], None] = lambda trainer, metrics: None,
) -> None:
    """Run PPO iterations until the KL target is reached or the iterations are used up; `trainer.policy` is then the
    policy to publish.

    choose_prompts(n, rng) returns n prompts (ids); score(episodes) returns standardised rewards (N,). All randomness
    comes from the seed and the iteration's number, so a resumed run does what an uninterrupted one would have done.
    `on_iteration` may save a checkpoint or raise.
    """
    policy = trainer.policy
    settings = trainer.settings
    prompts_per_iteration = max(1, settings.ppo.episodes // settings.ppo.replies)

    def sample_policy(rng: random.Random) -> list[Episode]:
        prompts = choose_prompts(prompts_per_iteration, rng)
        return policy.rollouts.by_settings(settings, prompts, rng, end_tokens, settings.ppo.replies)

    episodes: list[Episode] = []
    while trainer.iteration < settings.ppo.iterations and not trainer.target_reached:
        rng = rollout.generator(settings.seed, "ppo", trainer.iteration)

        # 1. sample replies of the policy
        episodes = sample_policy(rng)

        # 2. score whole replies; a reply without an end and one that repeats itself pay a penalty, and the mean of the
        #    other replies to the same prompt is subtracted
        scores = score(episodes)  # (N,)
        ended = torch.tensor([float(episode.ended) for episode in episodes])
        repeated = torch.tensor([repetition.repeated(repetition.without_end(episode)) for episode in episodes])
        penalised = scores - penalties(ended, repeated, settings)
        centred = ppo_math.leave_one_out(penalised, settings.ppo.replies)

        # 3. measure microbatches in the first epoch's order: old log-probabilities come from these same tensors, so the
        #    first ratio is exactly 1. Replies to one prompt stay together, since it is read once for them
        replies_of_each = range(0, len(episodes), settings.ppo.replies)
        first_replies = rng.sample(replies_of_each, len(replies_of_each))
        order = [first + k for first in first_replies for k in range(settings.ppo.replies)]
        trajectories = []
        token_sums = []
        moved = policy.has_moved
        for start in range(0, len(order), settings.ppo.microbatch):
            rows = order[start : start + settings.ppo.microbatch]
            microbatch = [episodes[i] for i in rows]
            scores_of_rows = centred[rows].to(policy.device)
            trajectory, sums_of_rows = measure(policy, microbatch, scores_of_rows, trainer.beta, settings, moved)
            trajectories.append(trajectory)
            token_sums.append(sums_of_rows)
        sums = ppo_math.read_back(ppo_math.added(token_sums))
        tokens = sum(len(episode.completion) for episode in episodes)
        metrics = {
            "reward": scores.mean().item(),
            "ended": ended.mean().item(),
            "repeated": repeated.mean().item(),
            "length": tokens / len(episodes),
            "beta": trainer.beta,
            "entropy": sums["entropy"] / tokens,  # nats a token
            **{name: sums[name] / len(episodes) for name in ("kl", "kl_k1", "kl_k3")},  # nats a reply
        }
        trainer.add(metrics)

        # 4. unless the KL target is reached: advantages and returns by GAE, whitened over all reply tokens of the
        #    iteration; optimise; adapt β
        if not trainer.target_reached:
            if trainer.iteration == 1 and settings.ppo.value_head:
                warm_up_values(policy, trajectories, settings)
            estimate_advantages(trajectories, settings)
            metrics["explained_variance"] = explained_variance(trajectories)
            metrics |= optimise(trainer, trajectories, rng)
            trainer.beta = ppo_math.adapted_beta(
                trainer.beta, metrics["kl"], trainer.kl_target, len(episodes), settings.ppo.kl_horizon
            )
        on_iteration(trainer, metrics)

    # 5. take the update back to the KL target where the last steps overshot it. The rollouts that reached the target
    #    are by the policy as it still is
    def samples() -> Iterator[list[Episode]]:
        if trainer.target_reached:
            # a resumed run has to write them again
            yield episodes or sample_policy(rollout.generator(settings.seed, "ppo", trainer.iteration - 1))
        rng = rollout.generator(settings.seed, "ppo", "back")
        while True:
            yield sample_policy(rng)

    kl_target.return_to(trainer, samples())


def penalties(ended: torch.Tensor, repeated: torch.Tensor, settings: Settings) -> torch.Tensor:
    """What is subtracted from the scores (N,) of replies of which `ended` (N,) is 1 for those with an end, and
    `repeated` (N,) the share of their four-token runs that are repeats.
    """
    return settings.ppo.missing_end_penalty * (1 - ended) + settings.ppo.repeats_penalty * repeated


@torch.no_grad()
def measure(
    policy: PolicyModel,
    episodes: Sequence[Episode],
    scores: torch.Tensor,
    beta: float,
    settings: Settings,
    moved: bool = True,
) -> tuple[Trajectory, dict[str, torch.Tensor]]:
    """One microbatch's log-probabilities, values, KL and rewards, and {metric: sum over its tokens, scalar}. scores
    (B,); `moved` as in `PolicyModel.compare`.
    """
    batch = policy.batch(episodes)
    comparison = policy.compare(batch, moved)
    kl_k1 = ppo_math.kl_k1(comparison.logprob, comparison.ref_logprob)
    kl_k3 = ppo_math.kl_k3(comparison.logprob, comparison.ref_logprob)
    not_yet = torch.zeros(0)
    trajectory = Trajectory(
        batch=batch,
        old_logprobs=comparison.logprob,
        old_values=values_of(policy, comparison.hidden, batch.mask, settings),
        kl=kl_k1,
        rewards=ppo_math.token_rewards(scores, kl_k1, batch.mask, beta),
        hidden=comparison.hidden.float(),
        advantages=not_yet,
        returns=not_yet,
    )
    sums = {"kl": comparison.kl, "kl_k1": kl_k1, "kl_k3": kl_k3, "entropy": comparison.entropy}
    return trajectory, {name: values.sum() for name, values in sums.items()}


def values_of(policy: PolicyModel, hidden: torch.Tensor, mask: torch.Tensor, settings: Settings) -> torch.Tensor:
    """The value head's estimates (B, T) of hidden states (B, T, d); 0 without one, and on padding by the mask."""
    return policy.values(hidden) * mask if settings.ppo.value_head else torch.zeros_like(mask)


def minibatches(trajectories: Sequence[Trajectory], settings: Settings) -> list[Sequence[Trajectory]]:
    """Trajectories in groups of one optimizer step each. The size of the microbatches does not change what a step
    sees.
    """
    per_step = max(1, settings.ppo.minibatch // settings.ppo.microbatch)
    return [trajectories[i : i + per_step] for i in range(0, len(trajectories), per_step)]


def token_shares(minibatch: Sequence[Trajectory]) -> list[torch.Tensor]:
    """Each trajectory's share of its minibatch's tokens. Losses are weighted by it, so that accumulated gradients are
    those of one mean over all tokens.
    """
    tokens = [trajectory.batch.mask.sum() for trajectory in minibatch]
    total = torch.stack(tokens).sum()
    return [n / total for n in tokens]


def warm_up_values(policy: PolicyModel, trajectories: Sequence[Trajectory], settings: Settings) -> None:
    """Fit the value head to the first rollouts' returns before the first policy step (VC-PPO: an untrained value head
    is a known cause of collapse).
    """
    optimizer = torch.optim.Adam(policy.value_head.parameters(), lr=settings.ppo.value_lr, eps=1e-5)
    for _ in range(settings.ppo.value_warmup):
        for minibatch in minibatches(trajectories, settings):
            optimizer.zero_grad()
            for trajectory, share in zip(minibatch, token_shares(minibatch), strict=True):
                returns = trajectory.rewards.flip(-1).cumsum(-1).flip(-1)  # (B, T), γ = 1
                squared_error = (policy.values(trajectory.hidden) - returns) ** 2
                (share * 0.5 * ppo_math.masked_mean(squared_error, trajectory.batch.mask)).backward()
            optimizer.step()
    with torch.no_grad():
        for trajectory in trajectories:
            trajectory.old_values = policy.values(trajectory.hidden) * trajectory.batch.mask


def estimate_advantages(trajectories: Sequence[Trajectory], settings: Settings) -> None:
    """Fill in advantages and returns, and drop the hidden states. Whitening is over the whole iteration, not a
    minibatch.
    """
    for trajectory in trajectories:
        trajectory.hidden = torch.zeros(0)
        trajectory.advantages, trajectory.returns = ppo_math.gae(
            trajectory.rewards, trajectory.old_values, trajectory.batch.mask, gamma=1.0, lam=settings.ppo.gae_lambda
        )
    flat = torch.cat([trajectory.advantages.flatten() for trajectory in trajectories])
    mask = torch.cat([trajectory.batch.mask.flatten() for trajectory in trajectories])
    whitened = ppo_math.masked_whiten(flat, mask).split([trajectory.advantages.numel() for trajectory in trajectories])
    for trajectory, values in zip(trajectories, whitened, strict=True):
        trajectory.advantages = values.view_as(trajectory.advantages)


def explained_variance(trajectories: Sequence[Trajectory]) -> float:
    """Of the value head, over all reply tokens."""
    values = torch.cat([trajectory.old_values.flatten() for trajectory in trajectories])
    returns = torch.cat([trajectory.returns.flatten() for trajectory in trajectories])
    mask = torch.cat([trajectory.batch.mask.flatten() for trajectory in trajectories])
    return ppo_math.explained_variance(values, returns, mask)


def optimise(trainer: Trainer, trajectories: Sequence[Trajectory], rng: random.Random) -> Metrics:
    """PPO's epochs over one iteration's trajectories; returns the means of the losses' metrics over the steps.
    RatioNotOne where the very first ratio is not 1.
    """
    policy = trainer.policy
    settings = trainer.settings
    parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    groups = minibatches(trajectories, settings)
    sums: Metrics = {}
    steps = 0

    def means() -> Metrics:
        return {name: total / steps for name, total in sums.items()}

    for epoch in range(settings.ppo.epochs):
        for minibatch in groups if epoch == 0 else rng.sample(groups, len(groups)):
            trainer.optimizer.zero_grad()
            shares = token_shares(minibatch)
            parts = [accumulate(policy, *part, settings) for part in zip(minibatch, shares, strict=True)]
            grad_norm = torch.nn.utils.clip_grad_norm_(parameters, settings.ppo.max_grad_norm)
            ratio_error = torch.stack([part.pop("ratio_error") for part in parts]).max()
            losses = ppo_math.read_back({**ppo_math.added(parts), "grad_norm": grad_norm, "ratio_error": ratio_error})
            check_first_ratio(losses.pop("ratio_error"), steps, settings.ppo.ratio_tolerance)
            if losses["approx_kl"] > settings.ppo.kl_stop:
                return means()
            trainer.optimizer.step()
            steps += 1
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value
    return means()


def check_first_ratio(error: float, steps: int, tolerance: float) -> None:
    """RatioNotOne where a minibatch's largest distance of a ratio from 1 exceeds the tolerance before any step."""
    if steps == 0 and not error <= tolerance:
        raise RatioNotOne(f"the first ratio is off by {error:.2e}; at most {tolerance:.0e} is accepted")


def accumulate(
    policy: PolicyModel, trajectory: Trajectory, share: torch.Tensor, settings: Settings
) -> dict[str, torch.Tensor]:
    """Add one microbatch's gradients, weighted by its share of the minibatch's tokens; returns, as scalars on its
    device, its share of the losses and metrics and its largest distance of a ratio from 1 (`ratio_error`).
    """
    mask = trajectory.batch.mask
    hidden = policy.hidden(trajectory.batch)
    logprobs = policy.token_logprobs(hidden, trajectory.batch)
    new_logprobs = logprobs.detach()
    ratio_error = (torch.exp(new_logprobs - trajectory.old_logprobs) - 1).abs().max()
    policy_loss, clip_fraction = ppo_math.policy_loss(
        logprobs, trajectory.old_logprobs, trajectory.advantages, mask, settings.ppo.ratio_clip
    )
    value_loss = ppo_math.value_loss(
        values_of(policy, hidden, mask, settings),
        trajectory.old_values,
        trajectory.returns,
        mask,
        settings.ppo.value_clip,
    )
    (share * (policy_loss + settings.ppo.value_coefficient * value_loss)).backward()
    approx_kl = ppo_math.masked_mean(ppo_math.kl_k3(trajectory.old_logprobs, new_logprobs), mask)
    values = {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "clip_fraction": clip_fraction,
        "approx_kl": approx_kl,
    }
    return {"ratio_error": ratio_error} | {name: share * value.detach() for name, value in values.items()}
