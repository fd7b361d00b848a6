"""Scorer: a reply to features, features to a score, and how certain the score is; the chat and training share it.

Features are means over the reply's tokens of the hidden states after four layers of the quantised base, from the first
to two thirds deep, the log of the reply's length, and how often it has the tokens that are common among the replies
voted on. `feature_trunk.py` reads the hidden states. This module owns the counts, the sets of features that a head may
read, and the head's file. Fitting a head is `training/reward.py`'s.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from playground.models import adapter_reading
from playground.models.feature_trunk import FeatureTrunk, TokenisedReply

TYPICAL_LENGTH = 100.0  # tokens; only the scale of summed features
COMMON_TOKENS = 200  # tokens that are counted


# -- counts of common tokens: they tell a style, whatever the language (Burrows 2002)


def common_tokens(replies: Sequence[TokenisedReply]) -> list[int]:
    """The tokens that most of these replies have, at most COMMON_TOKENS."""
    replies_with = Counter(token for _, completion in replies for token in set(completion))
    return sorted(replies_with, key=lambda token: (-replies_with[token], token))[:COMMON_TOKENS]


def with_counts(features: torch.Tensor, replies: Sequence[TokenisedReply], tokens: Sequence[int]) -> torch.Tensor:
    """Features (N, D) of replies, and log(1 + how often) a reply has each of `tokens`: (N, D + len(tokens))."""
    counters = [Counter(completion) for _, completion in replies]
    counts = torch.tensor([[counter[token] for token in tokens] for counter in counters], dtype=torch.float32)
    return torch.cat([features, counts.view(len(replies), len(tokens)).log1p()], -1)


class ExtractedFeatures(NamedTuple):
    """Features of replies, and what they consist of."""

    features: torch.Tensor  # (N, D)
    parts: list[int]  # widths of the layers, the length and the counts; their sum is D
    tokens: list[int]  # that are counted

    @classmethod
    def of(
        cls,
        features: torch.Tensor,
        parts: Sequence[int],
        replies: Sequence[TokenisedReply],
        known: int | None = None,
    ) -> "ExtractedFeatures":
        """From a trunk's features (N, sum of parts), with counts of the tokens common among these replies, or among the
        first `known` of them.
        """
        tokens = common_tokens(replies[:known])
        return cls(with_counts(features, replies, tokens), [*parts, len(tokens)], tokens)


# -- feature sets: what a head reads of the features; wording shows in the shallow layers, meaning in the deep ones

# A feature set takes the layers' means (N, width each), the log of the length (N, 1) and the counts (N, tokens), and
# returns the blocks of columns that the head reads.
FeatureSet = Callable[[list[torch.Tensor], torch.Tensor, torch.Tensor], list[torch.Tensor]]


def _layers(layers: list[torch.Tensor], log_length: torch.Tensor, _counts: torch.Tensor) -> list[torch.Tensor]:
    """The means of all layers but the shallowest."""
    return [*(layers[1:] or layers), log_length]


def _words(layers: list[torch.Tensor], log_length: torch.Tensor, _counts: torch.Tensor) -> list[torch.Tensor]:
    """The sum of the shallowest layer: nearly a bag of words, since a sum counts tokens where a mean gives shares."""
    return [layers[0] * log_length.exp() / TYPICAL_LENGTH, log_length]


def _meaning(layers: list[torch.Tensor], log_length: torch.Tensor, _counts: torch.Tensor) -> list[torch.Tensor]:
    """The means of the deep half."""
    return [*layers[(len(layers) + 1) // 2 :], log_length]


def _length(_layers: list[torch.Tensor], log_length: torch.Tensor, _counts: torch.Tensor) -> list[torch.Tensor]:
    """Nothing but the length: with it in the mean, the model cannot be much worse than the length alone."""
    return [log_length]


def _style(_layers: list[torch.Tensor], log_length: torch.Tensor, counts: torch.Tensor) -> list[torch.Tensor]:
    """The counts of common tokens."""
    return [counts, log_length]


FEATURE_SETS: dict[str, FeatureSet] = {
    "layers": _layers,
    "words": _words,
    "meaning": _meaning,
    "style": _style,
    "length": _length,
}
ON_ONE_SCALE = {"style"}  # sets whose features can be compared as they are: one that hardly varies says little


def feature_set_names(parts: Sequence[int], setting: str = "auto") -> list[str]:
    """Names of the feature sets whose heads are averaged: those that differ on features of these parts, or the one that
    the setting names.
    """
    if setting != "auto":
        return [setting]
    names = ["layers", "words", "style", "length"]
    has_deep_half = len(parts) > 4  # else it is the same as the layers
    return [*names, "meaning"] if has_deep_half else names


def feature_blocks(features: torch.Tensor, parts: Sequence[int], name: str) -> list[torch.Tensor]:
    """What a head reads of features (N, D), counts included: blocks (N, d_i) whose widths sum to d."""
    *layers, log_length, counts = features.split(list(parts), -1)
    return FEATURE_SETS[name](layers, log_length, counts)


# -- the heads

# what a reward model's file holds, beside the LoRA
NUMBERS = ("parts", "tokens", "log_nu", "threshold", "pessimism", "shift", "spread")
HEAD_NUMBERS = ("feature_set", "share", "penalty")
HEAD_TENSORS = ("centre", "scale", "weight", "basis", "factor", "influence")
LORA_PREFIX = "lora/"  # of the names of LoRA tensors in the file


@dataclass
class Head:
    """A fitted linear head on one feature set, with the Gaussian (Laplace) posterior of its weights.

    x = (feature set − centre)/scale (N, d); score = x·w; its variance under the posterior is |x·basis·factor|² +
    |x off the basis|²/penalty: the inverse curvature of the likelihood in directions that votes compare, and the prior
    elsewhere.
    """

    feature_set: str
    share: float  # of the model's score
    centre: torch.Tensor  # (d,)
    scale: torch.Tensor  # (d,)
    weight: torch.Tensor  # (d,)
    basis: torch.Tensor  # (d, r), orthonormal
    factor: torch.Tensor  # (r, r)
    # (r, votes): how far each vote moved the weights; its square is what a bootstrap over votes would give
    influence: torch.Tensor
    penalty: float = 1.0

    def design(self, features: torch.Tensor, parts: Sequence[int]) -> torch.Tensor:
        """(N, D) -> x (N, d)."""
        return (torch.cat(feature_blocks(features, parts, self.feature_set), -1) - self.centre) / self.scale

    def deviation(self, x: torch.Tensor) -> torch.Tensor:
        """Posterior standard deviation (N,) of the scores of x (N, d)."""
        z = x @ self.basis  # (N, r)
        outside = (x.square().sum(-1) - z.square().sum(-1)).clamp(min=0)
        return ((z @ self.factor).square().sum(-1) + outside / self.penalty).sqrt()

    def draws(self, x: torch.Tensor, root: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Scores (n, N) of x (N, d) under n heads, each root·noise from the fitted one: `root` (r, k), and `noise`
        (k, n) from a standard normal.
        """
        return x @ self.weight + (x @ self.basis @ (root @ noise)).T

    def prior_draws(self, x: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
        """What n draws from the prior add to the scores of x (N, d), in directions that no vote compares: (n, N)."""
        free = torch.randn(len(self.weight), n, generator=generator) / self.penalty**0.5  # (d, n)
        return (x @ free - x @ self.basis @ (self.basis.T @ free)).T


class PersonalHead(NamedTuple):
    """One person's own weights in place of a head's, and how far each vote moved them; see `Head`."""

    weight: torch.Tensor  # (d,)
    influence: torch.Tensor  # (r, votes)


@dataclass
class RewardModel:
    """A weighted mean of linear heads, each on its own feature set. Its features (N, D) are those that `features`
    gives.

    reward = (raw − pessimism·deviation − shift)/spread, of mean 0 and deviation 1 on the reference's replies.
    """

    heads: list[Head]
    parts: list[int]  # widths of the features' parts, sum D
    tokens: list[int]  # that are counted
    log_nu: float = -1.0
    threshold: float = 0.0
    pessimism: float = 0.0
    shift: float = 0.0
    spread: float = 1.0
    lora: adapter_reading.Tensors = field(default_factory=dict)  # below the features; empty where there is none
    # each head as a person with enough votes would have it; the file leaves them out, and nobody is trained by them
    people: dict[int, list[PersonalHead]] = field(default_factory=dict)

    def of_person(self, annotator: int) -> "RewardModel":
        """The model by this person's own taste, on the same scale."""
        own = zip(self.heads, self.people[annotator], strict=True)
        return replace(self, heads=[replace(head, **theirs._asdict()) for head, theirs in own], people={})

    def features(self, trunk: FeatureTrunk, replies: Sequence[TokenisedReply]) -> torch.Tensor:
        """(N, D) of N replies."""
        return with_counts(trunk.features(replies), replies, self.tokens)

    def raw(self, features: torch.Tensor) -> torch.Tensor:
        """Scores (N,) in the units of the likelihood."""
        scores = [head.share * (head.design(features, self.parts) @ head.weight) for head in self.heads]
        return torch.stack(scores).sum(0)

    def deviation(self, features: torch.Tensor) -> torch.Tensor:
        """Posterior standard deviation (N,) of the raw scores, at most: as if all heads erred the same way."""
        deviations = [head.share * head.deviation(head.design(features, self.parts)) for head in self.heads]
        return torch.stack(deviations).sum(0)

    def draws(self, features: torch.Tensor, n: int, seed: int) -> torch.Tensor:
        """Raw scores (n, N) under n reward models, as other votes from the same people would have given them: each vote
        moves all heads at once. The same seed gives the same models.
        """
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.heads[0].influence.shape[1], n, generator=generator)  # (votes, n)
        drawn = torch.zeros(n, len(features))
        for head in self.heads:
            x = head.design(features, self.parts)
            drawn += head.share * head.draws(x, head.influence, noise)
        return drawn

    def posterior_draws(self, features: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
        """Raw scores (n, N) under n models drawn from the posterior, which is the prior where no vote compares."""
        drawn = torch.zeros(n, len(features))
        for head in self.heads:
            x = head.design(features, self.parts)
            noise = torch.randn(head.factor.shape[1], n, generator=generator)
            drawn += head.share * (head.draws(x, head.factor, noise) + head.prior_draws(x, n, generator))
        return drawn

    def reward(self, features: torch.Tensor) -> torch.Tensor:
        """Standardised, pessimistic scores (N,)."""
        return (self._pessimistic(features) - self.shift) / self.spread

    def _pessimistic(self, features: torch.Tensor) -> torch.Tensor:
        if not self.pessimism:
            return self.raw(features)
        return self.raw(features) - self.pessimism * self.deviation(features)

    def standardise(self, reference_features: torch.Tensor) -> None:
        """Set shift and spread from replies of the reference policy. Needed after every fit: else β, which weighs the
        KL penalty against the reward, would change its meaning.
        """
        scores = self._pessimistic(reference_features)
        self.shift = scores.mean().item()
        self.spread = max(scores.std().item(), 1e-6)

    def save(self, path: Path) -> None:
        numbers = {name: getattr(self, name) for name in NUMBERS}
        heads = [{name: getattr(head, name) for name in HEAD_NUMBERS} for head in self.heads]
        tensors = {f"{LORA_PREFIX}{name}": tensor for name, tensor in self.lora.items()}
        for k, head in enumerate(self.heads):
            tensors |= {f"{k}/{name}": getattr(head, name) for name in HEAD_TENSORS}
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            path,
            metadata={"numbers": json.dumps(numbers), "heads": json.dumps(heads)},
        )

    @classmethod
    def load(cls, path: Path) -> "RewardModel":
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            metadata = file.metadata()
        numbers = json.loads(metadata["numbers"])
        lora = {name.removeprefix(LORA_PREFIX): tensors[name] for name in tensors if name.startswith(LORA_PREFIX)}
        if "heads" not in metadata:  # written when there was one head
            only = {"feature_set": numbers.pop("view"), "share": 1.0, "penalty": numbers.pop("penalty")}
            return cls([Head(**only, **{name: tensors[name] for name in HEAD_TENSORS})], **numbers, lora=lora)
        heads = [
            Head(**head, **{name: tensors[f"{k}/{name}"] for name in HEAD_TENSORS})
            for k, head in enumerate(json.loads(metadata["heads"]))
        ]
        return cls(heads, **numbers, lora=lora)
