"""The compiled step: int8 weights, int16 activations, against the same weights in fp32."""

import logging
import sys

import pytest
import torch
from numba import config

from playground.decoding import fused, number_formats, tuning, w8a16
from playground.decoding.compiled_step import vectors
from playground.decoding.decoder import run
from playground.decoding.sampling import Sampling
from playground.models import loading
from playground.settings import Settings
from tests.families import IDS, MODELS, SIZES, full, made, trained
from tests.tiny import tiny_folder, tiny_model


class RoundedWeight(number_formats.Float32Weight):
    """What an Int8Weight stands for, in fp32."""

    def __init__(self, weight):
        packed = number_formats.Int8Weight(weight)
        super().__init__(packed.weight.float() * packed.scale.float()[:, None])


def rounded(model, monkeypatch, prefills_packed=False):
    """torch's forward of the weights that the compiled step has."""
    both = number_formats.NumberFormat(RoundedWeight, RoundedWeight)
    monkeypatch.setitem(number_formats.FORMATS, "rounded", both)
    return fused.FusedForward(model, "rounded", prefills_packed=prefills_packed)


def opened(forward, ids, n=2):
    cache = forward.new_cache(n, len(ids), 6)
    forward.prefill(cache, list(ids))
    return cache


@pytest.mark.parametrize("name", MODELS)
def test_a_step_gives_the_logits_of_the_rounded_weights(name, monkeypatch):
    model = MODELS[name]()
    ours, exact = w8a16.W8A16Forward(model), rounded(model, monkeypatch)
    caches = [opened(forward, IDS) for forward in (ours, exact)]
    for tokens in ([5, 9], [11, 2], [7, 7]):
        said, truth = (forward.decode([cache], tokens) for forward, cache in zip((ours, exact), caches, strict=True))
        torch.testing.assert_close(said, truth, atol=3e-3, rtol=1e-3)
    for cache in caches:
        cache.drop(0)
    said, truth = (forward.decode([cache], [8]) for forward, cache in zip((ours, exact), caches, strict=True))
    assert said.shape == truth.shape == (1, model.config.vocab_size)
    torch.testing.assert_close(said, truth, atol=3e-3, rtol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_replies_are_those_of_the_rounded_weights(name, monkeypatch):
    model, prompts = MODELS[name](), [IDS, IDS[:5], [4]]
    greedy = Sampling(temperature=0, max_tokens=24)
    ours, theirs = (
        run(forward, prompts, [0] * 3, greedy, frozenset())
        for forward in (w8a16.W8A16Forward(model), rounded(model, monkeypatch))
    )
    assert [r.token_ids[1:] for r in ours] == [r.token_ids[1:] for r in theirs]


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_through_the_packed_weights_is_that_of_the_rounded_weights(name, monkeypatch):
    model = MODELS[name]()
    ours = w8a16.W8A16Forward(model, prefills_packed=True)
    exact = rounded(model, monkeypatch, prefills_packed=True)
    caches = [forward.new_cache(2, len(IDS), 6) for forward in (ours, exact)]
    for part in (IDS[:13], IDS[13:]):
        said, truth = (f.prefill(cache, list(part)) for f, cache in zip((ours, exact), caches, strict=True))
        torch.testing.assert_close(said, truth, atol=3e-3, rtol=1e-3)
    said, truth = (f.decode([cache], [5, 9]) for f, cache in zip((ours, exact), caches, strict=True))
    torch.testing.assert_close(said, truth, atol=3e-3, rtol=1e-3)


def test_a_trained_version_prefills_as_its_base_does():
    base = w8a16.W8A16Forward(tiny_model(), prefills_packed=True)
    version = base.for_model(trained())
    assert version.prefills_packed
    alone = w8a16.W8A16Forward(trained(), prefills_packed=True)
    said, own = (forward.prefill(base.new_cache(1, len(IDS), 1), list(IDS)) for forward in (version, alone))
    assert torch.equal(said, own)


def test_it_stays_near_the_model():
    """KL(model ‖ format) of the next token, mean over positions."""
    model = trained()
    forward, total = w8a16.W8A16Forward(model), 0.0
    cache = forward.new_cache(1, 1, len(IDS))
    forward.prefill(cache, IDS[:1])
    for at in range(1, len(IDS)):
        truth = torch.log_softmax(full(model, IDS[: at + 1]), -1)
        said = torch.log_softmax(forward.decode([cache], [IDS[at]])[0], -1)
        total += (truth.exp() * (truth - said)).sum().item()
    assert total / len(IDS) < 4e-3


@pytest.mark.parametrize("people", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_is_the_same_to_the_last_bit_whatever_else_is_in_the_batch(people, threads):
    forward = w8a16.W8A16Forward(trained())
    alone = forward.decode([opened(forward, IDS)], [5, 9])
    caches = [opened(forward, IDS[: 3 + 4 * i], n=1 + i % 2) for i in range(people - 1)] + [opened(forward, IDS)]
    others = [11 + i for i in range(sum(len(cache.active) for cache in caches) - 2)]
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        beside = forward.decode(caches, [*others, 5, 9])
    finally:
        torch.set_num_threads(threads_before)
    assert torch.equal(alone, beside[-2:])


@pytest.mark.parametrize("outputs", [1, 4, 5, 30, 64])
def test_a_product_is_whole_at_every_edge_of_the_tiles(outputs):
    """Rows and outputs that fill no tile, each with its own result and nobody else's."""
    torch.manual_seed(0)
    weight, x = torch.randn(outputs, 96), torch.randn(9, 96)
    ours, exact = w8a16.TiledInt8Weight(weight), RoundedWeight(weight)(x)
    for rows in range(1, len(x) + 1):
        y = ours(x[:rows])
        torch.testing.assert_close(y, exact[:rows], atol=2e-3, rtol=1e-3)
        assert torch.equal(y, ours(x)[:rows])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_product_takes_activations_of_another_format(dtype):
    """It read their bytes as fp32, beyond their end too."""
    weight, x = torch.randn(30, 96), torch.randn(9, 96).to(dtype)
    ours = w8a16.TiledInt8Weight(weight)
    assert torch.equal(ours(x), ours(x.float()))


@pytest.mark.parametrize("features, lanes", [("+avx2,+fma", 8), ("+avx512f,+avx512bw", 16), ("", 8)])
def test_vectors_are_as_wide_as_those_of_the_cpu(features, lanes, monkeypatch):
    monkeypatch.setattr(config, "CPU_FEATURES", features)
    assert vectors.lanes() == lanes


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", [0, 1], ids=["key", "value"])
def test_what_is_not_finite_stays_so_and_in_its_own_row(part, value):
    forward = w8a16.W8A16Forward(tiny_model())
    good, bad = opened(forward, IDS), opened(forward, IDS[:9])
    expected = forward.decode([good], [5, 9])
    bad.kv[0, part, 0, 3] = value
    logits = forward.decode([bad, opened(forward, IDS)], [1, 2, 5, 9])
    assert logits[:2].isnan().all() and torch.equal(logits[2:], expected)


def test_versions_share_the_head_and_not_the_blocks():
    forward = w8a16.W8A16Forward(tiny_model())
    other = forward.for_model(trained())
    assert other.head is forward.head and isinstance(other, w8a16.W8A16Forward)
    before, after = (f.decode([opened(f, IDS)], [5, 9]) for f in (forward, other))
    assert not torch.allclose(before, after, atol=0.1)


def test_a_failed_step_leaves_the_cache_as_it_was(monkeypatch):
    forward = w8a16.W8A16Forward(tiny_model())
    cache, other = opened(forward, IDS), opened(forward, IDS)
    with monkeypatch.context() as broken:
        broken.setattr(forward, "_step", lambda *_: pytest.fail("no room", pytrace=False))
        with pytest.raises(BaseException, match="no room"):
            forward.decode([cache], [1, 2])
    cache.roll_back(other.state)
    for tokens in ([5, 9], [6, 10]):
        assert torch.equal(forward.decode([cache], tokens), forward.decode([other], tokens))


# -- the choice


@pytest.fixture
def settings(tmp_path):
    folder = str(tiny_folder(tmp_path / "model"))
    return Settings(model=folder, data_dir=tmp_path, device="cpu", dtype="float32", threads=1, decode_format="w8a16")


def chosen(settings):
    model = loading.load_trunk(settings)
    return tuning.choose(settings, model, loading.base_identity(model, settings)), model


def test_the_setting_asks_for_it(settings):
    choice, model = chosen(settings)
    assert choice.number_format == "w8a16" and choice.nats < 0.01
    assert isinstance(choice.forward(model), w8a16.W8A16Forward)


@pytest.mark.parametrize("asked", ["w8a16", "auto"])
def test_without_numba_other_formats_serve_and_the_log_says_why(settings, asked, monkeypatch, caplog):
    chosen(settings.with_values(decode_format="auto"))
    monkeypatch.setitem(sys.modules, "playground.decoding.w8a16", None)
    monkeypatch.delattr("playground.decoding.w8a16")
    with caplog.at_level(logging.WARNING):
        assert chosen(settings.with_values(decode_format=asked))[0].number_format in number_formats.FORMATS
    assert [record.message.split(":")[0] for record in caplog.records if "compiled step" in record.message] == [
        "the compiled step cannot be used here, other formats are"
    ]


def test_a_model_whose_sizes_the_kernel_cannot_multiply_gets_another_format(settings):
    model = made(type(tiny_model().config)(**{**SIZES, "intermediate_size": 120}))
    assert not w8a16.fits(model)
    assert tuning.choose(settings, model, {"hash": "x" * 64}).number_format in number_formats.FORMATS
