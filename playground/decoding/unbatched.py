"""Forwards for models that `transformers_forward.py` cannot batch: each reply is run by itself.

`OwnCacheForward` uses whatever cache the model has (states of Mamba, convolutions). `RereadForward` uses none. Both are
slower than a batch, and give the model's own logits.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from playground.decoding.forward import NOTHING_CACHED, CachedPrefix, TokenIds
from playground.models import structure

WHOLE_PROMPT = 1 << 30  # a prefill chunk that no prompt exceeds: a state can only begin at a prompt's first token


class PerReplyCache:
    """One prompt and the `n` replies to it, each with a cache of its own. A later turn cannot begin with any of it."""

    nbytes = 0  # that a later turn could begin with

    def __init__(self, n: int) -> None:
        self.prompt: TokenIds = []
        self.reply_tokens: list[TokenIds] = [[] for _ in range(n)]
        self.active = list(range(n))
        # objects of the model's own cache class
        self.prompt_cache: Any = None  # after the prompt
        self.reply_caches: dict[int, Any] = {}  # of each reply that has begun

    def drop(self, reply: int) -> None:
        self.active.remove(reply)
        self.reply_caches.pop(reply, None)

    def longest_prefix(self, _ids: TokenIds) -> CachedPrefix:
        return NOTHING_CACHED

    def copy_prefix(self, other: "PerReplyCache", prefix: CachedPrefix, ids: TokenIds) -> None:
        """Never called, since `longest_prefix` finds nothing."""
        raise AssertionError("there is no prefix to copy")


@dataclass(frozen=True)
class _CacheSize:
    """Bytes of one reply's cache."""

    fixed: float  # at any length
    per_token: float


class OwnCacheForward:
    """One version of a model with a cache of any kind. Fulfils `forward.Forward`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.prefill_chunk = WHOLE_PROMPT
        self.device = next(model.parameters()).device
        self._cache_name = "past_key_values" if structure.takes(model, "past_key_values") else "cache_params"
        self._size: _CacheSize | None = None

    def for_model(self, model: PreTrainedModel) -> "OwnCacheForward":
        other = OwnCacheForward(model)
        other._size = self._size
        return other

    def cache_bytes(self, n: int, prompt_tokens: int, new_tokens: int) -> int:
        if self._size is None:
            self._size = self._measure_cache()
        one = self._size.fixed + self._size.per_token * (prompt_tokens + new_tokens)
        return int((n + 1) * one)  # one more is kept for the prompt

    def _measure_cache(self) -> _CacheSize:
        _, cache_of_8 = self._forward([1] * 8, 0, None)
        _, cache_of_16 = self._forward([1] * 16, 0, None)
        short = _nbytes(cache_of_8)
        long = _nbytes(cache_of_16)
        per_token = max(0, long - short) / 8
        return _CacheSize(short - 8 * per_token, per_token)

    def new_cache(self, n: int, _prompt_tokens: int, _new_tokens: int) -> PerReplyCache:
        return PerReplyCache(n)

    def finish(self, cache: PerReplyCache) -> None:
        cache.prompt_cache = None

    def prefill(self, cache: PerReplyCache, ids: TokenIds) -> torch.Tensor:
        """`ids` is the whole prompt."""
        logits, cache.prompt_cache = self._forward(ids, 0, None)
        cache.prompt += ids
        return logits

    def decode(self, caches: list[PerReplyCache], tokens: TokenIds) -> torch.Tensor:
        rows = []
        given = iter(tokens)
        for cache in caches:
            for reply in cache.active:
                own = cache.reply_caches.get(reply) or copy.deepcopy(cache.prompt_cache)
                token = next(given)
                position = len(cache.prompt) + len(cache.reply_tokens[reply])
                logits, cache.reply_caches[reply] = self._forward([token], position, own)
                cache.reply_tokens[reply].append(token)
                rows.append(logits)
        return torch.stack(rows)

    @torch.inference_mode()
    def _forward(self, ids: TokenIds, position: int, cache: Any) -> tuple[torch.Tensor, Any]:
        """The logits (vocabulary,) after the last of `ids`, which begin at `position`, and the cache that goes on from
        there.
        """
        positions = torch.arange(position, position + len(ids), device=self.device)[None]
        options: dict[str, Any] = structure.inputs(self.model, position_ids=positions)
        if cache is not None:
            options[self._cache_name] = cache
        out = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=True, **options)
        return out.logits[0, -1].float(), out[self._cache_name]


class RereadForward:
    """One version of a model that no cache serves: every token reads the whole text again. Fulfils
    `forward.Forward`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.prefill_chunk = WHOLE_PROMPT
        self.device = next(model.parameters()).device

    def for_model(self, model: PreTrainedModel) -> "RereadForward":
        return RereadForward(model)

    def cache_bytes(self, _n: int, _prompt_tokens: int, _new_tokens: int) -> int:
        return 0

    def new_cache(self, n: int, _prompt_tokens: int, _new_tokens: int) -> PerReplyCache:
        return PerReplyCache(n)

    def finish(self, cache: PerReplyCache) -> None:
        """Nothing has to be done: there is no cache."""

    def prefill(self, cache: PerReplyCache, ids: TokenIds) -> torch.Tensor:
        """`ids` is the whole prompt."""
        cache.prompt += ids
        return self._logits_after(cache.prompt)

    def decode(self, caches: list[PerReplyCache], tokens: TokenIds) -> torch.Tensor:
        rows = []
        given = iter(tokens)
        for cache in caches:
            for reply in cache.active:
                cache.reply_tokens[reply].append(next(given))
                rows.append(self._logits_after(cache.prompt + cache.reply_tokens[reply]))
        return torch.stack(rows)

    @torch.inference_mode()
    def _logits_after(self, ids: TokenIds) -> torch.Tensor:
        out = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=False)
        return out.logits[0, -1].float()


def _nbytes(cache: object) -> int:
    """Bytes of all tensors in a cache, however it keeps them."""
    total = 0
    left: list[Any] = [cache]
    seen: set[int] = set()
    while left:
        item = left.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            total += item.nbytes
        elif isinstance(item, dict):
            left += item.values()
        elif isinstance(item, (list, tuple)):
            left += item
        elif hasattr(item, "__dict__"):
            left += vars(item).values()
    return total
