"""`kernels.Kernels` in Triton, for a GPU: between two matrix products of a decoding step there is one kernel.

Importing this module needs Triton, which PyTorch's builds for CUDA bring along.
"""

# Triton reads the annotations of a kernel's arguments as they are evaluated, and its language has types of its own.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return, misc"

import torch
import triton
import triton.language as tl

from playground.decoding.kernels import Kernels, SlotColumns
from playground.decoding.rope import Rope

HEAD_NUMBERS = 8192  # of a head's keys that one pass of the attention's loop reads: columns times head dim
ROWS_OF_A_PRODUCT = 16  # least that the matrix units take
ATTEND_OPTIONS = {"num_warps": 4, "num_stages": 3}  # stages: passes of the loop whose loads are on their way
GATED_BLOCK = 1024  # numbers of one program


@triton.jit
def _rms_norm_row(x, weight, out, n, eps, BLOCK: tl.constexpr):
    """One row of x (T, n)."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    inside = place < n
    values = tl.load(x + row * n + place, mask=inside, other=0.0).to(tl.float32)
    scaled = values * tl.rsqrt(tl.sum(values * values) / n + eps)
    scaled *= tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * n + place, scaled.to(out.dtype.element_ty), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm (Zhang and Sennrich 2019) of x (T, n), computed in fp32."""
    out = torch.empty_like(x)
    n = x.shape[1]
    _rms_norm_row[(len(x),)](x, weight, out, n, eps, BLOCK=triton.next_power_of_2(n), num_warps=8)
    return out


@triton.jit
def _gate(gate_up, out, n, BLOCK: tl.constexpr):
    """A block of one row of gate_up (T, 2·n)."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    gate = tl.load(gate_up + row * 2 * n + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * n + n + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * n + place, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate)·up (T, n) of gate and up (T, 2·n)."""
    rows, width = gate_up.shape
    out = gate_up.new_empty(rows, width // 2)
    _gate[(rows, triton.cdiv(width // 2, GATED_BLOCK))](gate_up, out, width // 2, BLOCK=GATED_BLOCK, num_warps=4)
    return out


@triton.jit
def _attend_slot(
    qkv,  # (2·slots, heads + 2·kv heads, head dim)
    keys,  # (slots, kv heads, columns, head dim), as are the values
    values,
    shared_columns,  # (2·slots,), with a stride
    steps_taken,
    cosines,  # (2·slots, head dim / 2) in fp32
    sines,
    out,  # (2·slots, heads·head dim)
    scale,  # of the scores
    stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,  # of a head
    COLUMNS: tl.constexpr,
    SLOT_COLUMNS: tl.constexpr,
    QUERIES: tl.constexpr,  # 2·group, or more, which are computed along
):
    """The two rows of one slot, and one head of keys and values. Both rows read the slot's columns together. A row's
    new column is written, and used without being read back; the softmax is taken online (Milakov and Gimelshein 2018).
    """
    slot = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dtype = qkv.dtype.element_ty
    dim = 2 * HALF
    width = (GROUP + 2) * KV_HEADS * dim
    query = tl.arange(0, QUERIES)
    side = tl.minimum(query // GROUP, 1)  # which of the two rows
    row = 2 * slot + side
    of_half = tl.arange(0, HALF)
    of_head = tl.arange(0, 2 * HALF)
    cos = tl.load(cosines + row[:, None] * HALF + of_half[None, :])
    sin = tl.load(sines + row[:, None] * HALF + of_half[None, :])

    q_at = qkv + row * width + (head * GROUP + query % GROUP) * dim
    first = tl.load(q_at[:, None] + of_half[None, :]).to(tl.float32)
    second = tl.load(q_at[:, None] + HALF + of_half[None, :]).to(tl.float32)
    q_first = (first * cos - second * sin).to(dtype)
    q_second = (second * cos + first * sin).to(dtype)
    k_at = qkv + row * width + (KV_HEADS * GROUP + head) * dim
    first = tl.load(k_at[:, None] + of_half[None, :]).to(tl.float32)
    second = tl.load(k_at[:, None] + HALF + of_half[None, :]).to(tl.float32)
    k_first = (first * cos - second * sin).to(dtype)
    k_second = (second * cos + first * sin).to(dtype)
    v = tl.load((k_at + KV_HEADS * dim)[:, None] + of_head[None, :])

    shared = tl.load(shared_columns + 2 * slot * stride).to(tl.int32)
    steps = tl.load(steps_taken + 2 * slot * stride).to(tl.int32)
    filled = tl.minimum(shared + 2 * steps, SLOT_COLUMNS)
    begin = (slot * KV_HEADS + head) * SLOT_COLUMNS * dim
    new = begin + tl.minimum(filled + side, SLOT_COLUMNS - 1) * dim
    writes = ((query % GROUP == 0) & (query < 2 * GROUP))[:, None]
    tl.store(keys + new[:, None] + of_half[None, :], k_first, mask=writes)
    tl.store(keys + new[:, None] + HALF + of_half[None, :], k_second, mask=writes)
    tl.store(values + new[:, None] + of_head[None, :], v, mask=writes)

    products = q_first.to(tl.float32) * k_first.to(tl.float32) + q_second.to(tl.float32) * k_second.to(tl.float32)
    highest = tl.sum(products, 1) * scale
    total = tl.full([QUERIES], 1.0, tl.float32)
    attended = v.to(tl.float32)
    for start in range(0, filled, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < filled
        keys_at = keys + begin + column[None, :] * dim + of_half[:, None]
        keys_first = tl.load(keys_at, mask=inside[None, :], other=0.0)
        keys_second = tl.load(keys_at + HALF, mask=inside[None, :], other=0.0)
        seen_values = tl.load(
            values + begin + column[:, None] * dim + of_head[None, :], mask=inside[:, None], other=0.0
        )
        scores = (tl.dot(q_first, keys_first) + tl.dot(q_second, keys_second)) * scale
        own = ((column - shared) % 2)[None, :] == side[:, None]
        sees = inside[None, :] & ((column < shared)[None, :] | own)
        scores = tl.where(sees, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        fading = tl.exp(highest - higher)
        total = total * fading + tl.sum(weights, 1)
        attended = attended * fading[:, None] + tl.dot(weights.to(dtype), seen_values)
        highest = higher
    out_at = out + row * (KV_HEADS * GROUP * dim) + (head * GROUP + query % GROUP) * dim
    attended = (attended / total[:, None]).to(dtype)
    tl.store(out_at[:, None] + of_head[None, :], attended, mask=(query < 2 * GROUP)[:, None])


class TritonSlotStep:
    """A `kernels.SlotStep` of one kernel."""

    def __init__(self, rope: Rope, columns: SlotColumns) -> None:
        self.shape = rope.shape
        self.columns = columns
        self.cosines, self.sines = rope.angles(columns.shared + columns.steps)

    def attend(self, qkv: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        shape = self.shape
        rows = len(qkv)
        out = qkv.new_empty(rows, shape.kv_heads * shape.group * shape.head_dim)
        shared, steps = self.columns.shared, self.columns.steps
        _attend_slot[(rows // 2, shape.kv_heads)](
            qkv, kv[0], kv[1], shared, steps, self.cosines, self.sines, out,
            shape.head_dim**-0.5, shared.stride(0),
            KV_HEADS=shape.kv_heads, GROUP=shape.group, HALF=shape.head_dim // 2,
            COLUMNS=HEAD_NUMBERS // shape.head_dim, SLOT_COLUMNS=self.columns.slot_tokens,
            QUERIES=max(ROWS_OF_A_PRODUCT, triton.next_power_of_2(2 * shape.group)),
            **ATTEND_OPTIONS,
        )  # fmt: skip
        return out


TRITON = Kernels("triton", rms_norm, silu_and_mul, TritonSlotStep, reads_context=False)
