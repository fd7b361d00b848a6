"""Attention without copies gives what transformers' plain attention gives, and keeps off models whose own is
another.
"""

import pytest
import torch
from transformers import DynamicCache, Gemma2Config, Gemma2ForCausalLM

from playground.models import attention
from tests.tiny import tiny_model

IDS = torch.tensor([[0, 0, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


def outputs(model):
    """Logits of a padded batch and their gradient by the embeddings, then of one step more with a cache."""
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_(True)
    logits = model(inputs_embeds=embedded, attention_mask=MASK).logits[MASK.bool()]
    (gradient,) = torch.autograd.grad((logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum(), embedded)
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK, past_key_values=cache)
        step = model(
            input_ids=IDS[:, :1] + 20, attention_mask=torch.cat([MASK, MASK[:, -1:]], 1), past_key_values=cache
        ).logits
    return logits, gradient[MASK.bool()], step


def test_it_is_transformers_plain_attention():
    model = tiny_model()
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    model.set_attn_implementation("eager")
    expected = outputs(model)
    attention.use_grouped(model)
    assert model.config._attn_implementation == "grouped"
    for found, right in zip(outputs(model), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 50.0])
def test_a_model_with_an_attention_of_its_own_keeps_it(softcap):
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        attn_logit_softcapping=softcap,
    )
    model = Gemma2ForCausalLM(config)
    model.set_attn_implementation("eager")
    attention.use_grouped(model)
    assert model.config._attn_implementation == "eager"
