"""The graph forward's key/value cache: one prompt, and the replies to it, which live in slots of a `DecodeBatch` while
they are decoded and are copied out of them when they have ended.
"""

import torch

from playground.decoding.forward import CachedPrefix, TokenIds, common_length
from playground.decoding.prompt_cache import AttentionShape
from playground.decoding.sampling import Sampling


class SlotCache:
    """Keys and values (layers, 2, kv heads, tokens, head dim) of one prompt, and of each of the `n` replies once all
    have ended.
    """

    def __init__(self, shape: AttentionShape, n: int, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        size = (shape.layers, 2, shape.kv_heads, tokens, shape.head_dim)
        self.kv = torch.empty(size, dtype=dtype, device=device)
        self.reply_kv: list[torch.Tensor] = []
        self.prompt: TokenIds = []
        self.reply_tokens: list[TokenIds] = [[] for _ in range(n)]
        self.active = list(range(n))
        self.n = n
        # while the replies are decoded
        self.slots: list[int] = []  # of the batch; two replies share one
        self.shared = 0  # columns of the prompt that both replies of a slot see
        self.steps = 0  # taken since the slots were filled
        self.sampling: Sampling | None = None  # None where the caller draws the tokens
        self.uniforms: torch.Tensor | None = None  # (n, max tokens) random numbers in [0, 1); None where greedy

    @property
    def nbytes(self) -> int:
        return self.kv.nbytes + sum(kv.nbytes for kv in self.reply_kv)

    def drop(self, reply: int) -> None:
        self.active.remove(reply)

    def row(self, reply: int) -> int:
        """The row of the batch that a reply is decoded in."""
        return 2 * self.slots[reply // 2] + reply % 2

    def columns(self, reply: int) -> slice:
        """The columns of its slot where the tokens of `reply_tokens` are."""
        first = 2 * len(self.prompt) - self.shared + reply % 2  # shared + two for each of the prompt's tokens after it
        return slice(first, first + 2 * len(self.reply_tokens[reply]), 2)

    def longest_prefix(self, ids: TokenIds) -> CachedPrefix:
        in_prompt = common_length(self.prompt, ids)
        if in_prompt < len(self.prompt) or not self.reply_kv:
            return CachedPrefix(None, in_prompt)
        rest = ids[in_prompt:]
        in_replies = [common_length(tokens, rest) for tokens in self.reply_tokens]
        best = max(range(self.n), key=in_replies.__getitem__)
        return CachedPrefix(best, in_prompt + in_replies[best])

    def copy_prefix(self, other: "SlotCache", prefix: CachedPrefix, ids: TokenIds) -> None:
        in_prompt = min(prefix.tokens, len(other.prompt))
        self.kv[..., :in_prompt, :] = other.kv[..., :in_prompt, :]
        if prefix.tokens > in_prompt and prefix.reply is not None:
            reply_kv = other.reply_kv[prefix.reply]
            self.kv[..., in_prompt : prefix.tokens, :] = reply_kv[..., : prefix.tokens - in_prompt, :]
        self.prompt = list(ids[: prefix.tokens])
