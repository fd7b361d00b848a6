"""The Llama family's forward with few kernels, on any device: projections of one input are one matrix product, the
residual is added by the product before it, and a rotation is one batched product.

`LeanModel` runs one version. It knows nothing of prompts, replies or caches: whoever calls `run` attends. A version's
LoRA is merged into copies of the weights of its blocks; in a model of more than MERGED_PARAMETERS it stays apart, and
the blocks share the base's weights. Embeddings and head are always the base's.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import linear, rms_norm
from transformers import PreTrainedModel

from playground.decoding import llama
from playground.decoding.kernels import Kernels, SlotColumns, SlotStep, TorchSlotStep, gelu_and_mul, kernels_for
from playground.decoding.llama import Architecture
from playground.decoding.rope import Rope
from playground.models import structure

MERGED_PARAMETERS = 3_000_000_000  # of a model above which a second copy of the blocks takes too much memory

# (layer, q, k and v before their rotation (T, heads + 2·kv heads, head dim)) -> (T, heads·head dim)
Attend = Callable[[int, torch.Tensor], torch.Tensor]


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
        bias = llama.joined_bias(layers)
        self.bias = None if bias is None else bias.to(dtype)

    def refresh(self, layers: Sequence[torch.nn.Module]) -> None:
        """Read the LoRA of `layers` again, into the same memory."""
        if self.lora is not None:
            for kept, new in zip(self.lora, _stacked_lora(layers, self.weight.dtype), strict=True):
                kept.copy_(new)
        elif any(llama.lora_of(layer) for layer in layers):
            torch.cat([llama.merged_weight(layer).to(self.weight.dtype) for layer in layers], out=self.weight)

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


def _norm_weight(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The fp32 weight of a norm in this format where that holds it exactly; 1 + weight in bf16 it does not."""
    rounded = weight.to(dtype)
    return rounded if torch.equal(rounded.float(), weight) else weight


class LeanBlock:
    """A transformer block. x is the residual stream (T, hidden)."""

    def __init__(
        self, block: llama.Block, architecture: Architecture, dtype: torch.dtype, merged: bool, kernels: Kernels
    ) -> None:
        device = block.input_norm.device
        self._block = block
        self._shape = architecture.shape
        self._kernels = kernels
        self._epsilon = architecture.epsilon
        self._gate = kernels.silu_and_mul if architecture.activation == "silu" else gelu_and_mul
        self._input_norm = _norm_weight(block.input_norm, dtype)
        self._heads_norm = None if block.heads_norm is None else _norm_weight(block.heads_norm, dtype)
        self._out_norm = None if block.out_norm is None else _norm_weight(block.out_norm, dtype)
        self._mlp_norm = _norm_weight(block.mlp_norm, dtype)
        self._down_norm = None if block.down_norm is None else _norm_weight(block.down_norm, dtype)
        # the first numbers of the rotary pairs, then the second ones; None where they are in that order
        order = architecture.pairs.T.flatten()
        in_order = bool((order == torch.arange(len(order))).all())
        self._order = None if in_order else order.to(device)
        self.qkv = PackedLinear(block.qkv, dtype, merged)
        self.out = PackedLinear([block.out], dtype, merged)
        self.gate_up = PackedLinear(block.gate_up, dtype, merged)
        self.down = PackedLinear([block.down], dtype, merged)

    def refresh(self) -> None:
        self.qkv.refresh(self._block.qkv)
        self.out.refresh([self._block.out])
        self.gate_up.refresh(self._block.gate_up)
        self.down.refresh([self._block.down])

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """q, k and v of the attention before their rotation: (T, heads + 2·kv heads, head dim)."""
        kv_heads, head_dim = self._shape.kv_heads, self._shape.head_dim
        qkv = self.qkv(self._kernels.rms_norm(x, self._input_norm, self._epsilon)).view(len(x), -1, head_dim)
        queries_keys = qkv[:, :-kv_heads]
        if self._heads_norm is not None:
            queries_keys.copy_(rms_norm(queries_keys, (head_dim,), None, self._epsilon) * self._heads_norm)
        if self._order is not None:
            queries_keys.copy_(queries_keys[..., self._order])
        return qkv

    def add_attention(self, x: torch.Tensor, attended: torch.Tensor) -> None:
        self._add(x, self.out, attended, self._out_norm)

    def add_mlp(self, x: torch.Tensor) -> None:
        gate_up = self.gate_up(self._kernels.rms_norm(x, self._mlp_norm, self._epsilon))
        self._add(x, self.down, self._gate(gate_up), self._down_norm)

    def _add(self, x: torch.Tensor, layer: PackedLinear, inputs: torch.Tensor, norm: torch.Tensor | None) -> None:
        """Add the layer's outputs to x, through this norm where there is one."""
        if norm is None:
            layer.add_to(x, inputs)
        else:
            x.add_(self._kernels.rms_norm(layer(inputs), norm, self._epsilon))


class LeanModel:
    """One version of a model of the family."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, kernels: Kernels | None = None) -> None:
        merged = sum(p.numel() for p in model.base_model.parameters()) <= MERGED_PARAMETERS
        self.architecture = llama.describe(model)
        self.shape = self.architecture.shape
        self.dtype = dtype
        self.embedding = structure.input_embeddings(model).weight.detach()
        self.device = self.embedding.device
        self.kernels = kernels or kernels_for(self.shape, self.embedding.shape[1], dtype, self.device)
        self.blocks = [
            LeanBlock(block, self.architecture, dtype, merged, self.kernels) for block in llama.blocks_of(model)
        ]
        self.head = structure.output_embeddings(model).weight.detach().to(dtype)
        self.norm = _norm_weight(self.architecture.norm, dtype)
        self.ropes = [
            Rope(self.shape, rotation.frequencies.to(self.device), rotation.scales.to(self.device), dtype)
            for rotation in self.architecture.rotations
        ]

    @torch.no_grad()
    def refresh(self) -> None:
        """Read the model's LoRA again, into the same memory: graphs of the steps stay valid."""
        for block in self.blocks:
            block.refresh()

    def run(self, ids: torch.Tensor, attend: Attend) -> torch.Tensor:
        """The residual stream (T, hidden) after all blocks, for token ids (T,)."""
        x = self.embedding[ids].to(self.dtype)
        if self.architecture.embedding_scale != 1:
            x = x * self.architecture.embedding_scale
        for layer, block in enumerate(self.blocks):
            block.add_attention(x, attend(layer, block.project(x)))
            block.add_mlp(x)
        return x

    def slot_steps(self, columns: SlotColumns) -> list[SlotStep]:
        """The attention of a step in each layer; layers that attend alike share it."""
        steps: dict[tuple[int, int | None], SlotStep] = {}
        of_layers = []
        for layer, rotation in enumerate(self.architecture.rotation_of_layer):
            window = self.shape.window(layer)
            if window is not None and window >= columns.slot_tokens:
                window = None  # no text in a slot is longer
            if (rotation, window) not in steps:
                steps[rotation, window] = self._slot_step(self.ropes[rotation], columns, window)
            of_layers.append(steps[rotation, window])
        return of_layers

    def _slot_step(self, rope: Rope, columns: SlotColumns, window: int | None) -> SlotStep:
        """The kernels' own, which know no window, or torch's."""
        return self.kernels.slot_step(rope, columns) if window is None else TorchSlotStep(rope, columns, window)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(T, hidden) -> (T, vocabulary) in fp32."""
        return linear(self.kernels.rms_norm(x, self.norm, self.architecture.epsilon), self.head).float()
