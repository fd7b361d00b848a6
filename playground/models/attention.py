"""Attention for training on a CPU: torch's fused kernel, without copies of keys and values for every head, and without
scores that nobody reads.

The query heads that share a key/value head read the same keys and values (grouped-query attention, Ainslie et al.
2023). Replies that share one reading of their prompt are attended as a batch, each against the prompt and itself: a
mask over all of them would have most scores computed for nothing.
"""

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.models.llama import modeling_llama

from playground.models import structure

NAME = "grouped"


@dataclass(frozen=True)
class Branches:
    """How the positions of a row depend on each other: a prompt of `prompt_length` positions, then `count` branches of
    equal length T, each of which sees the prompt and itself.
    """

    prompt_length: int
    count: int

    def length(self, x: torch.Tensor) -> int:
        """T, of x (R, H, L, D)."""
        return (x.shape[2] - self.prompt_length) // self.count

    def prompt(self, x: torch.Tensor) -> torch.Tensor:
        """The prompt's part of x (R, H, L, D): (R, H, P, D)."""
        return x[:, :, : self.prompt_length]

    def each(self, x: torch.Tensor) -> torch.Tensor:
        """The branches' part of x (R, H, L, D), each as a row: (R·count, H, T, D)."""
        rows, heads, _, width = x.shape
        shape = (self.count, self.length(x))
        after_prompt = x[:, :, self.prompt_length :].unflatten(2, shape)  # (R, H, count, T, D)
        return after_prompt.transpose(1, 2).reshape(rows * self.count, heads, shape[1], width)

    def seen(self, x: torch.Tensor) -> torch.Tensor:
        """What each branch sees of keys or values x (R, H, L, D): (R·count, H, P + T, D)."""
        return torch.cat([self.prompt(x).repeat_interleave(self.count, 0), self.each(x)], 2)

    def mask_of_each(self, mask: torch.Tensor) -> torch.Tensor:
        """What is added to the scores of each branch, of what is added to all scores (R, 1, L, L):
        (R·count, 1, T, P + T).
        """
        shape = (self.count, self.length(mask))
        after_prompt = mask[:, 0, self.prompt_length :].unflatten(1, shape)  # (R, count, T, L)
        of_prompt = after_prompt[..., : self.prompt_length]  # (R, count, T, P)
        of_branches = after_prompt[..., self.prompt_length :].unflatten(3, shape)  # (R, count, T, count, T)
        own = of_branches.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)  # (R, count, T, T)
        return torch.cat([of_prompt, own], 3).flatten(0, 1)[:, None]

    def joined(self, prompt: torch.Tensor, each: torch.Tensor) -> torch.Tensor:
        """The other way: prompt (R, H, P, D) and branches (R·count, H, T, D) as (R, H, L, D)."""
        branches = each.unflatten(0, (-1, self.count)).transpose(1, 2).flatten(2, 3)  # (R, H, count·T, D)
        return torch.cat([prompt, branches], 2)


def grouped(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    branches: Branches | None = None,
    **_unused: object,
) -> tuple[torch.Tensor, None]:
    """query (R, H, Q, D), key and value (R, H/G, L, D), attention_mask (R, 1, Q, L) added to the scores -> (R, Q, H,
    D), and no weights. With `branches`, which need Q = L and a mask, only scores inside a prompt and its branches are
    computed.
    """
    if branches is None:
        out = _attend(query, key, value, attention_mask, scaling)
    else:
        assert attention_mask is not None  # a batch with branches has one
        of_prompt = _attend(
            branches.prompt(query),
            branches.prompt(key),
            branches.prompt(value),
            attention_mask[:, :, : branches.prompt_length, : branches.prompt_length],
            scaling,
        )
        of_branches = _attend(
            branches.each(query),
            branches.seen(key),
            branches.seen(value),
            branches.mask_of_each(attention_mask),
            scaling,
        )
        out = branches.joined(of_prompt, of_branches)
    return out.transpose(1, 2), None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """(R, H, Q, D)."""
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    additive = mask is None or (mask.is_floating_point() and not mask.requires_grad)
    if trains and additive and query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.numel():
        kernel = torch._fused_sdp_choice(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)
        if kernel == SDPBackend.FLASH_ATTENTION.value:
            return _BackwardInFp32.apply(query, key, value, mask, scaling)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)


class _BackwardInFp32(torch.autograd.Function):
    """torch's fused kernel for a CPU on bf16, with its backward in fp32, which takes less time than the one in bf16 and
    rounds less.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
    ) -> torch.Tensor:
        out, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=mask, scale=scaling
        )
        ctx.save_for_backward(query, key, value, mask, out, log_sums)
        ctx.scaling = scaling
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *saved, log_sums = ctx.saved_tensors
        query, key, value, mask, out = (None if tensor is None else tensor.float() for tensor in saved)
        wide = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradients[0].float(), query, key, value, out, log_sums, 0.0, False, attn_mask=mask, scale=ctx.scaling
        )
        return *(gradient.to(gradients[0].dtype) for gradient in wide), None, None


def use_grouped(model: PreTrainedModel) -> None:
    """Let a model with eager attention compute it this way. A model whose eager attention differs from Llama's in its
    source (capped scores, sinks) keeps its own.
    """
    modules = {
        sys.modules[type(module).__module__]
        for module in model.modules()
        if type(module).__module__.startswith("transformers.models.")
    }
    functions = [module.eager_attention_forward for module in modules if hasattr(module, "eager_attention_forward")]
    llama = modeling_llama.eager_attention_forward
    if functions and all(structure.same_source(function, llama) for function in functions):
        model.set_attn_implementation(NAME)


def is_grouped(model: PreTrainedModel) -> bool:
    """Whether the model's attention takes `branches`."""
    return model.config._attn_implementation == NAME


AttentionInterface.register(NAME, grouped)
AttentionMaskInterface.register(NAME, eager_mask)
