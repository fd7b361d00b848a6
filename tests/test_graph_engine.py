"""The engine with the graph forward, which a GPU has, on the CPU."""

import logging

import pytest

from playground.decoding import decoder, graph_forward, llama, tuning
from playground.decoding.decode_batch import DecodeBatch
from playground.decoding.graph_forward import GraphForward
from playground.decoding.transformers_forward import TransformersForward
from playground.models import loading
from playground.serving.engine import Engine
from playground.settings import Settings
from playground.store import Store
from tests.test_engine import GREEDY, PROMPT, SAMPLED, alone, folder, publish, run  # noqa: F401

PROMPTS = [PROMPT, [1, *range(40, 60)], [1, 33]]


@pytest.fixture
def settings(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(graph_forward, "fits", lambda model, tokens: llama.fits(model, "cpu", tokens))
    return Settings(
        model=folder,
        data_dir=tmp_path,
        device="cpu",
        dtype="float32",
        threads=1,
        kv_cache_mb=8,
        chat={"context_tokens": 128, "reply_tokens": 30, "top_p": 0.9},
    )


def engine(settings):
    return Engine(Store(), settings, loading.load_trunk(settings), loading.load_tokenizer(settings))


@pytest.fixture
def site(settings):
    return engine(settings)


def expected(site, prompts, sampling=SAMPLED):
    theirs = TransformersForward(site.base)
    return [[r.token_ids for r in decoder.run(theirs, [p], [3, 4], sampling, site.end_tokens, n=2)] for p in prompts]


def test_slots_fill_the_memory_for_keys_and_values_and_hold_one_message_at_least(site, settings):
    bytes_of_a_slot = (128 + 2 * 30 + 2) * 2 * 4 * 4 * 2 * 16  # columns, keys and values, fp32, layers, heads, head dim
    assert site.choice.number_format == "graph" and isinstance(site.live.forward, GraphForward)
    assert site.live.forward.slots == min(32, (8 << 20) // bytes_of_a_slot)
    small = settings.with_values(kv_cache_mb=1, chat={"candidates": 24})
    assert tuning.choose(small, site.base, site.identity).slots == 12


def test_a_graph_forward_that_says_something_else_is_not_used(site, settings, monkeypatch, caplog):
    monkeypatch.setattr(tuning, "divergence", lambda forward: 0.5)
    with caplog.at_level(logging.WARNING):
        assert tuning.choose(settings, site.base, site.identity).number_format == "plain"
    assert "the graph forward is 0.5 nats from the model" in caplog.text


def test_people_who_talk_at_once_get_what_each_would_get_alone(site):
    streams = [site.duel(PROMPTS[0], [3, 4], SAMPLED)]
    for later in PROMPTS[1:]:
        site.step()
        streams.append(site.duel(later, [3, 4], SAMPLED))
    assert [run(site, stream) for stream in streams] == expected(site, PROMPTS)


def test_prompts_of_several_people_are_read_in_one_pass(site, monkeypatch):
    passes = []
    together = GraphForward.prefill_together
    monkeypatch.setattr(
        GraphForward,
        "prefill_together",
        lambda self, caches, parts: passes.append(len(parts)) or together(self, caches, parts),
    )
    streams = [site.duel(prompt, [3, 4], SAMPLED) for prompt in PROMPTS]
    site.step()
    assert passes == [3]
    assert [run(site, stream) for stream in streams] == expected(site, PROMPTS)


def test_a_prompt_that_cannot_be_read_fails_alone(site, monkeypatch):
    together = GraphForward.prefill_together

    def fragile(self, caches, parts):
        if any(33 in part for part in parts):
            raise RuntimeError("no room")
        return together(self, caches, parts)

    monkeypatch.setattr(GraphForward, "prefill_together", fragile)
    good, other, bad = (site.duel(prompt, [3, 4], SAMPLED) for prompt in PROMPTS[:2] + [[1, 33]])
    assert [run(site, stream) for stream in (good, other)] == expected(site, PROMPTS[:2])
    assert bad.error


def test_the_next_turn_reads_only_what_is_new(site):
    first = site.duel([1, *range(40, 60)], [3, 4], SAMPLED)
    reply = run(site, first)[0]
    ids = [1, *range(40, 60), *reply, 5, 6, 7]
    second = site.duel(ids, [3, 4], SAMPLED)
    assert run(site, second) == expected(site, [ids])[0] and second.reused > 21


def test_a_version_goes_live_prepared_and_one_that_is_gone_holds_no_slots(site, monkeypatch):
    prepared = []
    monkeypatch.setattr(DecodeBatch, "prepare", lambda self, shape: prepared.append((self.model, shape)))
    old = site.duel(PROMPT, [0, 0], GREEDY)
    site.step()
    publish(site, 0.3)
    site.versions.follow_store()
    live = site.live.forward
    shapes = [shape for model, shape in prepared if model is live.lean]
    assert {shape.slots for shape in shapes} == {1, 2} and all(shape.truncates for shape in shapes)  # top-p is 0.9
    new = site.duel(PROMPT, [0, 0], GREEDY)
    assert run(site, old) == alone(site, 0) and run(site, new) == alone(site, 1)
    for _ in range(2):
        publish(site, 0.3)
        site.versions.follow_store()
    assert site.live.version == 3 and live._batch is None
    assert run(site, site.duel(PROMPT, [0, 0], GREEDY)) == alone(site, 3)
