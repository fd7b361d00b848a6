"""A decoding step of the Llama family as one compiled function: int8 weights, int16 activations, a key/value cache for
each row.

Products are sums of whole numbers that an int32 holds, so they are exact: a row's result depends neither on the other
rows, nor on the number of threads, nor on the CPU's vectors. Threads share the outputs of each product and wait for
each other between two products. What the numbers mean is `w8a16.py`'s.

Compiled by numba when `step.py` is first imported, and kept in its cache until a file of this folder, or
`openmp.py`, changes.
"""
