"""Eager attention without copies of keys and values, and without scores that nobody reads.

The query heads that share a key/value head are one batch of rows against it (grouped-query attention, Ainslie et al.
2023). transformers' eager attention copies keys and values for every head, at each layer of a forward and of its
backward. Replies that share one reading of their prompt are attended one by one: a mask over all of them would have
most scores computed for nothing.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.models.llama import modeling_llama

from playground.models import structure

NAME = "grouped"
QUERIES = 128  # of a branch at once: later ones see more of it, and their scores stay in a CPU's cache


@dataclass(frozen=True)
class Branches:
    """How the positions of a row depend on each other: a prompt of `prompt_length` positions, then `count` branches of
    equal length, each of which sees the prompt and itself.
    """

    prompt_length: int
    count: int


@dataclass(frozen=True)
class Segment:
    """Queries of a row that see the same keys: those of the prompt, and those of the branch from its start on."""

    queries: slice
    prompt: slice
    branch: slice


def segments(length: int, branches: Branches | None) -> Iterator[Segment]:
    """The segments of a row of `length` queries. Without branches all queries see all keys that the mask lets them."""
    if branches is None:
        yield Segment(slice(0, length), slice(0, None), slice(0, 0))
        return
    prompt = slice(0, branches.prompt_length)
    yield Segment(prompt, prompt, slice(0, 0))
    of_each = (length - branches.prompt_length) // branches.count
    for k in range(branches.count):
        start = branches.prompt_length + k * of_each
        for first in range(start, start + of_each, QUERIES):
            end = min(first + QUERIES, start + of_each)
            yield Segment(slice(first, end), prompt, slice(start, end))


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
    """query (B, H, Q, D), key and value (B, H/G, L, D), attention_mask (B, 1, Q, L) added to the scores -> (B, Q, H,
    D), and no weights. With `branches`, which need Q = L, only scores inside a prompt and its branches are computed.

    The weights grow with the square of the length, so they are not kept but computed again for the backward.
    """
    return _Attention.apply(query, key, value, attention_mask, scaling, branches), None


class _Attention(torch.autograd.Function):
    """See `grouped`; returns (B, Q, H, D). Segments of a row go one after the other through memory that stays small."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        branches: Branches | None,
    ) -> torch.Tensor:
        b, h, length, width = query.shape
        out = query.new_empty(b, length, h, width)
        for row in range(b):
            for segment in segments(length, branches):
                q, k, v, seen = _of_segment(query, key, value, mask, row, segment)
                out[row, segment.queries] = (_weights(q, k, seen, scaling) @ v).view(h, -1, width).transpose(0, 1)
        ctx.save_for_backward(query, key, value, mask, out)
        ctx.scaling = scaling
        ctx.branches = branches
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The softmax's backward as in FlashAttention (Dao et al. 2022, algorithm 4): Σ weights·their gradient is
        Σ out·its gradient, over the width of a head.
        """
        query, key, value, mask, out = ctx.saved_tensors
        d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        kv_heads, width = key.shape[1], key.shape[-1]
        for row in range(len(query)):
            for segment in segments(query.shape[2], ctx.branches):
                q, k, v, seen = _of_segment(query, key, value, mask, row, segment)
                d_out = gradients[0][row, segment.queries].transpose(0, 1).reshape(kv_heads, -1, width)  # (H/G, G·q, D)
                of_out = out[row, segment.queries].transpose(0, 1).reshape(kv_heads, -1, width)
                weights = _weights(q, k, seen, ctx.scaling)  # (H/G, G·q, l)
                _add(d_value[row], segment, weights.mT @ d_out)
                d_scores = d_out @ v.mT
                d_scores.sub_((d_out * of_out).sum(-1, keepdim=True)).mul_(weights).mul_(ctx.scaling)
                d_query[row, :, segment.queries] = (d_scores @ k).view(query.shape[1], -1, width)
                _add(d_key[row], segment, d_scores.mT @ q)
        return d_query, d_key, d_value, None, None, None


def _of_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    row: int,
    segment: Segment,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """q (H/G, G·q, D), k and v (H/G, l, D) and mask (q, l) of a segment."""
    kv_heads, width = key.shape[1], key.shape[-1]
    q = query[row, :, segment.queries].reshape(kv_heads, -1, width)
    seen = None if mask is None else _joined(mask[row, 0, segment.queries], segment)
    return q, _joined(key[row], segment), _joined(value[row], segment), seen


def _joined(x: torch.Tensor, segment: Segment) -> torch.Tensor:
    """What a segment sees of `x`, in whose dimension 1 are the keys."""
    prompt = x[:, segment.prompt]
    if segment.branch.stop == 0:
        return prompt
    return torch.cat([prompt, x[:, segment.branch]], 1)


def _add(total: torch.Tensor, segment: Segment, part: torch.Tensor) -> None:
    """Add what a segment's keys get, (H/G, l, D), to that of all keys (H/G, L, D)."""
    own = segment.branch.stop - segment.branch.start
    in_prompt = part.shape[1] - own
    total[:, segment.prompt] += part[:, :in_prompt]
    if own:
        total[:, segment.branch] += part[:, in_prompt:]


def _weights(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
    """(H/G, G·q, l) of q (H/G, G·q, D), k (H/G, l, D) and mask (q, l)."""
    scores = (q @ k.mT).mul_(scaling)
    if mask is not None:
        scores.view(-1, *mask.shape).add_(mask)
    return torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype)


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
