"""How long a decoding step takes here, in each number format, and how far the format is from the model.

What is chosen from that, and remembered, is `tuning.py`'s.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from transformers import PreTrainedModel

from playground.decoding.choose_forward import kl
from playground.decoding.forward import AnyForward, TokenIds
from playground.decoding.fused import Block, FusedForward
from playground.decoding.number_formats import FORMATS, PARAMETER_BYTES
from playground.models import structure

# what is measured: a step of a pair of replies
CONTEXT_TOKENS = 192
PLAIN_CONTEXT_TOKENS = 24  # where transformers' own forward decodes, which may take a second a token
REPLIES = 2
STEPS = 8
PLAIN_STEPS = 2
CROWD_STEPS = 4
PRODUCT_TRIALS = 3
HEAD_ROWS = 16384  # of the head, whose time stands for that of the others
OTHER_WEIGHTS = 256 << 20  # bytes at most, for the time that it takes to read them
FAR = 2  # times the fastest milliseconds so far


@dataclass(frozen=True)
class Measurement:
    """Of one format on one number of threads."""

    threads: int
    milliseconds: float  # median of a step
    nats: float  # KL of the model's next token to the format's


def random_ids(model: PreTrainedModel, n: int) -> TokenIds:
    """`n` tokens of the whole vocabulary, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = len(structure.input_embeddings(model).weight)
    return torch.randint(0, vocabulary, (n,), generator=generator).tolist()


@torch.inference_mode()
def next_token(model: PreTrainedModel, ids: TokenIds) -> torch.Tensor:
    """Log-probabilities (vocabulary,) after `ids`, by transformers' own forward of a model of the Llama family."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits
    return torch.log_softmax(logits[0, -1].float(), -1)


def measure(
    forward: AnyForward, ids: TokenIds, truth: torch.Tensor, thread_counts: Sequence[int], best: float
) -> Iterator[Measurement]:
    """Time steps after `ids` on each number of threads. `truth` (vocabulary,): the model's log-probabilities there.

    A step is enough where it takes far longer than the `best` milliseconds so far.
    """
    cache = forward.new_cache(REPLIES, len(ids) - 1, len(thread_counts) * (STEPS + 1))
    forward.prefill(cache, ids[:-1])
    nats = 0.0
    for i, threads in enumerate(thread_counts):
        seconds = []
        with on_threads(threads):
            for step in range(STEPS + 1):
                start = time.perf_counter()
                logits = forward.decode([cache], [ids[-1]] * REPLIES)
                seconds.append(time.perf_counter() - start)
                if i == step == 0:
                    nats = kl(truth, logits[0])
                elif step and 1e3 * seconds[-1] > FAR * best:
                    break
        milliseconds = 1e3 * median(seconds[1:])  # the first step warms up
        best = min(best, milliseconds)
        yield Measurement(threads, milliseconds, nats)


@torch.inference_mode()
def prefills_faster_packed(forward: FusedForward) -> bool:
    """Whether a chunk of a prompt takes less time through packed weights than through the model's own layers, by one
    block.
    """
    x = torch.randn(forward.prefill_chunk, forward.embedding.shape[1])
    attended = torch.randn(forward.prefill_chunk, forward.heads * forward.shape.head_dim)

    def run(block: Block) -> None:
        block.heads(x)
        block.attention_output(attended)
        block.mlp_output(x)

    own, packed = (
        least_milliseconds(partial(run, blocks[0]), PRODUCT_TRIALS)
        for blocks in (forward.model_blocks, forward.packed_blocks)
    )
    return packed < own


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """Torch computes on this many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Products:
    """The products of a step of `rows` replies in one of `number_formats.FORMATS`: of a part of the head, and of one
    block, since the others' take as long. What is between products comes on top, so a step takes at least
    `milliseconds()`.

    To pack these takes a small part of the time that all weights take. Before each trial, as many bytes are read as the
    other blocks have, since a step finds no more of a weight in a cache than those leave there.
    """

    def __init__(self, model: PreTrainedModel, number_format: str, rows: int = REPLIES) -> None:
        pack = FORMATS[number_format]
        blocks = structure.blocks(model)
        of_inputs: dict[int, list[torch.Tensor]] = {}  # the block's weights, by the width of their input
        for name, layer in blocks[0].named_modules():
            if isinstance(layer, torch.nn.Linear) and "lora_" not in name:
                of_inputs.setdefault(layer.in_features, []).append(layer.weight.detach())
        self._blocks = len(blocks)
        # those of one width as one product, as if all of them could be fused
        self._of_block = [pack.blocks(torch.cat(weights).float()) for weights in of_inputs.values()]
        self._inputs = [torch.randn(rows, width).to(pack.blocks.dtype) for width in of_inputs]
        head = structure.output_embeddings(model).weight.detach()
        self._head = pack.head(head[:HEAD_ROWS])
        self._heads = len(head) / min(len(head), HEAD_ROWS)
        self._hidden = torch.randn(rows, model.config.hidden_size).to(pack.head.dtype)
        own = sum(weight.numel() for weights in of_inputs.values() for weight in weights)
        others = (self._blocks - 1) * own * PARAMETER_BYTES[number_format]
        self._others = torch.zeros(min(others, OTHER_WEIGHTS) // torch.float32.itemsize)

    @torch.inference_mode()
    def milliseconds(self) -> float:
        """On as many threads as torch uses now; the fastest of a few times."""
        of_block = least_milliseconds(self._multiply_block, PRODUCT_TRIALS, self._read_others)
        of_head = least_milliseconds(partial(self._head, self._hidden), PRODUCT_TRIALS, self._read_others)
        return self._blocks * of_block + self._heads * of_head

    def _multiply_block(self) -> None:
        for weight, x in zip(self._of_block, self._inputs, strict=True):
            weight(x)

    def _read_others(self) -> None:
        self._others.sum()


def least_milliseconds(work: Callable[[], object], trials: int, before: Callable[[], object] = bool) -> float:
    """The least time that `work` takes. `before` is called before each time, which does not count."""
    best = float("inf")
    for _ in range(trials):
        before()
        start = time.perf_counter()
        work()
        best = min(best, 1e3 * (time.perf_counter() - start))
    return best


def plain_milliseconds(forward: AnyForward) -> float:
    """Of a step of a pair by a forward that serves any model, after few tokens; the faster of two."""
    ids = random_ids(forward.model, PLAIN_CONTEXT_TOKENS)
    cache = forward.new_cache(REPLIES, len(ids), PLAIN_STEPS)
    forward.prefill(cache, ids)
    # to read a number waits for the device
    return least_milliseconds(lambda: forward.decode([cache], ids[:REPLIES])[0, 0].item(), PLAIN_STEPS)


def crowd_milliseconds(forward: AnyForward, replies: int) -> float:
    """Of a step of `replies` replies, two to a prompt, after few tokens; the fastest of a few."""
    ids = random_ids(forward.model, PLAIN_CONTEXT_TOKENS)
    caches = [forward.new_cache(REPLIES, len(ids), CROWD_STEPS) for _ in range(-(-replies // REPLIES))]
    for cache in caches:
        forward.prefill(cache, ids)
    tokens = ids[:1] * REPLIES * len(caches)
    return least_milliseconds(lambda: forward.decode(caches, tokens), CROWD_STEPS)
