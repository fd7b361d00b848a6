"""A whole step: `step` and `product` are what is called, with the address of a STEP record.

In the functions below, `record` is the STEP record, and `weights` the LAYER record of one layer.
"""

from typing import Any

from playground.decoding.compiled_step.attention import COLUMNS, attend
from playground.decoding.compiled_step.elementwise import add_bias, gelu_gate, normalise, silu_gate
from playground.decoding.compiled_step.product import OUTPUTS, multiply, quantise
from playground.decoding.compiled_step.records import LAYER, STEP
from playground.decoding.compiled_step.vectors import arrays_of, fast, floats, kept
from playground.decoding.openmp import barrier, number_of_threads, thread_number

_steps, _layers = arrays_of(STEP), arrays_of(LAYER)


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
        normalise(x[row], weight, record.epsilon, normed[row])
        quantise(record, row, normed[row])
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
            normalise(added, weight, record.epsilon, added)
            for i in range(len(stream)):
                stream[i] += added[i]
    else:
        _add_to_stream(record, first, last)
    barrier()


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
def _quantise_rows(record: Any, address: int, inputs: int, stride: int, thread: int, threads: int) -> None:
    """Codes of the first `inputs` columns of (rows, stride) at this address."""
    for row in range(thread, record.rows, threads):
        quantise(record, row, floats(address + 4 * row * stride, (inputs,)))
    barrier()


@fast
def _attention(record: Any, layer: int, weights: Any, thread: int, threads: int) -> None:
    """x += the attention of this layer, with these weights."""
    width = record.heads * record.head_dim
    outputs = width + 2 * record.kv_heads * record.head_dim
    _normalise_rows(record, weights.input_norm, thread, threads)
    first, last = _share(outputs, thread, threads)
    multiply(record, record.hidden, outputs, weights.qkv, weights.qkv_scale, record.y, first, last)
    y = floats(record.y, (record.rows, outputs))
    add_bias(y, floats(weights.qkv_bias, (outputs,)), first, last)
    barrier()
    scores = record.scores + 4 * thread * (record.context + COLUMNS)
    for part in range(thread, record.rows * record.kv_heads, threads):
        attend(record, layer, weights, part // record.kv_heads, part % record.kv_heads, scores)
    barrier()
    _quantise_rows(record, record.attended, width, width, thread, threads)
    first, last = _share(record.hidden, thread, threads)
    multiply(record, width, record.hidden, weights.out, weights.out_scale, record.y, first, last)
    y = floats(record.y, (record.rows, record.hidden))
    add_bias(y, floats(weights.out_bias, (record.hidden,)), first, last)
    _add_rows(record, weights.out_norm, first, last, thread, threads)


@fast
def _mlp(record: Any, weights: Any, thread: int, threads: int) -> None:
    """x += the MLP of the layer with these weights."""
    _normalise_rows(record, weights.mlp_norm, thread, threads)
    first, last = _share(record.mlp, thread, threads)
    for part in (0, record.mlp):
        multiply(
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
    multiply(record, record.mlp, record.hidden, weights.down, weights.down_scale, record.y, first, last)
    _add_rows(record, weights.down_norm, first, last, thread, threads)


@fast
def _gate(record: Any, first: int, last: int) -> None:
    """SwiGLU or GEGLU (Shazeer 2020): silu(gate) · up or gelu(gate) · up into the gate's place."""
    y = floats(record.y, (record.rows, 2, record.mlp))
    for row in range(record.rows):
        gate = y[row, 0, first:last]
        up = y[row, 1, first:last]
        if record.gelu:
            gelu_gate(gate, up)
        else:
            silu_gate(gate, up)


@fast
def _logits(record: Any, thread: int, threads: int) -> None:
    """The head's product with the codes."""
    first, last = _share(record.vocabulary, thread, threads)
    multiply(record, record.hidden, record.vocabulary, record.head, record.head_scale, record.logits, first, last)


@kept
def step(address: int) -> None:
    """Take a token of each row in: `logits` of the STEP at this address. Each thread of the team calls it."""
    record = _steps(address, (1,))[0]
    thread = thread_number()
    threads = number_of_threads()
    weights = _layers(record.weights, (record.layers,))
    for layer in range(record.layers):
        _attention(record, layer, weights[layer], thread, threads)
        _mlp(record, weights[layer], thread, threads)
    _normalise_rows(record, record.norm, thread, threads)
    _logits(record, thread, threads)


@kept
def product(address: int) -> None:
    """The end of a step alone: `logits` from `x`, which is normalised already."""
    record = _steps(address, (1,))[0]
    thread = thread_number()
    threads = number_of_threads()
    _quantise_rows(record, record.x, record.hidden, record.hidden, thread, threads)
    _logits(record, thread, threads)
