"""The batch that the graph forward decodes: slots for pairs of replies, the step that gives each row a token, and its
CUDA graphs.

A slot holds the keys and values of two replies to one prompt: first the prompt's columns, once, then in turn a column
of each reply. All that a step needs to know of a row is on the device, so a step is launched without a word from the
host, and on CUDA it is one launch. A row that nobody uses computes along and is ignored. Whose rows they are is
`graph_forward.py`'s.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from playground.decoding.kernels import SlotColumns
from playground.decoding.lean_model import LeanModel
from playground.decoding.row_sampling import NO_TOP_P, RowSampling, draw_rows
from playground.decoding.sampling import Sampling

CONTEXTS = (256, 384, 512, 768, 1024, 1536)  # columns that a step may look at; above them, powers of two and 1.5 times

# places in a row's state
TOKEN, STEPS, SHARED, TOP_K = range(4)
TEMPERATURE, TOP_P, PENALTY, UNIFORMS = range(4)


# cuBLAS keeps a workspace for each stream: one stream a batch, since two threads may capture two batches at once, and
# few in all
_CAPTURE_STREAMS: list[torch.cuda.Stream] = []
STREAMS = 4


def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that a new batch captures its graphs on."""
    if len(_CAPTURE_STREAMS) < STREAMS:
        _CAPTURE_STREAMS.append(torch.cuda.Stream(device))
    else:
        _CAPTURE_STREAMS.append(_CAPTURE_STREAMS.pop(0))
    return _CAPTURE_STREAMS[-1]


class StepShape(NamedTuple):
    """What a step's kernels depend on."""

    slots: int
    context: int  # columns of each slot
    truncates: bool  # whether any row has a top-k or a top-p
    penalises: bool  # whether any row has a repetition penalty


class DecodeBatch:
    """`slots` pairs of rows, each with room for `slot_tokens` columns, of one version of a model."""

    def __init__(self, model: LeanModel, slots: int, slot_tokens: int) -> None:
        shape = model.shape
        device = model.device
        rows = 2 * slots
        self.model = model
        self.slots = slots
        self.slot_tokens = slot_tokens
        size = (shape.layers, 2, slots, shape.kv_heads, slot_tokens, shape.head_dim)
        self.kv = torch.zeros(size, dtype=model.dtype, device=device)
        self.whole = torch.zeros(rows, 4, dtype=torch.long, device=device)  # TOKEN, STEPS, SHARED, TOP_K of each row
        self.real = torch.zeros(rows, UNIFORMS + slot_tokens, device=device)  # TEMPERATURE, … and random numbers
        self.drawn = torch.zeros(2, rows, dtype=torch.int32, device=device)  # tokens; bits of their log-probabilities
        self._seen: torch.Tensor | None = None
        self._graphs: dict[StepShape, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._stream = _capture_stream(device) if device.type == "cuda" else None

    @property
    def seen(self) -> torch.Tensor:
        """Which tokens a row's repetition penalty is for, (rows, vocabulary); made when it is first asked for."""
        if self._seen is None:
            size = (len(self.whole), len(self.model.head))
            self._seen = torch.zeros(size, dtype=torch.bool, device=self.model.device)
        return self._seen

    # -- rows

    def fill(self, slot: int, prompt_kv: torch.Tensor, first_token: int) -> None:
        """Put the keys and values of a prompt (layers, 2, kv heads, tokens, head dim), which both rows of the slot see,
        into it. The first step takes `first_token` in.
        """
        shared = prompt_kv.shape[-2]
        self.kv[:, :, slot, :, :shared] = prompt_kv
        self._upload(self.whole, 2 * slot, [[first_token, 0, shared, 0]] * 2)

    def sample(self, row: int, sampling: Sampling, uniforms: torch.Tensor | None, seen: Sequence[int]) -> None:
        """How the row is drawn from now on: its `uniforms` (max tokens,), and the tokens of its prompt, `seen`."""
        vocabulary = len(self.model.head)
        top_p = sampling.top_p if sampling.top_p < 1 else NO_TOP_P
        self._upload(self.whole[:, TOP_K:], row, [[sampling.top_k or vocabulary]])
        self._upload(self.real, row, [[sampling.temperature, top_p, sampling.repetition_penalty]])
        if uniforms is not None:
            self._upload(self.real[:, UNIFORMS:], row, uniforms[None])
        if sampling.repetition_penalty != 1:
            self.seen[row] = False
            self.seen[row].index_fill_(0, self._to_device(torch.tensor(seen)), True)

    def set_tokens(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """The tokens that the next step takes in."""
        at = self._to_device(torch.tensor(rows))
        self.whole[:, TOKEN].index_copy_(0, at, self._to_device(torch.tensor(tokens)))

    def reply_kv(self, slot: int, columns: slice) -> torch.Tensor:
        """A copy of the keys and values (layers, 2, kv heads, tokens, head dim) in these columns of a slot."""
        return self.kv[:, :, slot, :, columns].clone()

    def _upload(
        self, state: torch.Tensor, row: int, values: list[list[int]] | list[list[float]] | torch.Tensor
    ) -> None:
        part = torch.as_tensor(values, dtype=state.dtype)
        state[row : row + len(part), : part.shape[1]] = self._to_device(part)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.model.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.model.device, non_blocking=True)

    # -- the step

    def context_for(self, columns: int) -> int:
        """How many columns a step looks at that needs `columns` of them."""
        if not self.model.kernels.reads_context:
            return self.slot_tokens  # one graph serves every length
        contexts = list(CONTEXTS)
        while contexts[-1] < columns:
            contexts.append(2 * contexts[-2])
        return min(self.slot_tokens, next(context for context in contexts if context >= columns))

    def step(self, shape: StepShape) -> None:
        """Give each row of the first `shape.slots` slots a token; it is in `drawn`, and the next step takes it in."""
        if self._pool is None:
            self._step(shape)
            return
        self.prepare(shape)
        self._graphs[shape].replay()

    def prepare(self, shape: StepShape) -> None:
        """Make the graph of this shape, where there are graphs."""
        if self._pool is not None and shape not in self._graphs:
            self._graphs[shape] = self._capture(shape)

    def _capture(self, shape: StepShape) -> torch.cuda.CUDAGraph:
        """The step of this shape as a graph. It is run once before, since libraries make their workspaces then; the
        columns that it fills are those that the first replay fills again.
        """
        state = [self.whole, self.seen] if shape.penalises else [self.whole]
        before = [tensor.clone() for tensor in state]
        stream = self._stream
        assert stream is not None  # there are graphs on CUDA alone
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(shape)
        torch.cuda.current_stream().wait_stream(stream)
        for tensor, copy in zip(state, before, strict=True):
            tensor.copy_(copy)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            # another thread may build a version meanwhile, and may allocate
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                self._step(shape)
            finally:
                graph.capture_end()
        return graph

    @torch.inference_mode()
    def _step(self, shape: StepShape) -> None:
        rows = 2 * shape.slots
        whole = self.whole[:rows]
        real = self.real[:rows]
        logits = self.logits(shape.slots, shape.context)
        uniform = real[:, UNIFORMS:].gather(1, whole[:, STEPS, None].clamp(max=self.slot_tokens - 1))[:, 0]
        how = RowSampling(real[:, TEMPERATURE], real[:, TOP_P], whole[:, TOP_K], real[:, PENALTY], uniform)
        seen = self.seen[:rows] if shape.penalises else None
        tokens, logprobs = draw_rows(logits, how, seen, shape.truncates)
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        self.drawn[0, :rows] = tokens
        self.drawn[1, :rows] = logprobs.view(torch.int32)
        whole[:, TOKEN] = tokens
        self.advance(shape.slots)

    def advance(self, slots: int) -> None:
        """The rows of the first `slots` slots have taken their token in."""
        self.whole[: 2 * slots, STEPS].add_(1)

    @torch.inference_mode()
    def logits(self, slots: int, context: int) -> torch.Tensor:
        """Take the token of each row of the first `slots` slots in: logits (rows, vocabulary) after it."""
        whole = self.whole[: 2 * slots]
        shared = whole[:, SHARED]
        steps = whole[:, STEPS]
        slot_steps = self.model.slot_steps(SlotColumns(shared, steps, context, self.slot_tokens))
        x = self.model.run(whole[:, TOKEN], lambda layer, qkv: slot_steps[layer].attend(qkv, self.kv[layer]))
        return self.model.logits(x)
