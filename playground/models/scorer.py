"""Scorer: a reply to features, features to a score, and how sure of it the votes make us; the chat and the training
share it.

Features are means over the reply's tokens of the hidden states after four layers of the quantised base, from the first
to two thirds deep, the log of the reply's length, and how often it has the tokens that are common among the replies
voted on. Owns them, the feature sets that a head may read, and the head's file. Fitting a head is
`training/reward.py`'s.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from playground.models import adapters, loading
from playground.models.batches import pad

DEPTHS = (0.03, 0.1, 1 / 3, 2 / 3)  # of the layers read, as fractions of the blocks, where the setting names none
BATCH_TOKENS = (
    4096  # read at once, padding included: attention's memory grows with the square of a conversation's length
)
TYPICAL_LENGTH = 100.0  # tokens; only the scale of summed features
COMMON_TOKENS = 200  # tokens that are counted


class FeatureTrunk:
    """The quantised base up to the deepest layer read; turns a reply into D features, in `parts` of one layer each and
    a last one of its length.
    """

    def __init__(self, settings):
        self.model = loading.load_trunk(settings, settings.reward_quantisation)
        stack = loading.blocks(self.model)
        depths = [settings.reward_layer] if settings.reward_layer else DEPTHS
        self.layers = sorted({max(1, round(depth * len(stack))) for depth in depths})
        self._hidden = {}
        for layer in self.layers:
            stack[layer - 1].register_forward_hook(partial(self._keep, layer))
        del stack[self.layers[-1] :]
        self.batch, self.most = settings.reward_batch, loading.positions(self.model.config)
        self.targets = loading.linear_targets(self.model)
        self.parts = [self.model.get_input_embeddings().embedding_dim] * len(self.layers) + [1]
        self.peft = None

    def _keep(self, layer, _module, _inputs, output):
        self._hidden[layer] = output[0] if isinstance(output, tuple) else output

    def batch_features(self, replies):
        """Features of [(prompt ids, completion ids)], cut to what the model takes: (N, D) fp32, with gradients where
        enabled.
        """
        replies = [loading.cut(prompt, completion, self.most) for prompt, completion in replies]
        device = next(self.model.parameters()).device
        ids, mask = pad([[*prompt, *completion] for prompt, completion in replies], device=device)  # (N, L)
        pool, _ = pad([[0] * len(prompt) + [1] * len(completion) for prompt, completion in replies], device=device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self.model.base_model(
            **loading.inputs(
                self.model.base_model, input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
            )
        )
        pool = pool[..., None].float()  # (N, L, 1)
        length = pool.sum(1).clamp(min=1)  # (N, 1)
        return torch.cat(
            [*((self._hidden[layer].float() * pool).sum(1) / length for layer in self.layers), length.log()], -1
        )

    @torch.no_grad()
    def features(self, replies, on_batch=lambda done, total: None):
        """(N, D) fp32 on the CPU, in the order given; batches are of like lengths, which changes nothing but
        the time.
        """
        out = torch.zeros(len(replies), sum(self.parts))
        order = sorted(range(len(replies)), key=lambda i: sum(map(len, replies[i])))
        done = 0
        while done < len(order):
            rows = order[done : done + self.batch]
            while len(rows) > 1 and len(rows) * sum(map(len, replies[rows[-1]])) > BATCH_TOKENS:
                rows.pop()
            out[rows] = self.batch_features([replies[i] for i in rows]).cpu()
            done += len(rows)
            on_batch(done, len(order))
        return out

    def attach_lora(self, rank, tensors=None):
        """Put an fp32 LoRA below the features (zero, or with the given tensors); returns its parameters."""
        if self.peft is None:
            self.peft = loading.with_lora(self.model, rank=rank, alpha=2 * rank, targets=self.targets)
        parameters = loading.lora_parameters(self.peft)
        if tensors is not None:
            adapters.copy_strictly(tensors, parameters)
        return parameters


# -- counts of common tokens: style shows in them, whatever the language (Burrows 2002)


def common_tokens(replies):
    """The tokens that most of these replies [(prompt ids, completion ids)] have, at most COMMON_TOKENS."""
    having = Counter(token for _, completion in replies for token in set(completion))
    return sorted(having, key=lambda token: (-having[token], token))[:COMMON_TOKENS]


def with_counts(features, replies, tokens):
    """Features (N, D) of replies, and log(1 + how often) a reply has each of `tokens`: (N, D + len(tokens))."""
    having = [Counter(completion) for _, completion in replies]
    counts = torch.tensor([[found[token] for token in tokens] for found in having], dtype=torch.float32)
    return torch.cat([features, counts.view(len(replies), len(tokens)).log1p()], -1)


class ExtractedFeatures(NamedTuple):
    """Features (N, D) of replies, the widths of their parts (layers, length, counts), and the tokens counted."""

    features: torch.Tensor
    parts: list
    tokens: list

    @classmethod
    def of(cls, features, parts, replies):
        """From a trunk's features (N, sum of parts); what is counted are the tokens common among these replies."""
        tokens = common_tokens(replies)
        return cls(with_counts(features, replies, tokens), [*parts, len(tokens)], tokens)


# -- feature sets: what of the features a head reads; wording shows in the shallow layers, meaning in the deep ones


def _layers(layers, log_length, _counts):
    """The means of all layers but the shallowest."""
    return [*(layers[1:] or layers), log_length]


def _words(layers, log_length, _counts):
    """The sum of the shallowest layer: nearly a bag of words, for a sum counts what a mean gives the share of."""
    return [layers[0] * log_length.exp() / TYPICAL_LENGTH, log_length]


def _meaning(layers, log_length, _counts):
    """The means of the deep half."""
    return [*layers[(len(layers) + 1) // 2 :], log_length]


def _length(layers, log_length, _counts):
    """Nothing but the length: a control, never chosen by itself."""
    return [log_length]


def _style(_layers, log_length, counts):
    """The counts of common tokens."""
    return [counts, log_length]


FEATURE_SETS = {"layers": _layers, "words": _words, "meaning": _meaning, "style": _style, "length": _length}
ON_ONE_SCALE = {"style"}  # feature sets whose features can be compared as they are: one that hardly varies says little


def feature_set_names(parts, setting="auto"):
    """Names of the feature sets to choose among: those that differ on features of these parts, or the one that the
    setting names.
    """
    if setting != "auto":
        return [setting]
    return ["layers", "words", "style"] + ["meaning"] * (len(parts) > 4)


def feature_blocks(features, parts, name):
    """What a head reads of features (N, D), counts included: blocks (N, d_i) whose widths sum to d."""
    *layers, log_length, counts = features.split(list(parts), -1)
    return FEATURE_SETS[name](layers, log_length, counts)


# -- the head


@dataclass
class RewardModel:
    """A fitted linear head on one feature set, with the Gaussian (Laplace) posterior of its weights. Its features
    (N, D) are those that `features` gives.

    x = (feature set − centre)/scale (N, d); raw score = x·w; its variance under the posterior is |x·basis·factor|² +
    |x off the basis|²/penalty: inverse curvature of the likelihood where votes speak, the prior elsewhere.
    reward = (raw − pessimism·deviation − shift)/spread, of mean 0 and deviation 1 on the reference's replies.
    """

    feature_set: str
    parts: list  # widths of the features' parts, sum D; the last one is of the counts
    tokens: list  # that are counted
    centre: torch.Tensor  # (d,)
    scale: torch.Tensor  # (d,)
    weight: torch.Tensor  # (d,)
    basis: torch.Tensor  # (d, r), orthonormal
    factor: torch.Tensor  # (r, r)
    influence: (
        torch.Tensor
    )  # (r, votes): how far each vote moved the weights; its square is what a bootstrap over votes would find
    penalty: float = 1.0
    log_nu: float = -1.0
    threshold: float = 0.0
    pessimism: float = 0.0
    shift: float = 0.0
    spread: float = 1.0
    lora: dict = field(default_factory=dict)

    def features(self, trunk, replies):
        """(N, D) of replies [(prompt ids, completion ids)]."""
        return with_counts(trunk.features(replies), replies, self.tokens)

    def design(self, features):
        """(N, D) -> x (N, d)."""
        return (torch.cat(feature_blocks(features, self.parts, self.feature_set), -1) - self.centre) / self.scale

    def raw(self, features):
        """Scores (N,) in the units of the likelihood."""
        return self.design(features) @ self.weight

    def deviation(self, features):
        """Posterior deviation (N,) of the raw scores."""
        x = self.design(features)
        z = x @ self.basis
        outside = (x.square().sum(-1) - z.square().sum(-1)).clamp(min=0)
        return ((z @ self.factor).square().sum(-1) + outside / self.penalty).sqrt()

    def draws(self, features, n, seed):
        """Raw scores (n, N) under n heads as other votes from the same people would have given; the same heads for the
        same seed.
        """
        noise = torch.randn(self.influence.shape[1], n, generator=torch.Generator().manual_seed(seed))
        heads = self.weight[:, None] + self.basis @ (self.influence @ noise)  # (d, n)
        return (self.design(features) @ heads).T

    def reward(self, features):
        """Standardised, pessimistic scores (N,)."""
        return (self._pessimistic(features) - self.shift) / self.spread

    def _pessimistic(self, features):
        return self.raw(features) - self.pessimism * self.deviation(features)

    def standardise(self, reference_features):
        """Set shift and spread from replies of the reference policy; after every fit, or β changes its meaning."""
        scores = self._pessimistic(reference_features)
        self.shift, self.spread = scores.mean().item(), max(scores.std().item(), 1e-6)

    def save(self, path):
        numbers = {"view": self.feature_set} | {
            k: getattr(self, k)
            for k in ("parts", "tokens", "penalty", "log_nu", "threshold", "pessimism", "shift", "spread")
        }
        tensors = {k: getattr(self, k) for k in ("centre", "scale", "weight", "basis", "factor", "influence")} | {
            f"lora/{k}": v for k, v in self.lora.items()
        }
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
            path,
            metadata={"numbers": json.dumps(numbers)},
        )

    @classmethod
    def load(cls, path):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            numbers = json.loads(file.metadata()["numbers"])
        numbers["feature_set"] = numbers.pop("view")
        lora = {k.removeprefix("lora/"): tensors.pop(k) for k in list(tensors) if k.startswith("lora/")}
        return cls(**tensors, **numbers, lora=lora)
