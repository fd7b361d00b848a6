"""Eager attention without copies of keys and values.

The query heads that share a key/value head are one batch of rows against it (grouped-query attention, Ainslie et al.
2023). transformers' eager attention copies keys and values for every head, at each layer of a forward and of its
backward.
"""

import inspect
import sys

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.models.llama import modeling_llama

NAME = "grouped"


def grouped(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_unused: object,
) -> tuple[torch.Tensor, None]:
    """query (B, H, Q, D), key and value (B, H/G, L, D), attention_mask (B, 1, Q, L) added to the scores -> (B, Q, H,
    D), and no weights.

    The weights grow with the square of the length, so they are not kept but computed again for the backward.
    """
    if torch.is_grad_enabled() and query.requires_grad:
        out = checkpoint(
            _attend, query, key, value, attention_mask, scaling, use_reentrant=False, preserve_rng_state=False
        )
        return out, None
    return _attend(query, key, value, attention_mask, scaling), None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    b, h, q, d = query.shape
    kv_heads, length = key.shape[1:3]
    scores = (query.reshape(b, kv_heads, -1, d) @ key.transpose(2, 3)).view(b, h, q, -1) * scaling  # (B, H, Q, L)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    out = weights.view(b, kv_heads, -1, length) @ value  # (B, H/G, G·Q, D)
    return out.view(b, h, q, d).transpose(1, 2).contiguous()


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
    llama = inspect.getsource(modeling_llama.eager_attention_forward)
    if functions and all(inspect.getsource(function) == llama for function in functions):
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, grouped)
AttentionMaskInterface.register(NAME, eager_mask)
