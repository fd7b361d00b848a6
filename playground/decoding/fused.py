"""The Llama family's forward on a CPU: fused projections in a number format that decodes fast, and a key/value cache
that is never concatenated.

`FusedForward` runs one version. A prompt is prefilled through the model's own layers, LoRA included, many tokens at a
time. A decoding step goes through weights whose LoRA is merged in fp32, then packed for few rows. Rotary pairs lie side
by side here, so that a rotation is one complex product (RoPE, Su et al. 2021). Both paths give each row the same result
whatever else is in the batch. The packed weights are in `number_formats.py`, the cache in `prompt_cache.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch.nn.functional import rms_norm, silu
from transformers import LlamaModel, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from playground.decoding import llama
from playground.decoding.forward import TokenIds
from playground.decoding.number_formats import FORMATS, NumberFormat, PackedWeight
from playground.decoding.prompt_cache import AttentionShape, SharedPromptCache
from playground.models import structure

PREFILL_CHUNK = 192  # tokens; small, so that replies in progress do not wait long for another person's prompt

# (layer, q (T, heads, head dim), kv (T, 2·kv heads, head dim)) -> (T, heads·head dim)
Attention = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]


def fits(model: PreTrainedModel) -> bool:
    """Whether `FusedForward` can run `model`: one of Llama's family, on the CPU."""
    return llama.fits(model, "cpu")


# -- weights


class _Block(ABC):
    """A transformer block: its norms, and the projections that a subclass adds. x is (T, hidden) throughout."""

    dtype: torch.dtype  # of the projections' inputs

    def __init__(self, block: LlamaDecoderLayer) -> None:
        self.input_norm_weight = block.input_layernorm.weight.detach().float()
        self.mlp_norm_weight = block.post_attention_layernorm.weight.detach().float()
        self._eps = block.input_layernorm.variance_epsilon

    def input_norm(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, x.shape[-1:], self.input_norm_weight, self._eps).to(self.dtype)

    def mlp_norm(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, x.shape[-1:], self.mlp_norm_weight, self._eps).to(self.dtype)

    @abstractmethod
    def qkv(self, x: torch.Tensor) -> torch.Tensor:
        """(T, heads·head dim of q, k and v), the rotary pairs of q and k side by side."""

    @abstractmethod
    def out(self, x: torch.Tensor) -> torch.Tensor:
        """The output projection of the attention: (T, hidden)."""

    @abstractmethod
    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        """(T, hidden) -> (T, hidden)."""


class _ModelBlock(_Block):
    """A block through the model's own layers, for prefilling."""

    def __init__(self, block: LlamaDecoderLayer, head_dim: int) -> None:
        super().__init__(block)
        self._attention = block.self_attn
        self._mlp = block.mlp
        self._head_dim = head_dim
        self.dtype = llama.base_linear(block.mlp.up_proj).weight.dtype

    def qkv(self, x: torch.Tensor) -> torch.Tensor:
        q = self._attention.q_proj(x)
        k = self._attention.k_proj(x)
        v = self._attention.v_proj(x)
        return torch.cat([self._paired(q), self._paired(k), v], -1)

    def _paired(self, x: torch.Tensor) -> torch.Tensor:
        """transformers keeps the two halves of each head apart; here each rotary pair lies side by side."""
        return x.view(len(x), -1, 2, self._head_dim // 2).transpose(2, 3).flatten(1)

    def out(self, x: torch.Tensor) -> torch.Tensor:
        return self._attention.o_proj(x)

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self._mlp.down_proj(silu(self._mlp.gate_proj(x)) * self._mlp.up_proj(x))


class FusedBlock(_Block):
    """A block in a number format, for decoding: its LoRA merged, projections of one input fused."""

    def __init__(self, block: LlamaDecoderLayer, head_dim: int, pack: type[PackedWeight]) -> None:
        super().__init__(block)
        self.dtype = pack.dtype
        weights = []
        biases = []
        for name in ("q_proj", "k_proj", "v_proj"):
            layer = getattr(block.self_attn, name)
            weight = llama.merged_weight(layer)
            bias: torch.Tensor | None = llama.base_linear(layer).bias
            order = torch.arange(len(weight))
            if name != "v_proj":
                order = order.view(-1, 2, head_dim // 2).transpose(1, 2).flatten()  # as _ModelBlock._paired
            weights.append(weight[order])
            biases.append(torch.zeros(len(weight)) if bias is None else bias.detach().float()[order])
        fused_bias = torch.cat(biases)
        self.qkv_bias = fused_bias.to(self.dtype) if fused_bias.any() else None
        self.qkv_weight = pack(torch.cat(weights))
        self.out_weight = pack(llama.merged_weight(block.self_attn.o_proj))
        out_bias: torch.Tensor | None = llama.base_linear(block.self_attn.o_proj).bias
        self.out_bias = None if out_bias is None else out_bias.detach().to(self.dtype)
        self.gate_up_weight = pack(
            torch.cat([llama.merged_weight(block.mlp.gate_proj), llama.merged_weight(block.mlp.up_proj)])
        )
        self.down_weight = pack(llama.merged_weight(block.mlp.down_proj))

    def qkv(self, x: torch.Tensor) -> torch.Tensor:
        y = self.qkv_weight(x)
        return y if self.qkv_bias is None else y + self.qkv_bias

    def out(self, x: torch.Tensor) -> torch.Tensor:
        y = self.out_weight(x)
        return y if self.out_bias is None else y + self.out_bias

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_weight(x).chunk(2, -1)
        return self.down_weight(silu(gate) * up)


# -- the forward


class FusedForward:
    """One version of a model of the family, ready to decode in one of `number_formats.FORMATS`. In `float32` it gives
    the model's logits exactly, up to rounding. Fulfils `forward.Forward`.

    Versions of one base differ in their blocks alone, so they can share a `head`.
    """

    def __init__(self, model: PreTrainedModel, number_format: str, head: PackedWeight | None = None) -> None:
        config = model.config
        pack = self.packing(number_format)
        head_dim = llama.head_dim(config)
        trunk = cast("LlamaModel", model.base_model)
        blocks = cast("Sequence[LlamaDecoderLayer]", structure.blocks(model))
        self.model = model
        self.number_format = number_format
        self.prefill_chunk = PREFILL_CHUNK
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.shape = AttentionShape(config.num_hidden_layers, self.kv_heads, self.heads // self.kv_heads, head_dim)
        self.prefill_blocks = [_ModelBlock(block, head_dim) for block in blocks]
        self.decode_blocks = [FusedBlock(block, head_dim, pack.blocks) for block in blocks]
        self.embedding = structure.input_embeddings(model).weight
        self.head = head or pack.head(structure.output_embeddings(model).weight.detach())
        self.norm = trunk.norm.weight.detach().float()
        self.eps = trunk.norm.variance_epsilon
        self.frequencies = trunk.rotary_emb.inv_freq.float()
        self.rotation_scale = trunk.rotary_emb.attention_scaling

    def packing(self, number_format: str) -> NumberFormat:
        return FORMATS[number_format]

    def for_model(self, model: PreTrainedModel) -> "FusedForward":
        return FusedForward(model, self.number_format, self.head)

    def cache_bytes(self, n: int, prompt_tokens: int, new_tokens: int) -> int:
        bytes_per_token = 2 * 4 * self.shape.layers * self.shape.kv_heads * self.shape.head_dim  # keys, values in fp32
        return bytes_per_token * (prompt_tokens + n * new_tokens)

    def new_cache(self, n: int, prompt_tokens: int, new_tokens: int) -> SharedPromptCache:
        return SharedPromptCache(self.shape, n, prompt_tokens, new_tokens)

    def finish(self, cache: SharedPromptCache) -> None:
        """Nothing has to be done: the cache is complete as it is."""

    @torch.inference_mode()
    def prefill(self, cache: SharedPromptCache, ids: TokenIds) -> torch.Tensor:
        start = len(cache.prompt)
        positions = torch.arange(start, start + len(ids))

        def attend(layer: int, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
            return cache.attend_prompt(layer, q, kv, start)

        x = self._run_blocks(self.prefill_blocks, ids, positions, attend)
        cache.prompt += ids
        return self._logits(x[-1:])[0]

    @torch.inference_mode()
    def decode(self, caches: list[SharedPromptCache], tokens: TokenIds) -> torch.Tensor:
        before = [cache.state for cache in caches]
        try:
            return self._decode(caches, tokens)
        except Exception:
            for cache, state in zip(caches, before, strict=True):
                cache.roll_back(state)
            raise

    def _decode(self, caches: list[SharedPromptCache], tokens: TokenIds) -> torch.Tensor:
        positions: list[int] = []
        spans = []  # the rows of each cache
        start = 0
        for cache in caches:
            end = start + len(cache.active)
            position = cache.add_columns(tokens[start:end])
            positions += [position] * (end - start)
            spans.append((cache, slice(start, end)))
            start = end

        def attend(layer: int, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
            if len(spans) == 1:
                return caches[0].attend(layer, q, kv)
            return torch.cat([cache.attend(layer, q[rows], kv[rows]) for cache, rows in spans])

        return self._logits(self._run_blocks(self.decode_blocks, tokens, torch.tensor(positions), attend))

    def _run_blocks(
        self, blocks: Sequence[_Block], ids: TokenIds, positions: torch.Tensor, attend: Attention
    ) -> torch.Tensor:
        """The residual stream (T, hidden) in fp32 after all blocks, for tokens and positions (T,)."""
        x = self.embedding[torch.as_tensor(ids)].float()  # (T, hidden)
        rotation = self._rotation(positions)
        for layer, block in enumerate(blocks):
            pairs = block.qkv(block.input_norm(x)).float().view(*rotation.shape, 2)
            qkv = torch.view_as_real(torch.view_as_complex(pairs) * rotation).flatten(2)  # (T, heads + 2·kv, head dim)
            attended = attend(layer, qkv[:, : self.heads], qkv[:, self.heads :])
            x = x + block.out(attended.to(block.dtype))
            x = x + block.mlp(block.mlp_norm(x))
        return x

    def _rotation(self, positions: torch.Tensor) -> torch.Tensor:
        """Complex rotations (T, heads + 2·kv heads, head dim / 2) of queries, keys and values; 1 for the values."""
        angles = (positions[:, None] * self.frequencies)[:, None].expand(-1, self.heads + self.kv_heads, -1)
        rotation = torch.polar(torch.full_like(angles, self.rotation_scale), angles)
        return torch.cat([rotation, torch.ones_like(rotation[:, : self.kv_heads])], 1)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        """(T, hidden) -> (T, vocabulary) in fp32."""
        normed = rms_norm(x, x.shape[-1:], self.norm, self.eps)
        return self.head(normed.to(self.head.dtype)).float()
