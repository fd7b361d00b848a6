"""The fused forward's key/value cache: one prompt, kept once, and the replies to it, each of which sees only its own
tokens.
"""

import math
import mmap
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from playground.decoding.forward import CachedPrefix, TokenIds, common_length


class AttentionShape(NamedTuple):
    """Sizes of a model's attention (grouped-query attention, Ainslie et al. 2023)."""

    layers: int
    kv_heads: int
    group: int  # query heads that share one key/value head
    head_dim: int
    # of each layer, the last tokens, its own among them, that a token sees, or None; empty where no layer has a window
    windows: tuple[int | None, ...] = ()

    def window(self, layer: int) -> int | None:
        """How many tokens a token of this layer sees; None where it sees all before it."""
        return self.windows[layer] if self.windows else None


class CacheState(NamedTuple):
    """How far a cache has grown; `SharedPromptCache.roll_back` returns to it."""

    columns: int
    steps: int


def mapped(*size: int) -> torch.Tensor:
    """An fp32 tensor in pages of its own, which go back to the system when it ends. In the heap, the gaps between the
    caches of a crowd stayed. Only pages that are written take memory, so a reply that ends early leaves its rest free.
    """
    pages = mmap.mmap(-1, math.prod(size) * torch.float32.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.float32).view(size)


class SharedPromptCache:
    """Keys and values (layers, 2, kv heads, capacity, head dim) of one prompt and of the `n` replies to it.

    The third-last axis has one column for each token. The prompt's columns come first and are there once. After them
    each step adds one column for each active reply, which only that reply sees.
    """

    def __init__(self, shape: AttentionShape, n: int, prompt_tokens: int, new_tokens: int) -> None:
        capacity = prompt_tokens + n * new_tokens
        self.shape = shape
        self.kv = mapped(shape.layers, 2, shape.kv_heads, capacity, shape.head_dim)
        self.mask = torch.full((n, shape.group, capacity), -torch.inf)
        self.mask[..., :prompt_tokens] = 0
        self.prompt: TokenIds = []
        self.reply_tokens: list[TokenIds] = [[] for _ in range(n)]
        self.reply_columns: list[list[int]] = [[] for _ in range(n)]  # of these tokens
        # the columns of each reply, in the order of its tokens: the prompt's, then its own
        self.columns_seen = np.tile(np.arange(prompt_tokens + new_tokens, dtype=np.int32), (n, 1))
        self.active = list(range(n))
        self.columns = prompt_tokens  # in use
        self.steps = 0
        self.step_masks: dict[int | None, torch.Tensor] = {}  # (rows·group, columns) of the running step, by window

    @property
    def nbytes(self) -> int:
        return self.kv.nbytes

    @property
    def state(self) -> CacheState:
        return CacheState(self.columns, self.steps)

    def drop(self, reply: int) -> None:
        self.active.remove(reply)

    def add_columns(self, tokens: TokenIds) -> int:
        """Make a column for the next token of each active reply; returns the position of these tokens."""
        for place, (reply, token) in enumerate(zip(self.active, tokens, strict=True)):
            column = self.columns + place
            self.mask[reply, :, column] = 0
            self.columns_seen[reply, len(self.prompt) + len(self.reply_columns[reply])] = column
            self.reply_tokens[reply].append(token)
            self.reply_columns[reply].append(column)
        self.columns += len(tokens)
        self.steps += 1
        all_grow = len(self.active) == len(self.mask)
        mask = self.mask if all_grow else self.mask[self.active]
        self.step_masks = {None: mask[..., : self.columns].flatten(0, 1)}
        return len(self.prompt) + self.steps - 1

    def _step_mask(self, window: int | None) -> torch.Tensor:
        """What is added to the scores of the running step, (rows·group, columns)."""
        if window not in self.step_masks:
            outside = len(self.prompt) + self.steps - (window or 0)  # tokens before the window
            mask = self.step_masks[None].clone()
            if outside > 0:
                rows = mask.view(len(self.active), -1, self.columns)
                for row, reply in zip(rows, self.active, strict=True):
                    row[:, self.columns_seen[reply, :outside].tolist()] = -torch.inf
            self.step_masks[window] = mask
        return self.step_masks[window]

    def roll_back(self, state: CacheState) -> None:
        """Undo an `add_columns` whose forward failed. Keys and values that the forward wrote after the old columns are
        overwritten by the next step.
        """
        self.mask[..., state.columns :] = -torch.inf
        for tokens, columns in zip(self.reply_tokens, self.reply_columns, strict=True):
            while columns and columns[-1] >= state.columns:
                tokens.pop()
                columns.pop()
        self.columns, self.steps = state

    def attend(self, layer: int, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """Attention of one token of each active reply: q (rows, heads·group, head dim), kv (rows, 2·heads, head dim)
        -> (rows, heads·group·head dim). The heads are the key/value heads.
        """
        rows, heads, head_dim = len(q), kv.shape[1] // 2, q.shape[-1]
        new_kv = kv.view(rows, 2, heads, head_dim).permute(1, 2, 0, 3)  # (2, heads, rows, head dim)
        self.kv[layer, :, :, self.columns - rows : self.columns] = new_kv
        keys, values = self.kv[layer, :, :, : self.columns]  # (heads, columns, head dim)
        q = q.reshape(rows, heads, -1, head_dim).transpose(0, 1).flatten(1, 2)  # (heads, rows·group, head dim)
        mask = self._step_mask(self.shape.window(layer))
        scores = torch.baddbmm(mask, q, keys.transpose(1, 2), alpha=head_dim**-0.5)
        return (scores.softmax(-1) @ values).view(heads, rows, -1, head_dim).transpose(0, 1).flatten(1)

    def attend_prompt(self, layer: int, q: torch.Tensor, kv: torch.Tensor, start: int) -> torch.Tensor:
        """Causal attention of the prompt's tokens from position `start` on; shapes as in `attend`, a row a token."""
        end = start + len(q)
        _, heads, head_dim = kv.shape
        new_kv = kv.view(len(q), 2, heads // 2, head_dim).permute(1, 2, 0, 3)
        self.kv[layer, :, :, start:end] = new_kv
        keys, values = self.kv[layer, :, None, :, :end]
        causal = torch.ones(len(q), end, dtype=torch.bool).tril(start)
        window = self.shape.window(layer)
        if window is not None:
            causal = causal.triu(start + 1 - window)
        query = q.transpose(0, 1)[None]
        out = scaled_dot_product_attention(query, keys, values, attn_mask=causal, enable_gqa=True)
        return out[0].transpose(0, 1).flatten(1)

    def longest_prefix(self, ids: TokenIds) -> CachedPrefix:
        in_prompt = common_length(self.prompt, ids)
        if in_prompt < len(self.prompt):
            return CachedPrefix(None, in_prompt)
        rest = ids[in_prompt:]
        in_replies = [common_length(tokens, rest) for tokens in self.reply_tokens]
        best = max(range(len(in_replies)), key=in_replies.__getitem__)
        return CachedPrefix(best, in_prompt + in_replies[best])

    def copy_prefix(self, other: "SharedPromptCache", prefix: CachedPrefix, ids: TokenIds) -> None:
        in_prompt = min(prefix.tokens, len(other.prompt))
        in_reply = other.reply_columns[prefix.reply or 0][: prefix.tokens - in_prompt]
        columns = [*range(in_prompt), *in_reply]
        self.kv[..., : prefix.tokens, :] = other.kv[..., columns, :]
        self.prompt = list(ids[: prefix.tokens])
