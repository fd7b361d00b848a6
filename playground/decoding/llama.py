"""The Llama family as the lean forwards see it: what its models have in common, and in what they differ.

`describe` reads a model's `Architecture` once, from its config and modules, and `fused.py`, `w8a16.py` and
`lean_model.py` follow it: no forward asks which model it runs. Here is also how a layer's LoRA is merged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from playground.decoding.prompt_cache import AttentionShape
from playground.models import structure

# causal LMs of the family, and what is added to the weight of each of their norms
NORM_OFFSETS = {
    "LlamaForCausalLM": 0.0,
    "MistralForCausalLM": 0.0,
    "Qwen2ForCausalLM": 0.0,
    "Qwen3ForCausalLM": 0.0,
    "SmolLM3ForCausalLM": 0.0,
    "Phi3ForCausalLM": 0.0,  # Phi-3 and Phi-4-mini
    "Gemma3ForCausalLM": 1.0,  # its text models
}
PLAIN = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")  # rope types whose frequencies do not depend on the length
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
WEIGHT_FORMATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Rotation:
    """Rotary position embeddings (RoPE, Su et al. 2021) of a layer's queries and keys, for each pair of a head."""

    frequencies: torch.Tensor  # (head dim / 2,) in fp32, radians a token; 0 where a pair is not rotated
    # (head dim / 2,) in fp32, of cosines and sines. Since queries and keys have it both, its square scales the scores:
    # it holds what a model's scores are scaled by, beside 1 / sqrt(head dim)
    scales: torch.Tensor


@dataclass(frozen=True, eq=False)
class Architecture:
    """A model of the family, without its blocks' weights."""

    shape: AttentionShape
    pairs: torch.Tensor  # (head dim / 2, 2), places in a head of queries and keys: what is rotated together
    rotations: tuple[Rotation, ...]  # the distinct ones
    rotation_of_layer: tuple[int, ...]  # places in `rotations`
    mlp: int  # width
    activation: str  # of the MLP's gate, one of ACTIVATIONS
    norm: torch.Tensor  # (hidden,), the last one, in fp32
    epsilon: float  # of all norms
    embedding_scale: float

    @property
    def heads(self) -> int:
        return self.shape.kv_heads * self.shape.group

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.shape.kv_heads) * self.shape.head_dim

    def qkv_order(self, order_of_head: torch.Tensor) -> torch.Tensor:
        """The places (width of q, k and v,) of outputs of the projections, such that the numbers of each head of q and
        k are in this order (head dim,). Values stay where they are.
        """
        places = torch.arange(self.qkv_width).view(-1, self.shape.head_dim)
        rotated = places[: -self.shape.kv_heads, order_of_head]
        return torch.cat([rotated, places[-self.shape.kv_heads :]]).flatten()


@dataclass(frozen=True, eq=False)
class Block:
    """A transformer block: its layers, with their LoRA, and the weights of its norms in fp32 (RMS norm, Zhang and
    Sennrich 2019).
    """

    input_norm: torch.Tensor  # (hidden,)
    qkv: Sequence[torch.nn.Module]  # whose outputs are, one after the other, queries, keys and values
    heads_norm: torch.Tensor | None  # (heads + kv heads, head dim): of each head of queries and keys
    out: torch.nn.Module
    out_norm: torch.Tensor | None  # (hidden,), of what the attention adds to the residual stream
    mlp_norm: torch.Tensor  # (hidden,)
    gate_up: Sequence[torch.nn.Module]  # whose outputs are gate and up
    down: torch.nn.Module
    down_norm: torch.Tensor | None  # (hidden,), of what the MLP adds to the residual stream

    @property
    def layers(self) -> list[torch.nn.Module]:
        return [*self.qkv, self.out, *self.gate_up, self.down]


# -- which models fit


def fits(model: PreTrainedModel, device_type: str, tokens: int) -> bool:
    """Whether `model` is one of the family that can read a text of `tokens` tokens, with nothing in it that
    `Architecture` cannot say, and with unquantised weights on a device of this type.
    """
    config = model.config
    if type(model).__name__ not in NORM_OFFSETS or _activation(model) not in ACTIVATIONS:
        return False
    if getattr(config, "mlp_bias", False) or getattr(config, "use_bidirectional_attention", False):
        return False
    if getattr(config, "attn_logit_softcapping", None) or getattr(config, "final_logit_softcapping", None):
        return False
    if any(window is not None and window < 1 for window in structure.windows(model)):
        return False  # a token that sees nothing, not even itself
    if not _are_fixed(getattr(config, "rope_parameters", None) or {}, tokens):
        return False
    layers = [base_layer(layer) for block in blocks_of(model) for layer in block.layers]
    layers.append(structure.output_embeddings(model))  # a LoRA on the head would be left out
    return all(_is_plain(layer, device_type) for layer in layers)


def is_plain(model: PreTrainedModel) -> bool:
    """Whether a model that `fits` has nothing beyond Llama's but biases."""
    return type(model).__name__ in PLAIN and structure.window(model) is None


def _is_plain(layer: torch.nn.Module, device_type: str) -> bool:
    """Whether it is a linear layer that multiplies by its weight as it is: a subclass may add scales to it."""
    if type(layer) is not torch.nn.Linear:
        return False
    return layer.weight.dtype in WEIGHT_FORMATS and layer.weight.device.type == device_type


def _are_fixed(rope_parameters: dict[str, Any], tokens: int) -> bool:
    """Whether the frequencies are the same at every length up to `tokens` tokens."""
    by_layer_type = [parameters for parameters in rope_parameters.values() if isinstance(parameters, dict)]
    if by_layer_type:
        return all(parameters.get("rope_type", "default") in FIXED_ROTATIONS for parameters in by_layer_type)
    rope_type = rope_parameters.get("rope_type", "default")
    if rope_type == "longrope":  # others from the original length on
        return tokens <= rope_parameters["original_max_position_embeddings"]
    return rope_type in FIXED_ROTATIONS


def _activation(model: PreTrainedModel) -> str | None:
    """Of the MLP's gate; Gemma reads a field of its own, and either kind of config may have a stray one."""
    field = "hidden_activation" if type(model).__name__ == "Gemma3ForCausalLM" else "hidden_act"
    return getattr(model.config, field, None)


# -- the description


def head_dim(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def describe(model: PreTrainedModel) -> Architecture:
    """The architecture of a model that `fits`."""
    config = model.config
    trunk: Any = model.base_model
    attentions = [cast("Any", block).self_attn for block in structure.blocks(model)]
    kinds = [(_rotates(attention), _layer_type(trunk.rotary_emb, attention)) for attention in attentions]
    distinct = list(dict.fromkeys(kinds))
    rotations = [_rotation(model, attentions[kinds.index(kind)], *kind) for kind in distinct]
    windows = structure.windows(model)
    embeddings = structure.input_embeddings(model)
    embedding_scale = getattr(embeddings, "embed_scale", torch.ones(())).to(embeddings.weight.dtype)
    return Architecture(
        shape=AttentionShape(
            layers=len(attentions),
            kv_heads=config.num_key_value_heads,
            group=config.num_attention_heads // config.num_key_value_heads,
            head_dim=head_dim(config),
            windows=tuple(windows) if any(windows) else (),
        ),
        pairs=_pairs(head_dim(config), _rotated_numbers(trunk.rotary_emb, kinds[0][1])),
        rotations=tuple(rotations),
        rotation_of_layer=tuple(distinct.index(kind) for kind in kinds),
        mlp=config.intermediate_size,
        activation=str(_activation(model)),
        norm=_norm_weight(trunk.norm, _norm_offset(model)),
        epsilon=config.rms_norm_eps,
        embedding_scale=embedding_scale.item(),
    )


def _rotates(attention: Any) -> bool:
    return bool(getattr(attention, "use_rope", True))


def _layer_type(rotary: Any, attention: Any) -> str:
    """The attention's type where the model has a RoPE for each type of layers, else an empty text."""
    return attention.layer_type if isinstance(rotary.rope_type, dict) else ""


def _rotated_numbers(rotary: Any, layer_type: str) -> int:
    """How many of a head's numbers are rotated."""
    return 2 * len(getattr(rotary, f"{layer_type}_inv_freq" if layer_type else "inv_freq"))


def _rotation(model: PreTrainedModel, attention: Any, rotates: bool, layer_type: str) -> Rotation:
    """The rotation of layers like this one."""
    rotary: Any = model.base_model.rotary_emb
    prefix = f"{layer_type}_" if layer_type else ""
    frequencies = getattr(rotary, f"{prefix}inv_freq")
    scale = getattr(rotary, f"{prefix}attention_scaling")
    if rotary.rope_type == "longrope":  # the module keeps those of the last length that it has seen
        frequencies, scale = ROPE_INIT_FUNCTIONS["longrope"](model.config, frequencies.device)
    half_head = head_dim(model.config) // 2
    padded = frequencies.new_zeros(half_head, dtype=torch.float32)
    scales = torch.ones_like(padded)
    if rotates:
        padded[: len(frequencies)] = frequencies
        scales[: len(frequencies)] = scale
    of_scores = attention.scaling / (2 * half_head) ** -0.5
    return Rotation(padded, scales * math.sqrt(of_scores))


def _pairs(numbers: int, rotated: int) -> torch.Tensor:
    """As transformers does, the first `rotated` of a head's numbers are rotated, each with the one half of them after
    it; the others, which are not, are paired in the same way.
    """
    parts = [torch.arange(rotated), torch.arange(rotated, numbers)]
    return torch.cat([part.view(2, len(part) // 2) for part in parts], 1).T


def blocks_of(model: PreTrainedModel) -> list[Block]:
    """The blocks of a model that `fits`."""
    return [_block(model, cast("Any", block)) for block in structure.blocks(model)]


def _block(model: PreTrainedModel, block: Any) -> Block:
    offset = _norm_offset(model)
    attention = block.self_attn
    mlp = block.mlp
    heads_norm = None
    if hasattr(attention, "q_norm"):
        norms = (_norm_weight(attention.q_norm, offset), _norm_weight(attention.k_norm, offset))
        numbers = (model.config.num_attention_heads, model.config.num_key_value_heads)
        heads_norm = torch.cat([norm.expand(n, -1) for norm, n in zip(norms, numbers, strict=True)])
    after_attention = _norm_weight(block.post_attention_layernorm, offset)
    sandwiched = hasattr(block, "pre_feedforward_layernorm")  # norms before and after each part
    return Block(
        input_norm=_norm_weight(block.input_layernorm, offset),
        qkv=_layers(attention, "qkv_proj", "q_proj", "k_proj", "v_proj"),
        heads_norm=heads_norm,
        out=attention.o_proj,
        out_norm=after_attention if sandwiched else None,
        mlp_norm=_norm_weight(block.pre_feedforward_layernorm, offset) if sandwiched else after_attention,
        gate_up=_layers(mlp, "gate_up_proj", "gate_proj", "up_proj"),
        down=mlp.down_proj,
        down_norm=_norm_weight(block.post_feedforward_layernorm, offset) if sandwiched else None,
    )


def _layers(parent: Any, joined: str, *separate: str) -> list[torch.nn.Module]:
    """The one layer that a model has for all, or its layers."""
    names = [joined] if hasattr(parent, joined) else separate
    return [getattr(parent, name) for name in names]


def _norm_offset(model: PreTrainedModel) -> float:
    return NORM_OFFSETS[type(model).__name__]


def _norm_weight(norm: Any, offset: float) -> torch.Tensor:
    return norm.weight.detach().float() + offset


# -- weights


def base_layer(module: torch.nn.Module) -> torch.nn.Module:
    """A layer without the LoRA around it."""
    return module.base_layer if isinstance(module, LoraLayer) else module


def base_linear(module: torch.nn.Module) -> torch.nn.Linear:
    return cast("torch.nn.Linear", base_layer(module))


def lora_of(module: torch.nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The LoRA pairs of a linear layer in fp32: A (rank, inputs), and B (outputs, rank) times its scale, which is 0
    where the LoRA is off. Empty where there is none.
    """
    if not isinstance(module, LoraLayer):
        return []
    pairs = []
    for name, scale in module.scaling.items():
        a = base_linear(module.lora_A[name]).weight.detach().float()
        b = base_linear(module.lora_B[name]).weight.detach().float()
        pairs.append((a, (0.0 if module.disable_adapters else scale) * b))
    return pairs


def merged_weight(module: torch.nn.Module) -> torch.Tensor:
    """The fp32 weight (outputs, inputs) of a linear layer, its LoRA added."""
    weight = base_linear(module).weight.detach().float()
    for a, b in lora_of(module):
        weight = weight + b @ a
    return weight


def joined_weight(layers: Sequence[torch.nn.Module]) -> torch.Tensor:
    """The fp32 weights (outputs, inputs) of layers of one input, one below the other, their LoRA added."""
    return torch.cat([merged_weight(layer) for layer in layers])


def joined_bias(layers: Sequence[torch.nn.Module]) -> torch.Tensor | None:
    """The biases (outputs,) of such layers in fp32, with zeros where one has none; None where none has one."""
    linears = [base_linear(layer) for layer in layers]
    if all(linear.bias is None for linear in linears):
        return None
    biases = []
    for linear in linears:
        bias = linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias
        biases.append(bias.detach().float())
    return torch.cat(biases)
