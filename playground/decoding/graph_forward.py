"""The Llama family's forward on a GPU: prompts are read together, and a step of all replies is one CUDA graph that also
draws their tokens.

`GraphForward` runs one version. It owns who has which slot of its `DecodeBatch`, and reads a step's tokens back while
the next step runs, so that neither the GPU nor the host waits for the other. It runs on a CPU too, without graphs.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from playground.decoding import llama
from playground.decoding.decode_batch import DecodeBatch, StepShape
from playground.decoding.forward import DrawnToken, TokenIds
from playground.decoding.kernels import Kernels
from playground.decoding.lean_model import LeanModel, number_format
from playground.decoding.sampling import Sampling
from playground.decoding.slot_cache import SlotCache

PREFILL_CHUNK = 512  # tokens of one prompt
PREFILL_TOKENS = 2048  # tokens of all prompts that are read together
MAX_SLOTS = 32  # pairs of replies that the chat decodes at once
PREPARED_SLOTS = (1, 2)  # numbers of slots, and of columns in them, whose graphs are made before a version answers
PREPARED_COLUMNS = (256, 512)


def fits(model: PreTrainedModel, tokens: int) -> bool:
    """Whether `GraphForward` serves `model` with texts of `tokens` tokens: one of Llama's family, on CUDA."""
    return llama.fits(model, "cuda", tokens)


@dataclass
class _Launched:
    """A step whose tokens have not been read back."""

    rows: list[tuple[SlotCache, int, int]]  # cache, reply, row
    drawn: torch.Tensor  # (2, rows), as DecodeBatch.drawn
    ready: torch.cuda.Event | None  # None on a CPU


class GraphForward:
    """One version of a model of the family. Fulfils `forward.DrawingForward`.

    Up to `slots` pairs of replies are decoded at once, with `slot_tokens` columns each; other replies wait. `retains`:
    the keys and values of replies that have ended are kept in their cache, for a prompt that begins with them. The
    `kernels` are chosen where they are not given.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        slots: int,
        slot_tokens: int,
        retains: bool = True,
        kernels: Kernels | None = None,
    ) -> None:
        self.model = model
        self.retains = retains
        self.prefill_chunk = PREFILL_CHUNK
        self.prefill_tokens = PREFILL_TOKENS
        device = next(model.parameters()).device
        self.lean = LeanModel(model, number_format(device, model.dtype), kernels)
        self.slots = slots
        self.slot_tokens = slot_tokens
        self._batch: DecodeBatch | None = None  # made when the first reply is decoded
        self._owners: list[weakref.ref[SlotCache] | None] = [None] * slots
        self._launched: _Launched | None = None
        pinned = device.type == "cuda"
        self._results = [torch.zeros(2, 2 * slots, dtype=torch.int32, pin_memory=pinned) for _ in range(2)]

    def for_model(self, model: PreTrainedModel) -> "GraphForward":
        return GraphForward(model, self.slots, self.slot_tokens, self.retains, self.lean.kernels)

    def refresh(self) -> None:
        """The model's LoRA has been changed, or switched on or off: read it again. No reply may be growing."""
        self._launched = None
        self.lean.refresh()

    def cache_bytes(self, n: int, prompt_tokens: int, new_tokens: int) -> int:
        shape = self.lean.shape
        bytes_per_token = 2 * self.lean.dtype.itemsize * shape.layers * shape.kv_heads * shape.head_dim
        return bytes_per_token * (prompt_tokens + n * new_tokens)

    def new_cache(self, n: int, prompt_tokens: int, _new_tokens: int) -> SlotCache:
        return SlotCache(self.lean.shape, n, prompt_tokens, self.lean.dtype, self.lean.device)

    @property
    def batch(self) -> DecodeBatch:
        if self._batch is None:
            self._batch = DecodeBatch(self.lean, self.slots, self.slot_tokens)
        return self._batch

    def prepare(self, sampling: Sampling) -> None:
        batch = self.batch
        truncates, penalises = _flags([sampling])
        for slots in PREPARED_SLOTS:
            for context in sorted({batch.context_for(columns) for columns in PREPARED_COLUMNS}):
                batch.prepare(StepShape(min(slots, self.slots), context, truncates, penalises))

    def unload(self) -> None:
        self._launched = None
        self._batch = None
        self._owners = [None] * self.slots

    # -- prompts

    def prefill(self, cache: SlotCache, ids: TokenIds) -> torch.Tensor:
        return self.prefill_together([cache], [ids])[0]

    @torch.inference_mode()
    def prefill_together(self, caches: Sequence[SlotCache], parts: Sequence[TokenIds]) -> torch.Tensor:
        """Take in the next tokens of several prompts; returns the logits (prompts, vocabulary) after the last ones."""
        spans = []  # the tokens of each cache among all, and their first position
        positions: list[int] = []
        for cache, part in zip(caches, parts, strict=True):
            start = len(cache.prompt)
            spans.append((cache, slice(len(positions), len(positions) + len(part)), start))
            positions += range(start, start + len(part))

        lean = self.lean
        at_positions = torch.tensor(positions, device=lean.device)
        rotations = [rope.matrices(at_positions) for rope in lean.ropes]

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            rotation = lean.architecture.rotation_of_layer[layer]
            q, k, v = lean.ropes[rotation].split(qkv, rotations[rotation])
            window = lean.shape.window(layer)
            attended = [_attend_prompt(c.kv[layer], q[at], k[at], v[at], start, window) for c, at, start in spans]
            return torch.cat(attended)

        ids = torch.tensor([token for part in parts for token in part], device=self.lean.device)
        x = self.lean.run(ids, attend)
        for cache, part in zip(caches, parts, strict=True):
            cache.prompt += part
        last = torch.tensor([at.stop - 1 for _, at, _ in spans], device=self.lean.device)
        return self.lean.logits(x[last])

    # -- steps that draw

    def begin(self, cache: SlotCache, sampling: Sampling, uniforms: torch.Tensor | None) -> None:
        """The prompt is read: decode the cache's replies from the next `advance` on that has slots for them. `uniforms`
        (replies, max tokens) has the random numbers in [0, 1) that their tokens are drawn with; None where greedy.
        ValueError where they can never have the room.
        """
        needed = len(cache.prompt) + 2 * sampling.max_tokens + 2
        if needed > self.slot_tokens or cache.n > 2 * self.slots:
            raise ValueError(f"{cache.n} replies with {needed} columns, of at most {self.slot_tokens}, do not fit")
        cache.sampling = sampling
        cache.uniforms = uniforms

    @torch.inference_mode()
    def advance(self, caches: Sequence[SlotCache]) -> list[DrawnToken]:
        """Launch a step for the growing replies of `caches`, each of which has begun, and return the tokens of the step
        that was launched before it.
        """
        for cache in caches:
            if not cache.slots and cache.active:
                self._take_slots(cache)
        decoding = [cache for cache in caches if cache.slots and cache.active]
        before = self._launched
        self._launched = self._launch(decoding) if decoding else None
        return self._read(before) if before else []

    def _take_slots(self, cache: SlotCache) -> None:
        """Move a prompt's keys and values into the batch, if there are slots for its replies."""
        sampling = cache.sampling
        assert sampling is not None  # it has begun
        # the last token of the prompt is the first that a step takes in: from then on a reply draws alone
        if not self._fill_slots(cache, len(cache.prompt) - 1, cache.prompt[-1]):
            return
        for reply in range(cache.n):
            uniforms = None if cache.uniforms is None else cache.uniforms[reply]
            self.batch.sample(cache.row(reply), sampling, uniforms, cache.prompt)

    def _fill_slots(self, cache: SlotCache, shared: int, first_token: int) -> bool:
        free = [slot for slot, owner in enumerate(self._owners) if owner is None or owner() is None]
        needed = -(-cache.n // 2)
        if len(free) < needed:
            return False
        cache.slots = free[:needed]
        cache.shared = shared
        cache.steps = 0
        for slot in cache.slots:
            self._owners[slot] = weakref.ref(cache)
            self.batch.fill(slot, cache.kv[..., :shared, :], first_token)
        return True

    def _launch(self, caches: Sequence[SlotCache]) -> _Launched:
        batch = self.batch
        truncates, penalises = _flags([cache.sampling for cache in caches if cache.sampling])
        slots, context = self._size(caches)
        batch.step(StepShape(slots, context, truncates, penalises))
        rows = []
        for cache in caches:
            cache.steps += 1
            rows += [(cache, reply, cache.row(reply)) for reply in cache.active]
        self._results.reverse()  # the other one is still to be read
        drawn = self._results[0]
        drawn.copy_(batch.drawn, non_blocking=True)
        ready = None
        if batch.model.device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record()
        return _Launched(rows, drawn, ready)

    def _size(self, caches: Sequence[SlotCache]) -> tuple[int, int]:
        """How many slots and how many columns of each the next step of `caches` needs."""
        used = 1 + max(slot for cache in caches for slot in cache.slots)
        slots = min(self.slots, 1 << (used - 1).bit_length())
        columns = max(cache.shared + 2 * cache.steps + 2 for cache in caches)
        return slots, self.batch.context_for(columns)

    def _read(self, launched: _Launched) -> list[DrawnToken]:
        """The tokens of a step; those of replies that have ended since are left out."""
        if launched.ready:
            launched.ready.synchronize()
        tokens = launched.drawn[0].tolist()
        logprobs = launched.drawn[1].view(torch.float32).tolist()
        drawn = []
        for cache, reply, row in launched.rows:
            if reply in cache.active:
                cache.reply_tokens[reply].append(tokens[row])
                drawn.append(DrawnToken(cache, reply, tokens[row], logprobs[row]))
        return drawn

    # -- steps whose tokens the caller draws

    @torch.inference_mode()
    def decode(self, caches: list[SlotCache], tokens: TokenIds) -> torch.Tensor:
        for cache in caches:
            if not cache.slots and not self._fill_slots(cache, len(cache.prompt), 0):
                raise ValueError(f"more replies than {self.slots} slots hold")
            if cache.shared + 2 * cache.steps + 2 > self.slot_tokens:
                raise ValueError(f"longer replies than {self.slot_tokens} columns hold")
        replies = [(cache, reply) for cache in caches for reply in cache.active]
        rows = [cache.row(reply) for cache, reply in replies]
        slots, context = self._size(caches)
        self.batch.set_tokens(rows, tokens)
        logits = self.batch.logits(slots, context)[torch.tensor(rows, device=self.lean.device)]
        self.batch.advance(slots)
        for cache in caches:
            cache.steps += 1
        for (cache, reply), token in zip(replies, tokens, strict=True):
            cache.reply_tokens[reply].append(token)
        return logits

    @torch.inference_mode()
    def finish(self, cache: SlotCache) -> None:
        """Copy the replies' keys and values out of their slots, and leave these to others."""
        if not cache.slots:
            return
        taken_in = cache.steps - (len(cache.prompt) - cache.shared)
        for reply, tokens in enumerate(cache.reply_tokens):
            del tokens[max(0, taken_in) :]  # the last one was drawn, and no step took it in
            if self.retains:
                cache.reply_kv.append(self.batch.reply_kv(cache.slots[reply // 2], cache.columns(reply)))
        for slot in cache.slots:
            self._owners[slot] = None
        cache.slots = []


def _flags(samplings: Sequence[Sampling]) -> tuple[bool, bool]:
    """Whether any has a top-k or a top-p, and whether any has a repetition penalty."""
    truncates = any(sampling.top_k or sampling.top_p < 1 for sampling in samplings)
    return truncates, any(sampling.repetition_penalty != 1 for sampling in samplings)


def _attend_prompt(
    kv: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: int, window: int | None
) -> torch.Tensor:
    """Causal attention of a prompt's tokens from position `start` on, each to the tokens in its window: q (T, heads,
    head dim), k and v (T, kv heads, head dim), which are written into kv (2, kv heads, tokens, head dim) -> (T,
    heads·head dim).
    """
    end = start + len(q)
    group = q.shape[1] // k.shape[1]
    kv[0, :, start:end] = k.transpose(0, 1)
    kv[1, :, start:end] = v.transpose(0, 1)
    query = q.unflatten(1, (-1, group)).permute(1, 2, 0, 3).flatten(1, 2)  # (kv heads, group·T, head dim)
    causal = torch.ones(len(q), end, dtype=torch.bool, device=q.device).tril(start)
    if window is not None:
        causal = causal.triu(start + 1 - window)
    mask = causal.repeat(group, 1)
    out = scaled_dot_product_attention(query[None], kv[None, 0, :, :end], kv[None, 1, :, :end], mask)
    return out[0].unflatten(1, (group, -1)).permute(2, 0, 1, 3).flatten(1)
