"""Attention of a step: rotation, scores and weighted values over the columns of a row's cache."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from playground.decoding.compiled_step.elementwise import normalise, softmax
from playground.decoding.compiled_step.records import ROW
from playground.decoding.compiled_step.vectors import (
    LANES,
    added_up,
    arrays_of,
    fast,
    floats,
    load,
    product_added,
    splat,
)

WIDTH = 16  # heads are multiples of this wide
COLUMNS = 4  # whose scores are made at once
BLOCK = 64  # numbers of a head that weighted values are added up to at once, where it has as many
_caches, _columns = arrays_of(ROW), arrays_of(np.int32)


@fast
def attend(record: Any, layer: int, weights: Any, row: int, kv_head: int, scores: Any) -> None:
    """Attention of the query heads of a row that share a key/value head, over the prompt and the row's own tokens, as
    far as the layer's window reaches; the new token's key and value are written into the cache first.
    """
    width = record.head_dim
    heads = floats(record.y, (record.rows, record.heads + 2 * record.kv_heads, width))[row]
    rotation = floats(record.rotations + 4 * weights.rotation * record.rows * width, (record.rows, 2, width // 2))[row]
    heads_norm = floats(weights.heads_norm, (record.heads + record.kv_heads, width))
    cache = _caches(record.cache, (record.rows,))[row]
    outside = max(0, cache.tokens - weights.window)
    columns, count = cache.columns + 4 * outside, cache.tokens - outside
    newest = _columns(cache.columns, (cache.tokens,))[-1]
    of_head = 4 * cache.capacity * width  # bytes
    keys = cache.kv + (2 * layer * record.kv_heads + kv_head) * of_head
    values = keys + record.kv_heads * of_head

    key = heads[record.heads + kv_head]
    if weights.heads_norm:
        normalise(key, heads_norm[record.heads + kv_head], record.epsilon, key)
    _rotate(key, rotation)
    _copy(key, floats(keys, (cache.capacity, width))[newest])
    _copy(heads[record.heads + record.kv_heads + kv_head], floats(values, (cache.capacity, width))[newest])

    group = record.heads // record.kv_heads
    scale = np.float32(1) / np.sqrt(np.float32(width))
    for head in range(kv_head * group, (kv_head + 1) * group):
        if weights.heads_norm:
            normalise(heads[head], heads_norm[head], record.epsilon, heads[head])
        _rotate(heads[head], rotation)
        query = record.y + 4 * (row * (record.heads + 2 * record.kv_heads) + head) * width
        highest = _scores(query, keys, columns, count, width, scale, scores)
        weights_of_columns = floats(scores, (count + COLUMNS,))
        softmax(weights_of_columns[:count], highest)
        weights_of_columns[count] = 0
        attended = record.attended + 4 * (row * record.heads + head) * width
        _weighted_sum(attended, scores, values, columns, count, width)


@fast
def _copy(x: Any, copied: Any) -> None:
    """By a loop: an assignment of arrays brings numba's sentences about shapes, which take seconds to compile."""
    for i in range(len(x)):
        copied[i] = x[i]


@fast
def _rotate(x: Any, rotation: Any) -> None:
    """Rotate the pairs of x (head dim,), which lie side by side (RoPE, Su et al. 2021)."""
    for i in range(len(x) // 2):
        a = x[2 * i]
        b = x[2 * i + 1]
        x[2 * i] = a * rotation[0, i] - b * rotation[1, i]
        x[2 * i + 1] = a * rotation[1, i] + b * rotation[0, i]


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
                    builder.store(product_added(builder, part, key, builder.load(total)), total)
            sums = added_up(builder, builder.fadd, [builder.load(total) for total in totals])
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
                        builder.store(product_added(builder, factor, value, builder.load(total)), total)
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


def _row(builder: Any, table: Any, row_bytes: Any, columns: Any, at: Any, count: Any) -> Any:
    """The address of the row of a table that the column at this place names; of the last one beyond the end."""
    size = at.type
    place = builder.select(builder.icmp_signed("<", at, count), at, builder.sub(count, size(1)))
    column = load(builder, ir.IntType(32), builder.add(columns, builder.mul(place, size(4))))
    return builder.add(table, builder.mul(builder.zext(column, size), row_bytes))
