"""Rotary position embeddings (RoPE, Su et al. 2021) of all rows of a batch, computed once for all layers."""

import torch

from playground.decoding.prompt_cache import AttentionShape


class Rope:
    """The rotations of a layer: its `frequencies` (head dim / 2,) in fp32, and the `scales` (head dim / 2,) of its
    cosines and sines. The two halves of a head are the parts of its pairs.
    """

    def __init__(
        self, shape: AttentionShape, frequencies: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype
    ) -> None:
        self.shape = shape
        self.frequencies = frequencies
        self.scales = scales
        self.dtype = dtype  # of queries and keys

    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled cosines and sines (T, head dim / 2) in fp32, for positions (T,)."""
        angles = positions[:, None] * self.frequencies
        return angles.cos() * self.scales, angles.sin() * self.scales

    def matrices(self, positions: torch.Tensor) -> torch.Tensor:
        """Matrices (T, head dim, head dim): row vectors x of queries and keys become x @ R."""
        cos, sin = (torch.diag_embed(part.to(self.dtype)) for part in self.angles(positions))
        return torch.cat([torch.cat([cos, sin], -1), torch.cat([-sin, cos], -1)], -2)

    def split(self, qkv: torch.Tensor, matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q (T, heads, head dim), k and v (T, kv heads, head dim) of qkv (T, heads + 2·kv heads, head dim); q and k are
        rotated by `matrices`.
        """
        kv_heads = self.shape.kv_heads
        rotated = torch.bmm(qkv[:, :-kv_heads], matrices)
        return rotated[:, :-kv_heads], rotated[:, -kv_heads:], qkv[:, -kv_heads:]
