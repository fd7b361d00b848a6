"""What the decoder asks of a model: the protocols of a forward and of its key/value cache.

A `Forward` runs one version of a model. It prefills a prompt into a `PromptCache` and then decodes one token a step for
each reply. Five classes fulfil it: `FusedForward` (`fused.py`; the Llama family on a CPU), `GraphForward`
(`graph_forward.py`; the same family on a GPU), `TransformersForward` (`transformers_forward.py`; any model with a
key/value cache), `OwnCacheForward` and `RereadForward` (`unbatched.py`; all other models). `GraphForward` also draws
the tokens: it is a `DrawingForward`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from transformers import PreTrainedModel

from playground.decoding.sampling import Sampling

TokenIds: TypeAlias = list[int]


class CachedPrefix(NamedTuple):
    """The beginning of a token sequence whose keys and values a cache holds."""

    reply: int | None  # the reply that the beginning reaches into; None where it ends within the prompt
    tokens: int  # length of the beginning


NOTHING_CACHED = CachedPrefix(None, 0)


class PromptCache(Protocol):
    """Keys and values of one prompt and of the `n` replies to it.

    A cache belongs to the forward that made it and is given to no other. The replies are numbered from 0.
    """

    prompt: TokenIds  # tokens of the prompt that have been prefilled
    reply_tokens: list[TokenIds]  # of each reply: its tokens that a step has taken in
    active: list[int]  # replies that still grow, in order

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values that a later turn could begin with."""

    def drop(self, reply: int) -> None:
        """A reply has ended and takes no more steps."""

    def longest_prefix(self, ids: TokenIds) -> CachedPrefix:
        """The longest beginning of `ids` that is here: in the prompt, or in the prompt and a part of a reply."""

    def copy_prefix(self, other: Any, prefix: CachedPrefix, ids: TokenIds) -> None:
        """Fill this empty cache with the keys and values of `ids[:prefix.tokens]`, where `prefix` is what
        `other.longest_prefix(ids)` returned. `other` is a cache of the same class.
        """


CacheT = TypeVar("CacheT")


class Forward(Protocol[CacheT]):
    """One version of a model, ready to decode. `CacheT` is the class of its caches, a `PromptCache`.

    A row (one reply in a batch) gives the same logits whatever else is in the batch.
    """

    prefill_chunk: int  # most tokens of a prompt that one `prefill` takes in
    model: PreTrainedModel

    def for_model(self, model: PreTrainedModel) -> "Forward[CacheT]":
        """The same kind of forward for another version of the same base."""

    def cache_bytes(self, n: int, prompt_tokens: int, new_tokens: int) -> int:
        """Bytes of the cache that `new_cache` makes of these arguments, once it is full."""

    def new_cache(self, n: int, prompt_tokens: int, new_tokens: int) -> CacheT:
        """An empty cache with room for a prompt and `n` replies of `new_tokens` each."""

    def prefill(self, cache: CacheT, ids: TokenIds) -> torch.Tensor:
        """Take in the next tokens of the prompt; returns the logits (vocabulary,) after the last one."""

    def decode(self, caches: list[CacheT], tokens: TokenIds) -> torch.Tensor:
        """Take in the next token of every active reply, cache by cache; returns logits (replies, vocabulary).

        Where the batched forwards raise, the caches are as they were before, so that a part of the batch can be tried
        again. Those of `unbatched.py` do not undo the replies that came before the one that failed.
        """

    def finish(self, cache: CacheT) -> None:
        """All replies of the cache have ended."""


class DrawnToken(NamedTuple):
    """A token that a forward has drawn."""

    cache: Any  # the PromptCache
    reply: int
    token: int
    logprob: float  # that it was drawn with; not finite where the logits were not


@runtime_checkable
class DrawingForward(Protocol):
    """What a `Forward` has beside its other methods where it draws the tokens itself, on the device, one step ahead of
    the host.
    """

    prefill_tokens: int  # most tokens of all prompts that one `prefill_together` takes in

    def prepare(self, sampling: Sampling) -> None:
        """Make what the first steps of a reply that is drawn so would otherwise wait for."""

    def unload(self) -> None:
        """Give the memory beside the weights back. No reply is being decoded."""

    def prefill_together(self, caches: Sequence[Any], parts: Sequence[TokenIds]) -> torch.Tensor:
        """`prefill` for several prompts in one pass; returns logits (prompts, vocabulary)."""

    def begin(self, cache: Any, sampling: Sampling, uniforms: torch.Tensor | None) -> None:
        """The prompt is read; its replies take part in each `advance` from now on. `uniforms` (replies, max tokens) has
        the random numbers in [0, 1) that their tokens are drawn with; None where greedy.
        """

    def advance(self, caches: Sequence[Any]) -> list[DrawnToken]:
        """Begin the next step of the replies that grow, and return the tokens of the step before it. There may be none,
        of the first step and of replies that wait for room.
        """


# A forward gets only caches that its own `new_cache` made, so whoever handles several kinds need not name theirs.
AnyForward: TypeAlias = Forward[Any]


def common_length(a: TokenIds, b: TokenIds) -> int:
    """How many tokens two sequences have in common at their beginning."""
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return min(len(a), len(b))
