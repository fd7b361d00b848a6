"""The Llama family's forward with little around it: fused weights in a format that decodes fast, keys and values that
are never concatenated.

`Lean` runs one version: `read` takes in a prompt, `step` adds a token to every growing reply. A prompt is read through
the model's own layers, LoRA included, many tokens at a time; a step goes through weights merged in fp32 and packed for
few rows. Rotary pairs lie side by side here, so that a rotation is one complex product (Su et al. 2021). Both are row
by row the same whatever else is in the batch.
"""

import torch
from peft.tuners.lora import LoraLayer
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from playground.models import loading

FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
GROUP = 32  # weights of a row that share a scale in int4
CHUNK = 192  # tokens of a prompt that are read at once, so that growing replies do not wait long


def fits(model):
    """Whether this is the forward of `model`: Llama's block, full attention in every layer, fixed rotations,
    unquantised weights, on the CPU.
    """
    c = model.config
    if (
        type(model).__name__ not in FAMILY
        or c.hidden_act != "silu"
        or getattr(c, "mlp_bias", False)
        or getattr(c, "sliding_window", None)
    ):
        return False
    weights = [
        _base(module).weight for module in loading.blocks(model).modules() if isinstance(_base(module), torch.nn.Linear)
    ]
    fixed = (getattr(c, "rope_parameters", None) or {}).get("rope_type", "default") in ("default", "linear", "llama3")
    return fixed and all(w.is_floating_point() and w.device.type == "cpu" for w in weights)


# -- weights


class Int8:
    """int8 weights (rows, columns) with one scale a row, bf16 activations."""

    dtype = torch.bfloat16

    def __init__(self, weight):
        self.weight, self.scale = (
            torch.empty_like(weight, dtype=torch.int8),
            weight.new_empty(len(weight), dtype=self.dtype),
        )
        for rows, codes, scale in zip(*(x.split(4096) for x in (weight, self.weight, self.scale)), strict=True):
            scale.copy_((rows.abs().amax(1).float() / 127).clamp(min=1e-8))
            codes.copy_((rows / scale.float()[:, None]).round().clamp(-128, 127))

    def __call__(self, x):
        return torch._weight_int8pack_mm(x, self.weight, self.scale)


class Int4:
    """int4 weights with a scale and a zero for each 32 of a row, bf16 activations."""

    dtype = torch.bfloat16

    def __init__(self, weight):
        groups = weight.reshape(len(weight), -1, GROUP)
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scale = ((high - low) / 15).clamp(min=1e-8).to(self.dtype)
        zero = (low + 8 * scale.float()).to(self.dtype)
        codes = ((groups - zero.float()) / scale.float() + 8).round().clamp(0, 15).to(torch.int32)
        self.weight = torch._convert_weight_to_int4pack_for_cpu(codes.reshape(weight.shape), 1)
        self.scales = torch.cat([scale, zero], -1).transpose(0, 1).contiguous()  # (groups, rows, 2)

    def __call__(self, x):
        return torch._weight_int4pack_mm_for_cpu(x, self.weight, GROUP, self.scales)


class Dense:
    """Weights in a floating-point format."""

    dtype = torch.bfloat16

    def __init__(self, weight):
        self.weight = weight.to(self.dtype)

    def __call__(self, x):
        return linear(x, self.weight)


class Float32(Dense):
    dtype = torch.float32


FORMATS = {
    "int8": (Int8, Int8),
    "int4": (Int4, Int8),
    "bfloat16": (Dense, Dense),
    "float32": (Float32, Float32),
}  # of the blocks, of the head


def _base(module):
    return module.base_layer if isinstance(module, LoraLayer) else module


def _merged(module):
    """The fp32 weight of a linear layer, its LoRA added."""
    weight = _base(module).weight.detach().float()
    if isinstance(module, LoraLayer) and not module.disable_adapters:
        for name, scale in module.scaling.items():
            weight = weight + scale * (
                module.lora_B[name].weight.detach().float() @ module.lora_A[name].weight.detach().float()
            )
    return weight


class _Block:
    """What both forms of a block share: its norms."""

    def __init__(self, block):
        self.norms = [norm.weight.detach().float() for norm in (block.input_layernorm, block.post_attention_layernorm)]
        self.eps = block.input_layernorm.variance_epsilon

    def normed(self, x, which):
        return rms_norm(x, x.shape[-1:], self.norms[which], self.eps).to(self.dtype)


class _Wide(_Block):
    """A block through the model's own layers."""

    def __init__(self, block, head_dim):
        super().__init__(block)
        self.attention, self.ffn, self.head_dim, self.dtype = (
            block.self_attn,
            block.mlp,
            head_dim,
            _base(block.mlp.up_proj).weight.dtype,
        )

    def qkv(self, x):
        q, k, v = (getattr(self.attention, f"{name}_proj")(x) for name in "qkv")
        return torch.cat([self._paired(q), self._paired(k), v], -1)

    def _paired(self, x):
        return x.view(len(x), -1, 2, self.head_dim // 2).transpose(2, 3).flatten(1)

    def out(self, x):
        return self.attention.o_proj(x)

    def mlp(self, x):
        return self.ffn.down_proj(silu(self.ffn.gate_proj(x)) * self.ffn.up_proj(x))


class _Packed(_Block):
    """A block in a decoding format, its LoRA merged, projections of one input fused."""

    def __init__(self, block, head_dim, kind):
        super().__init__(block)
        attention, ffn, self.dtype = block.self_attn, block.mlp, kind.dtype
        parts, biases = [], []
        for name in "qkv":
            layer = getattr(attention, f"{name}_proj")
            weight, bias = _merged(layer), _base(layer).bias
            order = torch.arange(len(weight))
            if name != "v":
                order = order.view(-1, 2, head_dim // 2).transpose(1, 2).flatten()
            parts.append(weight[order])
            biases.append(torch.zeros(len(weight)) if bias is None else bias.detach().float()[order])
        self.bias = bias.to(self.dtype) if (bias := torch.cat(biases)).any() else None
        self.fused, self.out = kind(torch.cat(parts)), kind(_merged(attention.o_proj))
        self.gate_up, self.down = (
            kind(torch.cat([_merged(ffn.gate_proj), _merged(ffn.up_proj)])),
            kind(_merged(ffn.down_proj)),
        )

    def qkv(self, x):
        y = self.fused(x)
        return y if self.bias is None else y + self.bias

    def mlp(self, x):
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(silu(gate) * up)


# -- keys and values


class Line:
    """Keys and values (layers, 2, heads, capacity, head dim) of one prompt and of the `n` replies that grow from it.

    The prompt's columns are there once; after them come, step by step, one column for each reply that grows, which that
    reply alone sees.
    """

    def __init__(self, shape, n, prompt_tokens, new_tokens):
        layers, heads, group, head_dim = shape
        capacity = prompt_tokens + n * new_tokens
        self.kv = torch.empty(layers, 2, heads, capacity, head_dim)
        self.mask = torch.full((n, group, capacity), -torch.inf)
        self.mask[..., :prompt_tokens] = 0
        self.prompt, self.columns, self.fed = (
            [],
            prompt_tokens,
            [[] for _ in range(n)],
        )  # fed: [(token, column)] of each reply
        self.active, self.steps = list(range(n)), 0

    @property
    def nbytes(self):
        return self.kv.nbytes

    def drop(self, reply):
        """A reply that has ended takes no more steps."""
        self.active.remove(reply)

    def feed(self, tokens):
        """Make a column for the next token of each growing reply; returns their position."""
        for place, (reply, token) in enumerate(zip(self.active, tokens, strict=True)):
            column = self.columns + place
            self.mask[reply, :, column] = 0
            self.fed[reply].append((token, column))
        self.columns += len(tokens)
        self.steps += 1
        all_grow = len(self.active) == len(self.mask)
        self.seen = (self.mask if all_grow else self.mask[self.active])[..., : self.columns].flatten(
            0, 1
        )  # (rows·group, columns)
        return len(self.prompt) + self.steps - 1

    def unfeed(self, columns, steps):
        """Be as before a `feed` whose forward failed, when there were so many `columns` and `steps`; what the forward
        wrote after them is written over.
        """
        self.mask[..., columns:] = -torch.inf
        for fed in self.fed:
            while fed and fed[-1][1] >= columns:
                fed.pop()
        self.columns, self.steps = columns, steps

    def attend(self, layer, q, kv):
        """One token of each growing reply: q (rows, heads·group, head dim), kv (rows, 2·heads, head dim) -> (rows,
        heads·group·head dim).
        """
        rows, heads, head_dim = len(q), kv.shape[1] // 2, q.shape[-1]
        self.kv[layer, :, :, self.columns - rows : self.columns] = kv.view(rows, 2, heads, head_dim).permute(1, 2, 0, 3)
        keys, values = self.kv[layer, :, :, : self.columns]
        q = q.reshape(rows, heads, -1, head_dim).transpose(0, 1).flatten(1, 2)  # (heads, rows·group, head dim)
        scores = torch.baddbmm(self.seen, q, keys.transpose(1, 2), alpha=head_dim**-0.5)
        return (scores.softmax(-1) @ values).view(heads, rows, -1, head_dim).transpose(0, 1).flatten(1)

    def attend_prompt(self, layer, q, kv, start):
        """The prompt's tokens from `start` on, each seeing those before it; shapes as in `attend`."""
        end, (_, heads, head_dim) = start + len(q), kv.shape
        self.kv[layer, :, :, start:end] = kv.view(len(q), 2, heads // 2, head_dim).permute(1, 2, 0, 3)
        keys, values = self.kv[layer, :, None, :, :end]
        seen = torch.ones(len(q), end, dtype=torch.bool).tril(start)
        return (
            scaled_dot_product_attention(q.transpose(0, 1)[None], keys, values, attn_mask=seen, enable_gqa=True)[0]
            .transpose(0, 1)
            .flatten(1)
        )

    def shared(self, ids):
        """(reply or None, tokens): the longest beginning of `ids` whose keys are here, in the prompt or on into a
        reply.
        """
        prompt = common(self.prompt, ids)
        if prompt < len(self.prompt):
            return None, prompt
        on = [common([token for token, _ in fed], ids[prompt:]) for fed in self.fed]
        best = max(range(len(on)), key=on.__getitem__)
        return best, prompt + on[best]

    def take(self, other, reply, tokens, ids):
        """Begin with the keys and values of `ids[:tokens]`, which `other.shared(ids)` has found."""
        prompt = min(tokens, len(other.prompt))
        columns = [*range(prompt), *(column for _, column in other.fed[reply or 0][: tokens - prompt])]
        self.kv[..., :tokens, :] = other.kv[..., columns, :]
        self.prompt = list(ids[:tokens])


def common(a, b):
    """How many tokens two lists begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# -- the forward


class Lean:
    """One version of a model of the family, ready to decode in one of FORMATS; `float32` is exact where the
    model is.
    """

    chunk = CHUNK

    def __init__(self, model, number_format, head=None):
        config, kinds, self.number_format = model.config, FORMATS[number_format], number_format
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.shape = (
            config.num_hidden_layers,
            config.num_key_value_heads,
            config.num_attention_heads // config.num_key_value_heads,
            head_dim,
        )
        self.heads = config.num_attention_heads, config.num_key_value_heads
        blocks = loading.blocks(model)
        self.wide = [_Wide(block, head_dim) for block in blocks]
        self.packed = [_Packed(block, head_dim, kinds[0]) for block in blocks]
        self.embedding, self.head = (
            model.get_input_embeddings().weight,
            head or kinds[1](model.get_output_embeddings().weight.detach()),
        )
        self.norm, self.eps = model.base_model.norm.weight.detach().float(), model.base_model.norm.variance_epsilon
        rotary = model.base_model.rotary_emb
        self.frequencies, self.rotation_scale = rotary.inv_freq.float(), rotary.attention_scaling

    def sibling(self, model):
        """Another version of the same base in the same format; versions differ in their blocks alone."""
        return Lean(model, self.number_format, self.head)

    def line_bytes(self, n, prompt_tokens, new_tokens):
        layers, heads, _, head_dim = self.shape
        return 8 * layers * heads * head_dim * (prompt_tokens + n * new_tokens)

    def open(self, n, prompt_tokens, new_tokens):
        """A Line with room for a prompt and `n` replies."""
        return Line(self.shape, n, prompt_tokens, new_tokens)

    def end(self, line):
        """All replies of the line have ended."""

    @torch.inference_mode()
    def read(self, line, ids):
        """Take the prompt's next tokens in; returns the logits (vocabulary,) after the last."""
        start = len(line.prompt)
        x = self._blocks(
            self.wide,
            ids,
            torch.arange(start, start + len(ids)),
            lambda layer, q, kv: line.attend_prompt(layer, q, kv, start),
        )
        line.prompt += ids
        return self._logits(x[-1:])[0]

    @torch.inference_mode()
    def step(self, lines, tokens):
        """The next token of every growing reply, line by line -> logits (replies, vocabulary). Where it raises, the
        lines are as they were.
        """
        before = [(line.columns, line.steps) for line in lines]
        try:
            return self._step(lines, tokens)
        except Exception:
            for line, (columns, steps) in zip(lines, before, strict=True):
                line.unfeed(columns, steps)
            raise

    def _step(self, lines, tokens):
        positions, spans, start = [], [], 0
        for line in lines:
            end = start + len(line.active)
            positions += [line.feed(tokens[start:end])] * (end - start)
            spans.append((line, slice(start, end)))
            start = end

        def attend(layer, q, kv):
            if len(spans) == 1:
                return lines[0].attend(layer, q, kv)
            return torch.cat([line.attend(layer, q[rows], kv[rows]) for line, rows in spans])

        return self._logits(self._blocks(self.packed, tokens, torch.tensor(positions), attend))

    def _blocks(self, blocks, ids, positions, attend):
        """ids and positions (T,) -> the residual stream (T, hidden) in fp32; attend(layer, q, kv) as `Line.attend`."""
        x = self.embedding[torch.as_tensor(ids)].float()
        heads, kv_heads = self.heads
        angles = (positions[:, None] * self.frequencies)[:, None].expand(-1, heads + kv_heads, -1)
        rotation = torch.polar(torch.full_like(angles, self.rotation_scale), angles)
        rotation = torch.cat(
            [rotation, torch.ones_like(rotation[:, :kv_heads])], 1
        )  # (T, heads + 2·kv, head dim / 2): values are not turned
        for layer, block in enumerate(blocks):
            pairs = block.qkv(block.normed(x, 0)).float().view(*rotation.shape, 2)
            qkv = torch.view_as_real(torch.view_as_complex(pairs) * rotation).flatten(2)
            x = x + block.out(attend(layer, qkv[:, :heads], qkv[:, heads:]).to(block.dtype))
            x = x + block.mlp(block.normed(x, 1))
        return x

    def _logits(self, x):
        return self.head(rms_norm(x, x.shape[-1:], self.norm, self.eps).to(self.head.dtype)).float()
