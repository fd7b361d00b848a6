"""Any causal language model's own transformers forward behind the same few methods as `lean.Lean`: rows of several prompts in one left-padded batch."""

import torch
from transformers import DynamicCache

from playground.lean import common

CHUNK = 512  # tokens of a prompt that are read at once


class Line:
    """One prompt and the `n` replies that grow from it; `kept` holds [(keys, values)] of each layer, (1 or n, heads, columns, head dim).

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
        self.kept = [tuple(part[row:row + 1, :, :tokens] for part in layer) for layer in other.kept]
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
        out = self.model(input_ids=torch.tensor([ids], device=self.device), position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
        line.kept = _layers(cache)
        line.prompt += ids
        return out.logits[0, -1].float()

    @torch.inference_mode()
    def step(self, lines, tokens):
        """The next token of every growing reply, line by line -> logits (replies, vocabulary). Where it raises, the lines are as they were."""
        if lines != self._lines:
            self._regroup(lines)
        mask, fed = self._mask, []
        ids, growing, start, given = torch.zeros(sum(line.n for line in lines), 1, dtype=torch.long), [], 0, iter(tokens)
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
            out = self.model(input_ids=ids, attention_mask=self._mask, position_ids=self._mask.sum(-1, keepdim=True) - 1,
                             past_key_values=self._cache, use_cache=True)
            return out.logits[growing, -1].float()
        except Exception:
            for tokens_of_reply in fed:
                tokens_of_reply.pop()
            self._mask = mask
            for layer in self._cache.layers:  # some have taken the token in and some have not
                layer.keys, layer.values = layer.keys[:, :, :mask.shape[1]], layer.values[:, :, :mask.shape[1]]
            raise

    def _regroup(self, lines):
        """Give each line of the batch its own keys and values back, without padding, and make the batch of `lines`; they keep theirs until it is made."""
        self._ungroup()
        lengths = [line.kept[0][0].shape[2] for line in lines]
        longest = max(lengths)
        mask = [torch.tensor([[0] * (longest - length) + [1] * length] * line.n) for line, length in zip(lines, lengths, strict=True)]
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
            line.kept = [tuple(part[start:start + line.n, :, -length:].clone() for part in layer) for layer in _layers(self._cache)]
            start += line.n
        self._lines, self._cache = [], None


def _padded(part, columns, n):
    """Keys or values (1 or n, heads, fewer columns, head dim) with zeros before them and a row for each of n replies."""
    part = torch.nn.functional.pad(part, (0, 0, columns - part.shape[2], 0))
    return part if len(part) == n else part.repeat(n, 1, 1, 1)


def _cache(layers):
    cache = DynamicCache()
    for place, (keys, values) in enumerate(layers or ()):
        cache.update(keys, values, place)
    return cache


def _layers(cache):
    return [(layer.keys, layer.values) for layer in cache.layers]
