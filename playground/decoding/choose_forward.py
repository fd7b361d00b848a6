"""Which of the transformers forwards serves a model: the fastest one whose logits are the model's own.

The fused and the graph forward are not among them; `tuning.py` chooses these where they fit.
"""

import logging
import random
from collections.abc import Callable, Sequence
from math import isnan
from statistics import fmean
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from playground.decoding.forward import AnyForward, TokenIds
from playground.decoding.transformers_forward import TransformersForward
from playground.decoding.unbatched import OwnCacheForward, RereadForward
from playground.models import structure
from playground.system.safe_logging import Loggable

log = logging.getLogger(__name__)

# lengths of the prompts of the probe, two replies to each; one apart, so that many of its texts have the same length
PROBE_PROMPTS = (24, 23)
PROBE_STEPS = 2
MAX_KL = 1e-3  # nats between what the forward and the model say, in fp32
MAX_KL_16_BIT = 0.1

MakeForward: TypeAlias = Callable[[PreTrainedModel], AnyForward]

_chosen: WeakKeyDictionary[PreTrainedModel, MakeForward] = WeakKeyDictionary()


def transformers_forward_of(model: PreTrainedModel) -> AnyForward:
    """The forward of `model`: the first of TransformersForward, OwnCacheForward and RereadForward that says what the
    model says without any cache. Tried once for each model.
    """
    if model not in _chosen:
        _chosen[model] = _first_faithful(model)
    return _chosen[model](model)


def _first_faithful(model: PreTrainedModel) -> MakeForward:
    name = Loggable(type(model).__name__)
    most = most_divergence(model.dtype)
    if divergence(TransformersForward(model)) <= most:
        return TransformersForward
    if divergence(OwnCacheForward(model)) <= most:
        log.warning("%s has a cache of its own kind: replies are decoded one by one, which is slower", name)
        return OwnCacheForward
    log.warning("no cache serves %s: each token of a reply reads the whole text again, which is slow", name)
    return RereadForward


def most_divergence(dtype: torch.dtype) -> float:
    """How far, in nats, a forward that computes in `dtype` may be from the model."""
    return MAX_KL if dtype == torch.float32 else MAX_KL_16_BIT


def divergence(forward: AnyForward) -> float:
    """Mean KL, in nats, of what the model says without a cache to what `forward` says, over a few steps of two prompts
    with two replies each. Infinite where it cannot run the model.
    """
    # Tokens of the whole vocabulary: after those that mark turns, often the first ones, rounding can make half a nat.
    source = random.Random(0)
    vocabulary = len(structure.input_embeddings(forward.model).weight)

    def tokens(n: int) -> TokenIds:
        return [source.randrange(vocabulary) for _ in range(n)]

    try:
        logits_after: list[tuple[TokenIds, torch.Tensor]] = []
        caches = []
        for prompt in map(tokens, PROBE_PROMPTS):
            cache = forward.new_cache(2, len(prompt), PROBE_STEPS + 1)
            logits_after.append((prompt, forward.prefill(cache, list(prompt))))
            caches.append(cache)
        for _ in range(PROBE_STEPS):
            logits = forward.decode(caches, tokens(2 * len(caches)))
            texts = [cache.prompt + reply for cache in caches for reply in cache.reply_tokens]
            logits_after += zip(texts, logits, strict=True)
        truths = _next_tokens(forward.model, [text for text, _ in logits_after])
        return fmean(kl(truth, logits) for truth, (_, logits) in zip(truths, logits_after, strict=True))
    except Exception:  # a model of any kind may raise anything on a cache that it does not know
        log.debug("%s does not run %s", type(forward).__name__, type(forward.model).__name__, exc_info=True)
        return float("inf")


@torch.inference_mode()
def _next_tokens(model: PreTrainedModel, texts: Sequence[TokenIds]) -> list[torch.Tensor]:
    """What the model says after each text: log-probabilities (vocabulary,). Texts of one length are read together."""
    of_length: dict[int, list[int]] = {}  # places of the texts
    for place, text in enumerate(texts):
        of_length.setdefault(len(text), []).append(place)
    device = next(model.parameters()).device
    said: dict[int, torch.Tensor] = {}
    for places in of_length.values():
        inputs = torch.tensor([texts[place] for place in places], device=device)
        logits = model(input_ids=inputs, use_cache=False).logits[:, -1].float()
        said |= zip(places, torch.log_softmax(logits, -1), strict=True)
    return [said[place] for place in range(len(texts))]


def kl(truth: torch.Tensor, logits: torch.Tensor) -> float:
    """KL of log-probabilities to logits, (vocabulary,) each, in nats: not below 0, where rounding may leave it, and
    infinite where either is NaN.
    """
    nats = (truth.exp() * (truth - torch.log_softmax(logits, -1))).sum().item()
    return float("inf") if isnan(nats) else max(0.0, nats)
