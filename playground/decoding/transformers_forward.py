"""Any causal language model with a key/value cache, run by transformers' own forward, LoRA and all.

`TransformersForward` runs the replies to several prompts in one left-padded batch. Models without such a cache are
`unbatched.py`'s; which forward serves a model is decided in `choose_forward.py`.
"""

from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast

import torch
from transformers import DynamicCache, PreTrainedModel

from playground.decoding.forward import NOTHING_CACHED, CachedPrefix, TokenIds, common_length

PREFILL_CHUNK = 512  # tokens

# keys and values of one layer, each (1 or n, heads, columns, head dim)
KeysValues: TypeAlias = tuple[torch.Tensor, torch.Tensor]


class BatchedPromptCache:
    """One prompt and the `n` replies to it, as rows of a batch.

    While the cache's replies are decoded, the keys and values are part of the forward's batch, and `layers` is None. A
    reply that has ended stays in the batch until the last reply of its cache has ended.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.prompt: TokenIds = []
        self.reply_tokens: list[TokenIds] = [[] for _ in range(n)]
        self.active = list(range(n))
        self.layers: list[KeysValues] | None = None  # None also before the first prefill

    @property
    def nbytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers or ())

    def drop(self, reply: int) -> None:
        self.active.remove(reply)

    def longest_prefix(self, ids: TokenIds) -> CachedPrefix:
        if not self.layers:
            return NOTHING_CACHED
        lengths = [common_length(self.prompt + tokens, ids) for tokens in self.reply_tokens]
        best = max(range(self.n), key=lengths.__getitem__)
        return CachedPrefix(best, lengths[best])

    def copy_prefix(self, other: "BatchedPromptCache", prefix: CachedPrefix, ids: TokenIds) -> None:
        assert other.layers is not None  # longest_prefix found something there
        one_row_each = len(other.layers[0][0]) > 1
        row = prefix.reply if one_row_each and prefix.reply is not None else 0
        rows = slice(row, row + 1)
        self.layers = [
            (keys[rows, :, : prefix.tokens], values[rows, :, : prefix.tokens]) for keys, values in other.layers
        ]
        self.prompt = list(ids[: prefix.tokens])


class _KeyValueLayer(Protocol):
    """A layer of a `DynamicCache` that has been filled."""

    keys: torch.Tensor
    values: torch.Tensor


@dataclass
class _Batch:
    """The caches that are decoded together: rows of all their replies, left-padded to one length."""

    caches: list[BatchedPromptCache]
    key_values: DynamicCache
    mask: torch.Tensor  # (rows, columns), 0 where padded


class TransformersForward:
    """One version of a model, as transformers runs it. Fulfils `forward.Forward`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.prefill_chunk = PREFILL_CHUNK
        self.device = next(model.parameters()).device
        self._batch: _Batch | None = None

    def for_model(self, model: PreTrainedModel) -> "TransformersForward":
        return TransformersForward(model)

    def cache_bytes(self, n: int, prompt_tokens: int, new_tokens: int) -> int:
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        bytes_per_token = 2 * config.num_hidden_layers * heads * head_dim * self.model.dtype.itemsize
        return bytes_per_token * n * (prompt_tokens + new_tokens)

    def new_cache(self, n: int, _prompt_tokens: int, _new_tokens: int) -> BatchedPromptCache:
        return BatchedPromptCache(n)

    def finish(self, cache: BatchedPromptCache) -> None:
        """Give the cache its keys and values back, so that a later turn can begin with them."""
        if self._batch and cache in self._batch.caches:
            self._split_batch()

    @torch.inference_mode()
    def prefill(self, cache: BatchedPromptCache, ids: TokenIds) -> torch.Tensor:
        key_values = _dynamic_cache(cache.layers)
        start = len(cache.prompt)
        out = self.model(
            input_ids=torch.tensor([ids], device=self.device),
            position_ids=torch.arange(start, start + len(ids), device=self.device)[None],
            past_key_values=key_values,
            use_cache=True,
            logits_to_keep=1,
        )
        cache.layers = _layers(key_values)
        cache.prompt += ids
        return out.logits[0, -1].float()

    @torch.inference_mode()
    def decode(self, caches: list[BatchedPromptCache], tokens: TokenIds) -> torch.Tensor:
        batch = self._batch
        if batch is None or caches != batch.caches:
            batch = self._form_batch(caches)
        mask = batch.mask
        ids = torch.zeros(len(mask), 1, dtype=torch.long)  # a reply that has ended gets token 0
        rows = []  # of the active replies
        extended = []  # lists of tokens that this step has appended to
        given = iter(tokens)
        first_row = 0
        try:
            for cache in caches:
                for reply in cache.active:
                    row = first_row + reply
                    token = next(given)
                    ids[row] = token
                    cache.reply_tokens[reply].append(token)
                    extended.append(cache.reply_tokens[reply])
                    rows.append(row)
                first_row += cache.n
            ids = ids.to(self.device)
            batch.mask = torch.cat([mask, torch.ones_like(ids)], 1)
            out = self.model(
                input_ids=ids,
                attention_mask=batch.mask,
                position_ids=batch.mask.sum(-1, keepdim=True) - 1,
                past_key_values=batch.key_values,
                use_cache=True,
            )
            return out.logits[rows, -1].float()
        except Exception:
            for reply_tokens in extended:
                reply_tokens.pop()
            batch.mask = mask
            columns = mask.shape[1]
            for layer in _key_value_layers(batch.key_values):  # some have taken the token in and some have not
                layer.keys = layer.keys[:, :, :columns]
                layer.values = layer.values[:, :, :columns]
            raise

    def _form_batch(self, caches: list[BatchedPromptCache]) -> _Batch:
        """Split the batch that there is and make one of `caches`. They keep their own keys and values until it is
        made.
        """
        self._split_batch()
        all_layers = [cache.layers for cache in caches if cache.layers is not None]
        lengths = [layers[0][0].shape[2] for layers in all_layers]
        longest = max(lengths)
        mask = [
            torch.tensor([[0] * (longest - length) + [1] * length] * cache.n)
            for cache, length in zip(caches, lengths, strict=True)
        ]
        merged = []
        for layer in zip(*all_layers, strict=True):  # that layer's (keys, values) of each cache
            rows = [cache.n for cache in caches]
            keys = torch.cat([_padded(keys, longest, n) for (keys, _), n in zip(layer, rows, strict=True)])
            values = torch.cat([_padded(values, longest, n) for (_, values), n in zip(layer, rows, strict=True)])
            merged.append((keys, values))
        self._batch = _Batch(list(caches), _dynamic_cache(merged), torch.cat(mask).to(self.device))
        for cache in caches:
            cache.layers = None
        return self._batch

    def _split_batch(self) -> None:
        """Give each cache of the batch its own keys and values back, without padding."""
        if self._batch is None:
            return
        layers = _layers(self._batch.key_values)
        start = 0
        for cache in self._batch.caches:
            rows = slice(start, start + cache.n)
            length = int(self._batch.mask[start].sum())
            cache.layers = [
                (keys[rows, :, -length:].clone(), values[rows, :, -length:].clone()) for keys, values in layers
            ]
            start += cache.n
        self._batch = None


def _padded(part: torch.Tensor, columns: int, n: int) -> torch.Tensor:
    """Keys or values (1 or n, heads, fewer columns, head dim) -> (n, heads, columns, head dim), with zeros before
    them.
    """
    part = torch.nn.functional.pad(part, (0, 0, columns - part.shape[2], 0))
    return part if len(part) == n else part.repeat(n, 1, 1, 1)


def _dynamic_cache(layers: list[KeysValues] | None) -> DynamicCache:
    cache = DynamicCache()
    for place, (keys, values) in enumerate(layers or ()):
        cache.update(keys, values, place)
    return cache


def _layers(cache: DynamicCache) -> list[KeysValues]:
    return [(layer.keys, layer.values) for layer in _key_value_layers(cache)]


def _key_value_layers(cache: DynamicCache) -> list[_KeyValueLayer]:
    return cast("list[_KeyValueLayer]", cache.layers)  # a model with layers of another kind is not run by this forward
