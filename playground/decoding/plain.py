"""Any causal language model's own transformers forward behind the same few methods as `lean.Lean`.

`of` takes the first of three that says what the model itself says: `Plain` has rows of several prompts in one
left-padded batch, and needs a cache of keys and values; `OwnCache` runs each reply alone with whatever cache the model
has (states, convolutions); `Reread` has none.
"""

import copy
import logging
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache

from playground.decoding.lean import common
from playground.models import loading

log = logging.getLogger(__name__)

CHUNK = 512  # tokens of a prompt that are read at once
WHOLE = 1 << 30  # a state can be begun at a prompt's first token alone
PROBE = ([1, 2, 3, 4, 5], [3, 1, 2])  # prompts of the comparison with the model's own forward
FAITHFUL = {torch.float32: 1e-3}  # nats of KL between what a forward and the model say; in 16 bit:
FAITHFUL_16_BIT = 0.1


class Line:
    """One prompt and the `n` replies that grow from it; `kept` holds [(keys, values)] of each layer, (1 or n, heads,
    columns, head dim).

    A reply that has ended stays in the batch until the last one of its line has.
    """

    def __init__(self, n):
        self.n, self.prompt, self.fed, self.active, self.kept = n, [], [[] for _ in range(n)], list(range(n)), None

    @property
    def nbytes(self):
        return sum(part.nbytes for layer in self.kept or () for part in layer)

    @property
    def length(self):
        return len(self.prompt) + max(map(len, self.fed))

    def drop(self, reply):
        self.active.remove(reply)

    def shared(self, ids):
        """(reply, tokens): the longest beginning of `ids` whose keys are here, in the prompt or on into a reply."""
        found = [common(self.prompt + fed, ids) for fed in self.fed]
        best = max(range(self.n), key=found.__getitem__)
        return best, found[best] if self.kept else 0

    def take(self, other, reply, tokens, ids):
        """Begin with the keys and values of `ids[:tokens]`, which `other.shared(ids)` has found."""
        row = reply if len(other.kept[0][0]) > 1 else 0
        self.kept = [tuple(part[row : row + 1, :, :tokens] for part in layer) for layer in other.kept]
        self.prompt = list(ids[:tokens])


class Plain:
    """One version of any model, LoRA and all, as transformers runs it."""

    chunk = CHUNK

    def __init__(self, model):
        self.model, self._lines, self._cache, self._mask = model, [], None, None
        self.device = next(model.parameters()).device

    def sibling(self, model):
        """Another version of the same base."""
        return Plain(model)

    def line_bytes(self, n, prompt_tokens, new_tokens):
        c = self.model.config.get_text_config()
        heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        return 2 * c.num_hidden_layers * heads * head_dim * self.model.dtype.itemsize * n * (prompt_tokens + new_tokens)

    def open(self, n, _prompt_tokens, _new_tokens):
        return Line(n)

    def end(self, line):
        """All replies of the line have ended; what it keeps can be shared."""
        if line in self._lines:
            self._ungroup()

    @torch.inference_mode()
    def read(self, line, ids):
        """Take the prompt's next tokens in; returns the logits (vocabulary,) after the last."""
        cache = _cache(line.kept)
        positions = torch.arange(len(line.prompt), len(line.prompt) + len(ids), device=self.device)[None]
        out = self.model(
            input_ids=torch.tensor([ids], device=self.device),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        line.kept = _layers(cache)
        line.prompt += ids
        return out.logits[0, -1].float()

    @torch.inference_mode()
    def step(self, lines, tokens):
        """The next token of every growing reply, line by line -> logits (replies, vocabulary). Where it raises, the
        lines are as they were.
        """
        if lines != self._lines:
            self._regroup(lines)
        mask, fed = self._mask, []
        ids, growing, start, given = (
            torch.zeros(sum(line.n for line in lines), 1, dtype=torch.long),
            [],
            0,
            iter(tokens),
        )
        try:
            for line in lines:
                for reply in line.active:
                    ids[start + reply] = token = next(given)
                    line.fed[reply].append(token)
                    fed.append(line.fed[reply])
                    growing.append(start + reply)
                start += line.n
            ids = ids.to(self.device)
            self._mask = torch.cat([mask, torch.ones_like(ids)], 1)
            out = self.model(
                input_ids=ids,
                attention_mask=self._mask,
                position_ids=self._mask.sum(-1, keepdim=True) - 1,
                past_key_values=self._cache,
                use_cache=True,
            )
            return out.logits[growing, -1].float()
        except Exception:
            for tokens_of_reply in fed:
                tokens_of_reply.pop()
            self._mask = mask
            for layer in self._cache.layers:  # some have taken the token in and some have not
                layer.keys, layer.values = layer.keys[:, :, : mask.shape[1]], layer.values[:, :, : mask.shape[1]]
            raise

    def _regroup(self, lines):
        """Give each line of the batch its own keys and values back, without padding, and make the batch of `lines`;
        they keep theirs until it is made.
        """
        self._ungroup()
        lengths = [line.kept[0][0].shape[2] for line in lines]
        longest = max(lengths)
        mask = [
            torch.tensor([[0] * (longest - length) + [1] * length] * line.n)
            for line, length in zip(lines, lengths, strict=True)
        ]
        merged = []
        for layer in range(len(lines[0].kept)):
            both = []
            for part in (0, 1):  # keys, values
                rows = [_padded(line.kept[layer][part], longest, line.n) for line in lines]
                both.append(torch.cat(rows))
            merged.append(tuple(both))
        self._cache, self._mask = _cache(merged), torch.cat(mask).to(self.device)
        self._lines = list(lines)
        for line in lines:
            line.kept = None

    def _ungroup(self):
        start = 0
        for line in self._lines:
            length = int(self._mask[start].sum())
            line.kept = [
                tuple(part[start : start + line.n, :, -length:].clone() for part in layer)
                for layer in _layers(self._cache)
            ]
            start += line.n
        self._lines, self._cache = [], None


def _padded(part, columns, n):
    """Keys or values (1 or n, heads, fewer columns, head dim) with zeros before them and a row for each of n
    replies.
    """
    part = torch.nn.functional.pad(part, (0, 0, columns - part.shape[2], 0))
    return part if len(part) == n else part.repeat(n, 1, 1, 1)


def _cache(layers):
    cache = DynamicCache()
    for place, (keys, values) in enumerate(layers or ()):
        cache.update(keys, values, place)
    return cache


def _layers(cache):
    return [(layer.keys, layer.values) for layer in cache.layers]


# -- models without a cache of keys and values alone


class Single:
    """One prompt and the `n` replies that grow from it, each with a cache of its own; nothing of it can be shared with
    a later turn.
    """

    nbytes = 0  # that a later turn could begin with

    def __init__(self, n):
        self.n, self.prompt, self.fed, self.active = n, [], [[] for _ in range(n)], list(range(n))
        self.read_cache, self.caches = None, {}  # after the prompt; of each reply that has begun

    def drop(self, reply):
        self.active.remove(reply)
        self.caches.pop(reply, None)

    def shared(self, _ids):
        return None, 0


class OwnCache:
    """One version of a model with a cache of any kind: every reply is a batch of its own, slower than `Plain` and
    right.
    """

    chunk = WHOLE

    def __init__(self, model):
        self.model, self.device = model, next(model.parameters()).device
        self.cache_name = "past_key_values" if loading.takes(model, "past_key_values") else "cache_params"
        self._sizes = None  # bytes of a reply's cache: (at any length, for each token)

    def sibling(self, model):
        """Another version of the same base."""
        other = type(self)(model)
        other._sizes = self._sizes
        return other

    def line_bytes(self, n, prompt_tokens, new_tokens):
        if self._sizes is None:
            short, long = (_nbytes(self._forward([1] * tokens, 0, None)[1]) for tokens in (8, 16))
            a_token = max(0, long - short) / 8
            self._sizes = short - 8 * a_token, a_token
        fixed, a_token = self._sizes
        return int((n + 1) * (fixed + a_token * (prompt_tokens + new_tokens)))

    def open(self, n, _prompt_tokens, _new_tokens):
        return Single(n)

    def end(self, line):
        """All replies of the line have ended."""
        line.read_cache = None

    def read(self, line, ids):
        """Take the whole prompt in; returns the logits (vocabulary,) after its last token."""
        logits, line.read_cache = self._forward(ids, 0, None)
        line.prompt += ids
        return logits

    def step(self, lines, tokens):
        """The next token of every growing reply, line by line -> logits (replies, vocabulary)."""
        rows, given = [], iter(tokens)
        for line in lines:
            for reply in line.active:
                cache = line.caches.get(reply) or copy.deepcopy(line.read_cache)
                token, position = next(given), len(line.prompt) + len(line.fed[reply])
                logits, line.caches[reply] = self._forward([token], position, cache)
                line.fed[reply].append(token)
                rows.append(logits)
        return torch.stack(rows)

    @torch.inference_mode()
    def _forward(self, ids, position, cache):
        """(logits (vocabulary,) after the last of `ids`, which begin at `position`, the cache that goes on
        from there).
        """
        positions = torch.arange(position, position + len(ids), device=self.device)[None]
        options = loading.inputs(self.model, position_ids=positions)
        if cache is not None:
            options[self.cache_name] = cache
        out = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=True, **options)
        return out.logits[0, -1].float(), out[self.cache_name]


class Reread:
    """One version of a model that no cache serves: every token reads the whole text again. Slow, and right."""

    chunk = WHOLE

    def __init__(self, model):
        self.model, self.device = model, next(model.parameters()).device

    def sibling(self, model):
        """Another version of the same base."""
        return Reread(model)

    def line_bytes(self, _n, _prompt_tokens, _new_tokens):
        return 0

    def open(self, n, _prompt_tokens, _new_tokens):
        return Single(n)

    def end(self, line):
        """All replies of the line have ended."""

    def read(self, line, ids):
        """Take the whole prompt in; returns the logits (vocabulary,) after its last token."""
        line.prompt += ids
        return self._after(line.prompt)

    def step(self, lines, tokens):
        """The next token of every growing reply, line by line -> logits (replies, vocabulary)."""
        rows, given = [], iter(tokens)
        for line in lines:
            for reply in line.active:
                line.fed[reply].append(next(given))
                rows.append(self._after(line.prompt + line.fed[reply]))
        return torch.stack(rows)

    @torch.inference_mode()
    def _after(self, ids):
        return self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=False).logits[0, -1].float()


def _nbytes(cache):
    """Bytes of all tensors in a cache, however it keeps them."""
    total, left, seen = 0, [cache], set()
    while left:
        item = left.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            total += item.nbytes
        elif isinstance(item, dict):
            left += item.values()
        elif isinstance(item, (list, tuple)):
            left += item
        elif hasattr(item, "__dict__"):
            left += vars(item).values()
    return total


# -- which of them

_kinds = WeakKeyDictionary()  # model: the class that serves it


def of(model):
    """The forward of `model`: the first of Plain, OwnCache and Reread that says what the model says without
    any cache.
    """
    if model not in _kinds:
        _kinds[model] = _first_faithful(model)
    return _kinds[model](model)


def _first_faithful(model):
    for kind in (Plain, OwnCache):
        error = distance(kind(model))
        if error <= FAITHFUL.get(model.dtype, FAITHFUL_16_BIT):
            if kind is not Plain:
                log.warning(
                    "%s has a cache of its own kind: replies are decoded one by one, which is slower",
                    type(model).__name__,
                )
            return kind
    log.warning(
        "no cache serves %s: each token of a reply reads the whole text again, which is slow", type(model).__name__
    )
    return Reread


def distance(forward) -> float:
    """Largest KL, in nats, of what the model says without a cache to what `forward` says, over a few steps of two
    prompts with two replies each; infinite where it cannot run the model."""
    try:
        lines = [forward.open(2, len(prompt), 3) for prompt in PROBE]
        said = [(prompt, forward.read(line, list(prompt))) for prompt, line in zip(PROBE, lines, strict=True)]
        for tokens in ([5, 4, 2, 1], [1, 3, 3, 5]):
            logits = forward.step(lines, tokens)
            texts = [line.prompt + fed for line in lines for fed in line.fed]
            said += zip(texts, logits, strict=True)
        return max(_divergence(forward.model, text, logits) for text, logits in said)
    except Exception:  # a model of any kind: what it raises on a cache that it does not know is its own affair
        log.debug("%s does not run %s", type(forward).__name__, type(forward.model).__name__, exc_info=True)
        return float("inf")


@torch.inference_mode()
def _divergence(model, ids, logits):
    """KL of what the model says after `ids` to `logits` (vocabulary,), in nats; infinite where either is no number."""
    ids = torch.tensor([ids], device=next(model.parameters()).device)
    truth, said = (
        torch.log_softmax(x, -1) for x in (model(input_ids=ids, use_cache=False).logits[0, -1].float(), logits)
    )
    found = (truth.exp() * (truth - said)).sum().item()
    return found if found == found else float("inf")
