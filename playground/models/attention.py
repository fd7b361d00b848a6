"""Plain attention without copies: the query heads that share keys and values are one batch of rows against them
(grouped-query attention, Ainslie et al. 2023), where transformers' plain attention copies keys and values for every
head, at each step of the decoding and of its backward.
"""

import inspect
import sys

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.llama import modeling_llama

NAME = "grouped"


def grouped(module, query, key, value, attention_mask, scaling, **_unused):
    """query (B, H, Q, D), key and value (B, H/G, L, D), attention_mask (B, 1, Q, L) added to the scores -> (B, Q, H,
    D), and no weights.

    The weights, which grow with the square of the length, are worked out again for the backward.
    """
    tensors = query, key, value, attention_mask, scaling
    if torch.is_grad_enabled() and query.requires_grad:
        return checkpoint(_attend, *tensors, use_reentrant=False, preserve_rng_state=False), None
    return _attend(*tensors), None


def _attend(query, key, value, attention_mask, scaling):
    b, h, q, d = query.shape
    heads = key.shape[1]
    scores = (query.reshape(b, heads, -1, d) @ key.transpose(2, 3)).view(b, h, q, -1) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    return (weights.view(b, heads, -1, key.shape[2]) @ value).view(b, h, q, d).transpose(1, 2).contiguous()


def use_grouped(model):
    """Let a model with plain attention compute it so. One whose plain attention is not Llama's word for word (capped
    scores, sinks) keeps its own.
    """
    plain = {
        sys.modules[type(module).__module__]
        for module in model.modules()
        if type(module).__module__.startswith("transformers.models.")
    }
    text = inspect.getsource(modeling_llama.eager_attention_forward)
    theirs = [module.eager_attention_forward for module in plain if hasattr(module, "eager_attention_forward")]
    if theirs and all(inspect.getsource(function) == text for function in theirs):
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, grouped)
AttentionMaskInterface.register(NAME, eager_mask)
