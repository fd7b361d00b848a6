"""Canaries: plain requests that every new version reads before it answers anybody. What they show is compared with the
base.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedTokenizerBase

from playground.decoding.forward import AnyForward
from playground.models import adapter_reading, prompts
from playground.models.loading import EndTokens

CANARIES = 3  # plain requests that every new version reads, while people wait for it
MAX_CANARY_KL = 5.0  # nats, mean over the canaries' next-token distributions
INSTANT_END = 0.5  # probability of an end token at the very beginning, above which a reply counts as ended at once


@dataclass(frozen=True)
class Canary:
    """A plain request, and what the base says after it."""

    ids: list[int]
    logprobs: torch.Tensor  # (vocabulary,) of the next token


class Canaries:
    """The plain requests that fit into `context_tokens`, as the base (whose `forward` it is) goes on after them. The
    base reads them when the first version is checked: a start with nothing compiled is long enough.
    """

    def __init__(self, forward: AnyForward, tokenizer: PreTrainedTokenizerBase, context_tokens: int) -> None:
        self._base = forward
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens

    @cached_property
    def _canaries(self) -> list[Canary]:
        requests = [canary.request for canary in prompts.canaries()[:CANARIES]]
        encoded = prompts.encode_those_that_fit(requests, self._tokenizer, self._context_tokens)
        return [Canary(ids, _next_token_logprobs(self._base, ids)) for ids in encoded]

    def check(self, version: int, forward: AnyForward, end_tokens: EndTokens) -> None:
        """BadAdapter unless a version gives finite logits, is near the base, and does not end its reply at once on
        every plain request.
        """
        divergences = []
        instant_ends = 0
        end_ids = [token for token in end_tokens if isinstance(token, int)]
        for canary in self._canaries:
            logprobs = _next_token_logprobs(forward, canary.ids)
            if not torch.isfinite(logprobs).all():
                raise adapter_reading.BadAdapter(f"v{version} gives logits that are not finite")
            divergences.append((logprobs.exp() * (logprobs - canary.logprobs)).sum().item())
            instant_ends += sum(logprobs[token].exp().item() for token in end_ids) > INSTANT_END
        if instant_ends == len(self._canaries):
            raise adapter_reading.BadAdapter(f"v{version} ends its reply at once on every plain request")
        mean = sum(divergences) / len(divergences)
        if mean > MAX_CANARY_KL:
            raise adapter_reading.BadAdapter(
                f"v{version} is {mean:.1f} nats from the base on plain requests; at most {MAX_CANARY_KL} is accepted"
            )


def _next_token_logprobs(forward: AnyForward, ids: list[int]) -> torch.Tensor:
    """Log-probabilities (vocabulary,) of the token after a prompt."""
    cache = forward.new_cache(1, len(ids), 1)
    logits = forward.prefill(cache, ids)
    forward.finish(cache)
    return torch.log_softmax(logits, -1)
