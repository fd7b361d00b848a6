"""Continuous batching: prompts are prefilled in parts, and each step adds a token to every reply of many turns.

The chat (several people's pairs) and training (many prompts, several replies to each) use it. A `Decoding` owns the
replies to one prompt. The forward that computes the logits is a `forward.Forward`; how a token is drawn from them is
`sampling.py`'s. A `DrawingForward` draws the tokens itself. This module knows nothing about text, conversations or
time. Batches that change between steps: Orca, Yu et al. 2022.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, TypeAlias, cast

import torch

from playground.decoding.forward import AnyForward, DrawingForward, DrawnToken, PromptCache, TokenIds
from playground.decoding.sampling import Sampling, draw
from playground.system import gpu_share

FinishReason: TypeAlias = Literal["end", "length", "stopped"]
EndToken: TypeAlias = int | tuple[int, ...]  # an id that ends a reply, or several that do so together


@dataclass(eq=False)
class Reply:
    """One candidate as it grows."""

    seed: int
    token_ids: TokenIds = field(default_factory=list)  # of the completion, with the end token
    logprobs: list[float] = field(default_factory=list)  # that each token was drawn with
    finish_reason: FinishReason | None = None  # None while it grows
    rng: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = torch.Generator().manual_seed(self.seed)


class Decoding:
    """The replies to `prompt` (token ids), one for each seed.

    The prompt is prefilled once, `forward.prefill_chunk` tokens at a time, and its keys and values are shared by all
    replies. A reply depends on its own seed, not on what else is decoded. `end_tokens` end a reply.
    """

    def __init__(
        self,
        forward: AnyForward,
        prompt: TokenIds,
        seeds: Sequence[int],
        sampling: Sampling,
        end_tokens: Collection[EndToken],
    ) -> None:
        self.forward = forward
        self.prompt = prompt
        self.sampling = sampling
        self.end_tokens = end_tokens
        self.end_runs = [list(run) for run in end_tokens if isinstance(run, tuple)]
        self.replies = [Reply(seed) for seed in seeds]
        self.cache: PromptCache = forward.new_cache(len(seeds), len(prompt), sampling.max_tokens)
        self.logits: torch.Tensor | None = None  # (vocabulary,) after the prompt, until the first tokens are drawn

    @property
    def done(self) -> bool:
        return all(reply.finish_reason for reply in self.replies)

    @property
    def prefilling(self) -> bool:
        """Whether a part of the prompt is still to be read."""
        return len(self.cache.prompt) < len(self.prompt)

    def prefill(self) -> None:
        """Read the prompt's next part. The parts do not depend on who else waits, so that the reply does not
        either.
        """
        self.logits = self.forward.prefill(self.cache, self.next_part())

    def next_part(self) -> TokenIds:
        """The tokens of the prompt that are read next."""
        start = len(self.cache.prompt)
        return self.prompt[start : start + self.forward.prefill_chunk]

    def growing(self) -> list[Reply]:
        """The replies that have not ended."""
        return [reply for reply in self.replies if not reply.finish_reason]

    def stop(self) -> None:
        """End every growing reply where it is."""
        for reply in self.growing():
            self.end(reply, "stopped")

    def add(self, reply: Reply, token: int, logprob: float) -> None:
        """Append a token to a reply, and end the reply if this token does."""
        reply.token_ids.append(token)
        reply.logprobs.append(logprob)
        if token in self.end_tokens or any(reply.token_ids[-len(run) :] == run for run in self.end_runs):
            self.end(reply, "end")
        elif len(reply.token_ids) >= self.sampling.max_tokens:
            self.end(reply, "length")

    def end(self, reply: Reply, reason: FinishReason) -> None:
        """A reply grows no more."""
        reply.finish_reason = reason
        self.cache.drop(self.replies.index(reply))
        if self.done:
            self.forward.finish(self.cache)


def prefill(decodings: Sequence[Decoding]) -> list[Decoding]:
    """Read the next part of the first prompt of `decodings` that is not read; with a forward that can, those of others
    of the same version too. Returns those whose part was read. They are the ones that failed where it raises.
    """
    chosen = next_to_prefill(decodings)
    if len(chosen) == 1:
        chosen[0].prefill()
    elif chosen:
        caches = [decoding.cache for decoding in chosen]
        forward = cast("DrawingForward", chosen[0].forward)  # no other reads several prompts at once
        logits = forward.prefill_together(caches, [decoding.next_part() for decoding in chosen])
        for decoding, row in zip(chosen, logits, strict=True):
            decoding.logits = row
    return chosen


def next_to_prefill(decodings: Sequence[Decoding]) -> list[Decoding]:
    """Those of `decodings` whose prompts are read in the next pass."""
    waiting = [decoding for decoding in decodings if decoding.prefilling]
    if not waiting or not isinstance(waiting[0].forward, DrawingForward):
        return waiting[:1]
    room = waiting[0].forward.prefill_tokens
    chosen: list[Decoding] = []
    for decoding in waiting:
        room -= len(decoding.next_part())
        if chosen and (room < 0 or decoding.forward is not chosen[0].forward):
            break
        chosen.append(decoding)
    return chosen


Row: TypeAlias = tuple[Decoding, Reply]  # of a batch
AddedToken: TypeAlias = tuple[Decoding, int, int]  # (decoding, index of the reply, token id)
Draw: TypeAlias = tuple[int, float] | Exception  # (token id, log-probability), or why there is none


@dataclass
class Failure:
    """A turn that cannot go on: its Decoding, and the exception that it alone caused."""

    decoding: Decoding
    error: Exception


class NotFinite(Exception):
    """The model gave a row of logits that are not numbers, from which nothing can be drawn."""


def step(decodings: Sequence[Decoding], failures: list[Failure] | None = None) -> list[AddedToken]:
    """Add one token to each growing reply of those `decodings` (of one forward) whose prompt is prefilled; returns the
    tokens added. A `DrawingForward` is a step ahead, so that there may be none although replies grow.

    A turn that makes the step fail gets no token and is appended to `failures`; the others get the tokens that they
    would have had without it. Without `failures` the exception is raised.
    """
    ready = [decoding for decoding in decodings if not decoding.prefilling and not decoding.done]
    failed: list[Failure] = []
    if ready and isinstance(ready[0].forward, DrawingForward):
        added = _advance(ready[0].forward, ready, failed)
    else:
        added = _decode_and_draw(ready, failed)
    if failures is not None:
        failures += failed
    elif failed:
        raise failed[0].error
    return added


def _advance(forward: DrawingForward, decodings: list[Decoding], failures: list[Failure]) -> list[AddedToken]:
    """`step` with a forward that draws the tokens."""
    for decoding in decodings:
        if decoding.logits is None:
            continue
        decoding.logits = None  # the forward draws the first tokens too
        try:
            forward.begin(decoding.cache, decoding.sampling, _uniforms(decoding))
        except Exception as error:
            failures.append(Failure(decoding, error))
    broken = {failure.decoding for failure in failures}
    of_cache = {id(decoding.cache): decoding for decoding in decodings if decoding not in broken}
    added = []
    for drawn in forward.advance([decoding.cache for decoding in of_cache.values()]):
        decoding = of_cache[id(drawn.cache)]
        if decoding in broken:
            continue
        try:
            added.append(_take(decoding, drawn))
        except Exception as error:
            failures.append(Failure(decoding, error))
            broken.add(decoding)
    return added


def _take(decoding: Decoding, drawn: DrawnToken) -> AddedToken:
    """Add a token that a forward has drawn to its reply."""
    if not math.isfinite(drawn.logprob):
        raise NotFinite("the model gave logits that are not finite")
    decoding.add(decoding.replies[drawn.reply], drawn.token, drawn.logprob)
    return decoding, drawn.reply, drawn.token


def _uniforms(decoding: Decoding) -> torch.Tensor | None:
    """The random numbers (replies, max tokens) that the tokens of each reply are drawn with; None where greedy."""
    if decoding.sampling.temperature == 0:
        return None
    tokens = decoding.sampling.max_tokens
    return torch.stack([torch.rand(tokens, generator=reply.rng) for reply in decoding.replies])


def _decode_and_draw(ready: list[Decoding], failures: list[Failure]) -> list[AddedToken]:
    """`step` with a forward that gives logits."""
    passed = []  # whose logits are there, in the order of `logits`
    logits = []  # (replies, vocabulary) each
    for decoding in ready:
        if decoding.logits is not None:
            passed.append(decoding)
            logits.append(decoding.logits.expand(len(decoding.growing()), -1))
    later = [decoding for decoding in ready if decoding.logits is None]
    for decoding in passed:
        decoding.logits = None
    if later:
        passed += _decode(later, logits, failures)
    rows = [(decoding, reply) for decoding in passed for reply in decoding.growing()]
    return _draw_all(torch.cat(logits), rows, failures) if rows else []


def _decode(decodings: list[Decoding], logits: list[torch.Tensor], failures: list[Failure]) -> list[Decoding]:
    """Append the logits (replies, vocabulary) of those `decodings` that the forward can run to `logits`, and return
    these decodings, in their order.

    Where the forward raises, each half is tried by itself, down to the turn that is the cause. Where many turns only
    together have no room in memory, all go on.
    """
    caches = [decoding.cache for decoding in decodings]
    tokens = [reply.token_ids[-1] for decoding in decodings for reply in decoding.growing()]
    try:
        logits.append(decodings[0].forward.decode(caches, tokens))
        return decodings
    except Exception as error:
        if len(decodings) == 1:
            failures.append(Failure(decodings[0], error))
            return []
    half = len(decodings) // 2
    return _decode(decodings[:half], logits, failures) + _decode(decodings[half:], logits, failures)


def _draw_all(logits: torch.Tensor, rows: list[Row], failures: list[Failure]) -> list[AddedToken]:
    """Draw a token for each of `rows` from logits (rows, vocabulary) and add it to its reply; returns as `step`."""
    drawn: list[Draw] = []
    for sampling, group in groupby(rows, key=lambda row: row[0].sampling):
        same = list(group)
        start = len(drawn)
        drawn += _draw_group(logits[start : start + len(same)], sampling, same)
    broken: dict[Decoding, Exception] = {}  # all rows of a turn fail with the first that does
    for (decoding, _), result in zip(rows, drawn, strict=True):
        if isinstance(result, Exception):
            broken.setdefault(decoding, result)
        elif not math.isfinite(result[1]):
            broken.setdefault(decoding, NotFinite("the model gave logits that are not finite"))
    failures += [Failure(decoding, error) for decoding, error in broken.items()]
    added = []
    for (decoding, reply), result in zip(rows, drawn, strict=True):
        if decoding in broken or isinstance(result, Exception):
            continue
        token, logprob = result
        try:
            decoding.add(reply, token, logprob)
        except Exception as error:  # its forward could not finish the cache
            failures.append(Failure(decoding, error))
        else:
            added.append((decoding, decoding.replies.index(reply), token))
    return added


def _draw_group(logits: torch.Tensor, sampling: Sampling, rows: list[Row]) -> list[Draw]:
    """A draw for each of `rows`, which have one sampling, from logits (rows, vocabulary)."""
    uniform = None
    if sampling.temperature != 0:  # drawn once for a step and reply, whatever is tried again after it
        uniform = torch.cat([torch.rand(1, generator=reply.rng) for _, reply in rows])
    try:
        return _pairs(logits, sampling, rows, uniform)
    except Exception as error:
        if len(rows) == 1:
            return [error]
    drawn: list[Draw] = []
    for i, row in enumerate(rows):
        own_uniform = None if uniform is None else uniform[i : i + 1]
        own_sampling = row[0].sampling  # may differ in type: top_k True is equal to 1, and cannot be used
        try:
            drawn += _pairs(logits[i : i + 1], own_sampling, [row], own_uniform)
        except Exception as error:
            drawn.append(error)
    return drawn


def _pairs(logits: torch.Tensor, sampling: Sampling, rows: list[Row], uniform: torch.Tensor | None) -> list[Draw]:
    """(token id, log-probability) of each row."""
    seen = None
    if sampling.repetition_penalty != 1:
        seen = [decoding.prompt + reply.token_ids for decoding, reply in rows]
    tokens, logprobs = draw(logits, sampling, seen, uniform)
    return list(zip(tokens, logprobs, strict=True))


def run(
    forward: AnyForward,
    prompts: Sequence[TokenIds],
    seeds: Sequence[int],
    sampling: Sampling,
    end_tokens: Collection[EndToken],
    n: int = 1,
) -> list[Reply]:
    """Replies to `prompts`, `n` to each, prompt by prompt, decoded together to their end. `seeds` has one entry for
    each reply; ValueError otherwise.
    """
    if len(seeds) != len(prompts) * n:
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts of {n} replies")
    decodings = [
        Decoding(forward, prompt, seeds[n * i : n * i + n], sampling, end_tokens) for i, prompt in enumerate(prompts)
    ]
    while prefill(decodings):
        gpu_share.between_units()
    while not all(decoding.done for decoding in decodings):
        step(decodings)
        gpu_share.between_units()
    return [reply for decoding in decodings for reply in decoding.replies]
