"""The Llama family's forward on a CPU: fused projections in a number format that decodes fast, and a key/value cache
that is never concatenated.

`FusedForward` runs one version. A decoding step goes through weights whose LoRA is merged in fp32, then packed for few
rows. A prompt is prefilled many tokens at a time, through the model's own layers, LoRA included, or through the packed
weights where these are faster. Rotary pairs lie side by side here, so that a rotation is one complex product (RoPE, Su
et al. 2021). Both paths give each row the same result whatever else is in the batch. What the models of the family
differ in is `llama.py`'s, the packed weights are in `number_formats.py`, the cache in `prompt_cache.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.nn.functional import gelu, rms_norm, silu
from transformers import PreTrainedModel

from playground.decoding import llama
from playground.decoding.forward import TokenIds
from playground.decoding.llama import Architecture
from playground.decoding.number_formats import FORMATS, NumberFormat, Pack, PackedWeight
from playground.decoding.prompt_cache import SharedPromptCache
from playground.models import structure

PREFILL_CHUNK = 192  # tokens; small, so that replies in progress do not wait long for another person's prompt
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": silu,
    "gelu_pytorch_tanh": partial(gelu, approximate="tanh"),
}

# (layer, q (T, heads, head dim), kv (T, 2·kv heads, head dim)) -> (T, heads·head dim)
Attention = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]


def fits(model: PreTrainedModel, tokens: int) -> bool:
    """Whether `FusedForward` can run `model` on texts of `tokens` tokens: one of Llama's family, on the CPU."""
    return llama.fits(model, "cpu", tokens)


# -- weights


class Block(ABC):
    """A transformer block: its norms, and the projections that a subclass adds. x is (T, hidden) in fp32 where it is
    part of the residual stream or added to it; the projections' own inputs and outputs are in `dtype`.
    """

    dtype: torch.dtype

    def __init__(self, block: llama.Block, architecture: Architecture) -> None:
        self.input_norm = block.input_norm
        self.out_norm = block.out_norm
        self.mlp_norm = block.mlp_norm
        self.down_norm = block.down_norm
        self.activation = ACTIVATIONS[architecture.activation]
        self.kv_heads = architecture.shape.kv_heads
        self.head_dim = architecture.shape.head_dim
        self.epsilon = architecture.epsilon
        # the rotary pairs of q and k side by side
        order_of_head = architecture.pairs.flatten()
        self.qkv_order = architecture.qkv_order(order_of_head)
        self.heads_norm = None if block.heads_norm is None else block.heads_norm[:, order_of_head]

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """(T, heads + 2·kv heads, head dim) in fp32, q and k normalised where the model does so, not rotated."""
        qkv = self.qkv(self._norm(x, self.input_norm).to(self.dtype)).float().view(len(x), -1, self.head_dim)
        if self.heads_norm is None:
            return qkv
        queries_keys = rms_norm(qkv[:, : -self.kv_heads], (self.head_dim,), None, self.epsilon) * self.heads_norm
        return torch.cat([queries_keys, qkv[:, -self.kv_heads :]], 1)

    def attention_output(self, attended: torch.Tensor) -> torch.Tensor:
        """(T, heads·head dim) -> what is added to the residual stream."""
        return self._norm(self.out(attended.to(self.dtype)), self.out_norm)

    def mlp_output(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream -> what is added to it."""
        return self._norm(self.mlp(self._norm(x, self.mlp_norm).to(self.dtype)), self.down_norm)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        return x if weight is None else rms_norm(x.float(), x.shape[-1:], weight, self.epsilon)

    @abstractmethod
    def qkv(self, x: torch.Tensor) -> torch.Tensor:
        """(T, heads·head dim of q, k and v), the rotary pairs of q and k side by side."""

    @abstractmethod
    def out(self, x: torch.Tensor) -> torch.Tensor:
        """The output projection of the attention: (T, hidden)."""

    @abstractmethod
    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        """(T, hidden) -> (T, hidden)."""


class _ModelBlock(Block):
    """A block through the model's own layers, for many tokens at a time."""

    def __init__(self, block: llama.Block, architecture: Architecture) -> None:
        super().__init__(block, architecture)
        self._block = block
        self.dtype = llama.base_linear(block.down).weight.dtype

    def qkv(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(x) for layer in self._block.qkv], -1)[:, self.qkv_order]

    def out(self, x: torch.Tensor) -> torch.Tensor:
        return self._block.out(x)

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = torch.cat([layer(x) for layer in self._block.gate_up], -1).chunk(2, -1)
        return self._block.down(self.activation(gate) * up)


class FusedBlock(Block):
    """A block in a number format: its LoRA merged, projections of one input fused."""

    def __init__(self, block: llama.Block, architecture: Architecture, pack: Pack) -> None:
        super().__init__(block, architecture)
        self.dtype = pack.dtype
        qkv_bias = llama.joined_bias(block.qkv)
        self.qkv_bias = None if qkv_bias is None else qkv_bias[self.qkv_order].to(self.dtype)
        self.qkv_weight = pack(llama.joined_weight(block.qkv)[self.qkv_order])
        out_bias = llama.joined_bias([block.out])
        self.out_bias = None if out_bias is None else out_bias.to(self.dtype)
        self.out_weight = pack(llama.merged_weight(block.out))
        self.gate_up_weight = pack(llama.joined_weight(block.gate_up))
        self.down_weight = pack(llama.merged_weight(block.down))

    def qkv(self, x: torch.Tensor) -> torch.Tensor:
        y = self.qkv_weight(x)
        return y if self.qkv_bias is None else y + self.qkv_bias

    def out(self, x: torch.Tensor) -> torch.Tensor:
        y = self.out_weight(x)
        return y if self.out_bias is None else y + self.out_bias

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_weight(x).chunk(2, -1)
        return self.down_weight(self.activation(gate) * up)


# -- the forward


class FusedForward:
    """One version of a model of the family, ready to decode in one of `number_formats.FORMATS`. In `float32` it gives
    the model's logits exactly, up to rounding. Fulfils `forward.Forward`.

    Versions of one base differ in their blocks alone, so they can share a `head`. `prefills_packed`: prompts go through
    the packed weights too.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        number_format: str,
        head: PackedWeight | None = None,
        prefills_packed: bool = False,
    ) -> None:
        pack = self.packing(number_format)
        blocks = llama.blocks_of(model)
        self.model = model
        self.number_format = number_format
        self.prefills_packed = prefills_packed
        self.prefill_chunk = PREFILL_CHUNK
        self.architecture = llama.describe(model)
        self.shape = self.architecture.shape
        self.heads = self.architecture.heads
        self.model_blocks = [_ModelBlock(block, self.architecture) for block in blocks]
        self.packed_blocks = [FusedBlock(block, self.architecture, pack.blocks) for block in blocks]
        self.embedding = structure.input_embeddings(model).weight
        self.head = head or pack.head(structure.output_embeddings(model).weight.detach())

    def packing(self, number_format: str) -> NumberFormat:
        return FORMATS[number_format]

    def for_model(self, model: PreTrainedModel) -> "FusedForward":
        return FusedForward(model, self.number_format, self.head, self.prefills_packed)

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

        blocks = self.packed_blocks if self.prefills_packed else self.model_blocks
        x = self._run_blocks(blocks, ids, positions, attend)
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

        return self._logits(self._run_blocks(self.packed_blocks, tokens, torch.tensor(positions), attend))

    def _run_blocks(
        self, blocks: Sequence[Block], ids: TokenIds, positions: torch.Tensor, attend: Attention
    ) -> torch.Tensor:
        """The residual stream (T, hidden) in fp32 after all blocks, for tokens and positions (T,)."""
        x = self._embed(ids)
        rotations = [self._rotation(rotation, positions) for rotation in self.architecture.rotations]
        for layer, block in enumerate(blocks):
            rotation = rotations[self.architecture.rotation_of_layer[layer]]
            pairs = torch.view_as_complex(block.heads(x).view(*rotation.shape, 2))
            qkv = torch.view_as_real(pairs * rotation).flatten(2)  # (T, heads + 2·kv heads, head dim)
            x = x + block.attention_output(attend(layer, qkv[:, : self.heads], qkv[:, self.heads :]))
            x = x + block.mlp_output(x)
        return x

    def _embed(self, ids: TokenIds) -> torch.Tensor:
        """The residual stream (T, hidden) in fp32 before the first block."""
        return self.embedding[torch.as_tensor(ids)].float() * self.architecture.embedding_scale

    def _rotation(self, rotation: llama.Rotation, positions: torch.Tensor) -> torch.Tensor:
        """Complex rotations (T, heads + 2·kv heads, head dim / 2) of queries, keys and values; 1 for the values."""
        kv_heads = self.shape.kv_heads
        angles = (positions[:, None] * rotation.frequencies)[:, None].expand(-1, self.heads + kv_heads, -1)
        turned = torch.polar(rotation.scales.expand_as(angles), angles)
        return torch.cat([turned, torch.ones_like(turned[:, :kv_heads])], 1)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        """(T, hidden) -> (T, vocabulary) in fp32."""
        normed = rms_norm(x, x.shape[-1:], self.architecture.norm, self.architecture.epsilon)
        return self.head(normed.to(self.head.dtype)).float()
