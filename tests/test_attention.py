"""Attention without copies gives what transformers' plain attention gives, and keeps off models whose own is
another.
"""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
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
        # sums of gradients, in another order on each kind of CPU
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("masked", [True, False])
def test_gradients_in_bf16_are_nearer_to_the_exact_ones_than_torchs_own(masked):
    torch.manual_seed(0)
    shapes = ((2, 6, 20, 16), (2, 2, 33, 16), (2, 2, 33, 16))  # queries, keys, values
    tensors = [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]
    visible = torch.ones(20, 33, dtype=torch.bool).tril(13)
    mask = torch.where(visible, 0.0, torch.finfo(torch.bfloat16).min).bfloat16().expand(2, 1, 20, 33)
    weights = torch.randn(shapes[0])

    def result_and_gradients(attend, tensors):
        """The latter by each of the tensors, in fp64."""
        of_mask = mask.to(tensors[0].dtype) if masked else None
        out = attend(*tensors, of_mask, 0.25)
        return [x.double() for x in (out, *torch.autograd.grad(out, tensors, weights.to(out.dtype)))]

    def own(query, key, value, mask, scaling):
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)

    exact = result_and_gradients(own, [x.detach().double().requires_grad_() for x in tensors])
    theirs = result_and_gradients(own, tensors)
    ours = result_and_gradients(attention._attend, tensors)
    assert torch.equal(ours[0], theirs[0])
    for mine, other, right in zip(ours[1:], theirs[1:], exact[1:], strict=True):
        assert (mine - right).norm() < min((other - right).norm(), 0.003 * right.norm())


@pytest.mark.parametrize("tokens", [0, 1])
def test_values_of_another_width_and_no_queries_are_attended_by_torchs_own(tokens):
    query = torch.randn(1, 2, tokens, 16).bfloat16().requires_grad_()
    key, value = torch.randn(1, 1, 5, 16).bfloat16(), torch.randn(1, 1, 5, 8).bfloat16()
    out = attention._attend(query, key, value, None, 0.25)
    assert out.shape == (1, 2, tokens, 8)
    torch.autograd.grad(out.sum(), query)


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
