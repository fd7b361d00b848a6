"""The policy being trained: one frozen trunk with an fp32 LoRA and a value head on it. The reference is the same trunk
with the LoRA off.

Owns the forward passes of PPO, SFT and the gate, so that a log-probability is computed in one place only.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from peft.tuners.lora import LoraLayer
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from playground.models import adapters, lora, structure
from playground.models.attention import Branches, is_grouped
from playground.models.batches import pad
from playground.settings import Settings
from playground.system import gpu_share
from training import ppo_math, rounding
from training.rollout import Episode, Rollouts


@dataclass
class Batch:
    """B episodes as tensors; T is the longest completion's length. A prompt that several episodes in a row have in
    common is read once for all of them.

    Each of the R rows is a prompt, left-padded to P, followed by its B/R completions. Each completion is right-padded
    to T − 1, has the positions that it would have alone, and lacks its last token (which predicts nothing). So
    L = P + B/R·(T − 1).
    """

    ids: torch.Tensor  # (R, L)
    positions: torch.Tensor  # (R, L)
    # (R, L); where completions share a row and must not see each other (R, 1, L, L), to be added to attention scores
    attention: torch.Tensor
    completion: torch.Tensor  # (B, T)
    mask: torch.Tensor  # (B, T) fp32, 1 on completion tokens
    branches: Branches | None  # how completions that share a row hang together

    @classmethod
    def of(cls, episodes: Sequence[Episode], device: torch.device | str, shared: bool = True) -> "Batch":
        """`shared` allows completions to share one reading of their prompt. They do so where every prompt has the same
        number of completions.
        """
        groups = [list(group) for _, group in itertools.groupby(episodes, key=lambda episode: episode.prompt)]
        per_prompt = len(groups[0])
        if not shared or any(len(group) != per_prompt for group in groups):
            groups = [[episode] for episode in episodes]
            per_prompt = 1
        rows = len(groups)
        prompt, prompt_mask = pad([group[0].prompt for group in groups], left=True, device=device)  # (R, P)
        completion, mask = pad([episode.completion for episode in episodes], device=device)  # (B, T)

        # a completion token is read only if another one follows that it predicts
        read = completion[:, :-1].reshape(rows, -1)  # (R, B/R·(T-1))
        read_mask = mask[:, 1:].reshape(rows, -1)
        ids = torch.cat([prompt, read], 1)  # (R, L)
        present = torch.cat([prompt_mask, read_mask], 1)

        prompt_positions = (prompt_mask.cumsum(-1) - 1).clamp(min=0)  # (R, P)
        first_position = prompt_mask.sum(-1).repeat_interleave(per_prompt)[:, None]  # (B, 1)
        read_positions = first_position + torch.arange(completion.shape[1] - 1, device=device)  # (B, T-1)
        positions = torch.cat([prompt_positions, read_positions.reshape(rows, -1)], 1)
        if per_prompt == 1:
            return cls(ids, positions, present, completion, mask.float(), branches=None)
        attention = branching(present, prompt.shape[1], per_prompt)
        branches = Branches(prompt.shape[1], per_prompt)
        return cls(ids, positions, attention, completion, mask.float(), branches)

    def predicting(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of hidden states (R, L, d) those that predict the completions' tokens, (B, T, d): the state of the prompt's
        last token, then those of the completion itself.
        """
        replies, tokens = self.completion.shape
        rows, length = self.ids.shape
        width = hidden.shape[-1]
        per_prompt = replies // rows
        prompt_length = length - per_prompt * (tokens - 1)
        last_of_prompt = hidden[:, prompt_length - 1 : prompt_length].expand(rows, per_prompt, width)
        in_completion = hidden[:, prompt_length:].reshape(replies, tokens - 1, width)
        return torch.cat([last_of_prompt.reshape(replies, 1, width), in_completion], 1)


@dataclass(frozen=True)
class Comparison:
    """Policy and reference on the same replies. All but `hidden` are (B, T), at the sampling temperature, and 0 on
    padding.
    """

    hidden: torch.Tensor  # (B, T, d), the policy's last hidden states
    logprob: torch.Tensor
    ref_logprob: torch.Tensor
    entropy: torch.Tensor  # of the policy
    kl: torch.Tensor  # KL(π ‖ π_ref) over the whole vocabulary


@dataclass(frozen=True)
class Totals:
    """Of each reply the totals over its tokens, in nats."""

    logprob: list[float]
    ref_logprob: list[float]
    kl: list[float]

    @property
    def mean_kl(self) -> float:
        """Nats a reply. Over the policy's own samples this estimates the KL of whole replies."""
        return sum(self.kl) / len(self.kl)


def branching(present: torch.Tensor, prompt_length: int, n: int) -> torch.Tensor:
    """A mask (R, 1, L, L) to add to attention scores, for n branches of equal length after a prompt: each branch sees
    the prompt and itself. present (R, L) is 0 on padding.
    """
    length = present.shape[1]
    branch_length = (length - prompt_length) // n
    after_prompt = torch.arange(length, device=present.device).sub(prompt_length)
    branch = after_prompt.div(branch_length or 1, rounding_mode="floor").clamp(min=-1)  # (L,), −1 in the prompt
    earlier = torch.ones(length, length, dtype=torch.bool, device=present.device).tril()
    same_branch = (branch == -1) | (branch == branch[:, None])
    visible = earlier & same_branch & present[:, None, None].bool()  # (R, 1, L, L)
    return torch.where(visible, 0.0, torch.finfo(torch.float32).min)


def checkpointed_blocks(trunk: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    """The blocks of a trunk, ready for gradient checkpointing; empty where transformers cannot do it for them."""
    blocks = [block for block in structure.blocks(trunk) if isinstance(block, GradientCheckpointingLayer)]
    for block in blocks:
        # as `gradient_checkpointing_enable` does, which also asks for gradients of the embeddings, of no use here
        block.gradient_checkpointing = True
        run = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        block._gradient_checkpointing_func = run  # type: ignore[assignment]  # a function, unlike most attributes
    return blocks


class PolicyModel:
    """A trunk with a fresh LoRA, whose update starts at zero, and a value head that starts at zero."""

    def __init__(self, trunk: PreTrainedModel, settings: Settings) -> None:
        self.targets = lora.linear_targets(trunk)
        self.rank = settings.ppo.lora_rank
        self.alpha = settings.ppo.lora_alpha
        self.temperature = settings.chat.temperature
        self.share_prompts = settings.ppo.share_prompts
        torch.manual_seed(settings.seed)  # LoRA's A starts random
        self.peft = lora.with_lora(trunk, rank=self.rank, alpha=self.alpha, targets=self.targets)
        self.causal = trunk  # with the LoRA in its layers
        self.lora_layers = [module for module in trunk.modules() if isinstance(module, LoraLayer)]
        self.rollouts = Rollouts(trunk)
        # the blocks, where they keep only their inputs for the backward
        self.checkpointed: list[GradientCheckpointingLayer] = []
        if settings.ppo.gradient_checkpointing:
            self.checkpointed = checkpointed_blocks(trunk)
        self.parameters: dict[str, torch.nn.Parameter] = lora.lora_parameters(self.peft)
        self.device = next(trunk.parameters()).device
        self.value_head = torch.nn.Linear(self._embeddings.embedding_dim, 1).to(self.device)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)
        output = structure.output_embeddings(trunk)
        self.head = ppo_math.Head(output.weight, output.bias)
        self.rounded = rounding.of(self, settings)  # what multiplies in the place of the weights, where that is faster

    @property
    def _embeddings(self) -> torch.nn.Embedding:
        return cast(torch.nn.Embedding, self.causal.get_input_embeddings())

    @property
    def multiplies_in(self) -> torch.dtype:
        """The format of the products with frozen weights: the trunk's, or int8."""
        return torch.int8 if self.rounded else self.causal.dtype

    @property
    def multiplying_head(self) -> ppo_math.Head:
        """The head in that format."""
        return self.rounded.head if self.rounded else self.head

    def state(self) -> dict[str, torch.Tensor]:
        """The LoRA tensors, copied to the CPU."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over LoRA tensors as `state` returns them; BadAdapter where they do not fit."""
        adapters.copy_strictly(tensors, self.parameters)

    def interpolate(self, start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor], share: float) -> None:
        """Take over LoRA tensors on the line between two states: 0 is `start`, 1 is `end`."""
        self.load({name: start[name] + share * (tensor - start[name]) for name, tensor in end.items()})

    @property
    def has_moved(self) -> bool:
        """Whether the LoRA changes anything: it does not as long as each B is 0."""
        return any(bool(parameter.any()) for name, parameter in self.parameters.items() if "lora_B" in name)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Context in which the LoRA is off. That is the policy's start only where training starts from the base.

        peft's own context looks through the whole model twice each time, which takes longer than a short forward.
        """
        for layer in self.lora_layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in self.lora_layers:
                layer._disable_adapters = False

    def batch(self, episodes: Sequence[Episode]) -> Batch:
        """The episodes as a Batch on this model's device."""
        window = structure.window(self.causal)
        longest = max(len(episode.prompt) + len(episode.completion) for episode in episodes)
        # a mask for each token is taken as it is, without the sliding window of some layers
        shared = self.share_prompts and (window is None or longest <= window)
        return Batch.of(episodes, self.device, shared)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Last hidden states that predict the completion tokens, (B, T, d)."""
        gpu_share.between_units()
        attention = batch.attention
        if attention.dim() == 4:
            dtype = self._embeddings.weight.dtype
            attention = attention.to(dtype).clamp(min=torch.finfo(dtype).min)
        inputs = structure.inputs(
            self.causal.base_model,
            input_ids=batch.ids,
            attention_mask=attention,
            position_ids=batch.positions,
            use_cache=False,
        )
        if batch.branches and is_grouped(self.causal):
            inputs["branches"] = batch.branches
        with self._checkpointing(), self.rounded.used() if self.rounded else nullcontext():
            out = self.causal.base_model(**inputs)
        return batch.predicting(out.last_hidden_state)

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """Gradient checkpointing is on inside, where gradients are. transformers does it in blocks that are in training
        mode, and these have no cache, so it is off while replies are decoded.
        """
        for block in self.checkpointed:
            block.training = torch.is_grad_enabled()  # of the block alone: dropout inside it stays off
        try:
            yield
        finally:
            for block in self.checkpointed:
                block.training = False

    def token_logprobs(self, hidden: torch.Tensor, batch: Batch, temperature: float | None = None) -> torch.Tensor:
        """log π of the completion tokens, (B, T), by default at the sampling temperature; 0 on padding.

        hidden (B, T, d) as `hidden` returns it. Only completion tokens are multiplied with the output head, whose cost
        for every token would be a fifth of the trunk's.
        """
        return (
            ppo_math.head_logprobs(hidden, self.multiplying_head, batch.completion, temperature or self.temperature)
            * batch.mask
        )

    def logprobs(self, batch: Batch) -> torch.Tensor:
        """log π of the completion tokens at the sampling temperature, (B, T), 0 on padding."""
        return self.token_logprobs(self.hidden(batch), batch)

    @torch.no_grad()
    def compare(self, batch: Batch, moved: bool = True) -> Comparison:
        """Policy and reference on the same replies, token by token and without gradients. `moved` is false where the
        policy is known to be the reference (`has_moved`).
        """
        reference_hidden = hidden = self.hidden(batch)
        if moved:
            with self.reference():
                reference_hidden = self.hidden(batch)
        logprob, ref_logprob, entropy, kl = ppo_math.head_comparison(
            hidden, reference_hidden, self.multiplying_head, batch.completion, self.temperature
        )
        return Comparison(
            hidden=hidden,
            logprob=logprob * batch.mask,
            ref_logprob=ref_logprob * batch.mask,
            entropy=entropy * batch.mask,
            kl=kl * batch.mask,
        )

    def values(self, hidden: torch.Tensor) -> torch.Tensor:
        """The value head's estimates: (B, T, d) -> (B, T) fp32."""
        return self.value_head(hidden.float())[..., 0]

    def totals(self, episodes: Sequence[Episode], microbatch: int) -> Totals:
        """Policy and reference on each of the episodes, `microbatch` of them at once."""
        totals = Totals(logprob=[], ref_logprob=[], kl=[])
        for start in range(0, len(episodes), microbatch):
            comparison = self.compare(self.batch(episodes[start : start + microbatch]))
            totals.logprob.extend(comparison.logprob.sum(-1).tolist())
            totals.ref_logprob.extend(comparison.ref_logprob.sum(-1).tolist())
            totals.kl.extend(comparison.kl.sum(-1).tolist())
        return totals

    def kl_from(
        self, start: Mapping[str, torch.Tensor], episodes: Sequence[Episode], logprob: Sequence[float], microbatch: int
    ) -> float:
        """KL(policy ‖ start) in nats a reply, by the policy's own replies, whose log-probabilities are `logprob`.
        `start` are LoRA tensors; the policy is left as it was.
        """
        now = self.state()
        self.load(start)
        try:
            at_start = self.totals(episodes, microbatch).logprob
        finally:
            self.load(now)
        return sum(a - b for a, b in zip(logprob, at_start, strict=True)) / len(episodes)
