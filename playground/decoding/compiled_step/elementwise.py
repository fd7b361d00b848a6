"""Norms, gates and a softmax over arrays in fp32, in place."""

from typing import Any

import numpy as np

from playground.decoding.compiled_step.vectors import fast, float_of


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
def normalise(x: Any, weight: Any, epsilon: Any, normed: Any) -> None:
    """RMS norm (Zhang and Sennrich 2019) of x into `normed`, which may be x itself."""
    squares = np.float32(0)
    for i in range(len(x)):
        squares += x[i] * x[i]
    factor = np.float32(1) / np.sqrt(squares / np.float32(len(x)) + np.float32(epsilon))
    for i in range(len(x)):
        normed[i] = x[i] * factor * weight[i]


@fast
def silu_gate(gate: Any, up: Any) -> None:
    for i in range(len(gate)):
        gate[i] *= up[i] / (np.float32(1) + _exp(min(-gate[i], np.float32(88))))


@fast
def gelu_gate(gate: Any, up: Any) -> None:
    """By tanh (Hendrycks and Gimpel 2016), where (1 + tanh(z)) / 2 is 1 / (1 + exp(-2·z))."""
    for i in range(len(gate)):
        z = np.float32(0.7978845608) * gate[i] * (np.float32(1) + np.float32(0.044715) * gate[i] * gate[i])
        gate[i] *= up[i] / (np.float32(1) + _exp(min(np.float32(-2) * z, np.float32(88))))


@fast
def softmax(x: Any, highest: Any) -> None:
    total = np.float32(0)
    for i in range(len(x)):
        x[i] = _exp(x[i] - highest)
        total += x[i]
    factor = np.float32(1) / total
    for i in range(len(x)):
        x[i] *= factor


@fast
def add_bias(y: Any, bias: Any, first: int, last: int) -> None:
    added = bias[first:last]
    for row in range(len(y)):
        outputs = y[row, first:last]
        for i in range(len(outputs)):
            outputs[i] += added[i]
