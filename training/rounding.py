"""Which policies multiply by frozen weights in int8: those whose trunk is in fp32, on a CPU that multiplies faster
so, if the model then says what it says.

Where a CPU has no bf16, fp32 products are most of an update. The products are `int8_products.py`'s. Weights are rounded
inside `PolicyModel`'s own forwards alone: whoever takes the policy's model has it as it is.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch

from playground.decoding import tuning
from playground.models.lean_layers import LeanLora
from playground.settings import Settings
from playground.system.safe_logging import Loggable
from training import ppo_math
from training.int8_products import RoundedHead, RoundedWeight
from training.rollout import LARGE, Episode

if TYPE_CHECKING:
    from training.policy import Batch, PolicyModel

log = logging.getLogger(__name__)

TRIALS = 5  # of each product that is timed
TIMED = 512  # rows of it
FASTER = 1.15  # times as fast as fp32, from which weights are rounded, so that measuring again says the same


class Rounded:
    """A policy's head and the weights under its LoRA layers, in int8."""

    def __init__(self, policy: "PolicyModel") -> None:
        self.head = RoundedHead(policy.head.weight, policy.head.bias)
        self._layers = policy.lora_layers
        linears = [_linear(layer) for layer in self._layers]
        self._weights = [RoundedWeight(linear.weight, linear.bias) for linear in linears]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Context in which the layers multiply by these weights."""
        try:
            for layer, weight in zip(self._layers, self._weights, strict=True):
                layer.frozen = weight  # type: ignore[assignment]  # of a LeanLora
            yield
        finally:
            for layer in self._layers:
                layer.frozen = None  # type: ignore[assignment]


def of(policy: "PolicyModel", settings: Settings) -> Rounded | None:
    """The policy's weights in int8 where the settings ask for them, or leave it open and they save time; None where
    they cannot be had, and the log says why.
    """
    wanted = settings.ppo.multiply_in
    trunk = policy.causal
    if wanted == "trunk" or trunk.device.type != "cpu" or trunk.dtype != torch.float32:
        return None
    if settings.ppo.gradient_checkpointing:  # a block is computed again outside of the policy's forward
        return None
    if wanted == "auto" and trunk.num_parameters() < LARGE:
        return None
    if not all(isinstance(layer, LeanLora) for layer in policy.lora_layers):
        log.info("training multiplies in the trunk's own format: not all of its layers are plain linear ones")
        return None
    try:
        if not all(RoundedWeight.fits(_linear(layer).weight) for layer in policy.lora_layers):
            log.info("training multiplies in the trunk's own format: int8 has no tiles for its sizes")
            return None
        return Rounded(policy) if wanted == "int8" or _is_faster() else None
    except Exception as error:  # no numba, no OpenMP in torch, no folder that compiled code can be kept in
        log.warning("training cannot multiply in int8 here: %s: %s", Loggable(type(error).__name__), error)
        return None


def check(policy: "PolicyModel", episodes: Sequence[Episode], settings: Settings) -> None:
    """Let a policy multiply in the trunk's own format where in int8 it says something else on these episodes. Its LoRA
    changes nothing yet.
    """
    if policy.rounded is None:
        return
    most = tuning.MAX_KL_CONFIGURED if settings.ppo.multiply_in == "int8" else tuning.MAX_KL
    batch = policy.batch(episodes)
    said = _log_probabilities(policy, batch)
    rounded, policy.rounded = policy.rounded, None
    truth = _log_probabilities(policy, batch)
    nats = (truth.exp() * (truth - said)).sum(-1)[batch.mask.flatten() > 0].mean().item()
    if nats <= most:
        policy.rounded = rounded
        log.info("training multiplies in int8: KL to the model %.4f nats a token", nats)
    else:
        log.warning("in int8 the model is %.3g nats a token from itself: training multiplies in fp32", nats)


@torch.no_grad()
def _log_probabilities(policy: "PolicyModel", batch: "Batch") -> torch.Tensor:
    """Of all words at each completion token of the batch, (B·T, V)."""
    hidden = policy.hidden(batch).flatten(0, 1)
    head = policy.multiplying_head
    logits = []
    for start in range(0, len(head.weight), ppo_math.WORDS):
        words = slice(start, start + ppo_math.WORDS)
        logits.append(hidden.new_empty(len(hidden), len(head.weight[words])))
        head.products(hidden, words, logits[-1])
    return torch.cat(logits, 1).log_softmax(-1)


def _is_faster() -> bool:
    """Whether int8 takes less time than fp32 on this machine, for a product of a training forward's shape."""
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(1536, 576, generator=source)
    x = torch.randn(TIMED, 576, generator=source)
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


def _linear(layer: Any) -> torch.nn.Linear:
    return cast("torch.nn.Linear", layer.base_layer)
