"""A decoding step of the Llama family as one compiled function: int8 weights, int16 activations, a key/value cache for
each row.

Products are sums of whole numbers that an int32 holds, so they are exact: a row's result depends neither on the other
rows, nor on the number of threads, nor on the CPU's vectors. Threads share the outputs of each product and wait for
each other between two products. What the numbers mean is `w8a16.py`'s.

Compiled by numba at the first call and kept in its cache. All that is compiled is in this file, since numba compiles
again only when the file of `step` changes: a change to a function of another file would go unnoticed. In the functions
below, `record` is the STEP record, and `weights` the LAYER record of one layer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils, codegen, config
from numba.extending import intrinsic

from playground.decoding.openmp import barrier, number_of_threads, thread_number


def tile() -> tuple[int, int]:
    """ROWS and INPUTS for the CPU that numba compiles for: more where there are 32 vectors of 512 bits (AVX512-BW)."""
    features = codegen.get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return (4, 32) if "+avx512bw" in features.split(",") else (2, 16)


# What is multiplied at once: a tile of OUTPUTS·INPUTS weights by ROWS·INPUTS activations, or by FEW_ROWS·INPUTS where
# no more are left. A tile's weights lie side by side, (outputs / OUTPUTS, inputs / INPUTS, OUTPUTS, INPUTS), so that
# memory is read from the first to the last byte. A tile's sums, and what they are made of, stay in the registers.
OUTPUTS, FEW_ROWS = 4, 2
ROWS, INPUTS = tile()
LANES = INPUTS // 2  # numbers in fp32 or int32 of a vector
WIDTH = 16  # heads are multiples of this wide
COLUMNS = 4  # whose scores are made at once
BLOCK = 64  # numbers of a head that weighted values are added up to at once, where it has as many

# fields of these records that are no size are addresses; H hidden, M MLP, A heads·head dim, V vocabulary,
# Q (heads + 2·kv heads)·head dim; weights (outputs, inputs) are tiles in int8, all else is in fp32 unless it says so
LAYER = np.dtype(
    [
        (name, np.int64)
        for name in (
            "input_norm",  # (H,)
            *("qkv", "qkv_scale", "qkv_bias"),  # (Q, H); (Q,); (Q,)
            "heads_norm",  # (heads + kv heads, head dim); 0 where there is none
            "rotation",  # which one of the step's
            "window",  # how many tokens a token sees, or NO_WINDOW
            *("out", "out_scale", "out_bias"),  # (H, A); (H,); (H,)
            "out_norm",  # (H,); 0 where there is none
            "mlp_norm",  # (H,)
            *("gate_up", "gate_up_scale"),  # (2M, H); (2M,)
            *("down", "down_scale"),  # (H, M); (H,)
            "down_norm",  # (H,); 0 where there is none
        )
    ]
)
STEP = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("layers", "hidden", "mlp", "heads", "kv_heads", "head_dim", "vocabulary"),  # sizes of the model
            "gelu",  # 1 where the MLP's gate goes through GELU, by tanh, 0 where it goes through SiLU
            "weights",  # (layers,) of LAYER
            "norm",  # (H,), the last one
            *("head", "head_scale"),  # (V, H); (V,)
            *("rows", "context"),  # sizes of the step; context: columns of the row that sees most
            "x",  # (rows, H), the residual stream
            *("codes", "scales"),  # (rows + ROWS - 1, widest input) int16 and (rows,): what a product reads
            "y",  # (rows, widest output): what a product writes
            "attended",  # (rows, A)
            "scores",  # (threads, context + COLUMNS)
            "logits",  # (rows, V)
            "rotations",  # (rotations, rows, 2, head dim / 2), cosines and sines
            "cache",  # (rows,) of ROW
        )
    ]
    + [("epsilon", np.float64)]
)
ROW = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("kv", "capacity"),  # the cache: (layers, 2, kv heads, capacity, head dim)
            *("columns", "tokens"),  # (tokens,) int32: the columns that the row sees, the new token's last
        )
    ]
)

NO_WINDOW = 2**31  # more than all tokens

LOOSE = {"reassoc", "contract", "nsz"}  # sums in any order, so that they are vectors; NaN stays NaN
fast = njit(fastmath=LOOSE, error_model="numpy")


# -- the product


@intrinsic
def pointer(typing: Any, address: Any) -> Any:
    """The address as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), generate


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


def load(builder: Any, kind: Any, address: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


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
            totals = builder.sitofp(_added_up(builder, builder.add, sums_of_row), numbers)
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


def splat(builder: Any, value: Any, length: int = 4) -> Any:
    """The number in all elements of a vector."""
    vector = ir.Constant(ir.VectorType(value.type, length), ir.Undefined)
    first = builder.insert_element(vector, value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, vector, ir.Constant(ir.VectorType(ir.IntType(32), length), [0] * length))


def _added_up(builder: Any, add: Any, vectors: list[Any]) -> Any:
    """What the elements of each of four vectors add up to, as a vector of four; few operations, since the places that
    are added lie in the same 128 bits. `add` is the builder's, for whole numbers or others.
    """
    shuffle = builder.shuffle_vector
    length = vectors[0].type.count

    def places(*of_four: int) -> Any:
        """These places of each four elements; of the second vector where they are above 3."""
        fours = range(0, length, 4)
        indices = [four + place % 4 + length * (place // 4) for four in fours for place in of_four]
        return ir.Constant(ir.VectorType(ir.IntType(32), length), indices)

    def added(a: Any, b: Any, first: Any, second: Any) -> Any:
        return add(shuffle(a, b, first), shuffle(a, b, second))

    a, b, c, d = vectors
    low, high = places(0, 4, 1, 5), places(2, 6, 3, 7)
    ab = added(a, b, low, high)  # a b a b
    cd = added(c, d, low, high)
    total = added(ab, cd, places(0, 1, 4, 5), places(2, 3, 6, 7))  # a b c d
    while length > 4:
        length //= 2
        low_half, high_half = (
            ir.Constant(ir.VectorType(ir.IntType(32), length), list(range(at, at + length))) for at in (0, length)
        )
        total = added(total, total, low_half, high_half)
    return total


_tile, _tile_of_few = _tile_of(ROWS), _tile_of(FEW_ROWS)


@fast
def _product(record: Any, inputs: int, outputs: int, weight: int, scale: int, y: int, first: int, last: int) -> None:
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
def highest_bits(bits: Any) -> Any:
    """The bits of the largest magnitude: magnitudes are ordered as their bits are, with NaN above all others."""
    highest = np.int32(0)
    for i in range(len(bits)):
        highest = np.int32(max(highest, np.int32(bits[i] & np.int32(0x7FFFFFFF))))
    return highest


@fast
def float_of(bits: Any) -> Any:
    return np.int32(bits).view(np.float32)


@fast
def _quantise(record: Any, row: int, x: Any) -> None:
    """Codes and scale of x (inputs,), a row of the next product. As many levels as an int32 holds the sums of."""
    codes = carray(pointer(record.codes + 2 * row * len(x)), (len(x),), np.int16)
    highest = float_of(highest_bits(x.view(np.int32)))
    levels = np.float32(min(32767, (2**31 - 1) // (127 * len(x))))
    floats(record.scales, (record.rows,))[row] = highest / levels  # if this is not finite, the row's products are NaN
    to_codes = levels / max(highest, np.float32(1e-30))
    for i in range(len(x)):
        codes[i] = np.int16(np.rint(x[i] * to_codes))


# -- what is between products


@fast
def floats(address: int, shape: Any) -> Any:
    return carray(pointer(address), shape, np.float32)


@fast
def _exp(x: Any) -> Any:
    """exp(x) for x ≤ 88 in fp32, to 2 units in the last place; made of operations that there are for vectors (Cephes'
    expf).
    """
    x = max(x, np.float32(-87))
    power = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    rest = x - power * np.float32(0.693359375) + power * np.float32(2.12194440e-4)
    polynomial = np.float32(1.9875691500e-4)
    polynomial = polynomial * rest + np.float32(1.3981999507e-3)
    polynomial = polynomial * rest + np.float32(8.3334519073e-3)
    polynomial = polynomial * rest + np.float32(4.1665795894e-2)
    polynomial = polynomial * rest + np.float32(1.6666665459e-1)
    polynomial = polynomial * rest + np.float32(5.0000001201e-1)
    polynomial = polynomial * rest * rest + rest + np.float32(1)
    return polynomial * float_of(np.int32((np.int32(power) + 127) << 23))


@fast
def _normalise(x: Any, weight: Any, epsilon: Any, normed: Any) -> None:
    """RMS norm (Zhang and Sennrich 2019) of x into `normed`, which may be x itself."""
    squares = np.float32(0)
    for i in range(len(x)):
        squares += x[i] * x[i]
    factor = np.float32(1) / np.sqrt(squares / np.float32(len(x)) + np.float32(epsilon))
    for i in range(len(x)):
        normed[i] = x[i] * factor * weight[i]


@fast
def _add_to_stream(record: Any, first: int, last: int) -> None:
    """x += y, these columns."""
    x = floats(record.x, (record.rows, record.hidden))
    y = floats(record.y, (record.rows, record.hidden))
    for row in range(record.rows):
        stream = x[row, first:last]
        added = y[row, first:last]
        for i in range(len(stream)):
            stream[i] += added[i]


@fast
def _gate(record: Any, first: int, last: int) -> None:
    """SwiGLU or GEGLU (Shazeer 2020): silu(gate) · up or gelu(gate) · up into the gate's place."""
    y = floats(record.y, (record.rows, 2, record.mlp))
    for row in range(record.rows):
        gate = y[row, 0, first:last]
        up = y[row, 1, first:last]
        if record.gelu:
            _gelu_gate(gate, up)
        else:
            _silu_gate(gate, up)


@fast
def _silu_gate(gate: Any, up: Any) -> None:
    for i in range(len(gate)):
        gate[i] *= up[i] / (np.float32(1) + _exp(min(-gate[i], np.float32(88))))


@fast
def _gelu_gate(gate: Any, up: Any) -> None:
    """By tanh (Hendrycks and Gimpel 2016), where (1 + tanh(z)) / 2 is 1 / (1 + exp(-2·z))."""
    for i in range(len(gate)):
        z = np.float32(0.7978845608) * gate[i] * (np.float32(1) + np.float32(0.044715) * gate[i] * gate[i])
        gate[i] *= up[i] / (np.float32(1) + _exp(min(np.float32(-2) * z, np.float32(88))))


# -- attention


@fast
def _rotate(x: Any, rotation: Any) -> None:
    """Rotate the pairs of x (head dim,), which lie side by side (RoPE, Su et al. 2021)."""
    for i in range(len(x) // 2):
        a = x[2 * i]
        b = x[2 * i + 1]
        x[2 * i] = a * rotation[0, i] - b * rotation[1, i]
        x[2 * i + 1] = a * rotation[1, i] + b * rotation[0, i]


@fast
def _attend(record: Any, layer: int, weights: Any, row: int, kv_head: int, scores: Any) -> None:
    """Attention of the query heads of a row that share a key/value head, over the prompt and the row's own tokens, as
    far as the layer's window reaches; the new token's key and value are written into the cache first.
    """
    width = record.head_dim
    heads = floats(record.y, (record.rows, record.heads + 2 * record.kv_heads, width))[row]
    rotation = floats(record.rotations + 4 * weights.rotation * record.rows * width, (record.rows, 2, width // 2))[row]
    heads_norm = floats(weights.heads_norm, (record.heads + record.kv_heads, width))
    cache = carray(pointer(record.cache), (record.rows,), ROW)[row]
    outside = max(0, cache.tokens - weights.window)
    columns, count = cache.columns + 4 * outside, cache.tokens - outside
    newest = carray(pointer(cache.columns), (cache.tokens,), np.int32)[-1]
    of_head = 4 * cache.capacity * width  # bytes
    keys = cache.kv + (2 * layer * record.kv_heads + kv_head) * of_head
    values = keys + record.kv_heads * of_head

    key = heads[record.heads + kv_head]
    if weights.heads_norm:
        _normalise(key, heads_norm[record.heads + kv_head], record.epsilon, key)
    _rotate(key, rotation)
    floats(keys, (cache.capacity, width))[newest] = key
    floats(values, (cache.capacity, width))[newest] = heads[record.heads + record.kv_heads + kv_head]

    group = record.heads // record.kv_heads
    scale = np.float32(1) / np.sqrt(np.float32(width))
    for head in range(kv_head * group, (kv_head + 1) * group):
        if weights.heads_norm:
            _normalise(heads[head], heads_norm[head], record.epsilon, heads[head])
        _rotate(heads[head], rotation)
        query = record.y + 4 * (row * (record.heads + 2 * record.kv_heads) + head) * width
        highest = _scores(query, keys, columns, count, width, scale, scores)
        weights_of_columns = floats(scores, (count + COLUMNS,))
        _softmax(weights_of_columns[:count], highest)
        weights_of_columns[count] = 0
        attended = record.attended + 4 * (row * record.heads + head) * width
        _weighted_sum(attended, scores, values, columns, count, width)


@intrinsic
def _scores(typing: Any, query: Any, keys: Any, columns: Any, count: Any, width: Any, scale: Any, scores: Any) -> Any:
    """Scaled products of a query (width,) with the keys (capacity, width) of these columns (count,); returns the
    highest one. All but the sizes and the scale are addresses; a multiple of COLUMNS scores is written.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        query, keys, columns, count, width, scale, scores = args
        size = count.type
        vector, four = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.FloatType(), COLUMNS)
        lowest = ir.Constant(four, [float("-inf")] * COLUMNS)
        highest = cgutils.alloca_once_value(builder, lowest)
        totals = [cgutils.alloca_once(builder, vector) for _ in range(COLUMNS)]
        row_bytes = builder.mul(width, size(4))
        with cgutils.for_range_slice(builder, size(0), count, size(COLUMNS), size) as (at, _):
            rows = [_row(builder, keys, row_bytes, columns, builder.add(at, size(i)), count) for i in range(COLUMNS)]
            for total in totals:
                builder.store(ir.Constant(vector, [0.0] * LANES), total)
            with cgutils.for_range_slice(builder, size(0), row_bytes, size(4 * LANES), size) as (place, _):
                part = load(builder, vector, builder.add(query, place))
                for row, total in zip(rows, totals, strict=True):
                    key = load(builder, vector, builder.add(row, place))
                    builder.store(_product_added(builder, part, key, builder.load(total)), total)
            sums = _added_up(builder, builder.fadd, [builder.load(total) for total in totals])
            scaled = builder.fmul(sums, splat(builder, scale))
            builder.store(
                scaled, builder.inttoptr(builder.add(scores, builder.mul(at, size(4))), four.as_pointer()), align=4
            )
            before = builder.load(highest)
            builder.store(builder.select(builder.fcmp_ordered(">", scaled, before), scaled, before), highest)
        best = builder.extract_element(builder.load(highest), size(0))
        for i in range(1, COLUMNS):
            other = builder.extract_element(builder.load(highest), size(i))
            best = builder.select(builder.fcmp_ordered(">", other, best), other, best)
        return best

    return types.float32(*[types.intp] * 5, types.float32, types.intp), generate


def _row(builder: Any, table: Any, row_bytes: Any, columns: Any, at: Any, count: Any) -> Any:
    """The address of the row of a table that the column at this place names; of the last one beyond the end."""
    size = at.type
    place = builder.select(builder.icmp_signed("<", at, count), at, builder.sub(count, size(1)))
    column = load(builder, ir.IntType(32), builder.add(columns, builder.mul(place, size(4))))
    return builder.add(table, builder.mul(builder.zext(column, size), row_bytes))


def _product_added(builder: Any, a: Any, b: Any, total: Any) -> Any:
    """a·b + total, in one operation where the CPU has it."""
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), total, flags=("contract",))


@fast
def _softmax(x: Any, highest: Any) -> None:
    total = np.float32(0)
    for i in range(len(x)):
        x[i] = _exp(x[i] - highest)
        total += x[i]
    factor = np.float32(1) / total
    for i in range(len(x)):
        x[i] *= factor


@intrinsic
def _weighted_sum(typing: Any, out: Any, weights: Any, values: Any, columns: Any, count: Any, width: Any) -> Any:
    """out (width,) = the weights times the values (capacity, width) of these columns (count,). All but the sizes are
    addresses; after the weights there is one that is 0.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out, weights, values, columns, count, width = args
        size = count.type
        vector = ir.VectorType(ir.FloatType(), LANES)
        row_bytes = builder.mul(width, size(4))

        def add_up(first: Any, vectors: int, at_once: int) -> None:
            """Some vectors of `out` from the byte `first` on; `at_once` columns have sums of their own, since each
            addition waits for the one before it.
            """
            zeros = ir.Constant(vector, [0.0] * LANES)
            sums = [[cgutils.alloca_once(builder, vector) for _ in range(vectors)] for _ in range(at_once)]
            for total in [total for of_column in sums for total in of_column]:
                builder.store(zeros, total)
            with cgutils.for_range_slice(builder, size(0), count, size(at_once), size) as (at, _):
                for i, of_column in enumerate(sums):
                    place = builder.add(at, size(i))
                    row = builder.add(_row(builder, values, row_bytes, columns, place, count), first)
                    weight = load(builder, ir.FloatType(), builder.add(weights, builder.mul(place, size(4))))
                    factor = splat(builder, weight, LANES)
                    for j, total in enumerate(of_column):
                        value = load(builder, vector, builder.add(row, size(4 * LANES * j)))
                        builder.store(_product_added(builder, factor, value, builder.load(total)), total)
            for j in range(vectors):
                total = builder.load(sums[0][j])
                for of_column in sums[1:]:
                    total = builder.fadd(total, builder.load(of_column[j]))
                place = builder.add(builder.add(out, first), size(4 * LANES * j))
                builder.store(total, builder.inttoptr(place, vector.as_pointer()), align=4)

        rest = builder.and_(row_bytes, size(4 * BLOCK - 1))
        blocks_end = builder.sub(row_bytes, rest)
        with cgutils.for_range_slice(builder, size(0), blocks_end, size(4 * BLOCK), size) as (first, _):
            add_up(first, BLOCK // LANES, 8 * LANES // BLOCK)
        with cgutils.for_range_slice(builder, blocks_end, row_bytes, size(4 * LANES), size) as (first, _):
            add_up(first, 1, 2)
        return context.get_dummy_value()

    return types.none(*[types.intp] * 6), generate


# -- the step


@fast
def _share(n: int, thread: int, threads: int) -> Any:
    """This thread's part of n outputs: the first one and the one after the last."""
    tiles = (n + OUTPUTS - 1) // OUTPUTS
    return tiles * thread // threads * OUTPUTS, min(n, tiles * (thread + 1) // threads * OUTPUTS)


@fast
def _normalise_rows(record: Any, address: int, thread: int, threads: int) -> None:
    """Codes of the residual stream after the norm with the weight at this address; y is room for it."""
    weight = floats(address, (record.hidden,))
    x = floats(record.x, (record.rows, record.hidden))
    normed = floats(record.y, (record.rows, record.hidden))
    for row in range(thread, record.rows, threads):
        _normalise(x[row], weight, record.epsilon, normed[row])
        _quantise(record, row, normed[row])
    barrier()


@fast
def _add_rows(record: Any, address: int, first: int, last: int, thread: int, threads: int) -> None:
    """x += y, of which this thread has made these columns; y goes through the norm with the weight at this address, if
    there is one.
    """
    if address:
        barrier()
        weight = floats(address, (record.hidden,))
        y = floats(record.y, (record.rows, record.hidden))
        x = floats(record.x, (record.rows, record.hidden))
        for row in range(thread, record.rows, threads):
            stream = x[row]
            added = y[row]
            _normalise(added, weight, record.epsilon, added)
            for i in range(len(stream)):
                stream[i] += added[i]
    else:
        _add_to_stream(record, first, last)
    barrier()


@fast
def _quantise_rows(record: Any, address: int, inputs: int, stride: int, thread: int, threads: int) -> None:
    """Codes of the first `inputs` columns of (rows, stride) at this address."""
    for row in range(thread, record.rows, threads):
        _quantise(record, row, floats(address + 4 * row * stride, (inputs,)))
    barrier()


@fast
def _add_bias(y: Any, bias: Any, first: int, last: int) -> None:
    added = bias[first:last]
    for row in range(len(y)):
        outputs = y[row, first:last]
        for i in range(len(outputs)):
            outputs[i] += added[i]


@fast
def _attention(record: Any, layer: int, weights: Any, thread: int, threads: int) -> None:
    """x += the attention of this layer, with these weights."""
    width = record.heads * record.head_dim
    outputs = width + 2 * record.kv_heads * record.head_dim
    _normalise_rows(record, weights.input_norm, thread, threads)
    first, last = _share(outputs, thread, threads)
    _product(record, record.hidden, outputs, weights.qkv, weights.qkv_scale, record.y, first, last)
    y = floats(record.y, (record.rows, outputs))
    _add_bias(y, floats(weights.qkv_bias, (outputs,)), first, last)
    barrier()
    scores = record.scores + 4 * thread * (record.context + COLUMNS)
    for part in range(thread, record.rows * record.kv_heads, threads):
        _attend(record, layer, weights, part // record.kv_heads, part % record.kv_heads, scores)
    barrier()
    _quantise_rows(record, record.attended, width, width, thread, threads)
    first, last = _share(record.hidden, thread, threads)
    _product(record, width, record.hidden, weights.out, weights.out_scale, record.y, first, last)
    y = floats(record.y, (record.rows, record.hidden))
    _add_bias(y, floats(weights.out_bias, (record.hidden,)), first, last)
    _add_rows(record, weights.out_norm, first, last, thread, threads)


@fast
def _mlp(record: Any, weights: Any, thread: int, threads: int) -> None:
    """x += the MLP of the layer with these weights."""
    _normalise_rows(record, weights.mlp_norm, thread, threads)
    first, last = _share(record.mlp, thread, threads)
    for part in (0, record.mlp):
        _product(
            record,
            record.hidden,
            2 * record.mlp,
            weights.gate_up,
            weights.gate_up_scale,
            record.y,
            part + first,
            part + last,
        )
    _gate(record, first, last)
    barrier()
    _quantise_rows(record, record.y, record.mlp, 2 * record.mlp, thread, threads)
    first, last = _share(record.hidden, thread, threads)
    _product(record, record.mlp, record.hidden, weights.down, weights.down_scale, record.y, first, last)
    _add_rows(record, weights.down_norm, first, last, thread, threads)


@fast
def _logits(record: Any, thread: int, threads: int) -> None:
    """The head's product with the codes."""
    first, last = _share(record.vocabulary, thread, threads)
    _product(record, record.hidden, record.vocabulary, record.head, record.head_scale, record.logits, first, last)


@cfunc(types.void(types.voidptr), cache=True)
def step(data: Any) -> None:
    """Take a token of each row in: `logits` of the STEP at this address. Each thread of the team calls it."""
    record = carray(data, 1, STEP)[0]
    thread = thread_number()
    threads = number_of_threads()
    weights = carray(pointer(record.weights), (record.layers,), LAYER)
    for layer in range(record.layers):
        _attention(record, layer, weights[layer], thread, threads)
        _mlp(record, weights[layer], thread, threads)
    _normalise_rows(record, record.norm, thread, threads)
    _logits(record, thread, threads)


@cfunc(types.void(types.voidptr), cache=True)
def product(data: Any) -> None:
    """The end of a step alone: `logits` from `x`, which is normalised already."""
    record = carray(data, 1, STEP)[0]
    thread = thread_number()
    threads = number_of_threads()
    _quantise_rows(record, record.x, record.hidden, record.hidden, thread, threads)
    _logits(record, thread, threads)
