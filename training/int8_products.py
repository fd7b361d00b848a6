"""Products with frozen weights in int8 for training on a CPU: weights have one scale an output, as in the chat's w8a16,
and activations and gradients are rounded to whole numbers, row by row. The compiled product is `int8_kernel.py`'s;
which policies multiply so is `rounding.py`'s.
"""

from typing import Any

import numpy as np
import torch

from playground.decoding.number_formats import Int8Weight
from playground.system import compiling
from training import ppo_math

KERNEL = "training.int8_kernel"  # numba and torch's OpenMP are not everywhere, and take a second: imported where wanted


class Int8Product:
    """y = x · Wᵀ, of a weight in int8 whose rows or columns have scales."""

    def __init__(
        self, codes: torch.Tensor, out_scale: torch.Tensor | None = None, in_scale: torch.Tensor | None = None
    ) -> None:
        """codes (outputs, inputs) int8; W = out_scale · codes · in_scale, of (outputs,) and (inputs,), fp32."""
        from playground.decoding import openmp

        int8_kernel = compiling.imported(KERNEL)
        self.outputs, self.inputs = codes.shape
        tiles = codes.view(-1, int8_kernel.OUTPUTS, self.inputs // 2, 2)
        self.tiles = tiles.transpose(1, 2).contiguous()  # (outputs / OUTPUTS, inputs / 2, OUTPUTS, 2)
        self.out_scale = torch.ones(self.outputs) if out_scale is None else out_scale
        self.in_scale = in_scale
        self._kind = int8_kernel.PRODUCT
        self._function = int8_kernel.product.address
        self._run = openmp.run

    def __call__(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """x (rows, inputs) fp32 -> (rows, outputs) fp32, written into `y` where it is given."""
        x = x.contiguous()
        rows, threads = len(x), torch.get_num_threads()
        y = x.new_empty(rows, self.outputs) if y is None else y
        assert x.dtype == y.dtype == torch.float32 and y.is_contiguous()
        assert x.shape == (rows, self.inputs) and y.shape == (rows, self.outputs)
        buffers = {
            "x": x,
            "scaled": x.new_empty(threads, self.inputs),
            "codes": x.new_empty(rows, self.inputs, dtype=torch.int16),
            "row_scales": x.new_empty(rows),
            "weights": self.tiles,
            "out_scale": self.out_scale,
            "y": y,
        }
        if self.in_scale is not None:
            buffers["in_scale"] = self.in_scale
        record: Any = np.zeros((), self._kind)
        record["rows"], record["inputs"], record["outputs"] = rows, self.inputs, self.outputs
        for name, tensor in buffers.items():
            record[name] = tensor.data_ptr()
        self._run(self._function, record.ctypes.data, threads)
        return y


class RoundedWeight:
    """A linear layer's frozen weight W (outputs, inputs) in int8 with one scale for each output, both ways; its bias
    stays as it is.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        rounded = Int8Weight(weight)
        scale = rounded.scale.float()
        self.bias = bias
        self.outputs = len(weight)
        self._forward = Int8Product(rounded.weight, out_scale=scale)
        self._backward = Int8Product(rounded.weight.T.contiguous(), in_scale=scale)

    @staticmethod
    def fits(weight: torch.Tensor) -> bool:
        """Whether it is in fp32, and its sizes fill whole tiles both ways."""
        int8_kernel = compiling.imported(KERNEL)
        return weight.dtype == torch.float32 and all(size % int8_kernel.OUTPUTS == 0 for size in weight.shape)

    def times(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """x (rows, inputs) -> x · Wᵀ + bias, (rows, outputs)."""
        y = self._forward(x, y)
        return y if self.bias is None else y.add_(self.bias)

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient (rows, inputs) of x, of that of the result (rows, outputs)."""
        return self._backward(gradient)


class RoundedHead(ppo_math.Head):
    """A vocabulary's weight in int8, in blocks of words. A last block that fills no whole tiles stays as it is."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias)
        self._words = ppo_math.WORDS
        self._blocks = [
            RoundedWeight(part, None if bias is None else bias[i * self._words : (i + 1) * self._words])
            for i, part in enumerate(weight.split(self._words))
            if RoundedWeight.fits(part)
        ]
        self._rounded_words = sum(block.outputs for block in self._blocks)

    def products(self, hidden: torch.Tensor, words: slice, out: torch.Tensor) -> None:
        if words.start < self._rounded_words:
            self._blocks[words.start // self._words].times(hidden, out)
        else:
            super().products(hidden, words, out)

    def weighted(self, weights: torch.Tensor, words: slice) -> torch.Tensor:
        if words.start < self._rounded_words:
            return self._blocks[words.start // self._words].back(weights)
        return super().weighted(weights, words)

    def of_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        weight = super().of_tokens(tokens)
        rounded = Int8Weight(weight)
        whole = rounded.weight.float() * rounded.scale.float()[:, None]
        return torch.where((tokens < self._rounded_words)[:, None], whole, weight)
