"""The layers of Llama's block with backwards of their own, for training on a frozen trunk: the same numbers, in fewer
passes over memory, and little kept.

autograd runs a norm, a gated unit or a LoRA as five to ten operations, each of which reads and writes, and some of
which keep, a tensor of the size of the activations. On a CPU that takes as long as the matrix products.
"""

from typing import Any, Protocol, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from playground.models import structure


class _RmsNorm(torch.autograd.Function):
    """weight · x / √(mean(x²) + ε) (Zhang & Sennrich 2019); the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # (..., 1)
        inverse = (norm.square() / x.shape[-1] + eps).rsqrt()
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        wide = x.float()
        scaled = gradients[0].float() * weight  # (..., d)
        along = torch.linalg.vecdot(scaled, wide)[..., None] * inverse**3 / x.shape[-1]  # (..., 1)
        return scaled.mul_(inverse).addcmul_(wide, along, value=-1).to(x.dtype), None, None


class _GatedUnit(torch.autograd.Function):
    """silu(gate) · up (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        (gradient,) = gradients
        d_up = torch.nn.functional.silu(gate).mul_(gradient)
        return torch.ops.aten.silu_backward(gradient * up, gate), d_up


class Frozen(Protocol):
    """A linear layer that is not trained: its product, and the gradient of what it multiplies."""

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, inputs) -> x·Wᵀ + bias, (N, outputs)."""
        ...

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient (N, inputs) of x, of that of the result (N, outputs)."""
        ...


class _Linear:
    """A linear layer in its own number format."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        self.weight, self.bias = layer.weight, layer.bias

    def times(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight, self.bias)

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient @ self.weight


class _LoraProduct(torch.autograd.Function):
    """x·Wᵀ + bias + scale·(x·Aᵀ)·Bᵀ (Hu et al. 2021), each product added to by the next; W and bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, frozen: Frozen, a: torch.Tensor, b: torch.Tensor, scale: float
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ a.to(x.dtype).T  # (N, rank)
        out = frozen.times(rows).addmm_(inner, b.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(rows, a, b, inner)
        ctx.frozen = frozen
        ctx.scale = scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, a, b, inner = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1])
        d_inner = (gradient @ b.to(rows.dtype)).mul_(ctx.scale)  # (N, rank)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = ctx.frozen.back(gradient).addmm_(d_inner, a.to(rows.dtype)).view(*gradients[0].shape[:-1], -1)
        d_a = (d_inner.T @ rows).to(a.dtype)
        d_b = (gradient.T @ inner).to(b.dtype).mul_(ctx.scale)
        return d_x, None, d_a, d_b, None


class _FrozenProduct(torch.autograd.Function):
    """x·Wᵀ + bias of a layer whose LoRA is off."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, frozen: Frozen) -> torch.Tensor:
        ctx.frozen = frozen
        return frozen.times(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1])
        return ctx.frozen.back(gradient).view(*gradients[0].shape[:-1], -1), None


class _LeanNorm(LlamaRMSNorm):
    """Llama's norm with a backward of its own."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)


class _LeanMLP(LlamaMLP):
    """Llama's gated unit with a backward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(_GatedUnit.apply(self.gate_proj(x), self.up_proj(x)))


class LeanLora(LoraLinear):
    """peft's LoRA on a frozen linear layer: one adapter, no dropout. All else is left to peft, and layers with hooks,
    which run where a layer is called.
    """

    frozen: Frozen | None = None  # what multiplies in the place of the layer, with the LoRA on or off

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base = self.base_layer
        plain = not (self.merged or args or kwargs or base._forward_hooks)
        if plain and self.disable_adapters and self.frozen:
            return _FrozenProduct.apply(x, self.frozen)
        if not plain or self.disable_adapters or len(self.active_adapters) != 1:
            return super().forward(x, *args, **kwargs)
        name = self.active_adapters[0]
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        frozen = self.frozen or _Linear(cast("torch.nn.Linear", base))
        return _LoraProduct.apply(x, frozen, a, b, self.scaling[name])


def use(model: PreTrainedModel) -> None:
    """Put these norms and gated units into a frozen model, wherever its own are Llama's in their source."""
    for module in model.modules():
        kind = type(module)
        if structure.same_source(kind.forward, LlamaRMSNorm.forward):
            module.__class__ = _LeanNorm
        elif structure.same_source(kind.forward, LlamaMLP.forward) and isinstance(
            module.act_fn, (torch.nn.SiLU, SiLUActivation)
        ):
            module.__class__ = _LeanMLP


def use_lora(model: torch.nn.Module) -> None:
    """Put this LoRA into a model with peft's, on each plain linear layer. A quantised layer keeps peft's."""
    for module in model.modules():
        if type(module) is LoraLinear and type(module.base_layer) is torch.nn.Linear and not module.lora_variant:
            module.__class__ = LeanLora
