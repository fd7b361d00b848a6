"""The Llama family's forward with few kernels, on any device: projections of one input are one matrix product, the
residual is added by the product before it, and a rotation is one batched product.

`LeanModel` runs one version. It knows nothing of prompts, replies or caches: whoever calls `run` attends. A version's
LoRA is merged into copies of the weights of its blocks; in a model of more than MERGED_PARAMETERS it stays apart, and
the blocks share the base's weights. Embeddings and head are always the base's.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch.nn.functional import linear, rms_norm, silu
from transformers import LlamaModel, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from playground.decoding import llama
from playground.decoding.prompt_cache import AttentionShape
from playground.models import structure

MERGED_PARAMETERS = 3_000_000_000  # of a model above which a second copy of the blocks takes too much memory

# (layer, q (T, heads, head dim), k and v (T, kv heads, head dim)) -> (T, heads·head dim)
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def number_format(device: torch.device, of_model: torch.dtype) -> torch.dtype:
    """The format of weights and activations: bf16 on a GPU, fp16 where it has no bf16, the model's own elsewhere."""
    if device.type != "cuda":
        return of_model
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


class PackedLinear:
    """Linear layers of one input as one product: their weights one below the other.

    `lora` is (A of all, B of all): A (ranks, inputs), B (outputs, ranks) with zeros where a rank belongs to another
    layer; None where the LoRA is merged or there is none.
    """

    def __init__(self, layers: Sequence[torch.nn.Module], dtype: torch.dtype, merged: bool) -> None:
        self.lora: tuple[torch.Tensor, torch.Tensor] | None = None
        trained = any(llama.lora_of(layer) for layer in layers)
        if trained and merged:
            self.weight = torch.cat([llama.merged_weight(layer).to(dtype) for layer in layers])
        else:
            self.weight = _joined([llama.base_linear(layer) for layer in layers], dtype)
            if trained:
                self.lora = _stacked_lora(layers, dtype)
        self.bias = _joined_bias([llama.base_linear(layer) for layer in layers], dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(T, inputs) -> (T, outputs)."""
        y = linear(x, self.weight, self.bias)
        if self.lora is not None:
            a, b = self.lora
            y.addmm_(linear(x, a), b.T)
        return y

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """Add the product of x (T, inputs) to `residual` (T, outputs) in place."""
        residual.addmm_(x, self.weight.T)
        if self.lora is not None:
            a, b = self.lora
            residual.addmm_(linear(x, a), b.T)
        if self.bias is not None:
            residual.add_(self.bias)


def _joined(layers: Sequence[torch.nn.Linear], dtype: torch.dtype) -> torch.Tensor:
    """The weights of `layers`, one below the other, without a second copy: the layers' own weights become views of it.
    Where the format differs it is a copy.
    """
    weights = [layer.weight for layer in layers]
    if len(weights) == 1:
        return weights[0].detach().to(dtype)
    if any(weight.dtype != dtype for weight in weights):
        return torch.cat([weight.detach().to(dtype) for weight in weights])
    rows = sum(len(weight) for weight in weights)
    first = weights[0].detach()
    if _adjacent(weights):
        return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))
    joined = torch.cat([weight.detach() for weight in weights])
    for weight, part in zip(weights, joined.split([len(weight) for weight in weights]), strict=True):
        weight.data = part
    return joined


def _adjacent(weights: Sequence[torch.Tensor]) -> bool:
    """Whether the weights lie one after the other in one storage."""
    storage = weights[0].untyped_storage().data_ptr()
    place = weights[0].data_ptr()
    for weight in weights:
        if weight.untyped_storage().data_ptr() != storage or weight.data_ptr() != place or not weight.is_contiguous():
            return False
        place += weight.nbytes
    return True


def _joined_bias(layers: Sequence[torch.nn.Linear], dtype: torch.dtype) -> torch.Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    biases = [layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
    return torch.cat([bias.detach().to(dtype) for bias in biases])


def _stacked_lora(layers: Sequence[torch.nn.Module], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of all layers, as `PackedLinear.lora`."""
    pairs = [llama.lora_of(layer) for layer in layers]
    blocks = []
    for layer, of_layer in zip(layers, pairs, strict=True):
        outputs = llama.base_linear(layer).weight
        blocks.append(
            torch.cat([b for _, b in of_layer], 1) if of_layer else outputs.new_zeros(len(outputs), 0).float()
        )
    a = torch.cat([a for of_layer in pairs for a, _ in of_layer])
    return a.to(dtype), torch.block_diag(*blocks).to(dtype)


class LeanBlock:
    """A transformer block. x is the residual stream (T, hidden)."""

    def __init__(self, block: LlamaDecoderLayer, dtype: torch.dtype, merged: bool) -> None:
        attention = block.self_attn
        mlp = block.mlp
        self.eps = block.input_layernorm.variance_epsilon
        self.input_norm = block.input_layernorm.weight.detach().to(dtype)
        self.mlp_norm = block.post_attention_layernorm.weight.detach().to(dtype)
        self.qkv = PackedLinear([attention.q_proj, attention.k_proj, attention.v_proj], dtype, merged)
        self.out = PackedLinear([attention.o_proj], dtype, merged)
        self.gate_up = PackedLinear([mlp.gate_proj, mlp.up_proj], dtype, merged)
        self.down = PackedLinear([mlp.down_proj], dtype, merged)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """q, k and v of the attention: (T, (heads + 2·kv heads)·head dim)."""
        return self.qkv(rms_norm(x, x.shape[-1:], self.input_norm, self.eps))

    def add_mlp(self, x: torch.Tensor) -> None:
        gate, up = self.gate_up(rms_norm(x, x.shape[-1:], self.mlp_norm, self.eps)).chunk(2, -1)
        self.down.add_to(x, silu(gate).mul_(up))


class LeanModel:
    """One version of a model of the family."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        config = model.config
        trunk = cast("LlamaModel", model.base_model)
        blocks = cast("Sequence[LlamaDecoderLayer]", structure.blocks(model))
        merged = sum(p.numel() for p in trunk.parameters()) <= MERGED_PARAMETERS
        kv_heads = config.num_key_value_heads
        self.heads = config.num_attention_heads
        self.shape = AttentionShape(len(blocks), kv_heads, self.heads // kv_heads, llama.head_dim(config))
        self.dtype = dtype
        self.blocks = [LeanBlock(block, dtype, merged) for block in blocks]
        self.embedding = structure.input_embeddings(model).weight.detach()
        self.head = structure.output_embeddings(model).weight.detach().to(dtype)
        self.norm = trunk.norm.weight.detach().to(dtype)
        self.eps = trunk.norm.variance_epsilon
        self.device = self.embedding.device
        self.frequencies = trunk.rotary_emb.inv_freq.float().to(self.device)
        self.rotation_scale = trunk.rotary_emb.attention_scaling

    def run(self, ids: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """The residual stream (T, hidden) after all blocks, for token ids and positions (T,)."""
        x = self.embedding[ids].to(self.dtype)
        rotation = self.rotations(positions)
        head_dim = self.shape.head_dim
        for layer, block in enumerate(self.blocks):
            qkv = block.project(x).view(len(x), -1, head_dim)
            values = qkv[:, -self.shape.kv_heads :]
            rotated = torch.bmm(qkv[:, : -self.shape.kv_heads], rotation)  # (T, heads + kv heads, head dim)
            block.out.add_to(x, attend(layer, rotated[:, : self.heads], rotated[:, self.heads :], values))
            block.add_mlp(x)
        return x

    def rotations(self, positions: torch.Tensor) -> torch.Tensor:
        """RoPE (Su et al. 2021) as matrices (T, head dim, head dim): row vectors x of queries and keys become x @ R. As
        in transformers, the two halves of a head are the parts of its pairs.
        """
        angles = positions[:, None] * self.frequencies
        cos = torch.diag_embed((angles.cos() * self.rotation_scale).to(self.dtype))
        sin = torch.diag_embed((angles.sin() * self.rotation_scale).to(self.dtype))
        return torch.cat([torch.cat([cos, sin], -1), torch.cat([-sin, cos], -1)], -2)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(T, hidden) -> (T, vocabulary) in fp32."""
        return linear(rms_norm(x, x.shape[-1:], self.norm, self.eps), self.head).float()
