"""The product of many rows with int8 weights as a compiled function: activations are rounded to int16, and sums are
whole numbers that an int32 holds. Its tiles are the decoding step's (`playground/decoding/step_kernel.py`).

A CPU multiplies twice as many pairs of int16 at once as pairs of fp32. In a decoding step weights come from memory;
here they come from the cache.

Compiled by numba at the first call and kept in its cache.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numba import carray, cfunc, types

from playground.decoding import step_kernel
from playground.decoding.openmp import barrier, number_of_threads, thread_number
from playground.decoding.step_kernel import OUTPUTS, fast, float_of, floats, highest_bits, multiply, pointer

BLOCK = 96  # rows that are multiplied with all weights before the next ones: their codes stay in the cache
LEVELS = 32767  # of an int16

# all but the sizes are addresses; outputs are a multiple of OUTPUTS
PRODUCT = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("rows", "inputs", "outputs"),
            "x",  # (rows, inputs) fp32
            "in_scale",  # (inputs,) fp32, what x is multiplied by first; 0 where it is not
            "scaled",  # (threads, inputs) fp32, room for a row of it
            *("codes", "row_scales"),  # (rows, inputs) int16 and (rows,) fp32, room for x as it is rounded
            *("weights", "out_scale"),  # the step's tiles of int8; (outputs,) fp32
            "y",  # (rows, outputs) fp32, the result
        )
    ]
)


@fast
def _round(record: Any, row: int, thread: int) -> None:
    """Codes and scale of a row of x. As many levels as an int32 holds the sums of."""
    inputs = record.inputs
    x = floats(record.x + 4 * row * inputs, (inputs,))
    if record.in_scale:
        in_scale = floats(record.in_scale, (inputs,))
        scaled = floats(record.scaled + 4 * thread * inputs, (inputs,))
        for i in range(inputs):
            scaled[i] = x[i] * in_scale[i]
        x = scaled
    highest = float_of(highest_bits(x.view(np.int32)))
    levels = np.float32(min(LEVELS, (2**31 - 1) // (127 * inputs)))
    # if this is not finite, the row's products are NaN
    floats(record.row_scales, (record.rows,))[row] = highest / levels
    to_codes = levels / max(highest, np.float32(1e-30))
    codes = carray(pointer(record.codes + 2 * row * inputs), (inputs,), np.int16)
    for i in range(inputs):
        codes[i] = np.int16(np.rint(x[i] * to_codes))


def _keyed_by(sources: str) -> Any:
    """The product. numba compiles it again when this file changes, and when `sources` do, which are part of its key."""

    @cfunc(types.void(types.voidptr), cache=True)
    def product(data: Any) -> None:
        """y of the PRODUCT at this address. Each thread of the team calls it."""
        _ = sources
        record = carray(data, 1, PRODUCT)[0]
        thread, threads = thread_number(), number_of_threads()
        for row in range(thread, record.rows, threads):
            _round(record, row, thread)
        barrier()
        tiles = record.outputs // OUTPUTS
        units = (record.rows + BLOCK - 1) // BLOCK * tiles
        for unit in range(units * thread // threads, units * (thread + 1) // threads):
            first = unit // tiles * BLOCK
            output = unit % tiles * OUTPUTS
            multiply(
                first,
                min(first + BLOCK, record.rows),
                record.inputs,
                record.outputs,
                record.codes,
                record.row_scales,
                record.weights + output * record.inputs,
                record.out_scale + 4 * output,
                record.y + 4 * output,
                OUTPUTS,
            )

    return product


product = _keyed_by(hashlib.sha256(Path(step_kernel.__file__).read_bytes()).hexdigest())
