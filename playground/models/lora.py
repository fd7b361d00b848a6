"""LoRA layers on a base model (Hu et al. 2021): which layers get one, how it is added, which tensors it has, and a pool
of models whose layers are ready for a version's tensors.

What a version's files must look like is `adapters.py`'s.
"""

import copy
import weakref
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from playground.models import lean_layers, structure

# layers that a model's forward goes round: it uses their weights without calling them, so a LoRA would have no effect
_MAMBA_LAYERS = {"conv1d", "out_proj", "dt_proj"}
NO_LORA = {
    "mamba": _MAMBA_LAYERS,
    "mamba2": _MAMBA_LAYERS,
    "falcon_mamba": _MAMBA_LAYERS,
    "falcon_h1": _MAMBA_LAYERS,
    "nemotron_h": _MAMBA_LAYERS,
}  # by model type


def linear_targets(model: PreTrainedModel) -> list[str]:
    """Names (last component) of all linear layers inside the blocks that can have a LoRA, GPT-2's Conv1D too. Quantised
    layers are subclasses of Linear.
    """
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in structure.blocks(model).named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
    }
    return sorted(names - NO_LORA.get(model.config.model_type, set()))


ModelT = TypeVar("ModelT", bound=torch.nn.Module)


def tied_copy(base: ModelT) -> ModelT:
    """A second module tree over the same tensors: layers can be added to it without changing the first. LoRA tensors,
    where there are any, are its own.
    """
    tensors = [parameter for name, parameter in base.named_parameters() if "lora_" not in name]
    of_layers = [getattr(module, "quant_state", None) for module in base.modules()]  # how a layer's weight is quantised
    shared = [*tensors, *base.buffers(), *(state for state in of_layers if state is not None)]
    return copy.deepcopy(base, memo={id(part): part for part in shared})


def with_lora(base: PreTrainedModel, *, rank: int, alpha: float, targets: Iterable[str]) -> PeftModel:
    """`base` with fp32 LoRA layers injected in place, no dropout; the update starts at zero. Returns the peft model.

    The LoRA tensors are kept in fp32, where small steps do not vanish, and multiplied in the trunk's format. peft would
    turn every layer's input into fp32 and keep that for the backward.
    """
    transposed = any(isinstance(module, Conv1D) for module in structure.blocks(base).modules())
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it by the rank, and takes a float too
        lora_dropout=0.0,
        target_modules=list(targets),
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=transposed,
    )
    model = get_peft_model(base, config, autocast_adapter_dtype=True).eval()
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
            for part in (*layer.lora_A.values(), *layer.lora_B.values()):
                part.__class__ = _LinearInInputFormat
    lean_layers.use_lora(model)
    return model


class _LinearInInputFormat(torch.nn.Linear):
    """A linear layer that casts its weight to the format of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight.to(x.dtype))


def lora_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The LoRA tensors by name, without the adapter's name and peft's prefix."""
    return {
        name.replace(".default", "").removeprefix("base_model.model."): parameter
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }


@dataclass(frozen=True)
class LoraShape:
    """What two versions must have in common to use the same layers one after the other."""

    rank: int
    alpha: float
    targets: tuple[str, ...]


class LoraPool:
    """Models with LoRA layers over the tensors of `base`, ready to be filled with a version's LoRA tensors.

    To add the layers takes a tenth of a second of pure Python, during which a decoder in the same process is ten times
    as slow. So some are made ahead, and those of a version that is gone are used for the next one.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self.base = base
        self._originals: dict[LoraShape, PreTrainedModel] = {}  # that the others are copied from
        self._free: defaultdict[LoraShape, list[PreTrainedModel]] = defaultdict(list)
        self._in_use: weakref.WeakKeyDictionary[PreTrainedModel, LoraShape] = weakref.WeakKeyDictionary()

    def prepare(self, n: int, shape: LoraShape) -> None:
        """Make `n` models of this shape ahead."""
        self._free[shape] += [self._make(shape) for _ in range(n)]

    def acquire(self, shape: LoraShape) -> PreTrainedModel:
        """A model of this shape; its LoRA tensors hold anything."""
        model = self._free[shape].pop() if self._free[shape] else self._make(shape)
        self._in_use[model] = shape
        return model

    def release(self, model: PreTrainedModel) -> None:
        """Nothing runs this model any more. A model that is not from this pool is ignored."""
        if model in self._in_use:
            self._free[self._in_use.pop(model)].append(model)

    def _make(self, shape: LoraShape) -> PreTrainedModel:
        if shape not in self._originals:
            peft_model = with_lora(tied_copy(self.base), rank=shape.rank, alpha=shape.alpha, targets=shape.targets)
            self._originals[shape] = cast("PreTrainedModel", peft_model.get_base_model())
        return tied_copy(self._originals[shape])
