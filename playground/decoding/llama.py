"""The Llama family as the lean forwards see it: which models they can run, and weights with their LoRA merged.

`fused.py` (CPU) and `lean_model.py` (GPU) build their blocks from it.
"""

from typing import cast

import torch
from peft.tuners.lora import LoraLayer
from transformers import PretrainedConfig, PreTrainedModel

from playground.models import structure

FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
FIXED_ROTATIONS = ("default", "linear", "llama3")  # rope types whose frequencies do not depend on the length


def fits(model: PreTrainedModel, device_type: str) -> bool:
    """Whether `model` is of the family: Llama's block, full attention in every layer, fixed rotations, and unquantised
    weights on a device of this type.
    """
    config = model.config
    if type(model).__name__ not in FAMILY or config.hidden_act != "silu":
        return False
    if getattr(config, "mlp_bias", False) or getattr(config, "sliding_window", None):
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in FIXED_ROTATIONS:
        return False
    layers = [base_layer(module) for module in structure.blocks(model).modules()]
    weights = [layer.weight for layer in layers if isinstance(layer, torch.nn.Linear)]
    return all(weight.is_floating_point() and weight.device.type == device_type for weight in weights)


def head_dim(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def base_layer(module: torch.nn.Module) -> torch.nn.Module:
    """A layer without the LoRA around it."""
    return module.base_layer if isinstance(module, LoraLayer) else module


def base_linear(module: torch.nn.Module) -> torch.nn.Linear:
    return cast("torch.nn.Linear", base_layer(module))


def lora_of(module: torch.nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The LoRA pairs of a linear layer in fp32: A (rank, inputs), and B (outputs, rank) times its scale. Empty where
    there is none.
    """
    if not isinstance(module, LoraLayer) or module.disable_adapters:
        return []
    pairs = []
    for name, scale in module.scaling.items():
        a = base_linear(module.lora_A[name]).weight.detach().float()
        b = base_linear(module.lora_B[name]).weight.detach().float()
        pairs.append((a, scale * b))
    return pairs


def merged_weight(module: torch.nn.Module) -> torch.Tensor:
    """The fp32 weight (outputs, inputs) of a linear layer, its LoRA added."""
    weight = base_linear(module).weight.detach().float()
    for a, b in lora_of(module):
        weight = weight + b @ a
    return weight
