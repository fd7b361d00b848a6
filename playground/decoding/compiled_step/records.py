"""The records that a compiled step reads: the step, the weights of each layer, and each row's cache.

Fields that are no size are addresses; H hidden, M MLP, A heads·head dim, V vocabulary, Q (heads + 2·kv heads)·head dim.
Weights (outputs, inputs) are tiles in int8 (`product.py`), all else is in fp32 unless it says so.
"""

import numpy as np

NO_WINDOW = 2**31  # more than all tokens

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
