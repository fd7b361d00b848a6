"""The gate of a round: replies of three versions to held-out prompts, their figures, and samples of them; and the way
back of a policy that is better but went too far. What passes is up to `gate.py`.

Reads the models of the round; writes nothing.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from playground.decoding import tuning
from playground.decoding.choice import Choice
from playground.models import prompts
from playground.models.scorer import RewardModel
from playground.system.messages import joined
from training import gate, rollout, served
from training.gate import GateReport
from training.rollout import Episode, Rollouts
from training.round_models import RoundModels

log = logging.getLogger(__name__)
T = TypeVar("T")

LEAST_SHARE = 0.25  # of the way that training went, to which a policy that breaks a limit is taken back
FIRST_LOOK = 0.25  # share of the prompts that the gate looks at first
FEWEST = 8  # prompts of a first look
CLEARLY = 0.99  # probability of a gain by the reward model at which the first look is enough
SAMPLES = 8  # that a report keeps, of shipped prompts and of people's prompts each


@dataclass(frozen=True)
class GateReplies:
    """Replies to the gate's prompts by the new policy, the live version and the base: (N,) each, in the same order,
    those to one prompt in a row.
    """

    prompts: int
    new: Sequence[Episode]
    live: Sequence[Episode]
    base: Sequence[Episode]
    new_texts: Sequence[str]

    def first_of_each(self, values: Sequence[T]) -> Sequence[T]:
        """Of these (N,) the first of each prompt."""
        return values[:: len(self.new) // self.prompts]

    def and_also(self, other: "GateReplies") -> "GateReplies":
        """These replies, and those to other prompts."""
        return GateReplies(
            prompts=self.prompts + other.prompts,
            new=[*self.new, *other.new],
            live=[*self.live, *other.live],
            base=[*self.base, *other.base],
            new_texts=[*self.new_texts, *other.new_texts],
        )


Compare = Callable[[RoundModels, GateReplies], GateReport]


@dataclass(frozen=True)
class Liked:
    """How much the new version and the live one are liked: by the reward model, or by the likelihood of
    demonstrations. As in `gate.GateFigures`.
    """

    reward_new: np.ndarray
    reward_live: np.ndarray
    gains: np.ndarray
    length: tuple[float, float]
    demonstrations: int = 0


def judge(
    models: RoundModels, show_step: Callable[[int], None], chosen: Sequence[list[int]], compare: Compare
) -> tuple[GateReplies, GateReport]:
    """The replies to the prompts `chosen`, and what `compare` says of them. `show_step(n)` counts the versions that
    replied.

    A quarter of the prompts is enough where the new version is clearly better on them and keeps all limits, since
    replies are what the gate spends its time on.
    """
    first = round(FIRST_LOOK * len(chosen))
    looks = Looks(models, show_step, compare)
    if first < FEWEST:
        return looks.at(chosen)
    replies, report = looks.at(chosen[:first])
    if report.passed and min(report.better, report.not_worse) >= CLEARLY:
        return replies, report
    return looks.at(chosen[first:])


class Looks:
    """The gate's looks at the trained policy, each at more replies than the one before.

    A policy that is better but has gone too far from the base, in its length for example, is taken back along the line
    to where training started (Wortsman et al. 2022), by halves, until it keeps the limits, and stays so.
    """

    def __init__(self, models: RoundModels, show_step: Callable[[int], None], compare: Compare) -> None:
        self.models = models
        self._show_step = show_step
        self._compare = compare
        self.policy = models.trained_policy
        self.share = 1.0  # of the way from start to end
        self.prompts: list[list[int]] = []
        self.replies: GateReplies | None = None
        self._live = Rollouts(models.live_model()) if models.live_version else None

    def at(self, more: Sequence[list[int]]) -> tuple[GateReplies, GateReport]:
        """The replies to these prompts and to those of the looks before, and the report on all."""
        models = self.models
        replies = self._sample(more)
        if self.replies:
            replies = self.replies.and_also(replies)
        self.prompts += more
        report = self._compare(models, replies)
        while self.share > LEAST_SHARE and gate.went_too_far(report, models.settings):
            self.share /= 2
            log.info("gate: %s; the policy is taken back to %g of the way", joined(report.refused_because), self.share)
            models.policy_of_the_gate(self.share)
            new = self._replies_of("new", self.policy.rollouts, self.prompts)
            replies = replace(replies, new=new, new_texts=self._texts(new))
            report = self._compare(models, replies)
        self.replies = replies
        return replies, replace(report, share=self.share)

    def _sample(self, prompt_ids: Sequence[list[int]]) -> GateReplies:
        """`gate.replies` of each version to each of these prompts."""
        new = self._replies_of("new", self.policy.rollouts, prompt_ids)
        self._count(1)
        with self.policy.reference():
            base = self._replies_of("base", self.policy.rollouts, prompt_ids)
        self._count(2)
        live = self._replies_of("live", self._live, prompt_ids) if self._live else base
        self._count(3)
        return GateReplies(prompts=len(prompt_ids), new=new, live=live, base=base, new_texts=self._texts(new))

    def _count(self, versions: int) -> None:
        """Show how many versions have replied; progress does not go back at a second look."""
        if not self.prompts:
            self._show_step(versions)

    def _replies_of(self, version: str, rollouts: Rollouts, prompt_ids: Sequence[list[int]]) -> list[Episode]:
        """All versions draw with the same random numbers, other ones at each look."""
        with self.models.seconds.part(f"gate: replies of {version}"):
            source = f"gate-sample {len(self.prompts)}"
            return self.models.sample(rollouts, prompt_ids, source, self.models.settings.gate.replies)

    def _texts(self, episodes: Sequence[Episode]) -> list[str]:
        return [prompts.reply_text(episode.completion, self.models.tokenizer) for episode in episodes]


def by_reward(models: RoundModels, replies: GateReplies) -> GateReport:
    """What the gate says of these replies by the reward model."""
    settings = models.settings
    model = models.reward_model
    seconds = models.seconds
    with seconds.part("gate: features"):
        features_new = models.features(model, replies.new)
        features_live = models.features(model, replies.live)
    with seconds.part("gate: draws"):
        draws_new = model.draws(features_new, gate.DRAWS, settings.seed)  # (S, N)
        draws_live = model.draws(features_live, gate.DRAWS, settings.seed)
        rules_new = models.rule_rewards(replies.new)
        rules_live = models.rule_rewards(replies.live)
        gains = (draws_new - draws_live) / model.spread + rules_new - rules_live
    liked = Liked(
        reward_new=(model.reward(features_new) + rules_new).numpy(),
        reward_live=(model.reward(features_live) + rules_live).numpy(),
        gains=gains.numpy(),
        length=gate.favoured_length(models.preferences, settings.gate.confidence, settings.seed),
    )
    report = compare(models, replies, liked)
    with seconds.part("gate: people"):
        losing = [
            gate.clearly_loses(gains, replies.prompts, settings.seed)
            for gains in gains_of_people(model, features_new, features_live, settings.seed)
        ]
    return replace(report, people=len(losing), people_who_lose=sum(losing))


def gains_of_people(
    model: RewardModel, features_new: torch.Tensor, features_live: torch.Tensor, seed: int
) -> Iterator[np.ndarray]:
    """For each person with votes enough, what the new version's replies gain by that person's own taste: reward
    differences (S, N) under S heads. Features (N, D).
    """
    for annotator in model.people:
        own = model.of_person(annotator)
        new = own.draws(features_new, gate.DRAWS, seed)
        live = own.draws(features_live, gate.DRAWS, seed)
        yield ((new - live) / model.spread).numpy()


def compare(models: RoundModels, replies: GateReplies, liked: Liked) -> GateReport:
    """The figures of these replies beside how much they are liked, and what the gate says of them."""
    settings = models.settings
    policy = models.trained_policy
    canaries = rollout.canaries(models.tokenizer, settings.ppo.rollout_context, models.max_tokens)
    canary_tokens = sum(len(episode.completion) for episode in canaries)
    with models.seconds.part("gate: likelihoods"):
        at_once = models.settings_with_room.ppo.microbatch
        canary_totals = policy.totals(canaries, at_once)
        totals_new = policy.totals(replies.first_of_each(replies.new), at_once)  # the most expensive part on a CPU
    figures = gate.GateFigures(
        prompts=replies.prompts,
        new=replies.new,
        live=replies.live,
        base=replies.base,
        texts=replies.new_texts,
        reward_new=liked.reward_new,
        reward_live=liked.reward_live,
        gains=liked.gains,
        kl=totals_new.kl,
        canary_new=sum(canary_totals.logprob) / canary_tokens,
        canary_base=sum(canary_totals.ref_logprob) / canary_tokens,
        length_votes=liked.length,
        demonstrations=liked.demonstrations,
    )
    with models.seconds.part("gate: decide"):
        return gate.decide(figures, settings)


def served_kl(models: RoundModels, episodes: Sequence[Episode]) -> float:
    """How far what the chat will serve is from the trained policy, on these replies of it; nats a token."""
    trained = models.trained_policy.causal
    base, served_model = models.served_models()
    choice = Choice("plain", models.settings.threads)
    if base.device == trained.device:
        choice = tuning.choose(models.settings, base, models.base)  # as the server chose
    slots, slot_tokens = served.room(episodes)
    forward = replace(choice, slots=slots, slot_tokens=slot_tokens).forward(served_model)
    return served.divergence(trained, forward, episodes)


def samples(models: RoundModels, replies: GateReplies) -> list[dict[str, Any]]:
    """Some replies before and after, each marked whether its prompt is a shipped one: everybody may read those, and
    only admins the others.
    """
    tokenizer = models.tokenizer
    shipped = {tuple(prompt) for part in ("train", "heldout") for prompt in models.seed_prompts(part)}
    chosen = []
    room = {True: SAMPLES, False: SAMPLES}  # by whether the prompt is shipped
    new, live = replies.first_of_each(replies.new), replies.first_of_each(replies.live)
    for after, before, text in zip(new, live, replies.first_of_each(replies.new_texts), strict=True):
        is_shipped = tuple(after.prompt) in shipped
        if not room[is_shipped]:
            continue
        room[is_shipped] -= 1
        chosen.append(
            {
                "prompt": prompts.decode(after.prompt, tokenizer),
                "new": text,
                "live": prompts.reply_text(before.completion, tokenizer),
                "shipped": is_shipped,
            }
        )
    return chosen
