"""The product of a step: int8 weights by int16 activations, whose sums are whole numbers that an int32 holds."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from playground.decoding.compiled_step.vectors import LANES, added_up, arrays_of, fast, float_of, floats, load, splat

# What is multiplied at once: a tile of OUTPUTS·INPUTS weights by ROWS·INPUTS activations, or by FEW_ROWS·INPUTS where
# no more are left. A tile's weights lie side by side, (outputs / OUTPUTS, inputs / INPUTS, OUTPUTS, INPUTS), so that
# memory is read from the first to the last byte. A tile's sums, and what they are made of, stay in the registers.
OUTPUTS, FEW_ROWS = 4, 2
ROWS, INPUTS = LANES // 4, 2 * LANES
codes_at = arrays_of(np.int16)


def _tile_of(rows: int) -> Callable[..., Any]:
    """The product of OUTPUTS outputs and this many rows, as an intrinsic."""

    @intrinsic
    def product_of_tile(
        typing: Any,
        weights: Any,
        codes: Any,
        inputs: Any,
        scales: Any,
        row_scales: Any,
        y: Any,
        outputs: Any,
        outputs_left: Any,
        rows_left: Any,
    ) -> Any:
        """y = codes · weightsᵀ · both scales. weights: tiles of int8; codes (rows, inputs) int16; scales (OUTPUTS,),
        row_scales (rows,) and y (rows, outputs) in fp32: their addresses. No more than what is left is written. On x86
        the loop is a `vpmaddwd` or `vpdpwssd` for each sum.
        """

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            sums = _sums(builder, rows, *args[:3])
            _write(builder, sums, args[3:])
            return context.get_dummy_value()

        return types.none(*[types.intp] * 9), generate

    return product_of_tile


def _sums(builder: Any, rows: int, weights: Any, codes: Any, inputs: Any) -> list[list[Any]]:
    """For each row and output a vector of int32 whose elements add up to the product."""
    int32 = ir.IntType(32)
    vector = ir.VectorType(int32, LANES)
    even, odd = (ir.Constant(vector, list(range(first, INPUTS, 2))) for first in (0, 1))
    zeros = ir.Constant(vector, [0] * LANES)
    sums = [[cgutils.alloca_once_value(builder, zeros) for _ in range(OUTPUTS)] for _ in range(rows)]
    size = inputs.type

    def widened(bits: int, address: Any, at: Any) -> Any:
        """INPUTS numbers of an array from the place `at` on, as int32."""
        address = builder.add(address, builder.mul(at, size(bits // 8)))
        return builder.sext(
            load(builder, ir.VectorType(ir.IntType(bits), INPUTS), address), ir.VectorType(int32, INPUTS)
        )

    with cgutils.for_range_slice(builder, size(0), inputs, size(INPUTS), size) as (at, _):
        tile = builder.mul(at, size(OUTPUTS))
        of_outputs = [widened(8, weights, builder.add(tile, size(INPUTS * i))) for i in range(OUTPUTS)]
        of_rows = [widened(16, codes, builder.add(at, builder.mul(inputs, size(j)))) for j in range(rows)]
        for code, sums_of_row in zip(of_rows, sums, strict=True):
            for weight, total in zip(of_outputs, sums_of_row, strict=True):
                products = builder.mul(weight, code)
                pairs = [builder.shuffle_vector(products, products, places) for places in (even, odd)]
                builder.store(builder.add(builder.load(total), builder.add(*pairs)), total)
    return [[builder.load(total) for total in sums_of_row] for sums_of_row in sums]


def _write(builder: Any, sums: list[list[Any]], args: Sequence[Any]) -> None:
    """The sums, times their scales, to their places; `args` are those of the tile's product from `scales` on."""
    scales, row_scales, y, outputs, outputs_left, rows_left = args
    size = y.type
    number, numbers = ir.FloatType(), ir.VectorType(ir.FloatType(), OUTPUTS)
    of_outputs = load(builder, numbers, scales)
    whole = builder.icmp_signed(">=", outputs_left, size(OUTPUTS))
    for row, sums_of_row in enumerate(sums):
        with builder.if_then(builder.icmp_signed("<", size(row), rows_left)):
            of_row = load(builder, number, builder.add(row_scales, size(4 * row)))
            totals = builder.sitofp(added_up(builder, builder.add, sums_of_row), numbers)
            values = builder.fmul(builder.fmul(totals, splat(builder, of_row)), of_outputs)
            place = builder.add(y, builder.mul(outputs, size(4 * row)))
            with builder.if_else(whole) as (then, otherwise):
                with then:
                    builder.store(values, builder.inttoptr(place, numbers.as_pointer()), align=1)
                with otherwise:
                    for i in range(OUTPUTS - 1):
                        with builder.if_then(builder.icmp_signed("<", size(i), outputs_left)):
                            value = builder.extract_element(values, ir.IntType(32)(i))
                            pointer = builder.inttoptr(builder.add(place, size(4 * i)), number.as_pointer())
                            builder.store(value, pointer, align=1)


_tile, _tile_of_few = _tile_of(ROWS), _tile_of(FEW_ROWS)


@fast
def multiply(record: Any, inputs: int, outputs: int, weight: int, scale: int, y: int, first: int, last: int) -> None:
    """y[:, first:last] = the codes times the weight (outputs, inputs); y is (rows, outputs). Addresses, as in STEP."""
    for output in range(first, last, OUTPUTS):
        tiles, scales = weight + output * inputs, scale + 4 * output
        for row in range(0, record.rows, ROWS):
            codes, row_scales = record.codes + 2 * row * inputs, record.scales + 4 * row
            place = y + 4 * (row * outputs + output)
            rows_left, outputs_left = record.rows - row, last - output
            if rows_left > FEW_ROWS:
                _tile(tiles, codes, inputs, scales, row_scales, place, outputs, outputs_left, rows_left)
            else:
                _tile_of_few(tiles, codes, inputs, scales, row_scales, place, outputs, outputs_left, rows_left)


@fast
def _highest_bits(bits: Any) -> Any:
    """The bits of the largest magnitude: magnitudes are ordered as their bits are, with NaN above all others."""
    highest = np.int32(0)
    for i in range(len(bits)):
        highest = np.int32(max(highest, np.int32(bits[i] & np.int32(0x7FFFFFFF))))
    return highest


@fast
def round_row(x: Any, codes: Any) -> Any:
    """Write the codes (inputs,) of x, and return their scale. As many levels as an int32 holds the sums of. Where the
    scale is not finite, none of the row's products is.
    """
    highest = float_of(_highest_bits(x.view(np.int32)))
    levels = np.float32(min(32767, (2**31 - 1) // (127 * len(x))))
    to_codes = levels / max(highest, np.float32(1e-30))
    for i in range(len(x)):
        codes[i] = np.int16(np.rint(x[i] * to_codes))
    return highest / levels


@fast
def quantise(record: Any, row: int, x: Any) -> None:
    """Codes and scale of x (inputs,), a row of the next product."""
    codes = codes_at(record.codes + 2 * row * len(x), (len(x),))
    floats(record.scales, (record.rows,))[row] = round_row(x, codes)
