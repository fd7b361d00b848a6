"""The Llama family's forward on a CPU with int8 weights and int16 activations (W8A16): a whole step is one call of the
compiled function in `compiled_step/`.

Where a CPU has no bf16, torch's packed products take far longer than reading the weights, and its small operations
between them a fifth of the step.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad
from transformers import PreTrainedModel

from playground.decoding import llama, openmp
from playground.decoding.compiled_step import step as compiled
from playground.decoding.compiled_step.attention import COLUMNS, WIDTH
from playground.decoding.compiled_step.product import INPUTS, OUTPUTS, ROWS
from playground.decoding.compiled_step.records import LAYER, NO_WINDOW, ROW, STEP
from playground.decoding.forward import TokenIds
from playground.decoding.fused import FusedBlock, FusedForward
from playground.decoding.number_formats import Int8Weight, NumberFormat, PackedWeight
from playground.decoding.prompt_cache import SharedPromptCache
from playground.system.huge_pages import HugePages


def fits(model: PreTrainedModel) -> bool:
    """Whether the kernel can compute `model`, one that `fused.fits`."""
    config = model.config
    inputs = (config.hidden_size, config.intermediate_size, config.num_attention_heads * llama.head_dim(config))
    return all(size % INPUTS == 0 for size in inputs) and llama.head_dim(config) % WIDTH == 0


class TiledInt8Weight:
    """int8 with one scale a row, in the kernel's tiles; activations in int16 with one scale a row."""

    dtype = torch.float32  # of the activations before they are rounded

    def __init__(self, weight: torch.Tensor, memory: HugePages | None = None) -> None:
        packed = Int8Weight(weight)
        outputs, inputs = weight.shape
        tiles = pad(packed.weight, (0, 0, 0, -outputs % OUTPUTS)).view(-1, OUTPUTS, inputs // INPUTS, INPUTS)
        tiles = tiles.transpose(1, 2)
        self.weight = (memory or HugePages()).empty(tiles.shape, tiles.dtype).copy_(tiles)
        self.scale = pad(packed.scale.float(), (0, -outputs % OUTPUTS))  # the kernel reads whole tiles
        self.outputs, self.inputs = weight.shape

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        step = np.zeros((), STEP)
        _fill(step, hidden=self.inputs, vocabulary=self.outputs, head=self.weight, head_scale=self.scale)
        y = torch.empty(len(x), self.outputs)
        _run(compiled.product.address, step, x=x.to(self.dtype).contiguous(), logits=y, **_codes(len(x), self.inputs))
        return y


class Tiling:
    """Packs weights into the same memory, in the order in which a step reads them."""

    dtype = TiledInt8Weight.dtype

    def __init__(self) -> None:
        self.memory = HugePages()

    def __call__(self, weight: torch.Tensor) -> TiledInt8Weight:
        return TiledInt8Weight(weight, self.memory)


def _codes(rows: int, inputs: int) -> dict[str, torch.Tensor]:
    """Room for what a product reads."""
    return {"codes": torch.zeros(rows + ROWS - 1, inputs, dtype=torch.int16), "scales": torch.empty(rows)}


def _fill(record: Any, **values: torch.Tensor | float) -> None:
    """Set fields of a record; of a tensor, its address, so that the tensor must live as long."""
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            assert value.is_contiguous()
            value = value.data_ptr()
        record[name] = value


def _run(function: int, step: NDArray[Any], **buffers: torch.Tensor) -> None:
    """Call a function of the kernel for the rows of `x`, in as many threads as torch uses."""
    _fill(step, rows=len(buffers["x"]), **buffers)
    openmp.run(function, step.ctypes.data, torch.get_num_threads())


class W8A16Forward(FusedForward):
    """A `FusedForward` whose decoding steps are one call each."""

    def __init__(self, model: PreTrainedModel, head: PackedWeight | None = None, prefills_packed: bool = False) -> None:
        super().__init__(model, "w8a16", head, prefills_packed)
        architecture = self.architecture
        # where a layer has no bias
        self._zeros = torch.zeros(max(architecture.qkv_width, self.embedding.shape[1]))
        self._layers = np.zeros(self.shape.layers, LAYER)
        for layer, block in enumerate(self.packed_blocks):
            self._fill_layer(layer, block)
        head_weight = self.head
        assert isinstance(head_weight, TiledInt8Weight)
        self._model = np.zeros((), STEP)
        _fill(
            self._model,
            layers=self.shape.layers,
            hidden=self.embedding.shape[1],
            mlp=architecture.mlp,
            heads=self.heads,
            kv_heads=self.shape.kv_heads,
            head_dim=self.shape.head_dim,
            vocabulary=head_weight.outputs,
            gelu=architecture.activation != "silu",
            weights=self._layers.ctypes.data,
            norm=architecture.norm,
            head=head_weight.weight,
            head_scale=head_weight.scale,
            epsilon=architecture.epsilon,
        )

    def packing(self, number_format: str) -> NumberFormat:
        return NumberFormat(Tiling(), Tiling())

    def for_model(self, model: PreTrainedModel) -> "W8A16Forward":
        return W8A16Forward(model, self.head, self.prefills_packed)

    def _fill_layer(self, layer: int, block: FusedBlock) -> None:
        record = self._layers[layer]
        for name in ("input_norm", "heads_norm", "out_norm", "mlp_norm", "down_norm"):
            weight: torch.Tensor | None = getattr(block, name)
            _fill(record, **{name: 0 if weight is None else weight})
        for name in ("qkv", "out", "gate_up", "down"):
            packed: TiledInt8Weight = getattr(block, f"{name}_weight")
            _fill(record, **{name: packed.weight, f"{name}_scale": packed.scale})
        _fill(record, qkv_bias=self._zeros if block.qkv_bias is None else block.qkv_bias)
        _fill(record, out_bias=self._zeros if block.out_bias is None else block.out_bias)
        record["window"] = self.shape.window(layer) or NO_WINDOW
        record["rotation"] = self.architecture.rotation_of_layer[layer]

    def _decode(self, caches: list[SharedPromptCache], tokens: TokenIds) -> torch.Tensor:
        positions: list[int] = []
        cache_of_row = np.zeros(len(tokens), ROW)
        for cache in caches:
            first = len(positions)
            positions += [cache.add_columns(tokens[first : first + len(cache.active)])] * len(cache.active)
            for row, reply in enumerate(cache.active, first):
                tokens_seen = len(cache.prompt) + len(cache.reply_columns[reply])
                columns = cache.columns_seen[reply].ctypes.data
                cache_of_row[row] = (cache.kv.data_ptr(), cache.kv.shape[3], columns, tokens_seen)
        return self._step(tokens, positions, cache_of_row)

    def _step(self, tokens: TokenIds, positions: list[int], cache_of_row: NDArray[Any]) -> torch.Tensor:
        """Logits (rows, vocabulary) after a token of each row."""
        rows = len(tokens)
        hidden = self.embedding.shape[1]
        width = self.heads * self.shape.head_dim
        context = int(cache_of_row["tokens"].max())
        logits = torch.empty(rows, int(self._model["vocabulary"]))
        step = self._model.copy()
        _fill(step, context=context, cache=cache_of_row.ctypes.data)
        _run(
            compiled.step.address,
            step,
            x=self._embed(tokens),
            y=torch.empty(rows, max(hidden, self.architecture.qkv_width, 2 * self.architecture.mlp)),
            attended=torch.empty(rows, width),
            scores=torch.empty(torch.get_num_threads(), context + COLUMNS),
            logits=logits,
            rotations=self._rotations(torch.tensor(positions)),
            **_codes(rows, max(hidden, width, self.architecture.mlp)),
        )
        return logits

    def _rotations(self, positions: torch.Tensor) -> torch.Tensor:
        """Cosines and sines (rotations, rows, 2, head dim / 2) at positions (rows,)."""
        of_all = []
        for rotation in self.architecture.rotations:
            angles = positions[:, None] * rotation.frequencies
            of_all.append(rotation.scales * torch.stack([angles.cos(), angles.sin()], 1))
        return torch.stack(of_all)
