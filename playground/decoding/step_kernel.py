"""A decoding step of the Llama family as one compiled function: int8 weights, int16 activations, a key/value cache for
each row.

Products are sums of whole numbers that an int32 holds, so they are exact: a row's result depends neither on the other
rows, nor on the number of threads, nor on the CPU's vectors. Threads share the outputs of each product and wait for
each other between two products. Compiled by numba at the first call and kept in its cache. What the numbers mean is
`w8a16.py`'s.
"""

import itertools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from playground.decoding.openmp import barrier, number_of_threads, thread_number

# What is multiplied at once: a tile of OUTPUTS·INPUTS weights by ROWS·INPUTS activations. A tile's weights lie side by
# side, (outputs / OUTPUTS, inputs / INPUTS, OUTPUTS, INPUTS), so that memory is read from the first to the last byte.
OUTPUTS, ROWS, INPUTS = 4, 2, 16

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
            *("codes", "scales"),  # (rows, widest input) int16 and (rows,): what a product reads
            "y",  # (rows, widest output): what a product writes
            "attended",  # (rows, A)
            "scores",  # (threads, context)
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
_fast = njit(fastmath=LOOSE, error_model="numpy")


# -- the product


@intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    """The address as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), generate


@intrinsic
def _dots(typing: Any, weights: Any, codes: Any, inputs: Any) -> Any:
    """OUTPUTS·ROWS sums in int32, those of an output side by side, of tiles of int8 at the address `weights`, and of
    int16 (ROWS, inputs) at `codes`. On x86 the loop is a `vpmaddwd` for each sum.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        weights, codes, inputs = args
        int32 = ir.IntType(32)
        vector = ir.VectorType(int32, INPUTS // 2)
        even, odd = (ir.Constant(vector, list(range(first, INPUTS, 2))) for first in (0, 1))
        zeros = ir.Constant(vector, [0] * (INPUTS // 2))
        sums = [cgutils.alloca_once_value(builder, zeros) for _ in range(OUTPUTS * ROWS)]
        size = inputs.type

        def load(bits: int, address: Any, at: Any) -> Any:
            """INPUTS numbers of an array from the place `at` on, as int32."""
            address = builder.add(address, builder.mul(at, size(bits // 8)))
            pointer = builder.inttoptr(address, ir.VectorType(ir.IntType(bits), INPUTS).as_pointer())
            return builder.sext(builder.load(pointer, align=1), ir.VectorType(int32, INPUTS))

        with cgutils.for_range_slice(builder, size(0), inputs, size(INPUTS), size) as (at, _):
            tile = builder.mul(at, size(OUTPUTS))
            of_outputs = [load(8, weights, builder.add(tile, size(INPUTS * i))) for i in range(OUTPUTS)]
            of_rows = [load(16, codes, builder.add(at, builder.mul(inputs, size(i)))) for i in range(ROWS)]
            for (w, x), total in zip(itertools.product(of_outputs, of_rows), sums, strict=True):
                products = builder.mul(w, x)
                pairs = [builder.shuffle_vector(products, products, places) for places in (even, odd)]
                builder.store(builder.add(builder.load(total), builder.add(*pairs)), total)
        add_up = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(int32, [vector]), f"llvm.vector.reduce.add.v{INPUTS // 2}i32"
        )
        totals = [builder.call(add_up, [builder.load(total)]) for total in sums]
        return context.make_tuple(builder, signature.return_type, totals)

    return types.UniTuple(types.int32, OUTPUTS * ROWS)(types.intp, types.intp, types.intp), generate


@_fast
def _product(s: Any, inputs: int, weight: int, scale: Any, y: Any, first: int, last: int) -> None:
    """y[:, first:last] = the codes times the weight (outputs, inputs) at this address; y is (rows, outputs)."""
    scales = _floats(s.scales, (s.rows,))
    for output in range(first, last, OUTPUTS):
        for row in range(0, s.rows, ROWS):
            sums = _dots(weight + output * inputs, s.codes + 2 * row * inputs, inputs)
            for i in range(min(OUTPUTS, last - output)):
                for j in range(min(ROWS, s.rows - row)):
                    total = np.float32(sums[ROWS * i + j])
                    y[row + j, output + i] = total * scales[row + j] * scale[output + i]


@_fast
def _highest_bits(bits: Any) -> Any:
    """The bits of the largest magnitude: magnitudes are ordered as their bits are, with NaN above all others."""
    highest = np.int32(0)
    for i in range(len(bits)):
        highest = np.int32(max(highest, np.int32(bits[i] & np.int32(0x7FFFFFFF))))
    return highest


@_fast
def _float_of(bits: Any) -> Any:
    return np.int32(bits).view(np.float32)


@_fast
def _quantise(s: Any, row: int, x: Any) -> None:
    """Codes and scale of x (inputs,), a row of the next product. As many levels as an int32 holds the sums of."""
    codes = carray(_pointer(s.codes + 2 * row * len(x)), (len(x),), np.int16)
    highest = _float_of(_highest_bits(x.view(np.int32)))
    levels = np.float32(min(32767, (2**31 - 1) // (127 * len(x))))
    _floats(s.scales, (s.rows,))[row] = highest / levels  # if this is not finite, the row's products are NaN
    to_codes = levels / max(highest, np.float32(1e-30))
    for i in range(len(x)):
        codes[i] = np.int16(np.rint(x[i] * to_codes))


# -- what is between products


@_fast
def _floats(address: int, shape: Any) -> Any:
    return carray(_pointer(address), shape, np.float32)


@_fast
def _exp(x: Any) -> Any:
    """exp(x) for x ≤ 88 in fp32, to 2 units in the last place; made of operations that there are for vectors (Cephes'
    expf).
    """
    x = max(x, np.float32(-87))
    power = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - power * np.float32(0.693359375) + power * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    return p * _float_of(np.int32((np.int32(power) + 127) << 23))


@_fast
def _normalise(x: Any, weight: Any, epsilon: Any, normed: Any) -> None:
    """RMS norm (Zhang and Sennrich 2019) of x into `normed`, which may be x itself."""
    squares = np.float32(0)
    for i in range(len(x)):
        squares += x[i] * x[i]
    factor = np.float32(1) / np.sqrt(squares / np.float32(len(x)) + np.float32(epsilon))
    for i in range(len(x)):
        normed[i] = x[i] * factor * weight[i]


@_fast
def _add_to_stream(s: Any, first: int, last: int) -> None:
    """x += y, these columns."""
    x = _floats(s.x, (s.rows, s.hidden))
    y = _floats(s.y, (s.rows, s.hidden))
    for row in range(s.rows):
        stream = x[row, first:last]
        added = y[row, first:last]
        for i in range(len(stream)):
            stream[i] += added[i]


@_fast
def _gate(s: Any, first: int, last: int) -> None:
    """SwiGLU or GEGLU (Shazeer 2020): silu(gate) · up or gelu(gate) · up into the gate's place."""
    y = _floats(s.y, (s.rows, 2, s.mlp))
    for row in range(s.rows):
        gate = y[row, 0, first:last]
        up = y[row, 1, first:last]
        if s.gelu:
            _gelu_gate(gate, up)
        else:
            _silu_gate(gate, up)


@_fast
def _silu_gate(gate: Any, up: Any) -> None:
    for i in range(len(gate)):
        gate[i] *= up[i] / (np.float32(1) + _exp(min(-gate[i], np.float32(88))))


@_fast
def _gelu_gate(gate: Any, up: Any) -> None:
    """By tanh (Hendrycks and Gimpel 2016), where (1 + tanh(z)) / 2 is 1 / (1 + exp(-2·z))."""
    for i in range(len(gate)):
        z = np.float32(0.7978845608) * gate[i] * (np.float32(1) + np.float32(0.044715) * gate[i] * gate[i])
        gate[i] *= up[i] / (np.float32(1) + _exp(min(np.float32(-2) * z, np.float32(88))))


# -- attention


@_fast
def _rotate(x: Any, rotation: Any) -> None:
    """Rotate the pairs of x (head dim,), which lie side by side (RoPE, Su et al. 2021)."""
    for i in range(len(x) // 2):
        a = x[2 * i]
        b = x[2 * i + 1]
        x[2 * i] = a * rotation[0, i] - b * rotation[1, i]
        x[2 * i + 1] = a * rotation[1, i] + b * rotation[0, i]


@_fast
def _dot(a: Any, b: Any) -> Any:
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@_fast
def _attend(s: Any, layer: int, w: Any, row: int, kv_head: int, scores: Any) -> None:
    """Attention of the query heads of a row that share a key/value head, over the prompt and the row's own tokens, as
    far as the layer's window reaches; the new token's key and value are written into the cache first.
    """
    heads = _floats(s.y, (s.rows, s.heads + 2 * s.kv_heads, s.head_dim))[row]
    rotation = _floats(s.rotations + 4 * w.rotation * s.rows * s.head_dim, (s.rows, 2, s.head_dim // 2))[row]
    heads_norm = _floats(w.heads_norm, (s.heads + s.kv_heads, s.head_dim))
    cache = carray(_pointer(s.cache), (s.rows,), ROW)[row]
    kv = _floats(cache.kv, (s.layers, 2, s.kv_heads, cache.capacity, s.head_dim))
    keys = kv[layer, 0, kv_head]
    values = kv[layer, 1, kv_head]
    outside = max(0, cache.tokens - w.window)
    columns = carray(_pointer(cache.columns + 4 * outside), (cache.tokens - outside,), np.int32)

    key = heads[s.heads + kv_head]
    if w.heads_norm:
        _normalise(key, heads_norm[s.heads + kv_head], s.epsilon, key)
    _rotate(key, rotation)
    for i in range(s.head_dim):
        keys[columns[-1], i] = key[i]
        values[columns[-1], i] = heads[s.heads + s.kv_heads + kv_head, i]

    group = s.heads // s.kv_heads
    scale = np.float32(1) / np.sqrt(np.float32(s.head_dim))
    for head in range(kv_head * group, (kv_head + 1) * group):
        if w.heads_norm:
            _normalise(heads[head], heads_norm[head], s.epsilon, heads[head])
        _rotate(heads[head], rotation)
        highest = _scores(heads[head], keys, columns, scale, scores)
        _softmax(scores[: len(columns)], highest)
        _weighted_sum(_floats(s.attended, (s.rows, s.heads, s.head_dim))[row, head], scores, values, columns)


@_fast
def _scores(query: Any, keys: Any, columns: Any, scale: Any, scores: Any) -> Any:
    """Scaled products of a query with the keys of these columns, four at once; returns the highest one."""
    highest = np.float32(-np.inf)
    fours = len(columns) - len(columns) % 4
    for at in range(0, fours, 4):
        keys_0, keys_1 = keys[columns[at]], keys[columns[at + 1]]
        keys_2, keys_3 = keys[columns[at + 2]], keys[columns[at + 3]]
        score_0 = score_1 = score_2 = score_3 = np.float32(0)
        for i in range(len(query)):
            score_0 += query[i] * keys_0[i]
            score_1 += query[i] * keys_1[i]
            score_2 += query[i] * keys_2[i]
            score_3 += query[i] * keys_3[i]
        scores[at], scores[at + 1] = scale * score_0, scale * score_1
        scores[at + 2], scores[at + 3] = scale * score_2, scale * score_3
        highest = max(highest, max(max(scores[at], scores[at + 1]), max(scores[at + 2], scores[at + 3])))
    for at in range(fours, len(columns)):
        score = np.float32(0)
        for i in range(len(query)):
            score += query[i] * keys[columns[at], i]
        scores[at] = scale * score
        highest = max(highest, scores[at])
    return highest


@_fast
def _softmax(x: Any, highest: Any) -> None:
    total = np.float32(0)
    for i in range(len(x)):
        x[i] = _exp(x[i] - highest)
        total += x[i]
    factor = np.float32(1) / total
    for i in range(len(x)):
        x[i] *= factor


@_fast
def _weighted_sum(out: Any, weights: Any, values: Any, columns: Any) -> None:
    """out (head dim,) = the weights times the values of these columns, four at once."""
    out[:] = np.float32(0)
    fours = len(columns) - len(columns) % 4
    for at in range(0, fours, 4):
        values_0, values_1 = values[columns[at]], values[columns[at + 1]]
        values_2, values_3 = values[columns[at + 2]], values[columns[at + 3]]
        weight_0, weight_1, weight_2, weight_3 = weights[at], weights[at + 1], weights[at + 2], weights[at + 3]
        for i in range(len(out)):
            out[i] += weight_0 * values_0[i] + weight_1 * values_1[i] + weight_2 * values_2[i] + weight_3 * values_3[i]
    for at in range(fours, len(columns)):
        for i in range(len(out)):
            out[i] += weights[at] * values[columns[at], i]


# -- the step


@_fast
def _share(n: int, thread: int, threads: int) -> Any:
    """This thread's part of n outputs: the first one and the one after the last."""
    tiles = (n + OUTPUTS - 1) // OUTPUTS
    return tiles * thread // threads * OUTPUTS, min(n, tiles * (thread + 1) // threads * OUTPUTS)


@_fast
def _normalise_rows(s: Any, address: int, thread: int, threads: int) -> None:
    """Codes of the residual stream after the norm with the weight at this address; y is room for it."""
    weight = _floats(address, (s.hidden,))
    x = _floats(s.x, (s.rows, s.hidden))
    normed = _floats(s.y, (s.rows, s.hidden))
    for row in range(thread, s.rows, threads):
        _normalise(x[row], weight, s.epsilon, normed[row])
        _quantise(s, row, normed[row])
    barrier()


@_fast
def _add_rows(s: Any, address: int, first: int, last: int, thread: int, threads: int) -> None:
    """x += y, of which this thread has made these columns; y goes through the norm with the weight at this address, if
    there is one.
    """
    if address:
        barrier()
        weight = _floats(address, (s.hidden,))
        y = _floats(s.y, (s.rows, s.hidden))
        x = _floats(s.x, (s.rows, s.hidden))
        for row in range(thread, s.rows, threads):
            stream = x[row]
            added = y[row]
            _normalise(added, weight, s.epsilon, added)
            for i in range(len(stream)):
                stream[i] += added[i]
    else:
        _add_to_stream(s, first, last)
    barrier()


@_fast
def _quantise_rows(s: Any, address: int, inputs: int, stride: int, thread: int, threads: int) -> None:
    """Codes of the first `inputs` columns of (rows, stride) at this address."""
    for row in range(thread, s.rows, threads):
        _quantise(s, row, _floats(address + 4 * row * stride, (inputs,)))
    barrier()


@_fast
def _add_bias(y: Any, bias: Any, first: int, last: int) -> None:
    added = bias[first:last]
    for row in range(len(y)):
        outputs = y[row, first:last]
        for i in range(len(outputs)):
            outputs[i] += added[i]


@_fast
def _attention(s: Any, layer: int, w: Any, thread: int, threads: int) -> None:
    """x += the attention of this layer, whose weights are w."""
    width = s.heads * s.head_dim
    outputs = width + 2 * s.kv_heads * s.head_dim
    _normalise_rows(s, w.input_norm, thread, threads)
    first, last = _share(outputs, thread, threads)
    y = _floats(s.y, (s.rows, outputs))
    _product(s, s.hidden, w.qkv, _floats(w.qkv_scale, (outputs,)), y, first, last)
    _add_bias(y, _floats(w.qkv_bias, (outputs,)), first, last)
    barrier()
    scores = _floats(s.scores, (threads, s.context))[thread]
    for part in range(thread, s.rows * s.kv_heads, threads):
        _attend(s, layer, w, part // s.kv_heads, part % s.kv_heads, scores)
    barrier()
    _quantise_rows(s, s.attended, width, width, thread, threads)
    first, last = _share(s.hidden, thread, threads)
    y = _floats(s.y, (s.rows, s.hidden))
    _product(s, width, w.out, _floats(w.out_scale, (s.hidden,)), y, first, last)
    _add_bias(y, _floats(w.out_bias, (s.hidden,)), first, last)
    _add_rows(s, w.out_norm, first, last, thread, threads)


@_fast
def _mlp(s: Any, w: Any, thread: int, threads: int) -> None:
    """x += the MLP of the layer with the weights w."""
    _normalise_rows(s, w.mlp_norm, thread, threads)
    first, last = _share(s.mlp, thread, threads)
    y = _floats(s.y, (s.rows, 2 * s.mlp))
    scale = _floats(w.gate_up_scale, (2 * s.mlp,))
    _product(s, s.hidden, w.gate_up, scale, y, first, last)
    _product(s, s.hidden, w.gate_up, scale, y, s.mlp + first, s.mlp + last)
    _gate(s, first, last)
    barrier()
    _quantise_rows(s, s.y, s.mlp, 2 * s.mlp, thread, threads)
    first, last = _share(s.hidden, thread, threads)
    _product(s, s.mlp, w.down, _floats(w.down_scale, (s.hidden,)), _floats(s.y, (s.rows, s.hidden)), first, last)
    _add_rows(s, w.down_norm, first, last, thread, threads)


@_fast
def _logits(s: Any, thread: int, threads: int) -> None:
    """The head's product with the codes."""
    first, last = _share(s.vocabulary, thread, threads)
    logits = _floats(s.logits, (s.rows, s.vocabulary))
    _product(s, s.hidden, s.head, _floats(s.head_scale, (s.vocabulary,)), logits, first, last)


@cfunc(types.void(types.voidptr), cache=True)
def step(data: Any) -> None:
    """Take a token of each row in: `logits` of the STEP at this address. Each thread of the team calls it."""
    s = carray(data, 1, STEP)[0]
    thread = thread_number()
    threads = number_of_threads()
    weights = carray(_pointer(s.weights), (s.layers,), LAYER)
    for layer in range(s.layers):
        _attention(s, layer, weights[layer], thread, threads)
        _mlp(s, weights[layer], thread, threads)
    _normalise_rows(s, s.norm, thread, threads)
    _logits(s, thread, threads)


@cfunc(types.void(types.voidptr), cache=True)
def product(data: Any) -> None:
    """The end of a step alone: `logits` from `x`, which is normalised already."""
    s = carray(data, 1, STEP)[0]
    thread = thread_number()
    threads = number_of_threads()
    _quantise_rows(s, s.x, s.hidden, s.hidden, thread, threads)
    _logits(s, thread, threads)
