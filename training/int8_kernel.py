"""The product of many rows with int8 weights as a compiled function: activations are rounded to int16, and sums are
whole numbers that an int32 holds, as in the decoding step (`playground/decoding/compiled_step/`).

A CPU multiplies twice as many pairs of int16 at once as pairs of fp32. The step's own tile is made for few rows, whose
weights come from memory, and took a quarter less time there; here weights come from the cache, and the sums of a tile
of ROWS rows by OUTPUTS outputs stay in the registers (Goto and van de Geijn 2008). Each lane of a vector is an output,
so that nothing is added up across lanes.

Compiled by numba when it is first imported, and kept in its cache.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from playground.decoding.compiled_step.product import codes_at, round_row
from playground.decoding.compiled_step.vectors import LANES, arrays_of, fast, floats, kept, load, splat
from playground.decoding.openmp import barrier, number_of_threads, thread_number

VECTORS = 2  # of outputs in a tile
OUTPUTS = VECTORS * LANES
ROWS = 3 * LANES // 4  # of a tile: its sums take three quarters of the registers
BLOCK = 96  # rows that are multiplied with all weights before the next ones: their codes stay in the cache

# for products: with floats in any order, a tile of one row would round its two scales otherwise than a whole one
_exact = njit(error_model="numpy")

# all but the sizes are addresses; a tile's weights lie side by side, (outputs / OUTPUTS, inputs / 2, OUTPUTS, 2)
PRODUCT = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("rows", "inputs", "outputs"),
            "x",  # (rows, inputs) fp32
            "in_scale",  # (inputs,) fp32, what x is multiplied by first; 0 where it is not
            "scaled",  # (threads, inputs) fp32, room for a row of it
            *("codes", "row_scales"),  # (rows, inputs) int16 and (rows,) fp32, room for x as it is rounded
            *("weights", "out_scale"),  # tiles of int8; (outputs,) fp32
            "y",  # (rows, outputs) fp32, the result
        )
    ]
)
_products = arrays_of(PRODUCT)


def _tile_of(rows: int) -> Callable[..., Any]:
    """The product of this many rows and OUTPUTS outputs, as an intrinsic."""

    @intrinsic
    def product_of_tile(
        typing: Any, weights: Any, codes: Any, inputs: Any, out_scale: Any, row_scales: Any, y: Any, outputs: Any
    ) -> Any:
        """y = codes · weightsᵀ · both scales. weights: a tile; codes (rows, inputs) int16; out_scale (OUTPUTS,),
        row_scales (rows,) and y (rows, outputs) in fp32: their addresses.
        """

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _write(builder, _sums(builder, rows, *args[:3]), *args[3:])
            return context.get_dummy_value()

        return types.none(*[types.intp] * 7), generate

    return product_of_tile


def _sums(builder: Any, rows: int, weights: Any, codes: Any, inputs: Any) -> list[list[Any]]:
    """For each row VECTORS vectors of int32, a lane for each output. On x86 a step of the loop is a `vpmaddwd` or
    `vpdpwssd` for each of them: two inputs of LANES outputs.
    """
    size = inputs.type
    int16, int32 = ir.IntType(16), ir.IntType(32)
    lanes = ir.VectorType(int32, LANES)
    pairs = ir.VectorType(int32, 2 * LANES)
    even, odd = (ir.Constant(lanes, list(range(first, 2 * LANES, 2))) for first in (0, 1))
    zeros = ir.Constant(lanes, [0] * LANES)
    sums = [[cgutils.alloca_once_value(builder, zeros) for _ in range(VECTORS)] for _ in range(rows)]
    with cgutils.for_range_slice(builder, size(0), inputs, size(2), size) as (at, _):
        tile = builder.add(weights, builder.mul(at, size(OUTPUTS)))
        of_outputs = [
            builder.sext(
                load(builder, ir.VectorType(ir.IntType(8), 2 * LANES), builder.add(tile, size(2 * LANES * i))), pairs
            )
            for i in range(VECTORS)
        ]
        for row, sums_of_row in enumerate(sums):
            place = builder.add(at, builder.mul(inputs, size(row)))
            pair = load(builder, int32, builder.add(codes, builder.mul(place, size(2))))
            code = builder.sext(builder.bitcast(splat(builder, pair, LANES), ir.VectorType(int16, 2 * LANES)), pairs)
            for weight, total in zip(of_outputs, sums_of_row, strict=True):
                products = builder.mul(weight, code)
                halves = [builder.shuffle_vector(products, products, places) for places in (even, odd)]
                builder.store(builder.add(builder.load(total), builder.add(*halves)), total)
    return [[builder.load(total) for total in sums_of_row] for sums_of_row in sums]


def _write(builder: Any, sums: list[list[Any]], out_scale: Any, row_scales: Any, y: Any, outputs: Any) -> None:
    """The sums, times their scales, to their places."""
    size = y.type
    number = ir.FloatType()
    numbers = ir.VectorType(number, LANES)
    of_outputs = [load(builder, numbers, builder.add(out_scale, size(4 * LANES * i))) for i in range(VECTORS)]
    for row, sums_of_row in enumerate(sums):
        of_row = splat(builder, load(builder, number, builder.add(row_scales, size(4 * row))), LANES)
        for i, total in enumerate(sums_of_row):
            values = builder.fmul(builder.fmul(builder.sitofp(total, numbers), of_row), of_outputs[i])
            place = builder.add(y, builder.add(builder.mul(outputs, size(4 * row)), size(4 * LANES * i)))
            builder.store(values, builder.inttoptr(place, numbers.as_pointer()), align=4)


_tile, _tile_of_one = _tile_of(ROWS), _tile_of(1)


@fast
def _round(record: Any, row: int, thread: int) -> None:
    """Codes and scale of a row of x."""
    inputs = record.inputs
    x = floats(record.x + 4 * row * inputs, (inputs,))
    if record.in_scale:
        in_scale = floats(record.in_scale, (inputs,))
        scaled = floats(record.scaled + 4 * thread * inputs, (inputs,))
        for i in range(inputs):
            scaled[i] = x[i] * in_scale[i]
        x = scaled
    codes = codes_at(record.codes + 2 * row * inputs, (inputs,))
    floats(record.row_scales, (record.rows,))[row] = round_row(x, codes)


@_exact
def _multiply(record: Any, output: int, first: int, last: int) -> None:
    """y[first:last, output:output + OUTPUTS]."""
    inputs, outputs = record.inputs, record.outputs
    weights, out_scale = record.weights + output * inputs, record.out_scale + 4 * output
    row = first
    while row < last:
        codes, row_scales = record.codes + 2 * row * inputs, record.row_scales + 4 * row
        y = record.y + 4 * (row * outputs + output)
        if last - row >= ROWS:
            _tile(weights, codes, inputs, out_scale, row_scales, y, outputs)
            row += ROWS
        else:
            _tile_of_one(weights, codes, inputs, out_scale, row_scales, y, outputs)
            row += 1


@kept
def product(address: int) -> None:
    """y of the PRODUCT at this address. Each thread of the team calls it."""
    record = _products(address, (1,))[0]
    thread, threads = thread_number(), number_of_threads()
    for row in range(thread, record.rows, threads):
        _round(record, row, thread)
    barrier()
    tiles = record.outputs // OUTPUTS
    units = (record.rows + BLOCK - 1) // BLOCK * tiles
    for unit in range(units * thread // threads, units * (thread + 1) // threads):
        first = unit // tiles * BLOCK
        _multiply(record, unit % tiles * OUTPUTS, first, min(first + BLOCK, record.rows))
