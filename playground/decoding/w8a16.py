"""The Llama family's forward on a CPU with int8 weights and int16 activations (W8A16): a whole step is one call of the
compiled function in `step_kernel.py`.

Where a CPU has no bf16, torch's packed products take far longer than reading the weights, and its small operations
between them a third of the step.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from playground.decoding import llama, openmp, step_kernel
from playground.decoding.forward import TokenIds
from playground.decoding.fused import FusedBlock, FusedForward
from playground.decoding.number_formats import Int8Weight, PackedWeight
from playground.decoding.prompt_cache import SharedPromptCache
from playground.decoding.step_kernel import LAYER, ROW, STEP


def fits(model: PreTrainedModel) -> bool:
    """Whether the kernel can multiply the weights of `model`, one that `fused.fits`."""
    config = model.config
    inputs = (config.hidden_size, config.intermediate_size, config.num_attention_heads * llama.head_dim(config))
    return all(size % step_kernel.INPUTS == 0 for size in inputs)


class W8A16Forward(FusedForward):
    """`FusedForward` in int8, but for the decoding steps: activations of a row are int16 with one scale."""

    def __init__(self, model: PreTrainedModel, head: PackedWeight | None = None) -> None:
        super().__init__(model, "int8", head)
        self.number_format = "w8a16"
        self._kept: list[torch.Tensor] = []  # tensors that only addresses refer to
        self._model = np.zeros((), STEP)
        self._mlp = model.config.intermediate_size
        self._layers = np.zeros(self.shape.layers, LAYER)
        for record, block in zip(self._layers, self.decode_blocks, strict=True):
            self._fill_layer(record, block)
        head_weight = self._int8(self.head)
        self._fill(
            self._model,
            layers=self.shape.layers,
            hidden=self.embedding.shape[1],
            mlp=self._mlp,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.shape.head_dim,
            vocabulary=len(head_weight.weight),
            weights=self._layers.ctypes.data,
            norm=self.norm,
            head=head_weight.weight,
            head_scale=head_weight.scale.float(),
            epsilon=self.eps,
        )

    def for_model(self, model: PreTrainedModel) -> "W8A16Forward":
        return W8A16Forward(model, self.head)

    def _fill_layer(self, record: Any, block: FusedBlock) -> None:
        self._fill(record, input_norm=block.input_norm_weight, mlp_norm=block.mlp_norm_weight)
        for name in ("qkv", "out", "gate_up", "down"):
            packed = self._int8(getattr(block, f"{name}_weight"))
            self._fill(record, **{name: packed.weight, f"{name}_scale": packed.scale.float()})
        for name in ("qkv", "out"):
            bias = getattr(block, f"{name}_bias")
            width = len(getattr(block, f"{name}_weight").weight)
            self._fill(record, **{f"{name}_bias": torch.zeros(width) if bias is None else bias.float()})

    @staticmethod
    def _int8(weight: PackedWeight) -> Int8Weight:
        assert isinstance(weight, Int8Weight)
        return weight

    def _fill(self, record: Any, **values: torch.Tensor | float) -> None:
        """Set fields of a record; of a tensor, its address."""
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                self._kept.append(value.contiguous())
                value = self._kept[-1].data_ptr()
            record[name] = value

    def _decode(self, caches: list[SharedPromptCache], tokens: TokenIds) -> torch.Tensor:
        rows = len(tokens)
        positions: list[int] = []
        cache_of_row = np.zeros(rows, ROW)
        for cache in caches:
            first = len(positions)
            positions += [cache.add_columns(tokens[first : first + len(cache.active)])] * len(cache.active)
            for row, reply in enumerate(cache.active, first):
                columns = cache.column_table[reply]
                steps = len(cache.reply_columns[reply])
                prompt = len(cache.prompt)
                cache_of_row[row] = (cache.kv.data_ptr(), cache.kv.shape[3], prompt, columns.ctypes.data, steps)
        return self._step(tokens, positions, cache_of_row)

    def _step(self, tokens: TokenIds, positions: list[int], cache_of_row: NDArray[Any]) -> torch.Tensor:
        """Logits (rows, vocabulary)."""
        rows = len(tokens)
        threads = torch.get_num_threads()
        width = self.heads * self.shape.head_dim
        inputs = max(self.embedding.shape[1], width, self._mlp)
        outputs = max(self.embedding.shape[1], width + 2 * self.kv_heads * self.shape.head_dim, 2 * self._mlp)
        context = int((cache_of_row["prompt"] + cache_of_row["steps"]).max())
        angles = torch.tensor(positions)[:, None] * self.frequencies
        logits = torch.empty(rows, int(self._model["vocabulary"]))
        buffers = {
            "x": self.embedding[torch.as_tensor(tokens)].float(),
            "codes": torch.zeros(rows + step_kernel.ROWS, inputs, dtype=torch.int16),
            "scales": torch.empty(rows),
            "y": torch.empty(rows, outputs),
            "attended": torch.empty(rows, width),
            "scores": torch.empty(threads, context),
            "logits": logits,
            "rotation": self.rotation_scale * torch.stack([angles.cos(), angles.sin()], 1),
        }
        step = self._model.copy()
        for name, buffer in buffers.items():
            step[name] = buffer.data_ptr()
        step["rows"], step["context"], step["cache"] = rows, context, cache_of_row.ctypes.data
        openmp.run(step_kernel.step.address, step.ctypes.data, threads)
        return logits
