"""Layers with backwards of their own give what transformers' and peft's give, and keep off models whose own are
others.
"""

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.autograd.graph import saved_tensors_hooks
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen2Config, Qwen2ForCausalLM

from playground.models import lean_layers, lora
from tests.tiny import tiny_model

IDS = torch.randint(400, (3, 20), generator=torch.Generator().manual_seed(0))


def biased_model(hidden_size=32, intermediate_size=48, initializer_range=0.2):
    config = Qwen2Config(
        vocab_size=480,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=initializer_range,
    )
    return Qwen2ForCausalLM(config).eval().requires_grad_(False)


def noisy(model, size=0.3):
    """The model with norms, biases and LoRA tensors that are not at their start."""
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "lora_" in name:
                parameter.add_(size * torch.randn(parameter.shape, generator=source))
    return model


def trained(model):
    """{name: gradient} of the LoRA of a model, its logits, and how many bytes the backward kept beside weights."""
    parameters = lora.lora_parameters(model)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(input_ids=IDS).logits
        loss = (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).mean()
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True)), logits.detach(), sum(kept.values())


def plain(model):
    """peft's own LoRA instead of ours."""
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.__class__ = LoraLinear
    return model


@pytest.mark.parametrize("make", [tiny_model, biased_model])
def test_numbers_and_gradients_are_those_of_transformers_and_peft(make):
    base = make()
    targets = lora.linear_targets(base)
    expected_model = plain(noisy(lora.with_lora(lora.tied_copy(base), rank=3, alpha=5, targets=targets)))
    tensors = {name: p.detach().clone() for name, p in lora.lora_parameters(expected_model).items()}
    expected, logits, whole = trained(expected_model)

    lean_layers.use(base)
    model = lora.with_lora(base, rank=3, alpha=5, targets=targets)
    with torch.no_grad():
        for name, parameter in lora.lora_parameters(model).items():
            parameter.copy_(tensors[name])
    found, lean_logits, less = trained(model)
    kinds = {type(module).__name__ for module in model.modules()}
    assert {"_LeanNorm", "_LeanMLP", "LeanLora"} <= kinds and "LlamaMLP" not in kinds and "Linear" in kinds
    torch.testing.assert_close(lean_logits, logits, rtol=1e-4, atol=1e-4)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item())
    assert less < 0.95 * whole
    with model.disable_adapter(), torch.no_grad():
        reference = model(input_ids=IDS).logits
    with torch.no_grad(), plain(model).disable_adapter():
        assert torch.equal(reference, model(input_ids=IDS).logits)
    assert (reference - lean_logits).abs().max() > 0.01


def test_in_bf16_they_are_as_near_as_rounding():
    base = tiny_model().bfloat16()
    model = noisy(lora.with_lora(base, rank=4, alpha=8, targets=lora.linear_targets(base)), 0.1)
    expected, logits, _ = trained(plain(model))
    lean_layers.use(base)
    lean_layers.use_lora(model)
    found, lean_logits, _ = trained(model)
    assert (lean_logits - logits).float().abs().mean() < 0.02 * logits.float().abs().mean()
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.cosine_similarity(found[name].flatten(), gradient.flatten(), 0) > 0.98


def test_a_model_with_norms_and_units_of_its_own_keeps_them():
    """Gemma's norm multiplies by 1 + weight, and its unit is a GELU."""
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    model = Gemma2ForCausalLM(config)
    before = [type(module) for module in model.modules()]
    lean_layers.use(model)
    assert [type(module) for module in model.modules()] == before


def test_a_gated_unit_of_another_kind_keeps_its_own():
    model = tiny_model()
    for module in model.modules():
        if type(module).__name__ == "LlamaMLP":
            module.act_fn = torch.nn.GELU()
    lean_layers.use(model)
    kinds = {type(module).__name__ for module in model.modules()}
    assert "LlamaMLP" in kinds and "_LeanMLP" not in kinds
