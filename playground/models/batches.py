"""Rows of token ids of different lengths as one rectangular tensor.

Shared by the chat's scorer and by training. Knows nothing about models or tokenizers: padding is the id 0, and the mask
says what is padding.
"""

from collections.abc import Sequence

import torch


def pad(
    rows: Sequence[Sequence[int]], *, left: bool = False, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows with zeros to the length L of the longest, on the right or on the left.

    Returns (values, mask), both (N, L) int64; the mask is 1 on values and 0 on padding.
    """
    longest = max(len(row) for row in rows)
    values, masks = [], []
    for row in rows:
        padding = [0] * (longest - len(row))
        ones = [1] * len(row)
        values.append([*padding, *row] if left else [*row, *padding])
        masks.append([*padding, *ones] if left else [*ones, *padding])
    return torch.tensor(values, device=device), torch.tensor(masks, device=device)
