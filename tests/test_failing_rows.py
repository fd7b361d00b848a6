"""A turn that breaks breaks alone: the others in the batch get the tokens that they would have had without it."""

import math
from itertools import chain

import pytest

from playground.decoding import decoder, fused
from playground.decoding.decoder import Decoding, NotFinite, run, step
from playground.decoding.sampling import Sampling
from playground.decoding.transformers_forward import TransformersForward
from playground.models import loading
from playground.serving.engine import Engine
from playground.settings import Settings
from playground.store import Store
from tests.tiny import tiny_folder, tiny_model

PROMPTS = [[5, 6, 7], [8, 9, 10, 11], [12, 13], [14, 15, 16]]
NEVER = frozenset()  # no token ends a reply
SAMPLED = Sampling(temperature=1.0, max_tokens=10)
FORWARDS = {
    "fused": lambda: fused.FusedForward(tiny_model(), "float32"),
    "plain": lambda: TransformersForward(tiny_model()),
}


@pytest.fixture(params=FORWARDS)
def forward(request):
    return FORWARDS[request.param]()


def opened(forward, sampling=SAMPLED, prompts=PROMPTS):
    """A Decoding of two replies for each prompt, each read to its end."""
    decodings = []
    for i, prompt in enumerate(prompts):
        decodings.append(Decoding(forward, prompt, [2 * i, 2 * i + 1], sampling, NEVER))
        while decodings[-1].prefilling:
            decodings[-1].prefill()
    return decodings


def alone(forward, sampling=SAMPLED):
    """What each prompt's two replies are when nobody else is there."""
    found = []
    for i, prompt in enumerate(PROMPTS):
        found.append([r.token_ids for r in run(forward, [prompt], [2 * i, 2 * i + 1], sampling, NEVER, n=2)])
    return found


def go_on(decodings):
    """Step to the end, leaving out who fails; returns the failures by place."""
    failed = {}
    while True:
        failures = []
        running = [d for i, d in enumerate(decodings) if i not in failed]
        added = step(running, failures)
        for failure in failures:
            failure.decoding.stop()
            failed[decodings.index(failure.decoding)] = failure.error
        if not added and not failures:
            return failed


def tokens(decodings):
    return [[r.token_ids for r in d.replies] for d in decodings]


def break_layers(forward, when):
    """Let the forward raise in its third block whenever `when(rows)` says so: two blocks have taken the step's keys in
    by then.
    """
    if isinstance(forward, fused.FusedForward):
        block = forward.packed_blocks[2]
        whole, block.qkv = block.qkv, lambda x: _raise(when(len(x))) or whole(x)
    else:
        forward.model.model.layers[2].register_forward_pre_hook(lambda _module, args: _raise(when(len(args[0]))))


def _raise(error):
    if error:
        raise error


def test_a_forward_that_has_no_room_for_all_serves_them_part_by_part(forward):
    """Out of memory in a batch of eight rows that four fit into: everybody's reply ended with an error."""
    expected = alone(forward)
    decodings, tried = opened(forward), []

    def too_many(rows):
        tried.append(rows)
        return RuntimeError("out of memory") if rows > 4 else None

    break_layers(forward, too_many)
    assert go_on(decodings) == {}
    assert 8 in tried and 4 in tried and tokens(decodings) == expected


def test_a_failed_step_leaves_the_lines_as_they_were(forward):
    """A column that was made for a token which no forward took in stayed, and every later token saw it."""
    expected = alone(forward)
    decodings, calls = opened(forward), []
    break_layers(
        forward, lambda rows: calls.append(rows) or (RuntimeError("once in a while") if len(calls) % 3 == 0 else None)
    )
    for _ in range(200):
        failures = []
        step(decodings, failures)  # whoever fails tries again with the same tokens
        if all(d.done for d in decodings):
            break
    assert tokens(decodings) == expected and len(calls) > 20


@pytest.mark.parametrize("bad", range(4))
def test_one_line_that_makes_the_forward_raise_fails_alone(forward, bad):
    expected = alone(forward)
    decodings = opened(forward)
    marker = decodings[bad].cache
    inner = forward.decode

    def decode_with(caches, ids):
        if marker in caches and any(len(tokens) >= 3 for tokens in marker.reply_tokens):
            raise ValueError("this cache breaks the forward")
        return inner(caches, ids)

    forward.decode = decode_with
    failed = go_on(decodings)
    assert list(failed) == [bad] and "this cache" in str(failed[bad])
    assert all(
        found == wanted for i, (found, wanted) in enumerate(zip(tokens(decodings), expected, strict=True)) if i != bad
    )


@pytest.mark.parametrize(
    "sampling",
    [
        SAMPLED,
        Sampling(temperature=0, max_tokens=10),
        Sampling(1.0, top_p=0.9, top_k=7, max_tokens=10, repetition_penalty=1.2),
    ],
    ids=["sampled", "greedy", "truncated"],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_whose_logits_are_no_numbers_fails_alone_and_nothing_is_drawn_from_it(forward, value, sampling):
    """Logits of NaN were drawn from: the last token of the vocabulary came, with a log-probability of NaN, to the end
    of the reply.
    """
    expected = alone(forward, sampling)
    decodings = opened(forward, sampling)
    inner, steps = forward.decode, []

    def decode_with(caches, ids):
        logits = inner(caches, ids).clone()
        steps.append(1)
        if len(steps) == 4:
            at = 2 * caches.index(decodings[1].cache)
            logits[at + 1, 7] = value  # one of the turn's two rows
        return logits

    forward.decode = decode_with
    failed = go_on(decodings)
    assert list(failed) == [1] and isinstance(failed[1], NotFinite)
    assert len(decodings[1].replies[0].token_ids) == 4
    assert all(
        found == wanted for i, (found, wanted) in enumerate(zip(tokens(decodings), expected, strict=True)) if i != 1
    )


@pytest.mark.parametrize("bad", [{"top_k": 2.5}, {"top_p": "most"}, {"temperature": "hot"}])
def test_a_row_that_cannot_be_drawn_fails_alone(forward, bad):
    """`top_k` 2.5, set by hand, failed every reply that was running."""
    expected = alone(forward)
    decodings = opened(forward)
    decodings[2].sampling = Sampling(**{"temperature": 1.0, "max_tokens": 10, **bad})
    failed = go_on(decodings)
    assert list(failed) == [2]
    assert all(
        found == wanted for i, (found, wanted) in enumerate(zip(tokens(decodings), expected, strict=True)) if i != 2
    )


def test_rows_of_one_kind_that_break_once_keep_their_draws(forward, monkeypatch):
    """Tried again one by one, each row takes the random number that it had: the same seed gives the same reply."""
    expected = alone(forward)
    decodings, draw = opened(forward), decoder.draw

    def fails_for_many(logits, sampling, seen, uniform):
        found = draw(logits, sampling, seen, uniform)
        return found if len(logits) == 1 else _raise(RuntimeError("no room for the draws"))

    monkeypatch.setattr(decoder, "draw", fails_for_many)
    assert go_on(decodings) == {} and tokens(decodings) == expected


def test_without_a_list_of_failures_the_step_raises(forward):
    decodings = opened(forward)
    decodings[0].sampling = Sampling(top_k=2.5)
    with pytest.raises(TypeError):
        step(decodings)


# -- in the engine


@pytest.fixture(params=["float32", "plain"])
def site(request, tmp_path):
    """An engine whose threads do not run: the test is both of them."""
    settings = Settings(
        model=str(tiny_folder(tmp_path / "model")),
        data_dir=tmp_path,
        device="cpu",
        dtype="float32",
        threads=1,
        decode_format=request.param,
        _env_file=None,
    )
    return Engine(Store(), settings, loading.load_trunk(settings), loading.load_tokenizer(settings))


def ends(site, streams):
    for _ in range(100):
        site.step()
        if all(s.finished.is_set() for s in streams):
            return [[r.token_ids for r in s.decoding.replies] if s.decoding else None for s in streams]
    raise AssertionError("somebody never ended")


def test_a_turn_with_a_setting_that_cannot_be_ends_alone_and_gives_its_room_back(site):
    def duel(**more):
        return site.duel([1, 30, 31, 32], [3, 4], Sampling(**{"temperature": 1.0, "max_tokens": 12, **more}))

    [expected] = ends(site, [duel()])
    streams = [duel(), duel(top_k=2.5), duel(), duel(top_p="many"), duel(top_k=True)]
    found = ends(site, streams)
    assert found[0] == found[2] == expected
    assert [s.error is None for s in streams] == [True, False, True, False, False]
    assert all(r["finish_reason"] == "error" for r in streams[1].results())
    assert site.kv_pool.used == 0 and site.live.streams == 0 and site.waiting == 0


def test_one_side_can_be_stopped_and_the_other_has_the_tokens_that_it_would_have_had(site):
    def duel():
        return site.duel([1, 30, 31, 32], [3, 5], Sampling(temperature=1.0, max_tokens=12))

    site.end_tokens = NEVER
    [(left, right)] = ends(site, [duel()])
    for side, whole, cut in ((1, left, right), (0, right, left)):
        stream = duel()
        for _ in range(4):
            site.step()
        stream.stop(side)
        ends(site, [stream])
        results = stream.results()
        assert results[1 - side]["token_ids"] == whole and results[1 - side]["finish_reason"] == "length"
        assert (
            results[side]["token_ids"] == cut[: len(results[side]["token_ids"])]
            and 3 <= len(results[side]["token_ids"]) <= 5
        )
        assert results[side]["finish_reason"] == "stopped" and results[side]["total_ms"] < results[1 - side]["total_ms"]


def test_a_side_that_is_stopped_before_its_turn_has_room_is_stopped_then(site):
    first = site.duel([1, 30, 31, 32], [3, 4], SAMPLED)
    site.step()
    site.kv_pool.budget = first.nbytes
    second = site.duel([1, 30, 31, 32], [3, 4], SAMPLED)
    second.stop(0)
    assert second.growing(1) and not second.admitted.is_set()
    ends(site, [first, second])
    assert (
        [r["finish_reason"] for r in second.results()][0] == "stopped"
        and second.tokens()[1] > 1
        and second.admitted.is_set()
    )
    assert not second.growing(1)


def test_keys_that_cannot_be_kept_do_not_end_the_engine(site):
    stream = site.duel([1, 30, 31, 32], [3, 4], SAMPLED)
    site.step()
    stream.decoding.forward = type("Broken", (), {"finish": lambda *_: _raise(RuntimeError("out of memory"))})()
    stream.stop()
    site.step()
    assert stream.finished.is_set() and stream.error and site.kv_pool.used == 0
    assert list(chain(*ends(site, [site.duel([1, 30, 31, 32], [3, 4], SAMPLED)])))
