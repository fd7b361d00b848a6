"""How fast the chat writes on a GPU: the graph forward beside transformers' `generate`, the same model in one run.

`python -m benchmarks.gpu_decode [--quick] [--json FILE] [--model FOLDER] [--only small,large,match,crowd]`;
`benchmarks.gpu` calls `rows`. A pair is two replies to one prompt. The larger models have the shapes of Qwen2.5-1.5B
and -7B and random weights. Times are medians, measured around steps that are waited for.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

from benchmarks.report import Row, row, show
from playground.decoding import decoder
from playground.decoding.decoder import Decoding
from playground.decoding.graph_forward import GraphForward
from playground.decoding.kernels import TORCH
from playground.decoding.sampling import Sampling
from playground.decoding.transformers_forward import TransformersForward

SMOLLM2_135M = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}  # fmt: skip
QWEN2_1_5B = {
    "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
QWEN2_7B = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip
TINY = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
MISTRAL_7B = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
PROMPT_TOKENS = 181
PEOPLE = 32
PARTS = ("small", "crowd", "match", "large")


def config(name):
    """Of a model with Mistral-7B's shape, or of a tiny one."""
    return LlamaConfig(**{"7B": MISTRAL_7B, "tiny": TINY}[name])


def clock(device):
    """Seconds, after everything on the device has ended."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def build(config, device, dtype):
    """A model with random weights, made on the device."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def prompt_of(model, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.config.vocab_size, (length,), generator=generator).tolist()


def decodings_of(forward, people, sampling, prompt_tokens=PROMPT_TOKENS):
    """One pair for each person, their prompts read."""
    decodings = [
        Decoding(forward, prompt_of(forward.model, prompt_tokens, i), [2 * i, 2 * i + 1], sampling, frozenset())
        for i in range(people)
    ]
    while decoder.prefill(decodings):
        pass
    return decodings


def step_seconds(forward, people, steps, device, sampling=None, prompt_tokens=PROMPT_TOKENS):
    """Median seconds of a step of `people` pairs: of groups of eight steps, the device waited for after each group. The
    first steps, which make the graphs, are left out.
    """
    sampling = sampling or Sampling(temperature=0.7, max_tokens=steps + 20)
    decodings = decodings_of(forward, people, sampling, prompt_tokens)
    for _ in range(4):
        decoder.step(decodings)
    seconds = []
    while len(seconds) < steps // 8:
        start = clock(device)
        for _ in range(8):
            decoder.step(decodings)
        seconds.append((clock(device) - start) / 8)
    for decoding in decodings:
        decoding.stop()
    return statistics.median(seconds)


def generate_seconds(model, tokens, device):
    """Median seconds of a token of two replies by transformers' `generate`, from one prompt."""
    ids = torch.tensor([prompt_of(model, PROMPT_TOKENS)], device=device)
    options = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0, "num_return_sequences": 2}
    seconds = []
    for _ in range(3):
        start = clock(device)
        with torch.no_grad():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
                pad_token_id=0, **options,
            )  # fmt: skip
        seconds.append((clock(device) - start) / tokens)
    return statistics.median(seconds)


def copy_bandwidth(device):
    """Bytes a second that a copy moves, those read and those written."""
    size = 1 << 31 if device.type == "cuda" else 1 << 26
    source = torch.randint(0, 100, (size,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(6):
        start = clock(device)
        target.copy_(source)
        seconds.append(clock(device) - start)
    return 2 * size / statistics.median(seconds[1:])


def weight_bytes(forward):
    """What a step reads of a version's weights: blocks and head."""
    parameters = [p for module in forward.model.base_model.layers for p in module.parameters()]
    return (sum(p.numel() for p in parameters) + forward.lean.head.numel()) * forward.lean.dtype.itemsize


def kernels_of_step(forward: GraphForward, device: torch.device) -> tuple[float, list[str]]:
    """The kernels of one step of a pair: how many, and the ten that take longest as text lines."""
    if device.type != "cuda":
        return 0, []
    decodings = decodings_of(forward, 1, Sampling(max_tokens=40))
    for _ in range(4):
        decoder.step(decodings)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(4):
            decoder.step(decodings)
        torch.cuda.synchronize()
    decodings[0].stop()
    events = [e for e in profile.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda e: -e.self_device_time_total)
    lines = [f"{e.self_device_time_total / 4:9.1f} µs {e.count / 4:6.1f}x {e.key[:150]}" for e in events[:18]]
    return sum(e.count for e in events) / 4, lines


# -- parts


def small(model, quick, device):
    """A pair with the small model, beside `generate`."""
    steps = 64 if quick else 160
    forward = GraphForward(model, 2, 1536)
    start = clock(device)
    step_seconds(forward, 1, 8, device)
    first = clock(device) - start
    seconds = step_seconds(forward, 1, steps, device)
    long = step_seconds(forward, 1, steps, device, prompt_tokens=1000)
    nucleus = step_seconds(forward, 1, steps, device, Sampling(temperature=0.7, top_p=0.9, max_tokens=steps + 20))
    start = clock(device)
    greedy = Sampling(max_tokens=steps)
    pair = decodings_of(forward, 1, greedy)
    read = clock(device) - start
    pair[0].stop()
    theirs = generate_seconds(model, 32 if quick else 64, device)
    count, lines = kernels_of_step(forward, device)
    print(*lines, sep="\n")
    plain = GraphForward(model, 2, 1536, kernels=TORCH)
    without = step_seconds(plain, 1, steps, device)
    without_long = step_seconds(plain, 1, steps, device, prompt_tokens=1000)
    return [
        row("kernels between the matrix products", forward.lean.kernels.name, ""),
        row("135M, two replies: tokens a second together", 2 / seconds, "tokens/s", "≥ 1500"),
        row("135M, the same with transformers' generate", 2 / theirs, "tokens/s"),
        row("135M, graph forward to generate", theirs / seconds, "times", "≥ 8"),
        row("135M, a step of a pair", 1e3 * seconds, "ms"),
        row("135M, a step after 1,000 tokens", 1e3 * long, "ms"),
        row("135M, a step with top-p 0.9", 1e3 * nucleus, "ms"),
        row("135M, kernels of a step", count, ""),
        row("135M, with torch's operations alone: a step of a pair", 1e3 * without, "ms"),
        row("135M, with torch's operations alone: a step after 1,000 tokens", 1e3 * without_long, "ms"),
        row("135M, with torch's operations alone: kernels of a step", kernels_of_step(plain, device)[0], ""),
        row(f"135M, reading a prompt of {PROMPT_TOKENS} tokens", 1e3 * read, "ms"),
        row("135M, first use: graphs of one shape, workspaces, a dozen steps", first, "s"),
    ]


def crowd(model: PreTrainedModel, quick: bool, device: torch.device) -> list[Row]:
    """Many pairs at once, and how long a shape takes to capture."""
    table = []
    steps = 32 if quick else 96
    forward = GraphForward(model, PEOPLE, 512)
    alone = 2 / step_seconds(forward, 1, steps, device)
    captures = []
    for people in (2, 8, PEOPLE):
        decodings = decodings_of(forward, people, Sampling(max_tokens=8))
        start = clock(device)
        decoder.step(decodings)
        captures.append(clock(device) - start)
        for decoding in decodings:
            decoding.stop()
        seconds = step_seconds(forward, people, steps, device)
        table.append(row(f"135M, {people} people: tokens a second together", 2 * people / seconds, "tokens/s"))
    table.append(row(f"135M, {PEOPLE} people to one", table[-1]["value"] / alone, "times", "≥ 10"))
    table.append(row("the first step of a shape, its graph captured", statistics.median(captures), "s"))
    if device.type == "cuda":
        table.append(row("135M, memory of weights, slots and graphs", torch.cuda.memory_reserved() / 2**20, "MB"))
    return table


def match(model, quick, device):
    """Whether the graph forward says what transformers says, greedily and in KL."""
    tokens = 24 if quick else 64
    greedy = Sampling(temperature=0, max_tokens=tokens)
    prompts = [prompt_of(model, 40 + 30 * i, i) for i in range(4)]
    forward = GraphForward(model, 4, 512)
    theirs = TransformersForward(model)
    replies = [decoder.run(f, prompts, [0] * 4, greedy, frozenset()) for f in (forward, theirs)]
    same = sum(a.token_ids == b.token_ids for a, b in zip(*replies, strict=True))
    divergences = []
    for prompt, reply in zip(prompts, replies[1], strict=True):
        ids = torch.tensor([prompt + reply.token_ids], device=device)
        with torch.no_grad():
            truth = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        cache = forward.new_cache(1, len(prompt), tokens)
        said = [forward.prefill(cache, prompt)]
        said += [forward.decode([cache], [token])[0] for token in reply.token_ids[:-1]]
        cache.drop(0)
        forward.finish(cache)
        ours = torch.stack(said).log_softmax(-1)
        divergences += (truth.exp() * (truth - ours)).sum(-1).tolist()
    sampled = Sampling(temperature=0.7, max_tokens=tokens)
    alone = decoder.run(forward, prompts[:1], [5, 6], sampled, frozenset(), n=2)
    beside = decoder.run(forward, prompts, [5, 6, 1, 2, 3, 4, 7, 8], sampled, frozenset(), n=2)[:2]
    again = decoder.run(forward, prompts[:1], [5, 6], sampled, frozenset(), n=2)
    equal = sum(a.token_ids == b.token_ids for a, b in zip(alone, beside, strict=True))
    repeated = sum(a.token_ids == b.token_ids for a, b in zip(alone, again, strict=True))
    return [
        row(f"greedy replies of {tokens} tokens that are transformers', of 4", same, ""),
        row(
            "KL of transformers' next token to the graph forward's, mean",
            statistics.mean(divergences),
            "nats",
            "≤ 0.005",
        ),
        row("seeded replies that are the same again, of 2", repeated, "", "≥ 2"),
        row("seeded replies that are the same in a crowd, of 2", equal, ""),
    ]


def large(name, sizes, bar, quick, device, bandwidth):
    """A pair with a larger model of random weights."""
    torch.cuda.reset_peak_memory_stats()
    start = clock(device)
    model = build(Qwen2Config(**sizes), device, torch.bfloat16)
    forward = GraphForward(model, 2, 1536)
    made = clock(device) - start
    seconds = step_seconds(forward, 1, 32 if quick else 64, device)
    reading = weight_bytes(forward) / bandwidth
    count, lines = kernels_of_step(forward, device)
    print(name, *lines, sep="\n")
    without = step_seconds(GraphForward(model, 2, 1536, kernels=TORCH), 1, 32 if quick else 64, device)
    return [
        row(f"{name}, two replies: tokens a second together", 2 / seconds, "tokens/s", bar),
        row(f"{name}, a step to reading its weights once", seconds / reading, "times", "≤ 1.5"),
        row(f"{name}, a step of a pair", 1e3 * seconds, "ms"),
        row(f"{name}, kernels of a step", count, ""),
        row(f"{name}, with torch's operations alone: a step of a pair", 1e3 * without, "ms"),
        row(f"{name}, making it", made, "s"),
        row(f"{name}, most memory", torch.cuda.max_memory_allocated() / 2**30, "GB"),
    ]


def free():
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def rows(quick: bool, device: torch.device | str, model_folder: str = "", only: Sequence[str] = PARTS) -> list[Row]:
    """All rows. Without a GPU the parts of the small model are run with a tiny one, to see that they work."""
    device = torch.device(device)
    cuda = device.type == "cuda"
    if model_folder:
        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16).to(device).eval()
    else:
        model = build(
            LlamaConfig(**(SMOLLM2_135M if cuda else TINY)), device, torch.bfloat16 if cuda else torch.float32
        )
    table = []
    for part in (small, crowd, match):
        if part.__name__ in only:
            start = clock(device)
            table += part(model, quick, device)
            print(f"{part.__name__}: {clock(device) - start:.1f} s", flush=True)
    del model
    free()
    if not cuda or "large" not in only:
        return table
    bandwidth = copy_bandwidth(device)
    table.append(row("bandwidth of a copy", bandwidth / 1e12, "TB/s"))
    free()
    for name, sizes, bar in (("1.5B", QWEN2_1_5B, "≥ 900"), ("7B", QWEN2_7B, "≥ 300")):
        start = clock(device)
        table += large(name, sizes, bar, quick, device, bandwidth)
        free()
        print(f"{name}: {clock(device) - start:.1f} s", flush=True)
    return table


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--only", default=",".join(PARTS))
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    show(rows(args.quick, device, args.model, args.only.split(",")), args.json)


if __name__ == "__main__":
    sys.exit(main())
