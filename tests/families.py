"""Tiny models of each kind that the lean forwards decode: random weights whose norms and biases do something."""

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from playground.models import adapters, lora
from tests.tiny import tiny_model

IDS = [3 + 7 * i % 400 for i in range(40)]
WINDOW = 12  # fewer than IDS, and than what is left of it after a reply of a few tokens
SIZES = {
    "vocab_size": 427,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LONG_TOKENS = 128  # from which LONGROPE has other frequencies
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
}


def made(config):
    torch.manual_seed(0)
    config.initializer_range = 0.1
    model = AutoModelForCausalLM.from_config(config).float().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))  # biases do something
    for name, parameter in model.named_parameters():
        if "norm" in name:  # and no norm can be taken for another
            parameter.add_(0.4 * torch.rand_like(parameter))
    return model


def trained(model=None, size=0.1):
    """The model, by default the tiny one, with a LoRA that does something."""
    model = model or tiny_model()
    shell = lora.with_lora(lora.tied_copy(model), rank=4, alpha=8, targets=lora.linear_targets(model))
    noise = torch.Generator().manual_seed(1)
    adapters.copy_strictly(
        {k: size * torch.randn(v.shape, generator=noise) for k, v in lora.lora_parameters(shell).items()},
        lora.lora_parameters(shell),
    )
    return shell.requires_grad_(False).get_base_model()


def qwen3(**more):
    return made(Qwen3Config(**SIZES, head_dim=32, **more))


def smollm3(**more):
    return made(SmolLM3Config(**SIZES, no_rope_layers=[1, 0, 1], **more))


def phi3():
    """Phi-4-mini's: three quarters of each head are rotated, with factors for short texts."""
    lengths = {"original_max_position_embeddings": LONG_TOKENS, "max_position_embeddings": 4 * LONG_TOKENS}
    return made(Phi3Config(**SIZES, **lengths, rope_parameters=dict(LONGROPE)))


def gemma3(**more):
    """Two layers with a window and one without, each kind with a RoPE of its own."""
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    more |= {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": WINDOW, "layer_types": layer_types}
    return made(Gemma3TextConfig(**SIZES, rope_parameters=rope, tie_word_embeddings=False, **more))


MODELS = {
    "llama": tiny_model,
    "llama trained": trained,
    "llama3 rotations": lambda: made(LlamaConfig(**SIZES, tie_word_embeddings=False, rope_parameters=LLAMA3)),
    "yarn rotations": lambda: made(LlamaConfig(**SIZES, rope_parameters=YARN, max_position_embeddings=128)),
    "wide heads": lambda: made(LlamaConfig(**SIZES, head_dim=32)),
    "llama with biases": lambda: made(LlamaConfig(**SIZES, attention_bias=True)),
    "qwen2 with biases": lambda: made(Qwen2Config(**SIZES)),
    "qwen2 with windows": lambda: made(
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
    "qwen3": qwen3,
    "qwen3 with windows and biases": lambda: qwen3(
        use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1, attention_bias=True
    ),
    "qwen3 trained": lambda: trained(qwen3()),
    "mistral": lambda: made(MistralConfig(**SIZES, sliding_window=None)),
    "mistral with a window": lambda: made(MistralConfig(**SIZES, sliding_window=WINDOW)),
    "smollm3": smollm3,
    "smollm3 trained": lambda: trained(smollm3()),
    "phi3": lambda: made(Phi3Config(**SIZES, sliding_window=WINDOW)),
    "phi4-mini": phi3,
    "phi4-mini trained": lambda: trained(phi3()),
    "gemma3": gemma3,
    "gemma3 trained": lambda: trained(gemma3()),
}


def full(model, ids):
    """Logits (vocabulary,) after these tokens, without any cache."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]
