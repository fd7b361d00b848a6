"""The policy being trained: one frozen trunk, an fp32 LoRA and a value head on it; the reference is the trunk with the
LoRA off.

Owns the forward passes of PPO, SFT and the gate, so that a log-probability is computed in one place only.
"""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch

from playground.models import adapters, lora, structure
from training import ppo_math


@dataclass
class Batch:
    """B episodes as tensors, T the longest completion. A prompt that several episodes in a row have in common is read
    once for all of them.

    Each of the R rows is a prompt, left-padded to P, and its B/R completions after it, each without its last token
    (which predicts nothing), right-padded to T − 1 and at the positions that it has alone.
    ids, positions (R, L) with L = P + B/R·(T − 1); attention (R, L), or, where completions share a row and must not see
    each other, (R, 1, L, L), added to the scores; completion (B, T); mask (B, T) fp32 with 1 on completion tokens.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    attention: torch.Tensor
    completion: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def of(cls, episodes, device, shared=True):
        groups = [list(group) for _, group in itertools.groupby(episodes, key=lambda e: e.prompt)]
        n = len(groups[0])
        if not shared or any(len(group) != n for group in groups):
            groups, n = [[e] for e in episodes], 1
        p, t = max(len(e.prompt) for e in episodes), max(len(e.completion) for e in episodes)
        completion = torch.tensor([e.completion + [0] * (t - len(e.completion)) for e in episodes], device=device)
        mask = torch.tensor(
            [[1.0] * len(e.completion) + [0.0] * (t - len(e.completion)) for e in episodes], device=device
        )
        prompt = torch.tensor([[0] * (p - len(g[0].prompt)) + g[0].prompt for g in groups], device=device)  # (R, P)
        real = torch.tensor([[0] * (p - len(g[0].prompt)) + [1] * len(g[0].prompt) for g in groups], device=device)

        after, after_real = (
            completion[:, :-1],
            mask[:, 1:].long(),
        )  # (B, T-1): a token is read where it has one to predict
        ids = torch.cat([prompt, after.reshape(len(groups), -1)], 1)
        present = torch.cat([real, after_real.reshape(len(groups), -1)], 1)
        start = real.sum(-1).repeat_interleave(n)[:, None]  # (B, 1)
        positions = torch.cat(
            [(real.cumsum(-1) - 1).clamp(min=0), (start + torch.arange(t - 1, device=device)).reshape(len(groups), -1)],
            1,
        )
        attention = present if n == 1 else branching(present, p, n)
        return cls(ids, positions, attention, completion, mask)

    def predicting(self, hidden):
        """Of hidden states (R, L, d) those that predict the completions' tokens, (B, T, d): the prompt's last, then the
        completion's own.
        """
        (b, t), (r, length), d = self.completion.shape, self.ids.shape, hidden.shape[-1]
        p, n = length - b // r * (t - 1), b // r
        last = hidden[:, p - 1 : p].expand(r, n, d).reshape(b, 1, d)
        return torch.cat([last, hidden[:, p:].reshape(b, t - 1, d)], 1)


class Comparison(NamedTuple):
    """The policy's last hidden states (B, T, d); of each completion token log π, log π_ref, π's entropy and KL(π ‖
    π_ref), all (B, T) at the sampling temperature and 0 on padding."""

    hidden: torch.Tensor
    logprob: torch.Tensor
    ref_logprob: torch.Tensor
    entropy: torch.Tensor
    kl: torch.Tensor


def branching(present, p, n):
    """A mask (R, 1, L, L) to add to attention scores, for n branches of one length after a prompt of P: each sees the
    prompt and itself.
    """
    length = present.shape[1]
    branch = (
        torch.arange(length, device=present.device)
        .sub(p)
        .div((length - p) // n or 1, rounding_mode="floor")
        .clamp(min=-1)
    )  # (L,), −1 the prompt
    seen = torch.ones(length, length, dtype=torch.bool, device=present.device).tril() & (
        (branch == -1) | (branch == branch[:, None])
    )
    return torch.where(seen & present[:, None, None].bool(), 0.0, torch.finfo(torch.float32).min)


class PolicyModel:
    """A trunk with a fresh LoRA (the update starts at zero) and a value head that starts at zero."""

    def __init__(self, trunk, settings):
        self.targets = lora.linear_targets(trunk)
        self.rank, self.alpha, self.temperature = settings.lora_rank, settings.lora_alpha, settings.temperature
        self.share_prompts = settings.ppo_share_prompts
        torch.manual_seed(settings.seed)  # LoRA's A starts random
        self.peft = lora.with_lora(trunk, rank=self.rank, alpha=self.alpha, targets=self.targets)
        self.causal = self.peft.get_base_model()
        self.parameters = lora.lora_parameters(self.peft)
        self.device = next(trunk.parameters()).device
        self.value_head = torch.nn.Linear(trunk.get_input_embeddings().embedding_dim, 1).to(self.device)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)

    def state(self):
        """The LoRA tensors, copied to the CPU."""
        return {k: v.detach().cpu().clone() for k, v in self.parameters.items()}

    def load(self, tensors):
        adapters.copy_strictly(tensors, self.parameters)

    def scale_update(self, factor):
        """Scale what the LoRA adds to the trunk; 0 is the base."""
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                if "lora_B" in name:
                    tensor.mul_(factor)

    def reference(self):
        """Context in which the LoRA is off. True to the policy's start only while training starts from the
        bare base.
        """
        return self.peft.disable_adapter()

    def batch(self, episodes):
        """A Batch of them, as this model reads one."""
        return Batch.of(episodes, self.device, self.share_prompts)

    def hidden(self, batch):
        """Last hidden states that predict the completion tokens, (B, T, d)."""
        attention = batch.attention
        if attention.dim() == 4:
            dtype = self.causal.get_input_embeddings().weight.dtype
            attention = attention.to(dtype).clamp(min=torch.finfo(dtype).min)
        inputs = structure.inputs(
            self.causal.base_model,
            input_ids=batch.ids,
            attention_mask=attention,
            position_ids=batch.positions,
            use_cache=False,
        )
        out = self.causal.base_model(**inputs)
        return batch.predicting(out.last_hidden_state)

    def token_logprobs(self, hidden, batch, temperature=None):
        """log π of the completion tokens, (B, T), by default at the sampling temperature; 0 on padding. hidden (B, T,
        d) as `hidden` gives it: only completion tokens meet the head, which is a fifth of the trunk's work."""
        head = self.causal.get_output_embeddings()
        return ppo_math.head_logprobs(hidden, head, batch.completion, temperature or self.temperature) * batch.mask

    def logprobs(self, batch):
        """log π of the completion tokens at the sampling temperature, (B, T), 0 on padding."""
        return self.token_logprobs(self.hidden(batch), batch)

    @torch.no_grad()
    def compare(self, batch):
        """Policy and reference on the same replies, token by token and without gradients: a Comparison."""
        hidden = self.hidden(batch)
        with self.reference():
            reference_hidden = self.hidden(batch)
        head = self.causal.get_output_embeddings()
        found = ppo_math.head_comparison(hidden, reference_hidden, head, batch.completion, self.temperature)
        return Comparison(hidden, *(x * batch.mask for x in found))

    def values(self, hidden):
        """(B, T, d) -> (B, T) fp32."""
        return self.value_head(hidden.float())[..., 0]

    def totals(self, episodes, microbatch):
        """Of each reply the totals over its tokens, in nats: {"logprob", "ref_logprob", "kl"}, lists of floats. Over
        the policy's own samples the mean KL is that of whole replies."""
        totals = {"logprob": [], "ref_logprob": [], "kl": []}
        for start in range(0, len(episodes), microbatch):
            found = self.compare(self.batch(episodes[start : start + microbatch]))
            for name, total in totals.items():
                total += getattr(found, name).sum(-1).tolist()
        return totals
