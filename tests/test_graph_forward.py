"""The graph forward against transformers' own, on the CPU, where its steps run without graphs."""

import pytest
import torch

from playground.decoding import decode_batch, decoder, lean_model
from playground.decoding.choose_forward import MAX_KL_16_BIT, divergence
from playground.decoding.decoder import Decoding, run, step
from playground.decoding.graph_forward import GraphForward
from playground.decoding.kernels import TORCH, SlotColumns
from playground.decoding.sampling import Sampling
from playground.decoding.transformers_forward import TransformersForward
from playground.models import loading
from playground.settings import Settings
from tests.families import IDS, MODELS, WINDOW, full, trained
from tests.test_selftest import REAL
from tests.tiny import tiny_model

PROMPTS = [IDS, IDS[:5], [4], IDS[3:30]]


def graph_forward(model, slots=4, slot_tokens=256):
    return GraphForward(model, slots, slot_tokens)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_reading_and_stepping_give_the_models_logits(model):
    forward = graph_forward(model)
    cache, rows = forward.new_cache(2, len(IDS), 6), [list(IDS), list(IDS)]
    forward.prefill(cache, IDS[:13])
    close(forward.prefill(cache, IDS[13:]), full(model, IDS))
    for tokens in ([5, 9], [11, 2], [7, 7]):
        rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
        close(forward.decode([cache], tokens), torch.stack([full(model, row) for row in rows]))
    cache.drop(0)
    close(forward.decode([cache], [8])[0], full(model, [*rows[1], 8]))


@pytest.mark.real
@pytest.mark.skipif(not REAL.exists(), reason="the embedded model is not there; `make setup` converts it")
def test_the_default_model_in_bf16_is_near_enough_to_itself_to_be_served_by_graphs():
    """A probe of tokens that mark turns found .11 nats on a GPU, so that the chat took the slow forward there."""
    trunk = loading.load_trunk(Settings(model=str(REAL), device="cpu", dtype="bfloat16"))
    assert divergence(graph_forward(trunk)) < MAX_KL_16_BIT / 10


def test_norms_of_one_and_a_weight_keep_their_digits_in_bf16():
    """1 + weight has fewer digits there than the weight: replies were twice as far from the model."""
    gemma, llama = MODELS["gemma3"]().bfloat16(), tiny_model().bfloat16()
    forward = graph_forward(gemma)
    assert torch.equal(forward.lean.norm, 1 + gemma.model.norm.weight.float())
    assert forward.lean.dtype == graph_forward(llama).lean.norm.dtype == torch.bfloat16
    assert divergence(forward) < 4e-4


def test_greedy_replies_are_those_of_transformers(model):
    greedy = Sampling(temperature=0, max_tokens=24)
    ours = run(graph_forward(model), PROMPTS, [0] * 8, greedy, frozenset(), n=2)
    theirs = run(TransformersForward(model), PROMPTS, [0] * 8, greedy, frozenset(), n=2)
    assert [r.token_ids for r in ours] == [r.token_ids for r in theirs]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.8, max_tokens=20),
        Sampling(temperature=0.9, top_p=0.7, max_tokens=20),
        Sampling(temperature=1.2, top_k=5, max_tokens=20),
        Sampling(temperature=1.0, top_k=20, top_p=0.8, repetition_penalty=1.3, max_tokens=20),
        Sampling(temperature=0, repetition_penalty=1.5, max_tokens=20),
    ],
)
def test_a_seed_gives_the_reply_and_log_probabilities_that_it_gives_with_transformers(sampling):
    model = trained()
    seeds = range(8)
    ours = run(graph_forward(model), PROMPTS, seeds, sampling, frozenset(), n=2)
    theirs = run(TransformersForward(model), PROMPTS, seeds, sampling, frozenset(), n=2)
    same = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.token_ids == b.token_ids]
    assert len(same) >= 7  # a number may fall between two roundings of one sum
    for a, b in same:
        close(torch.tensor(a.logprobs), torch.tensor(b.logprobs))


def test_people_with_different_sampling_share_a_step():
    model = trained()
    samplings = [
        Sampling(temperature=0, max_tokens=12),
        Sampling(temperature=0.8, top_p=0.6, max_tokens=9),
        Sampling(temperature=1.1, repetition_penalty=1.4, max_tokens=14),
    ]
    forward = graph_forward(model)
    together = [Decoding(forward, PROMPTS[i], [i, 9 + i], s, frozenset()) for i, s in enumerate(samplings)]
    decoder.prefill(together)
    while not all(decoding.done for decoding in together):
        step(together)
    for i, sampling in enumerate(samplings):
        alone = run(TransformersForward(model), [PROMPTS[i]], [i, 9 + i], sampling, frozenset(), n=2)
        assert [r.token_ids for r in together[i].replies] == [r.token_ids for r in alone]


def test_rows_join_and_leave_and_wait_for_slots():
    """Six turns of one to four replies in three slots, one beginning every other step."""
    model = tiny_model()
    forward = graph_forward(model, slots=3)
    rng = torch.Generator().manual_seed(3)
    expected, decodings = [], []
    for i in range(6):
        n = 1 + i % 4
        sampling = Sampling(temperature=0.9, max_tokens=4 + 5 * i % 17)
        prompt = torch.randint(3, 400, (3 + 6 * i,), generator=rng).tolist()
        seeds = [100 * i + j for j in range(n)]
        expected.append(run(TransformersForward(model), [prompt], seeds, sampling, frozenset(), n=n))
        decodings.append(Decoding(forward, prompt, seeds, sampling, frozenset()))
    running = []
    for count in range(200):
        if count % 2 == 0 and len(running) < 6:
            running.append(decodings[len(running)])
        decoder.prefill(running)
        step(running)
        if len(running) == 6 and all(decoding.done for decoding in running):
            break
    for decoding, replies in zip(decodings, expected, strict=True):
        assert [r.token_ids for r in decoding.replies] == [r.token_ids for r in replies]
    assert forward._owners == [None] * 3


def test_prompts_are_read_in_one_pass():
    model = tiny_model()
    forward = graph_forward(model)
    decodings = [Decoding(forward, prompt, [1], Sampling(max_tokens=4), frozenset()) for prompt in PROMPTS]
    assert decoder.prefill(decodings) == decodings
    for decoding in decodings:
        close(decoding.logits, full(model, decoding.prompt))
    assert decoder.prefill(decodings) == []


def test_a_later_turn_begins_with_the_keys_of_a_reply():
    model = trained()
    forward = graph_forward(model)
    sampling = Sampling(temperature=0.8, max_tokens=10)
    first = Decoding(forward, IDS, [1, 2, 3], sampling, frozenset())
    first.prefill()
    while not first.done:
        step([first])
    for reply in range(3):
        ids = [*IDS, *first.replies[reply].token_ids, 7, 8, 9]
        prefix = first.cache.longest_prefix(ids)
        assert prefix.tokens == len(IDS) + 10
        cache = forward.new_cache(1, len(ids), 1)
        cache.copy_prefix(first.cache, prefix, ids)
        close(forward.prefill(cache, ids[prefix.tokens :]), full(model, ids))


def test_a_reply_that_is_stopped_keeps_what_was_taken_in():
    model = trained()
    forward = graph_forward(model)
    decoding = Decoding(forward, IDS, [1, 2], Sampling(max_tokens=40), frozenset())
    decoding.prefill()
    for _ in range(7):
        step([decoding])
    decoding.stop()
    ids = [*IDS, *decoding.replies[1].token_ids, 5]
    prefix = decoding.cache.longest_prefix(ids)
    assert prefix.tokens == len(IDS) + 6
    cache = forward.new_cache(1, len(ids), 1)
    cache.copy_prefix(decoding.cache, prefix, ids)
    close(forward.prefill(cache, ids[prefix.tokens :]), full(model, ids))


def test_two_versions_decode_at_once():
    base = tiny_model()
    versions = [graph_forward(base), graph_forward(base).for_model(trained())]
    sampling = Sampling(temperature=0, max_tokens=12)
    decodings = [Decoding(forward, IDS, [1, 2], sampling, frozenset()) for forward in versions]
    for decoding in decodings:
        decoding.prefill()
    while not all(decoding.done for decoding in decodings):
        for decoding in decodings:
            step([decoding])
    for decoding, forward in zip(decodings, versions, strict=True):
        alone = run(TransformersForward(forward.model), [IDS], [1], sampling, frozenset())
        assert [r.token_ids for r in decoding.replies] == [alone[0].token_ids] * 2


def test_a_few_streams_serve_the_graphs_of_all_batches(monkeypatch):
    """cuBLAS keeps a workspace of 34 MB for each stream that it has seen; batches that are in memory together have
    streams of their own.
    """
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    monkeypatch.setattr(decode_batch, "_CAPTURE_STREAMS", [])
    streams = [decode_batch._capture_stream(torch.device("cuda", 0)) for _ in range(10)]
    assert len(set(streams)) == decode_batch.STREAMS
    assert all(len(set(streams[i : i + 3])) == 3 for i in range(8))


def test_a_large_models_lora_stays_apart_from_the_weights_that_versions_share(monkeypatch):
    monkeypatch.setattr(lean_model, "MERGED_PARAMETERS", 0)
    model = trained()
    forward = graph_forward(model)
    block = forward.lean.blocks[0]
    assert block.down.weight.data_ptr() == model.model.layers[0].mlp.down_proj.base_layer.weight.data_ptr()
    cache = forward.new_cache(2, len(IDS), 2)
    close(forward.prefill(cache, IDS), full(model, IDS))
    close(forward.decode([cache], [5, 9]), torch.stack([full(model, [*IDS, 5]), full(model, [*IDS, 9])]))


@pytest.mark.parametrize(("slot_tokens", "window"), [(WINDOW, None), (WINDOW + 1, WINDOW)])
def test_the_kernels_attend_where_no_text_in_a_slot_is_longer_than_the_window(slot_tokens, window):
    """They know no window; torch's operations attend in the other layers. Each way to attend is made once a step."""
    made = []
    kernels = TORCH._replace(slot_step=lambda rope, columns: made.append(rope) or TORCH.slot_step(rope, columns))
    forward = GraphForward(MODELS["gemma3"](), 2, slot_tokens, kernels=kernels)
    places = torch.zeros(4, dtype=torch.long)
    steps = forward.lean.slot_steps(SlotColumns(places, places, slot_tokens, slot_tokens))
    assert made == (forward.lean.ropes[1:] if window else forward.lean.ropes)
    assert steps[0] is steps[2] and steps[0] is not steps[1]


def test_what_does_not_fit_into_the_slots_is_refused():
    forward = graph_forward(tiny_model(), slots=1, slot_tokens=len(IDS) + 4)
    cache = forward.new_cache(1, len(IDS), 8)
    forward.prefill(cache, IDS)
    other = forward.new_cache(1, 3, 8)
    forward.prefill(other, IDS[:3])
    forward.decode([cache], [5])
    with pytest.raises(ValueError, match="more replies than 1 slots"):
        forward.decode([other], [5])
    forward.decode([cache], [5])
    with pytest.raises(ValueError, match=f"longer replies than {len(IDS) + 4} columns"):
        forward.decode([cache], [5])
    with pytest.raises(ValueError, match="do not fit"):
        forward.begin(other, Sampling(max_tokens=40), None)


def test_a_version_that_is_unloaded_gives_its_slots_back_and_can_answer_again():
    model = tiny_model()
    forward = graph_forward(model)
    before = run(forward, [IDS], [3], Sampling(max_tokens=5), frozenset())
    forward.unload()
    assert forward._batch is None
    assert run(forward, [IDS], [3], Sampling(max_tokens=5), frozenset())[0].token_ids == before[0].token_ids
