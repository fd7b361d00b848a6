"""A policy's frozen weights in int8 for training on a CPU: products of activations rounded to int16, forward and
backward, as in the chat's w8a16.

Where a CPU has no bf16, fp32 products are most of an update, and these take about half of their time. What is trained
is then, but for its LoRA, the model that is served in w8a16. The compiled product is `int8_kernel.py`'s; which
weights are rounded is `policy.py`'s.
"""

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from playground.decoding import openmp
from playground.decoding.number_formats import Int8Weight
from playground.models.lean_layers import LeanLora
from playground.system.safe_logging import Loggable
from training import ppo_math
from training.rollout import LARGE, Episode

if TYPE_CHECKING:
    from training.policy import Batch, PolicyModel

log = logging.getLogger(__name__)

TRIALS = 5  # of each product that is timed
FASTER = 1.15  # times as fast as fp32, from which weights are rounded, so that measuring again says the same
MOST_KL = 0.01  # nats of a token to the model as it is, above which weights are not rounded; the chat's own limit
TIMED = 512  # rows of a product that is timed
WORDS = ppo_math.WORDS


class Int8Product:
    """y = x · Wᵀ, of a weight in int8 whose rows and columns may have scales."""

    def __init__(
        self, codes: torch.Tensor, out_scale: torch.Tensor | None = None, in_scale: torch.Tensor | None = None
    ) -> None:
        """codes (outputs, inputs) int8; W = out_scale · codes · in_scale, of (outputs,) and (inputs,), fp32."""
        from training import int8_kernel as kernel  # compiles at the first import, so only where it is wanted

        self.outputs, self.inputs = codes.shape
        tiles = codes.view(-1, kernel.OUTPUTS, self.inputs // 2, 2)
        self.tiles = tiles.transpose(1, 2).contiguous()  # (outputs / OUTPUTS, inputs / 2, OUTPUTS, 2)
        self.out_scale = torch.ones(self.outputs) if out_scale is None else out_scale
        self.in_scale = in_scale
        self._record = np.zeros((), kernel.PRODUCT)
        self._function = kernel.product.address
        self._fill(
            weights=self.tiles,
            out_scale=self.out_scale,
            **({} if in_scale is None else {"in_scale": in_scale}),
        )
        self._record["inputs"], self._record["outputs"] = self.inputs, self.outputs

    def _fill(self, **tensors: torch.Tensor) -> None:
        for name, tensor in tensors.items():
            self._record[name] = tensor.data_ptr()

    def __call__(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """x (rows, inputs) fp32 -> (rows, outputs) fp32, written into `y` where it is given."""
        x = x.contiguous()
        rows, threads = len(x), torch.get_num_threads()
        y = x.new_empty(rows, self.outputs) if y is None else y
        codes, row_scales = x.new_empty(rows, self.inputs, dtype=torch.int16), x.new_empty(rows)
        scaled = x.new_empty(threads, self.inputs)
        self._record["rows"] = rows
        self._fill(x=x, codes=codes, row_scales=row_scales, scaled=scaled, y=y)
        openmp.run(self._function, self._record.ctypes.data, threads)
        return y


class RoundedWeight:
    """A linear layer's frozen weight W (outputs, inputs) in int8 with one scale for each output, both ways; its bias
    stays as it is.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        rounded = Int8Weight(weight)
        scale = rounded.scale.float()
        self.bias = bias
        self.outputs = len(weight)
        self._forward = Int8Product(rounded.weight, out_scale=scale)
        self._backward = Int8Product(rounded.weight.T.contiguous(), in_scale=scale)

    @staticmethod
    def fits(weight: torch.Tensor) -> bool:
        """Whether its sizes fill whole tiles both ways."""
        from training import int8_kernel as kernel

        return weight.dtype == torch.float32 and all(size % kernel.OUTPUTS == 0 for size in weight.shape)

    def times(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """x (rows, inputs) -> x · Wᵀ + bias, (rows, outputs)."""
        y = self._forward(x, y)
        return y if self.bias is None else y.add_(self.bias)

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient (rows, inputs) of x, of that of the result (rows, outputs)."""
        return self._backward(gradient)


class RoundedHead(ppo_math.Head):
    """A vocabulary's weight in int8, in blocks of WORDS. A last block that fills no whole tiles stays as it is."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias)
        self._blocks = [
            RoundedWeight(part, None if bias is None else bias[i * WORDS : (i + 1) * WORDS])
            for i, part in enumerate(weight.split(WORDS))
            if RoundedWeight.fits(part)
        ]
        self._rounded_words = sum(block.outputs for block in self._blocks)

    def products(self, hidden: torch.Tensor, words: slice, out: torch.Tensor) -> None:
        if words.start < self._rounded_words:
            self._blocks[words.start // WORDS].times(hidden, out)
        else:
            super().products(hidden, words, out)

    def weighted(self, weights: torch.Tensor, words: slice) -> torch.Tensor:
        if words.start < self._rounded_words:
            return self._blocks[words.start // WORDS].back(weights)
        return super().weighted(weights, words)

    def of_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        weight = super().of_tokens(tokens)
        rounded = Int8Weight(weight)
        whole = rounded.weight.float() * rounded.scale.float()[:, None]
        return torch.where((tokens < self._rounded_words)[:, None], whole, weight)


def use_where_faster(policy: "PolicyModel", products: str) -> None:
    """Round the frozen weights of a policy: with `products` "int8", or with "auto" where that saves time. They stay as
    they are where they cannot be rounded; the log says why.
    """
    trunk = policy.causal
    if products == "own" or trunk.device.type != "cpu" or trunk.dtype != torch.float32:
        return
    if products == "auto" and trunk.num_parameters() < LARGE:
        return
    try:
        if products == "auto" and not _are_faster():
            return
        fit = all(map(_fits, policy.lora_layers))
    except Exception as error:  # no numba, no OpenMP in torch, no folder that compiled code can be kept in
        log.warning("int8 products cannot be used here: %s: %s", Loggable(type(error).__name__), error)
        return
    if not fit:
        log.info("training multiplies in fp32: weights are quantised already, or fill no whole tiles of int8")
        return
    head = RoundedHead(policy.head.weight, policy.head.bias)
    of_layers = [RoundedWeight(linear.weight, linear.bias) for linear in map(_linear, policy.lora_layers)]
    _set(policy, [head, *of_layers])


def _fits(layer: object) -> bool:
    return isinstance(layer, LeanLora) and RoundedWeight.fits(_linear(layer).weight)


def _linear(layer: Any) -> torch.nn.Linear:
    return cast("torch.nn.Linear", layer.base_layer)


def are_used(policy: "PolicyModel") -> bool:
    """Whether the policy multiplies in int8."""
    return isinstance(policy.head, RoundedHead)


def check(policy: "PolicyModel", episodes: Sequence[Episode]) -> None:
    """Let a policy multiply in fp32 again where it says something else on these episodes since it multiplies in int8.
    Its LoRA changes nothing yet.
    """
    if not are_used(policy):
        return
    batch = policy.batch(episodes)
    said = _log_probabilities(policy, batch)
    frozen = [policy.head, *(layer.frozen for layer in policy.lora_layers)]
    _set(policy, [ppo_math.Head(policy.head.weight, policy.head.bias), *(None for _ in policy.lora_layers)])
    truth = _log_probabilities(policy, batch)
    nats = (truth.exp() * (truth - said)).sum(-1)[batch.mask.flatten() > 0].mean().item()
    if nats <= MOST_KL:
        _set(policy, frozen)
        log.info("training multiplies in int8: KL to the model %.4f nats a token", nats)
    else:
        log.warning("in int8 the model is %.3g nats a token from itself: training multiplies in fp32", nats)


def _set(policy: "PolicyModel", frozen: Sequence[Any]) -> None:
    """What multiplies: the head, and for each LoRA layer a RoundedWeight or None."""
    policy.head, *of_layers = frozen
    for layer, weight in zip(policy.lora_layers, of_layers, strict=True):
        layer.frozen = weight


@torch.no_grad()
def _log_probabilities(policy: "PolicyModel", batch: "Batch") -> torch.Tensor:
    """Of all words at each completion token of the batch, (B·T, V)."""
    hidden = policy.hidden(batch).flatten(0, 1)
    logits = []
    for start in range(0, len(policy.head.weight), WORDS):
        words = slice(start, start + WORDS)
        logits.append(hidden.new_empty(len(hidden), len(policy.head.weight[words])))
        policy.head.products(hidden, words, logits[-1])
    return torch.cat(logits, 1).log_softmax(-1)


def _are_faster() -> bool:
    """Whether these products take less time than fp32's on this machine."""
    weight, x = torch.randn(1536, 576), torch.randn(TIMED, 576)
    rounded = RoundedWeight(weight)
    ways = (lambda: rounded.times(x), lambda: torch.nn.functional.linear(x, weight))
    best = [float("inf")] * len(ways)
    for _ in range(TRIALS):  # in turn, so that both see the same machine
        for i, way in enumerate(ways):
            start = time.perf_counter()
            way()
            best[i] = min(best[i], time.perf_counter() - start)
    log.info("a product takes %.2f ms in int8, in fp32 %.2f ms", *(1e3 * seconds for seconds in best))
    return FASTER * best[0] < best[1]
