"""The parts of a decoding step beside its matrix products: in torch's operations for any device, and for a GPU in
Triton (`triton_kernels.py`), where each part is one kernel.

`kernels_for` chooses. Triton's are used where they compute what torch's do, which is tried on random numbers first.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch.nn.functional import gelu, rms_norm, scaled_dot_product_attention, silu

from playground.decoding.prompt_cache import AttentionShape
from playground.decoding.rope import Rope
from playground.system.safe_logging import Loggable

log = logging.getLogger(__name__)

MAX_ERROR = 0.02  # of the norm of what torch computes; bf16 rounds to 0.004


class SlotColumns(NamedTuple):
    """Where the rows of a step are in their slots, whose layout is `decode_batch.DecodeBatch`'s. Both tensors are
    (2·slots,), with the same number for the two rows of a slot.
    """

    shared: torch.Tensor  # columns of the prompt
    steps: torch.Tensor  # taken before this one; each has added a column for each of the two rows
    context: int  # columns of a slot that this step may look at
    slot_tokens: int  # columns of a slot


class SlotStep(Protocol):
    """The attention of one step."""

    def attend(self, qkv: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """Rotate q and k of each row in qkv (2·slots, heads + 2·kv heads, head dim), write k and v into the row's next
        column of kv (2, slots, kv heads, slot tokens, head dim), of which there may be more slots, and attend: returns
        (2·slots, heads·head dim).
        """


class Kernels(NamedTuple):
    """What a model of Llama's family computes between two matrix products."""

    name: str
    # (x (T, n), weight (n,) in x's format or in fp32, eps) -> (T, n)
    rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    silu_and_mul: Callable[[torch.Tensor], torch.Tensor]  # (gate and up (T, 2·n)) -> silu(gate)·up (T, n)
    slot_step: Callable[[Rope, SlotColumns], SlotStep]
    reads_context: bool  # whether the attention takes the longer the larger `SlotColumns.context` is


# -- torch


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    if weight.dtype == x.dtype:
        return rms_norm(x, x.shape[-1:], weight, eps)
    return rms_norm(x.float(), x.shape[-1:], weight, eps).to(x.dtype)


def gelu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gelu(gate)·up (T, n), by tanh, of gate and up (T, 2·n)."""
    gate, up = gate_up.chunk(2, -1)
    return gelu(gate, approximate="tanh").mul_(up)


def _silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, -1)
    return silu(gate).mul_(up)


class TorchSlotStep:
    """A `SlotStep` of torch's operations. With a `window`, a token sees no more than its last `window` tokens."""

    def __init__(self, rope: Rope, columns: SlotColumns, window: int | None = None) -> None:
        shared = columns.shared
        rows = len(shared)
        kv_heads = rope.shape.kv_heads
        self.rope = rope
        self.slots = rows // 2
        self.context = columns.context
        self.rotation = rope.matrices(shared + columns.steps)
        row = torch.arange(rows, device=shared.device)
        own = shared + row % 2  # the first column of each reply
        column = (own + 2 * columns.steps).clamp(max=columns.slot_tokens - 1)
        self.mask = self._mask(shared, own, column, window)
        # of one layout: otherwise each `index_put_` would copy them
        self.at = [
            index.expand(rows, kv_heads).contiguous()
            for index in (row[:, None] // 2, torch.arange(kv_heads, device=shared.device), column[:, None])
        ]

    def attend(self, qkv: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        q, k, v = self.rope.split(qkv, self.rotation)
        keys, values = kv
        keys.index_put_(self.at, k)
        values.index_put_(self.at, v)
        seen = slice(self.slots), slice(None), slice(self.context)
        return self._by_row(scaled_dot_product_attention(self._by_slot(q), keys[seen], values[seen], self.mask))

    def _mask(self, shared: torch.Tensor, own: torch.Tensor, column: torch.Tensor, window: int | None) -> torch.Tensor:
        """What is added to the scores, (slots, 1, 2·group, context): 0 for the columns that a row sees."""
        place = torch.arange(self.context, device=shared.device)
        of_reply = (place <= column[:, None]) & ((place - own[:, None]) % 2 == 0)
        of_prompt = place < shared[:, None]
        seen = of_prompt | of_reply
        if window is not None:
            # how many tokens ago; those of a reply are two columns apart
            in_reply = (column[:, None] - place) // 2
            in_prompt = (shared + (column - own) // 2)[:, None] - place
            seen &= torch.where(of_prompt, in_prompt, in_reply) < window
        mask = torch.zeros(seen.shape, dtype=self.rope.dtype, device=seen.device)
        # a finite number, so that a row that sees nothing gives numbers too
        mask.masked_fill_(~seen, torch.finfo(mask.dtype).min / 2)
        group = self.rope.shape.group
        return mask.view(-1, 1, 2, 1, self.context).expand(-1, 1, 2, group, self.context).flatten(2, 3)

    def _by_slot(self, q: torch.Tensor) -> torch.Tensor:
        """(2·slots, heads, head dim) -> (slots, kv heads, 2·group, head dim)."""
        shape = self.rope.shape
        q = q.unflatten(1, (shape.kv_heads, shape.group)).unflatten(0, (self.slots, 2))
        return q.permute(0, 2, 1, 3, 4).flatten(2, 3)

    def _by_row(self, out: torch.Tensor) -> torch.Tensor:
        """(slots, kv heads, 2·group, head dim) -> (2·slots, heads·head dim)."""
        return out.unflatten(2, (2, self.rope.shape.group)).permute(0, 2, 1, 3, 4).flatten(2).flatten(0, 1)


TORCH = Kernels("torch", _rms_norm, _silu_and_mul, TorchSlotStep, reads_context=True)


# -- the choice


@cache
def kernels_for(shape: AttentionShape, hidden: int, dtype: torch.dtype, device: torch.device) -> Kernels:
    """Triton's kernels where there is a GPU and they agree with torch's on tensors of these sizes; else torch's."""
    if device.type != "cuda":
        return TORCH
    return faithful(_triton, shape, hidden, dtype, device)


def _triton() -> Kernels:
    from playground.decoding.triton_kernels import TRITON  # noqa: PLC0415 - there may be no Triton

    return TRITON


def faithful(
    load: Callable[[], Kernels], shape: AttentionShape, hidden: int, dtype: torch.dtype, device: torch.device
) -> Kernels:
    """The kernels that `load` returns where they run and agree with torch's; else torch's, and the log says why."""
    try:
        kernels = load()
        error = disagreement(kernels, shape, hidden, dtype, device)
    except Exception as failure:  # no Triton, no compiler for it, sizes that it cannot take, or an unknown GPU
        log.warning("decoding without Triton, which is slower: %s: %s", Loggable(type(failure).__name__), failure)
        return TORCH
    if not error <= MAX_ERROR:
        log.warning("decoding without Triton, which is slower: its kernels are off by %.3g of what is right", error)
        return TORCH
    return kernels


@torch.inference_mode()
def disagreement(
    kernels: Kernels, shape: AttentionShape, hidden: int, dtype: torch.dtype, device: torch.device
) -> float:
    """The largest difference between what `kernels` and torch's operations compute on random numbers, as a part of the
    norm of the latter; NaN where the kernels give no numbers.
    """
    generator = torch.Generator(device).manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, device=device).to(dtype)

    x, weight = random(4, hidden), random(hidden)
    errors = [
        _relative(kernels.rms_norm(x, weight, 1e-5), TORCH.rms_norm(x, weight, 1e-5)),
        _relative(kernels.rms_norm(x, weight.float(), 1e-5), TORCH.rms_norm(x, weight.float(), 1e-5)),
        _relative(kernels.silu_and_mul(x.repeat(1, 2)), TORCH.silu_and_mul(x.repeat(1, 2))),
    ]
    frequencies = torch.rand(shape.head_dim // 2, generator=generator, device=device)
    rope = Rope(shape, frequencies, torch.ones_like(frequencies), dtype)
    # a slot that was just filled, one that is nearly full, and one that nobody uses and that has run over
    shared, steps = torch.tensor([[37, 0], [501, 129], [3, 900]], device=device).repeat_interleave(2, 0).T
    columns = SlotColumns(shared, steps, 768, 768)
    qkv = random(6, (shape.group + 2) * shape.kv_heads, shape.head_dim)
    theirs = random(2, 4, shape.kv_heads, 768, shape.head_dim)
    ours = theirs.clone()
    expected = TORCH.slot_step(rope, columns).attend(qkv, theirs)[:4]
    attended = kernels.slot_step(rope, columns).attend(qkv, ours)[:4]
    errors.append(_relative(attended, expected))
    errors.append(_relative(ours[:, :2], theirs[:, :2]))
    errors.append(float((ours[:, 3] != theirs[:, 3]).any()))  # a slot that takes no part
    return max(errors) if all(error == error for error in errors) else float("nan")


def _relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.float() - expected.float()).norm() / expected.float().norm()).item()
