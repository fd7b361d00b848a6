"""Replies as they are drawn, token by token: prompts read in parts, many replies a step, sampling, log-probabilities.

Used by the chat (several people's duels) and by training (many prompts, several replies each). `forward` is a version
that can run: `lean.Lean` or `plain.Plain`. A `Decoding` owns the replies to one prompt; it knows nothing about text,
conversations or time.
"""

import math
from dataclasses import asdict, dataclass
from itertools import groupby

import torch


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn. `temperature` divides the logits; 0 is greedy. `top_p` 1, `top_k` 0 and
    `repetition_penalty` 1 are off.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 192
    repetition_penalty: float = 1.0

    def as_dict(self):
        return asdict(self)


@dataclass(eq=False)
class Reply:
    """One candidate as it grows: completion ids with the end token, the log-probability each was drawn with, and why it
    ended (`end`, `length`, `stopped`, or None while it grows)."""

    seed: int
    token_ids: list
    logprobs: list
    finish_reason: str | None = None

    def __post_init__(self):
        self.rng = torch.Generator().manual_seed(self.seed)


class Decoding:
    """Replies to `prompt` (token ids), one for each seed. The prompt is read once, `forward.chunk` tokens at a time,
    and its keys and values are shared by all of them. A reply depends on its own seed, not on who else is decoded.
    `end_tokens` are ids that end a reply, and tuples of ids that do so together."""

    def __init__(self, forward, prompt, seeds, sampling, end_tokens, line=None):
        self.forward, self.prompt, self.sampling, self.end_tokens = forward, prompt, sampling, end_tokens
        self.end_runs = [list(run) for run in end_tokens if isinstance(run, tuple)]
        self.replies = [Reply(seed, [], []) for seed in seeds]
        self.line = line or forward.open(len(seeds), len(prompt), sampling.max_tokens)
        self.logits = None  # (vocabulary,) after the prompt, once it is read

    @property
    def done(self):
        return all(r.finish_reason for r in self.replies)

    @property
    def reading(self):
        """Whether part of the prompt is still to be read."""
        return len(self.line.prompt) < len(self.prompt)

    def read(self):
        """Read the prompt's next part; the parts are the same whoever waits, so that the reply is."""
        done = len(self.line.prompt)
        self.logits = self.forward.read(self.line, self.prompt[done : done + self.forward.chunk])

    def growing(self):
        """The replies that have not ended."""
        return [r for r in self.replies if not r.finish_reason]

    def stop(self):
        """End every growing reply where it is."""
        for reply in self.growing():
            self.end(reply, "stopped")

    def add(self, reply, token, logprob):
        """Take one token in."""
        reply.token_ids.append(token)
        reply.logprobs.append(logprob)
        if token in self.end_tokens or any(reply.token_ids[-len(run) :] == run for run in self.end_runs):
            self.end(reply, "end")
        elif len(reply.token_ids) >= self.sampling.max_tokens:
            self.end(reply, "length")

    def end(self, reply, reason):
        """A reply grows no more."""
        reply.finish_reason = reason
        self.line.drop(self.replies.index(reply))
        if self.done:
            self.forward.end(self.line)


@dataclass
class Failure:
    """A turn that cannot go on: its Decoding, and the exception that it alone caused."""

    decoding: Decoding
    error: Exception


class NotFinite(Exception):
    """The model gave a row of logits that are not numbers, from which nothing can be drawn."""


def step(decodings, failures=None):
    """One token more for each growing reply of those `decodings` (of one forward) whose prompt is read; returns
    [(decoding, reply index, token id)].

    A turn that makes the step fail gets no token and is appended to `failures` (a list of Failure); the others get the
    tokens that they would have had without it. Without `failures` the exception is raised.
    """
    first = [d for d in decodings if d.logits is not None and not d.reading and not d.done]
    later = [d for d in decodings if d.logits is None and not d.reading and not d.done]
    found = [] if failures is None else failures
    earlier = len(found)
    logits = [d.logits.expand(len(d.growing()), -1) for d in first]
    for d in first:
        d.logits = None
    passed = first
    if later:
        passed = first + _forward(later, logits, found)
    rows = [(d, r) for d in passed for r in d.growing()]
    added = _draw_all(torch.cat(logits), rows, found) if rows else []
    if failures is None and len(found) > earlier:
        raise found[earlier].error
    return added


def _forward(decodings, logits, failures):
    """Append the logits (replies, vocabulary) of those `decodings` that the forward takes to `logits`, and return these
    decodings, in their order.

    Where it raises, each half is tried for itself, down to the turn that is the cause: of many turns that only together
    have no room, all go on.
    """
    try:
        logits.append(
            decodings[0].forward.step(
                [d.line for d in decodings], [r.token_ids[-1] for d in decodings for r in d.growing()]
            )
        )
        return decodings
    except Exception as error:
        if len(decodings) == 1:
            failures.append(Failure(decodings[0], error))
            return []
    half = len(decodings) // 2
    return _forward(decodings[:half], logits, failures) + _forward(decodings[half:], logits, failures)


def _draw_all(logits, rows, failures):
    """Draw a token for each of `rows` [(decoding, reply)] from logits (rows, vocabulary) and add it to its reply;
    returns as `step`.
    """
    drawn, at = [], 0
    for sampling, same in groupby(rows, key=lambda row: row[0].sampling):
        same = list(same)
        drawn += _drawn(logits[at : at + len(same)], sampling, same)
        at += len(same)
    broken = {}
    if not all(math.isfinite(logprob) for _, logprob in drawn):
        for (d, _), (token, logprob) in zip(rows, drawn, strict=True):
            if not math.isfinite(logprob):
                error = (
                    token if isinstance(token, Exception) else NotFinite("the model gave logits that are not finite")
                )
                broken.setdefault(d, error)
        failures += [Failure(d, error) for d, error in broken.items()]
    added = []
    for (d, reply), (token, logprob) in zip(rows, drawn, strict=True):
        if d not in broken:
            try:
                d.add(reply, token, logprob)
            except Exception as error:  # its forward could not end the line
                failures.append(Failure(d, error))
            else:
                added.append((d, d.replies.index(reply), token))
    return added


def _drawn(logits, sampling, rows):
    """[(token, log-probability)] for rows of one sampling. A row that cannot be drawn has its exception for a token,
    and NaN.
    """
    uniform = None
    if sampling.temperature != 0:  # once a step and reply, whatever is tried again after it
        uniform = torch.cat([torch.rand(1, generator=r.rng) for _, r in rows])
    try:
        return list(zip(*draw(logits, sampling, rows, uniform), strict=True))
    except Exception as error:
        if len(rows) == 1:
            return [(error, math.nan)]
    found = []
    for i in range(len(rows)):
        own = None if uniform is None else uniform[i : i + 1]
        try:
            found += zip(
                *draw(logits[i : i + 1], rows[i][0].sampling, rows[i : i + 1], own), strict=True
            )  # True is equal to 1, and no number
        except Exception as error:
            found.append((error, math.nan))
    return found


def run(forward, prompts, seeds, sampling, end_tokens, n=1):
    """Replies to `prompts`, `n` to each, prompt by prompt, decoded together to their end; `seeds` has one entry a
    reply.
    """
    if len(seeds) != len(prompts) * n:
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts of {n} replies")
    decodings = [
        Decoding(forward, prompt, seeds[n * i : n * i + n], sampling, end_tokens) for i, prompt in enumerate(prompts)
    ]
    for decoding in decodings:
        while decoding.reading:
            decoding.read()
    while step(decodings):
        pass
    return [reply for decoding in decodings for reply in decoding.replies]


@torch.inference_mode()
def draw(logits, sampling, rows, uniform):
    """A token for each of `rows` [(decoding, reply)] from logits (R, V), by `uniform` (R,) in [0, 1) or None where it
    is greedy: (token ids, log-probabilities under the distribution drawn from). The log-probability is NaN where the
    row's logits are not finite.
    """
    if sampling.repetition_penalty != 1:
        logits = penalised(logits, [d.prompt + r.token_ids for d, r in rows], sampling.repetition_penalty)
    if sampling.temperature == 0:
        highest, tokens = logits.max(-1)
        return tokens.tolist(), (highest - highest).tolist()  # 0, and NaN where the highest is NaN or infinite
    logprobs = torch.log_softmax(truncated(logits / sampling.temperature, sampling.top_p, sampling.top_k), -1)
    cumulative = logprobs.exp().cumsum(-1)  # (R, V)
    tokens = torch.searchsorted(cumulative, uniform.to(logits.device)[:, None] * cumulative[:, -1:], right=True).clamp(
        max=logits.shape[-1] - 1
    )
    return tokens[:, 0].tolist(), logprobs.gather(-1, tokens)[:, 0].tolist()


def penalised(logits, seen, penalty):
    """`logits` (R, V) with those of the tokens in `seen` (a list a row) divided by `penalty`, or multiplied where
    negative (Keskar et al. 2019).
    """
    logits = logits.clone()
    for row, tokens in zip(logits, seen, strict=True):
        at = torch.tensor(sorted(set(tokens)), device=row.device)
        row[at] = torch.where(row[at] > 0, row[at] / penalty, row[at] * penalty)
    return logits


def truncated(logits, top_p, top_k):
    """`logits` (R, V) with everything outside the top k and the top-p nucleus at -inf."""
    if top_k:
        kth = logits.topk(min(top_k, logits.shape[-1]), -1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p < 1:
        values, order = logits.sort(-1, descending=True)
        probs = values.softmax(-1)
        outside = probs.cumsum(-1) - probs >= top_p  # the token that crosses top_p stays
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
    return logits
