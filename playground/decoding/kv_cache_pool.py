"""The memory for keys and values: what running turns hold, and caches of ended turns for prefix caching.

The next turn of a conversation begins with the keys and values of the turn before. This module knows which caches there
are and how large they are; what is in them is their forward's.
"""

from dataclasses import dataclass, field

from playground.decoding.forward import AnyForward, PromptCache, TokenIds

MIN_REUSED_TOKENS = 16  # a shorter common beginning is prefilled again


@dataclass(frozen=True)
class RetainedCache:
    """The cache of a turn that has ended, and the version that filled it."""

    forward: AnyForward
    cache: PromptCache


@dataclass
class KVCachePool:
    """Holds at most `budget` bytes for all caches. Caches of ended turns are retained as long as no running turn needs
    their room; the oldest is evicted first.
    """

    budget: int
    used: int = 0  # bytes of running turns
    retained: list[RetainedCache] = field(default_factory=list)  # the latest last

    def reserve(self, nbytes: int) -> bool:
        """Make room for a running turn; returns whether there is room. A turn larger than the budget may run alone."""
        if self.used and self.used + nbytes > self.budget:
            return False
        self.used += nbytes
        self._evict()
        return True

    def release(self, nbytes: int, forward: AnyForward, cache: PromptCache | None) -> None:
        """A turn has ended. Its cache, if given, is retained where it fits and holds a prompt and keys that a later
        turn can begin with.
        """
        self.used -= nbytes
        if cache and cache.prompt and cache.nbytes:
            self.retained.append(RetainedCache(forward, cache))
        self._evict()

    def forget(self, forward: AnyForward) -> None:
        """A version is gone: evict its caches."""
        self.retained = [entry for entry in self.retained if entry.forward is not forward]

    def reuse_prefix(self, forward: AnyForward, cache: PromptCache, prompt: TokenIds) -> int:
        """Copy the longest beginning of `prompt` that a retained cache of this version holds into `cache`; returns how
        many tokens the best one has in common. At least one token is left to prefill.
        """
        ids = prompt[:-1]
        matches = [(entry, entry.cache.longest_prefix(ids)) for entry in self.retained if entry.forward is forward]
        if not matches:
            return 0
        best, prefix = max(matches, key=lambda match: match[1].tokens)
        if prefix.tokens >= MIN_REUSED_TOKENS:
            cache.copy_prefix(best.cache, prefix, ids)
            same_conversation = prefix.tokens >= len(best.cache.prompt)
            if same_conversation:
                self.retained = [entry for entry in self.retained if entry is not best]
        return prefix.tokens

    def _evict(self) -> None:
        while self.retained and self.used + sum(entry.cache.nbytes for entry in self.retained) > self.budget:
            self.retained.pop(0)
