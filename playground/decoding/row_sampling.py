"""`sampling.draw` for rows that differ in how they are drawn. Every parameter is a tensor, so that the draw needs
nothing of the host and can be part of a CUDA graph.

A row's token is the same function of its logits and its random number as in `sampling.draw`, up to rounding.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import pad

BLOCK = 256  # tokens that are summed at once: a running sum over a whole vocabulary is slow on a GPU
BELOW_ONE = 1 - 2.0**-20
NO_TOP_P = 2.0  # no sum of probabilities reaches it


class RowSampling(NamedTuple):
    """How each of R rows is drawn, all (R,); `sampling.Sampling` explains the first four. `top_k` is the vocabulary's
    size or more, and `top_p` NO_TOP_P, where they are off.
    """

    temperature: torch.Tensor
    top_p: torch.Tensor
    top_k: torch.Tensor
    repetition_penalty: torch.Tensor
    uniform: torch.Tensor  # random numbers in [0, 1)


def draw_rows(
    logits: torch.Tensor, how: RowSampling, seen: torch.Tensor | None, truncates: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (R,) and their log-probabilities (R,), drawn from logits (R, V) in fp32. Log-probabilities are NaN
    where the row's logits are not finite.

    `seen` (R, V) says which tokens a row's repetition penalty is for; None where no row has one. `truncates` says
    whether any row has a top-k or a top-p.
    """
    if seen is not None:
        penalty = how.repetition_penalty[:, None]
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    greedy = how.temperature == 0
    highest, best = logits.max(-1)
    scaled = (logits - highest[:, None]) / how.temperature.masked_fill(greedy, 1.0)[:, None]
    if truncates:
        scaled = _truncated(scaled, how)
    weights = scaled.exp()  # the highest is 1
    drawn, total = _inverse_cdf(weights, how.uniform[:, None])  # (R, 1) each
    logprobs = (scaled.gather(1, drawn) - total.log())[:, 0]
    possible = weights.gather(1, drawn)[:, 0] > 0  # False also where it is NaN
    tokens = torch.where(greedy | ~possible, best, drawn[:, 0])
    return tokens, torch.where(greedy, highest - highest, logprobs)


def _inverse_cdf(weights: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The column of `weights` (R, V) where their running sum passes `uniform` (R, 1) times the total, and the total;
    (R, 1) each. First the block of columns is found, then the column in it.
    """
    blocks = pad(weights, (0, -weights.shape[1] % BLOCK)).view(len(weights), -1, BLOCK)
    sums = blocks.sum(-1).cumsum(-1)  # (R, blocks)
    total = sums[:, -1:]
    target = uniform.clamp(max=BELOW_ONE) * total
    block = torch.searchsorted(sums, target, right=True).clamp(max=blocks.shape[1] - 1)
    before = pad(sums, (1, 0)).gather(1, block)
    inner = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0].cumsum(-1)  # (R, BLOCK)
    inside = (target - before).clamp(min=0).minimum(inner[:, -1:] * BELOW_ONE)
    place = torch.searchsorted(inner, inside, right=True).clamp(max=BLOCK - 1)
    return (block * BLOCK + place).clamp(max=weights.shape[1] - 1), total


def _truncated(logits: torch.Tensor, how: RowSampling) -> torch.Tensor:
    """As `sampling.truncated`, with a top-k and a top-p for each row."""
    values, order = logits.sort(-1, descending=True)
    kth = values.gather(1, (how.top_k - 1).clamp(0, values.shape[1] - 1)[:, None])
    values = values.masked_fill(values < kth, -torch.inf)
    probs = values.softmax(-1)
    outside = (probs.cumsum(-1) - probs >= how.top_p[:, None]) | (values == -torch.inf)
    return logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
