"""Decoding, in both forwards, against transformers' own generate, a full forward, and fakes of a few lines."""

import math

import pytest
import torch

from playground.decoding import fused
from playground.decoding.decoder import Decoding, run, step
from playground.decoding.sampling import Sampling, penalised, truncated
from playground.decoding.transformers_forward import BatchedPromptCache, TransformersForward
from tests.tiny import tiny_model, tiny_tokenizer

INF = math.inf
SHORT, LONG = [5, 6, 7], list(range(30, 50))
NEVER = frozenset()  # no token ends a reply


def exact(model):
    return fused.FusedForward(model, "float32")


@pytest.fixture(scope="module")
def transformer():
    return tiny_model()


@pytest.fixture(scope="module", params=[exact, TransformersForward], ids=["fused", "transformers"])
def model(request, transformer):
    """The tiny model, ready to run."""
    return request.param(transformer)


class Counting:
    """A forward that records how many tokens each prompt part and how many rows each step has."""

    def __init__(self, forward):
        self.forward, self.prefill_chunk, self.parts, self.rows = forward, forward.prefill_chunk, [], []
        self.new_cache, self.finish = forward.new_cache, forward.finish

    def prefill(self, cache, ids):
        self.parts.append(len(ids))
        return self.forward.prefill(cache, ids)

    def decode(self, caches, tokens):
        self.rows.append(len(tokens))
        return self.forward.decode(caches, tokens)


class Fixed:
    """A forward that gives the same logits whatever it reads."""

    prefill_chunk = 128

    def __init__(self, logits):
        self.logits = torch.tensor(logits)

    def new_cache(self, n, *_):
        return BatchedPromptCache(n)

    def finish(self, cache):
        pass

    def prefill(self, cache, ids):
        cache.prompt += ids
        return self.logits

    def decode(self, caches, tokens):
        return self.logits.expand(len(tokens), -1)


def decode(forward, prompts, seeds, end_tokens=NEVER, n=1, **sampling):
    return run(forward, prompts, seeds, Sampling(**{"temperature": 1.0, "max_tokens": 12, **sampling}), end_tokens, n=n)


# -- greedy


@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["short", "long"])
def test_greedy_decoding_equals_transformers_generate(model, transformer, prompt):
    ours = decode(model, [SHORT, LONG], [0, 0], temperature=0)[[SHORT, LONG].index(prompt)]
    # an eos id that the vocabulary lacks, so that both run to the token limit
    theirs = transformer.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=10**6,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    assert ours.token_ids == theirs and ours.finish_reason == "length"


# -- sampling


def test_the_same_seed_gives_the_same_reply_whatever_else_is_in_the_batch(model):
    alone = decode(model, [SHORT], [7])[0]
    together = decode(model, [LONG, SHORT, LONG], [1, 7, 3])[1]
    assert together.token_ids == alone.token_ids
    assert together.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_a_reply_is_the_same_beside_a_sibling(model):
    assert decode(model, [SHORT], [9, 7], n=2)[1].token_ids == decode(model, [SHORT], [7])[0].token_ids


def test_different_seeds_give_different_replies(model):
    first, second = decode(model, [SHORT], [1, 2], n=2)
    assert first.token_ids != second.token_ids


def test_replies_come_prompt_by_prompt(model):
    replies = decode(model, [SHORT, LONG], [1, 2, 3, 4], n=2)
    assert [r.seed for r in replies] == [1, 2, 3, 4]
    assert replies[2].token_ids == decode(model, [LONG], [3])[0].token_ids


def test_seeds_must_fit_the_replies(model):
    with pytest.raises(ValueError, match="3 seeds for 1 prompts of 2 replies"):
        run(model, [SHORT], [1, 2, 3], Sampling(), NEVER, n=2)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_logprobs_equal_a_full_forward_at_the_temperature(model, transformer, temperature):
    for prompt, reply in zip([SHORT, LONG], decode(model, [SHORT, LONG], [1, 2], temperature=temperature), strict=True):
        with torch.no_grad():
            logits = transformer(torch.tensor([prompt + reply.token_ids])).logits[0, len(prompt) - 1 : -1]
        full = torch.log_softmax(logits / temperature, -1).gather(-1, torch.tensor(reply.token_ids)[:, None])[:, 0]
        assert reply.logprobs == pytest.approx(full.tolist(), abs=1e-4)


def test_tokens_are_drawn_as_often_as_their_probability_says():
    replies = decode(Fixed([0.0, math.log(3), 0.0]), [[1]], list(range(100)), n=100, max_tokens=20)  # 1/5, 3/5, 1/5
    drawn = [t for r in replies for t in r.token_ids]
    assert drawn.count(1) / 2000 == pytest.approx(0.6, abs=0.04)  # 3.6 standard errors
    assert drawn.count(0) / 2000 == pytest.approx(0.2, abs=0.035)


def test_temperature_sharpens_the_choice():
    replies = decode(
        Fixed([0.0, math.log(3)]), [[1]], list(range(100)), n=100, max_tokens=10, temperature=0.5
    )  # odds 3² = 9
    assert sum(t for r in replies for t in r.token_ids) / 1000 == pytest.approx(0.9, abs=0.035)


def test_a_token_outside_top_k_is_never_drawn():
    replies = decode(Fixed([0.0, 1.0, 1.5, 0.5]), [[1]], list(range(50)), n=50, top_k=2)
    assert {t for r in replies for t in r.token_ids} == {1, 2}


def test_logprobs_are_those_of_the_truncated_choice():
    reply = decode(Fixed([0.0, math.log(3), -9.0]), [[1]], [0], top_k=2)[0]
    assert {round(x, 4) for x in reply.logprobs} <= {-1.3863, -0.2877}  # ln 1/4, ln 3/4: the third is not counted


def test_a_repeated_token_loses_by_the_penalty():
    """Keskar et al. 2019: what was there before is divided, or multiplied where negative."""
    logits = torch.tensor([[2.0, -1.0, 1.5], [2.0, -1.0, 1.5]])
    assert penalised(logits, [[0, 1], [2]], 2.0).tolist() == [[1.0, -2.0, 1.5], [2.0, -1.0, 0.75]]
    assert logits[0].tolist() == [2.0, -1.0, 1.5]


def penalised_by_loop(logits, seen, penalty):
    """Row by row, as the paper's equation reads."""
    logits = logits.clone()
    for row, tokens in zip(logits, seen, strict=True):
        for token in set(tokens):
            row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
    return logits


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_penalty_of_many_rows_at_once_is_that_of_each_row(penalty, dtype):
    """Rows of other lengths, tokens that come twice, a row that has seen nothing and one that has seen all."""
    noise = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(5, 40, generator=noise).to(dtype)
    logits[0, 3], logits[1, 4], logits[1, 5] = 0, -INF, INF
    seen = [[3, 3, 7, 39, 0], [4, 5], [], list(range(40)), torch.randint(40, (100,), generator=noise).tolist()]
    assert torch.equal(penalised(logits, seen, penalty), penalised_by_loop(logits, seen, penalty))


def test_a_logit_that_is_no_number_stays_none_under_the_penalty():
    assert penalised(torch.tensor([[math.nan, 1.0]]), [[0]], 2.0)[0].isnan().tolist() == [True, False]


def test_the_penalty_counts_the_prompt_and_the_reply():
    reply = decode(Fixed([0.0, 1.0, 0.9, 0.8]), [[1]], [0], temperature=0, max_tokens=3, repetition_penalty=2.0)[0]
    assert reply.token_ids == [2, 3, 1]  # 1 was in the prompt; 2 and 3 are halved once said


# -- truncation


def test_top_k_keeps_the_k_largest():
    assert truncated(torch.tensor([[1.0, 4.0, 2.0, 3.0]]), 1.0, 2).tolist() == [[-INF, 4.0, -INF, 3.0]]


def test_top_k_beyond_the_vocabulary_keeps_all():
    assert truncated(torch.tensor([[1.0, 4.0]]), 1.0, 50).tolist() == [[1.0, 4.0]]


def test_top_p_keeps_the_token_that_crosses_it():
    # probabilities 0.1 0.5 0.3 0.1: the nucleus of 0.6 is 0.5 and, since 0.5 is short of it, 0.3
    logits = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log()
    kept = truncated(logits, 0.6, 0) > -INF
    assert kept.tolist() == [[False, True, True, False]]


def test_a_tiny_top_p_keeps_the_likeliest_token():
    kept = truncated(torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log(), 0.01, 0) > -INF
    assert kept.tolist() == [[False, True, False, False]]


def test_top_p_is_taken_row_by_row():
    kept = truncated(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]).log(), 0.5, 0) > -INF
    assert kept.tolist() == [[True, False, False], [False, False, True]]


def test_off_means_untouched():
    logits = torch.tensor([[1.0, 4.0, 2.0]])
    assert truncated(logits, 1.0, 0) is logits


def test_top_p_counts_what_top_k_left():
    # top k leaves 0.5 and 0.3, that is 0.625 and 0.375: the nucleus of 0.6 is the first alone
    kept = truncated(torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log(), 0.6, 2) > -INF
    assert kept.tolist() == [[False, True, False, False]]


# -- work done


def test_two_rows_share_one_reading(model):
    counting = Counting(model)
    decode(counting, [LONG], [1, 2], n=2, max_tokens=4)
    assert counting.parts == [20] and counting.rows == [2, 2, 2]  # the fourth token needs no forward after it


def test_a_long_prompt_is_read_in_parts_and_the_replies_are_the_same(model, transformer):
    prompt = [3 + i % 400 for i in range(300)]
    whole, parted = (
        decode(model, [prompt], [1, 2], n=2),
        type(model)(transformer, *(["float32"] if isinstance(model, fused.FusedForward) else [])),
    )
    parted.prefill_chunk = 64
    counting = Counting(parted)
    assert [r.token_ids for r in decode(counting, [prompt], [1, 2], n=2)] == [r.token_ids for r in whole]
    assert counting.parts == [64, 64, 64, 64, 44]


def test_finished_replies_are_left_out_of_the_step(model):
    counting, replies = Counting(model), decode(model, [SHORT], [1, 2, 3, 4], n=4)
    ends = {replies[i].token_ids[1] for i in (0, 1)}
    decode(counting, [SHORT], [1, 2, 3, 4], ends, n=4)
    assert counting.rows[0] == 4 and counting.rows[-1] < 4


def test_prompts_join_and_leave_between_steps(model):
    """Continuous batching (Orca, Yu et al. 2022): each reply is what it is alone."""

    def begin(prompt, seeds):
        decoding = Decoding(model, prompt, seeds, Sampling(1.0, max_tokens=10), NEVER)
        decoding.prefill()
        return decoding

    early, running = begin(SHORT, [1, 2]), []
    running.append(early)
    for k in range(30):
        if k == 3:
            running.append(late := begin(LONG, [3, 4]))
        if k == 6:
            running.append(last := begin([9, 8], [5, 6]))
            late.stop()
        step([d for d in running if not d.done])
    assert early.done and last.done
    assert [r.token_ids for r in early.replies] == [
        r.token_ids for r in decode(model, [SHORT], [1, 2], n=2, max_tokens=10)
    ]
    assert [r.token_ids for r in last.replies] == [
        r.token_ids for r in decode(model, [[9, 8]], [5, 6], n=2, max_tokens=10)
    ]
    assert [r.token_ids for r in late.replies] == [
        r.token_ids[:3] for r in decode(model, [LONG], [3, 4], n=2, max_tokens=10)
    ]


def test_dropping_finished_rows_changes_nothing(model):
    full = decode(model, [SHORT, LONG], list(range(8)), n=4)
    ends = frozenset(r.token_ids[i + 1] for i, r in enumerate(full[:5]))  # rows end one after the other
    cut = decode(model, [SHORT, LONG], list(range(8)), ends, n=4)
    assert len({len(r.token_ids) for r in cut}) > 2
    for whole, short in zip(full, cut, strict=True):
        expected = next((i + 1 for i, t in enumerate(whole.token_ids) if t in ends), 12)
        assert short.token_ids == whole.token_ids[:expected]
        assert short.logprobs == pytest.approx(whole.logprobs[:expected], abs=1e-4)


# -- ends


def test_an_end_token_ends_the_reply_and_stays_in_it(model):
    whole = decode(model, [SHORT], [3])[0].token_ids
    end = whole[4]
    reply = decode(model, [SHORT], [3], {end})[0]
    assert reply.finish_reason == "end" and reply.token_ids == whole[: whole.index(end) + 1]


def test_max_tokens_ends_the_reply(model):
    reply = decode(model, [SHORT], [3], max_tokens=5)[0]
    assert reply.finish_reason == "length" and len(reply.token_ids) == len(reply.logprobs) == 5


def test_an_end_token_in_the_prompt_ends_nothing(model):
    """Templates put the end token into prompts (TRL #2012)."""
    end = tiny_tokenizer().eos_token_id
    reply = decode(model, [[*SHORT, end, 5]], [3], {end}, max_tokens=3)[0]
    assert end not in reply.token_ids and reply.finish_reason == "length" and len(reply.token_ids) == 3


def test_stop_ends_growing_replies_where_they_are(model):
    decoding = Decoding(model, SHORT, [1, 2], Sampling(temperature=1.0), NEVER)
    decoding.prefill()
    step([decoding])
    step([decoding])
    decoding.stop()
    assert decoding.done and step([decoding]) == []
    assert [(r.finish_reason, len(r.token_ids)) for r in decoding.replies] == [("stopped", 2)] * 2


def test_stop_leaves_a_finished_replys_reason(model):
    decoding = Decoding(model, SHORT, [1], Sampling(max_tokens=1), NEVER)
    decoding.prefill()
    step([decoding])
    decoding.stop()
    assert decoding.replies[0].finish_reason == "length"


def test_a_step_tells_what_it_added(model):
    decoding = Decoding(model, SHORT, [1, 2], Sampling(temperature=1.0), NEVER)
    decoding.prefill()
    added = step([decoding]) + step([decoding])
    assert [i for _, i, _ in added] == [0, 1, 0, 1]
    assert [t for _, i, t in added if i == 1] == decoding.replies[1].token_ids


def test_replies_with_one_end_go_on_alone(model):
    whole = decode(model, [SHORT], [1, 2], n=2)
    end = next(t for t in whole[0].token_ids if t not in whole[1].token_ids)
    first, second = decode(model, [SHORT], [1, 2], {end}, n=2)
    assert first.finish_reason == "end" and second.token_ids == whole[1].token_ids
