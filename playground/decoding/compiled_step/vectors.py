"""What compiled functions are made of: floats behind addresses, vectors of them as wide as the CPU has, and sums of
vectors.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils, codegen, config
from numba.extending import intrinsic
from numba.np.arrayobj import np_cfarray
from numba.np.numpy_support import from_dtype

from playground.system import compiling


def lanes() -> int:
    """Numbers in fp32 or int32 of a vector of the CPU that numba compiles for: 16 where it has 32 vectors of 512 bits
    (AVX512-BW), else 8.
    """
    features = codegen.get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return 16 if "+avx512bw" in features.split(",") else 8


LANES = lanes()
LOOSE = {"reassoc", "contract", "nsz"}  # sums in any order, so that they are vectors; NaN stays NaN
fast = njit(fastmath=LOOSE, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


def kept(function: Callable[[int], None]) -> Any:
    """`function` of an address, compiled. Numba keeps it in a file whose name has the digest of all sources: by itself
    it compiles again only when the file of `function` changes.
    """
    function.__qualname__ += f"_{compiling.digest()}"
    return cfunc(types.void(types.intp), cache=True)(function)


def arrays_of(dtype: Any) -> Callable[[Any, Any], Any]:
    """A function for compiled ones: the array of this dtype at an address, with a shape that is a tuple. It becomes a
    part of its caller, where numba's `carray` is compiled by itself for each dtype and number of dimensions.
    """
    element = from_dtype(np.dtype(dtype))

    @intrinsic
    def array_at(typing: Any, address: Any, shape: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            place = builder.inttoptr(args[0], cgutils.voidptr_t)
            return np_cfarray(context, builder, signature, (place, args[1]))

        return types.Array(element, len(shape), "C")(types.intp, shape), generate

    return array_at


floats = arrays_of(np.float32)


@fast
def float_of(bits: Any) -> Any:
    return np.int32(bits).view(np.float32)


# -- parts of intrinsics


def load(builder: Any, kind: Any, address: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def splat(builder: Any, value: Any, length: int = 4) -> Any:
    """The number in all elements of a vector."""
    vector = ir.Constant(ir.VectorType(value.type, length), ir.Undefined)
    first = builder.insert_element(vector, value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, vector, ir.Constant(ir.VectorType(ir.IntType(32), length), [0] * length))


def added_up(builder: Any, add: Any, vectors: list[Any]) -> Any:
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


def product_added(builder: Any, a: Any, b: Any, total: Any) -> Any:
    """a·b + total, in one operation where the CPU has it."""
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), total, flags=("contract",))
