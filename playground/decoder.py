"""One batched decoding step over a policy: prefill, shared keys and values, sampling, log-probabilities.

Used by the chat (one prompt, two candidates) and by training (many prompts, several replies each). A `Decoding` owns its rows and their
cache, not the model; it knows nothing about text, conversations or time.
"""

from dataclasses import asdict, dataclass

import torch
from transformers import DynamicCache


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn. `temperature` divides the logits; 0 is greedy. `top_p` 1 and `top_k` 0 are off."""

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 192

    def as_dict(self):
        return asdict(self)


@dataclass
class Reply:
    """One candidate as it grows: completion ids with the end token, the log-probability each was drawn with, and why it ended
    (`end`, `length`, `stopped`, or None while it grows)."""

    seed: int
    token_ids: list
    logprobs: list
    finish_reason: str | None = None


class Decoding:
    """Replies to `prompts` (lists of token ids), `n` to each, decoding together; `seeds` has one entry a reply, in the order prompt by prompt.

    Each prompt is prefilled once and its keys and values are shared by its `n` rows. Every `step()` adds one token to each growing reply.
    A reply depends on its own seed, not on who else is in the batch.
    """

    def __init__(self, model, prompts, seeds, sampling, end_tokens, n=1):
        if len(seeds) != len(prompts) * n:
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts of {n} replies")
        self.model, self.prompts, self.sampling, self.end_tokens, self.n = model, prompts, sampling, end_tokens, n
        self.replies = [Reply(seed, [], []) for seed in seeds]
        self._rng = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._rows = list(range(len(seeds)))  # batch row -> reply
        self._cache = self._logits = None

    @property
    def done(self):
        return all(r.finish_reason for r in self.replies)

    def stop(self):
        """End every growing reply where it is."""
        for reply in self.replies:
            reply.finish_reason = reply.finish_reason or "stopped"

    def run(self):
        """Decode to the end and return the replies."""
        while not self.done:
            self.step()
        return self.replies

    @torch.inference_mode()
    def step(self):
        """Add one token to each growing reply; return [(reply index, token id)] of those added."""
        if self.done:
            return []
        if self._cache is None:
            self._prefill()
        else:
            self._forward()
        tokens, logprobs = self._sample()
        added = []
        for row, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            reply = self.replies[self._rows[row]]
            if reply.finish_reason:
                continue
            reply.token_ids.append(token)
            reply.logprobs.append(logprob)
            added.append((self._rows[row], token))
            if token in self.end_tokens:
                reply.finish_reason = "end"
            elif len(reply.token_ids) >= self.sampling.max_tokens:
                reply.finish_reason = "length"
        self._last = tokens
        self._drop_finished()
        return added

    def _prefill(self):
        device = next(self.model.parameters()).device
        longest = max(map(len, self.prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in self.prompts], device=device)  # (P, L), left-padded
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in self.prompts], device=device)  # (P, L)
        self._cache = DynamicCache()
        out = self.model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                         past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        if self.n > 1:
            self._cache.batch_repeat_interleave(self.n)
        self._mask = mask.repeat_interleave(self.n, 0)  # (R, L)
        self._logits = out.logits[:, -1].repeat_interleave(self.n, 0)  # (R, V)

    def _forward(self):
        ids = torch.tensor(self._last, device=self._mask.device)[:, None]  # (R, 1)
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], 1)
        out = self.model(input_ids=ids, attention_mask=self._mask, position_ids=self._mask.sum(-1, keepdim=True) - 1,
                         past_key_values=self._cache, use_cache=True)
        self._logits = out.logits[:, -1]

    def _sample(self):
        s, logits = self.sampling, self._logits.float()  # (R, V)
        if s.temperature == 0:
            return logits.argmax(-1).tolist(), [0.0] * len(logits)
        logprobs = torch.log_softmax(truncated(logits / s.temperature, s.top_p, s.top_k), -1)
        uniform = torch.cat([torch.rand(1, generator=self._rng[r]) for r in self._rows]).to(logits.device)  # (R,)
        cumulative = logprobs.exp().cumsum(-1)  # (R, V)
        tokens = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
        return tokens[:, 0].tolist(), logprobs.gather(-1, tokens)[:, 0].tolist()

    def _drop_finished(self):
        """Leave finished rows out of the next step, once they are a quarter of the batch: dropping copies the cache."""
        keep = [row for row, reply in enumerate(self._rows) if not self.replies[reply].finish_reason]
        if not keep or len(keep) > 0.75 * len(self._rows):
            return
        index = torch.tensor(keep, device=self._mask.device)
        self._cache.batch_select_indices(index)
        self._mask = self._mask[index]
        self._rows = [self._rows[row] for row in keep]
        self._last = [self._last[row] for row in keep]


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
