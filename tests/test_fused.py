"""The fused forward against transformers' own, token by token."""

from functools import partial

import psutil
import pytest
import torch
from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config
from transformers.integrations.finegrained_fp8 import FP8Linear

from playground.decoding import fused, llama, prompt_cache
from playground.decoding.decoder import run
from playground.decoding.forward import CachedPrefix
from playground.decoding.prompt_cache import AttentionShape
from playground.decoding.sampling import Sampling
from playground.decoding.transformers_forward import TransformersForward
from playground.models import structure
from tests.families import (
    IDS,
    LONG_TOKENS,
    LONGROPE,
    MODELS,
    SIZES,
    WINDOW,
    full,
    gemma3,
    made,
    phi3,
    smollm3,
    trained,
)
from tests.tiny import tiny_model

LONGROPE_IN_FULL_LAYERS = {
    "full_attention": LONGROPE
    | {"partial_rotary_factor": 0.75, "original_max_position_embeddings": LONG_TOKENS, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.mark.parametrize("prefills_packed", [False, True])
def test_reading_and_stepping_give_the_models_logits(model, prefills_packed):
    assert fused.fits(model, LONG_TOKENS)
    forward = fused.FusedForward(model, "float32", prefills_packed=prefills_packed)
    cache, rows = forward.new_cache(2, len(IDS), 6), [list(IDS), list(IDS)]
    forward.prefill(cache, IDS[:13])
    torch.testing.assert_close(forward.prefill(cache, IDS[13:]), full(model, IDS), atol=1e-4, rtol=1e-4)
    for tokens in ([5, 9], [11, 2], [7, 7]):
        rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
        torch.testing.assert_close(
            forward.decode([cache], tokens), torch.stack([full(model, row) for row in rows]), atol=1e-4, rtol=1e-4
        )
    cache.drop(0)
    torch.testing.assert_close(forward.decode([cache], [8])[0], full(model, [*rows[1], 8]), atol=1e-4, rtol=1e-4)


def test_greedy_replies_are_those_of_transformers(model):
    greedy, prompts = Sampling(temperature=0, max_tokens=24), [IDS, IDS[:5], [4]]
    ours, theirs = (
        run(forward, prompts, [0] * 3, greedy, frozenset())
        for forward in (fused.FusedForward(model, "float32"), TransformersForward(model))
    )
    assert [r.token_ids for r in ours] == [r.token_ids for r in theirs]


@pytest.mark.parametrize(("number_format", "most"), [("bfloat16", 5e-4), ("int8", 5e-3), ("int4", 0.3)])
def test_a_format_stays_near_the_model(number_format, most):
    """KL(model ‖ format) of the next token, mean over positions; these random weights take rounding worse than trained
    ones.
    """
    model = trained()
    forward, total = fused.FusedForward(model, number_format), 0.0
    cache = forward.new_cache(1, 1, len(IDS))
    forward.prefill(cache, IDS[:1])
    for at in range(1, len(IDS)):
        truth, said = (
            torch.log_softmax(x, -1) for x in (full(model, IDS[: at + 1]), forward.decode([cache], [IDS[at]])[0])
        )
        total += (truth.exp() * (truth - said)).sum().item()
    assert total / len(IDS) < most


def test_a_row_is_the_same_whatever_else_is_in_the_batch():
    """In int8 to the last bit, so that the same seed gives the same reply in a crowd; other formats go through
    libraries that do not promise it.
    """
    forward = fused.FusedForward(tiny_model(), "int8")

    def opened(ids):
        cache = forward.new_cache(2, len(ids), 4)
        forward.prefill(cache, ids)
        return cache

    alone = forward.decode([opened(IDS)], [5, 9])
    beside = forward.decode([opened(IDS[:7]), opened(IDS), opened(IDS[:20])], [1, 2, 5, 9, 3, 4])[2:4]
    assert torch.equal(alone, beside)


def test_versions_share_the_head():
    forward = fused.FusedForward(tiny_model(), "int8")
    assert forward.for_model(trained()).head is forward.head


def test_a_cache_knows_its_own_size():
    forward = fused.FusedForward(tiny_model(), "float32")
    assert forward.new_cache(2, 30, 12).nbytes == forward.cache_bytes(2, 30, 12)


def test_what_a_reply_read_is_found_again():
    forward = fused.FusedForward(tiny_model(), "float32")
    cache = forward.new_cache(2, len(IDS), 6)
    forward.prefill(cache, list(IDS))
    for tokens in ([5, 9], [6, 10]):
        forward.decode([cache], tokens)
    assert cache.longest_prefix([*IDS[:10], 1]) == (None, 10)
    assert cache.longest_prefix([*IDS, 9, 10, 3]) == (1, len(IDS) + 2)
    new = [*IDS, 9, 10, 3]
    other = forward.new_cache(2, len(new), 4)
    other.copy_prefix(cache, CachedPrefix(1, len(new) - 1), new)
    torch.testing.assert_close(forward.prefill(other, [3]), full(tiny_model(), new), atol=1e-4, rtol=1e-4)


def test_each_class_of_the_family_is_tested():
    assert {type(make()).__name__ for make in MODELS.values()} == set(llama.NORM_OFFSETS)
    assert set(llama.NORM_OFFSETS) == set(structure.WINDOWED_LAYERS)


SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: made(LlamaConfig(**SIZES, sliding_window=WINDOW)),
        lambda: made(LlamaConfig(**SIZES, sliding_window=WINDOW, layer_types=["sliding_attention"] * 3)),
        lambda: made(LlamaConfig(**SIZES, hidden_activation="gelu_pytorch_tanh")),
        lambda: made(MistralConfig(**SIZES, sliding_window=WINDOW, layer_types=["full_attention"] * 3)),
        lambda: smollm3(use_sliding_window=False, sliding_window=WINDOW, layer_types=SLIDING),
        lambda: trained(gemma3(hidden_act="silu"), size=0.3),
    ],
    ids=["llama", "llama with types", "llama with another gate", "mistral", "smollm3", "gemma3"],
)
def test_what_a_config_says_and_the_model_does_not_read_changes_nothing(make):
    """A window that the masks do not have cut the texts, and Gemma's gate was another one."""
    model = make()
    assert fused.fits(model, LONG_TOKENS)
    forward = fused.FusedForward(model, "float32")
    cache = forward.new_cache(1, len(IDS), 1)
    close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)
    close(forward.prefill(cache, list(IDS)), full(model, IDS))
    close(forward.decode([cache], [5])[0], full(model, [*IDS, 5]))


def test_a_layer_that_scales_its_weight_does_not_fit():
    """A layer of FP8 weights is a Linear too; its weight without its scales is thousands of times as large."""
    model = tiny_model()
    mlp = model.model.layers[0].mlp
    layer = FP8Linear(mlp.down_proj.in_features, mlp.down_proj.out_features, block_size=(64, 64))
    mlp.down_proj = layer
    assert isinstance(layer, torch.nn.Linear) and layer.weight.is_floating_point()
    assert not fused.fits(model, 64)
    mlp.down_proj = torch.nn.Linear(layer.in_features, layer.out_features, bias=False).to(torch.float8_e4m3fn)
    assert not fused.fits(model, 64)
    mlp.down_proj = torch.nn.Linear(layer.in_features, layer.out_features, bias=False).half()
    assert fused.fits(model, 64)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=427, n_embd=64, n_layer=2, n_head=4),
        LlamaConfig(**SIZES, mlp_bias=True),
        LlamaConfig(**SIZES, hidden_act="relu"),
        LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}),
        MistralConfig(**SIZES, sliding_window=0),
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=0, layer_types=["sliding_attention"] * 3),
        Gemma3TextConfig(**SIZES, head_dim=16, rope_parameters=LONGROPE_IN_FULL_LAYERS),
        Gemma3TextConfig(**SIZES, head_dim=16, use_bidirectional_attention=True),
        Gemma3TextConfig(**SIZES, head_dim=16, final_logit_softcapping=30.0),
        Gemma3TextConfig(**SIZES, head_dim=16, attn_logit_softcapping=50.0),
    ],
    ids=[
        "gpt2",
        "mlp biases",
        "relu",
        "dynamic rotations",
        "no window",
        "no window in some layers",
        "longrope in some layers",
        "bidirectional",
        "capped logits",
        "capped scores",
    ],
)
def test_what_the_description_cannot_say_does_not_fit(config):
    assert not fused.fits(made(config), 64)


def test_longrope_fits_up_to_the_length_where_its_frequencies_change():
    """Beyond it the keys of the whole text are others. The model's own buffer holds those of the last text it read."""
    model = phi3()
    full(model, [7] * (LONG_TOKENS + 1))
    assert fused.fits(model, LONG_TOKENS) and not fused.fits(model, LONG_TOKENS + 1)
    forward = fused.FusedForward(model, "float32")
    cache = forward.new_cache(1, len(IDS), 1)
    torch.testing.assert_close(forward.prefill(cache, list(IDS)), full(model, IDS), atol=1e-4, rtol=1e-4)


def test_a_cache_takes_memory_for_what_is_written_and_gives_it_back():
    """In the heap, the gaps between the caches of a crowd stayed."""
    process = psutil.Process()
    before = process.memory_info().rss
    cache = prompt_cache.SharedPromptCache(AttentionShape(8, 2, 1, 64), n=2, prompt_tokens=2_000, new_tokens=3_000)
    assert cache.nbytes == 8 * 2 * 2 * 8_000 * 64 * 4  # 66 MB
    assert process.memory_info().rss - before < 4 << 20
    cache.kv[:] = 1
    assert process.memory_info().rss - before > 60 << 20
    del cache
    assert process.memory_info().rss - before < 4 << 20
