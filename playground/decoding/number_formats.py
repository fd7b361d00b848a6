"""Weights of linear layers, packed in the number formats that the fused forward decodes in."""

from typing import NamedTuple, Protocol

import torch
from torch.nn.functional import linear, pad

INT4_GROUP = 32  # weights of a row that share a scale and a zero in int4
INT4_OUTPUTS = 16  # int4's outputs come in blocks of this many
INT8_INPUTS = 16  # torch's int8 product reads this many inputs at once, beyond the end of a row where fewer are left
INT8_ROWS = 4096  # rows that are quantised at once, so that temporary copies stay small


class PackedWeight(Protocol):
    """The weight (outputs, inputs) of a linear layer; a call multiplies x (rows, inputs) by it: (rows, outputs)."""

    dtype: torch.dtype  # of the activations

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


class Pack(Protocol):
    """Packs the weight (outputs, inputs) of a linear layer."""

    dtype: torch.dtype  # of the activations

    def __call__(self, weight: torch.Tensor) -> PackedWeight: ...


class Int8Weight:
    """int8 with one scale a row; activations in bf16."""

    dtype = torch.bfloat16

    def __init__(self, weight: torch.Tensor) -> None:
        self.missing = -weight.shape[1] % INT8_INPUTS  # inputs; zeros stand for them
        weight = pad(weight, (0, self.missing)) if self.missing else weight
        self.weight = torch.empty_like(weight, dtype=torch.int8)
        self.scale = weight.new_empty(len(weight), dtype=self.dtype)
        parts = (tensor.split(INT8_ROWS) for tensor in (weight, self.weight, self.scale))
        for rows, codes, scale in zip(*parts, strict=True):
            scale.copy_((rows.abs().amax(1).float() / 127).clamp(min=1e-8))
            codes.copy_((rows / scale.float()[:, None]).round_().clamp_(-128, 127))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = pad(x, (0, self.missing)) if self.missing else x
        return torch._weight_int8pack_mm(x, self.weight, self.scale)


class Int4Weight:
    """int4 with a scale and a zero for each INT4_GROUP weights of a row; activations in bf16."""

    dtype = torch.bfloat16

    @staticmethod
    def fits(outputs: int, inputs: int) -> bool:
        """Whether torch can pack a weight of this shape."""
        return outputs % INT4_OUTPUTS == 0 and inputs % INT4_GROUP == 0

    def __init__(self, weight: torch.Tensor) -> None:
        groups = weight.reshape(len(weight), -1, INT4_GROUP)
        low = groups.amin(-1, keepdim=True)
        high = groups.amax(-1, keepdim=True)
        scale = ((high - low) / 15).clamp(min=1e-8).to(self.dtype)
        zero = (low + 8 * scale.float()).to(self.dtype)
        codes = ((groups - zero.float()) / scale.float() + 8).round().clamp(0, 15).to(torch.int32)
        self.weight = torch._convert_weight_to_int4pack_for_cpu(codes.reshape(weight.shape), 1)
        self.scales = torch.cat([scale, zero], -1).transpose(0, 1).contiguous()  # (groups, rows, 2)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch._weight_int4pack_mm_for_cpu(x, self.weight, INT4_GROUP, self.scales)


class BFloat16Weight:
    """bf16 weights and activations."""

    dtype = torch.bfloat16

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight.to(self.dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight)


class Float32Weight(BFloat16Weight):
    """fp32 weights and activations."""

    dtype = torch.float32


class NumberFormat(NamedTuple):
    """How a version's weights are packed: those of the blocks, and the head (the output embeddings)."""

    blocks: Pack
    head: Pack


FORMATS = {
    "int8": NumberFormat(Int8Weight, Int8Weight),
    "int4": NumberFormat(Int4Weight, Int8Weight),
    "bfloat16": NumberFormat(BFloat16Weight, BFloat16Weight),
    "float32": NumberFormat(Float32Weight, Float32Weight),
}
PARAMETER_BYTES = {"w8a16": 1, "int8": 1, "int4": 1, "bfloat16": 2, "float32": 4}  # at most, of a weight in each format
