"""The policy being trained: one frozen trunk, an fp32 LoRA and a value head on it; the reference is the trunk with the LoRA off.

Owns the forward passes of PPO, SFT and the gate, so that a log-probability is computed in one place only.
"""

from dataclasses import dataclass

import torch

from playground import adapters, models
from training import ppo_math


@dataclass
class Batch:
    """B episodes as tensors: prompts left-padded to P, completions right-padded to T.

    ids (B, P+T), attention (B, P+T), completion (B, T), mask (B, T) fp32 with 1 on completion tokens.
    """

    ids: torch.Tensor
    attention: torch.Tensor
    completion: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def of(cls, episodes, device):
        p = max(len(e.prompt) for e in episodes)
        t = max(len(e.completion) for e in episodes)
        rows = [([0] * (p - len(e.prompt)) + e.prompt, e.completion + [0] * (t - len(e.completion))) for e in episodes]
        attention = [[0] * (p - len(e.prompt)) + [1] * (len(e.prompt) + len(e.completion)) + [0] * (t - len(e.completion)) for e in episodes]
        mask = [[1.0] * len(e.completion) + [0.0] * (t - len(e.completion)) for e in episodes]
        return cls(torch.tensor([a + b for a, b in rows], device=device), torch.tensor(attention, device=device),
                   torch.tensor([b for _, b in rows], device=device), torch.tensor(mask, device=device))


class PolicyModel:
    """A trunk with a fresh LoRA (the update starts at zero) and a value head that starts at zero."""

    def __init__(self, trunk, settings):
        self.targets = models.linear_targets(trunk)
        self.rank, self.alpha, self.temperature = settings.lora_rank, settings.lora_alpha, settings.temperature
        torch.manual_seed(settings.seed)  # LoRA's A starts random
        self.peft = models.with_lora(trunk, rank=self.rank, alpha=self.alpha, targets=self.targets)
        self.causal = self.peft.get_base_model()
        self.parameters = models.lora_parameters(self.peft)
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
        """Context in which the LoRA is off. True to the policy's start only while training starts from the bare base."""
        return self.peft.disable_adapter()

    def hidden(self, batch):
        """Last hidden states that predict the completion tokens, (B, T, d)."""
        p = batch.ids.shape[1] - batch.completion.shape[1]
        out = self.causal.base_model(input_ids=batch.ids, attention_mask=batch.attention,
                                     position_ids=(batch.attention.cumsum(-1) - 1).clamp(min=0), use_cache=False)
        return out.last_hidden_state[:, p - 1:-1]

    def logits(self, hidden):
        """(B, T, d) -> (B, T, V), only ever for completion positions: the head is a fifth of the trunk's work."""
        return self.causal.get_output_embeddings()(hidden)

    def logprobs(self, batch):
        """log π of the completion tokens at the sampling temperature, (B, T), 0 on padding."""
        return ppo_math.token_logprobs(self.logits(self.hidden(batch)), batch.completion, self.temperature) * batch.mask

    def values(self, hidden):
        """(B, T, d) -> (B, T) fp32."""
        return self.value_head(hidden.float())[..., 0]

    def log_ratio(self, episodes, minibatch):
        """log π − log π_ref of each episode's completion, in nats a reply: a list of floats. On the policy's own samples its mean estimates
        KL(policy ‖ reference) (k1)."""
        return [new - reference for new, reference in zip(*self.loglikelihoods(episodes, minibatch), strict=True)]

    @torch.no_grad()
    def loglikelihoods(self, episodes, minibatch):
        """log π and log π_ref of each episode's completion, in nats a reply: two lists of floats."""
        new, reference = [], []
        for start in range(0, len(episodes), minibatch):
            batch = Batch.of(episodes[start:start + minibatch], self.device)
            new += self.logprobs(batch).sum(-1).tolist()
            with self.reference():
                reference += self.logprobs(batch).sum(-1).tolist()
        return new, reference
