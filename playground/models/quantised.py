"""The linear layers of a trunk in nf4 below a LoRA that is trained (QLoRA, Dettmers et al. 2023).

bitsandbytes multiplies by one kernel where gradients are needed and by another where they are not, and these round
differently. PPO's first ratio would not be 1.
"""

from typing import cast

import torch
from bitsandbytes.autograd import _functions
from bitsandbytes.nn import Linear4bit, Params4bit


class DequantisedLinear(Linear4bit):
    """A layer whose weight is dequantised in each forward and backward, with gradients and without."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        weight = cast("Params4bit", self.weight)
        return _functions.MatMul4Bit.apply(x, weight, None, bias, weight.quant_state)


def dequantise_in_forward(model: torch.nn.Module) -> None:
    """Turn the 4-bit layers of `model` into DequantisedLinear, over the same weights."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.__class__ = DequantisedLinear
