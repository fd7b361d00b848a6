"""Prompts for training, and the policy's replies to them."""

import pytest

from tests.tiny import tiny_model, tiny_tokenizer
from training import rollout

TOKENIZER = tiny_tokenizer()
END = frozenset({TOKENIZER.eos_token_id})


@pytest.fixture(scope="module")
def model():
    return tiny_model(TOKENIZER)


def sample(model, chosen, seed=0, **changes):
    options = {"replies": 2, "max_tokens": 12, "temperature": 1.0, "end_tokens": END, **changes}
    return rollout.sample(model, chosen, rollout.generator(seed), **options)


def test_held_out_prompts_are_never_trained_on():
    train, heldout = ((rollout.SEED_PROMPTS / f"{part}.txt").read_text().splitlines() for part in ("train", "heldout"))
    assert len(set(train)) == len(train) == 240 and len(set(heldout)) == len(heldout) == 96
    assert not {line.lower() for line in train} & {line.lower() for line in heldout}


def test_shipped_prompts_end_where_the_reply_begins():
    first = rollout.seed_prompts("train", TOKENIZER, 256)[0]
    assert TOKENIZER.decode(first).endswith("<|im_start|>assistant\n")


def test_half_the_prompts_are_what_people_said():
    people, seeds = [[n] for n in range(50)], [[n] for n in range(100, 150)]
    chosen = rollout.choose(people, seeds, 8, rollout.generator(0))
    assert sum(p in people for p in chosen) == 4 and sum(p in seeds for p in chosen) == 4
    assert len({tuple(p) for p in chosen}) == 8


def test_a_context_is_half_as_likely_as_one_a_half_life_later():
    rng, counts = rollout.generator("recent"), {0: 0, rollout.HALF_LIFE: 0, 2 * rollout.HALF_LIFE: 0}
    items = list(range(2 * rollout.HALF_LIFE + 1))
    for _ in range(20_000):
        (chosen,) = rollout.recent(items, 1, rng)
        if chosen in counts:
            counts[chosen] += 1
    old, middle, new = counts.values()
    assert 0.3 < old / middle < 0.75 and 0.35 < middle / new < 0.7


def test_all_contexts_can_be_chosen_at_once():
    assert (
        sorted(rollout.recent(list("abcde"), 5, rollout.generator(0))) == list("abcde")
        and rollout.recent([], 0, rollout.generator(0)) == []
    )


def test_few_people_leave_the_rest_to_the_shipped_prompts():
    seeds = [[n] for n in range(100, 150)]
    assert sum(p in seeds for p in rollout.choose([[1]], seeds, 8, rollout.generator(0))) == 7
    assert len(rollout.choose([[1]], seeds[:3], 8, rollout.generator(0))) == 4


def test_a_generator_depends_on_its_key_alone():
    draws = [rollout.generator(*key).random() for key in ((0, "ppo", 1), (0, "ppo", 1), (0, "ppo", 2), (1, "ppo", 1))]
    assert draws[0] == draws[1] and len(set(draws)) == 3


def test_replies_come_in_the_order_of_their_prompts(model):
    prompts = [[5, 6, 7], [8] * 12, [9, 10]]
    episodes = sample(model, prompts)
    assert [e.prompt for e in episodes] == [prompts[0]] * 2 + [prompts[1]] * 2 + [prompts[2]] * 2
    assert all(1 <= len(e.completion) <= 12 for e in episodes)


def test_a_reply_that_ended_says_so_and_holds_its_end_token(model):
    episodes = sample(model, [[5, 6, 7]] * 24, max_tokens=200)
    assert any(e.ended for e in episodes) and not all(e.ended for e in episodes)
    for e in episodes:
        assert (e.completion[-1] in END) == e.ended and not END & set(e.completion[:-1])
        assert e.ended or len(e.completion) == 200


def test_the_same_seed_gives_the_same_replies(model):
    assert sample(model, [[5, 6, 7]], 3) == sample(model, [[5, 6, 7]], 3) != sample(model, [[5, 6, 7]], 4)


def test_how_many_rows_decode_at_once_changes_no_reply(model):
    prompts = [[5, 6, 7], [8] * 12, [9, 10]]
    assert sample(model, prompts, rows=2) == sample(model, prompts, rows=32)


def test_the_canaries_are_plain_replies_without_their_end():
    tokenizer = tiny_tokenizer()
    found = rollout.canaries(tokenizer, 256)
    assert len(found) >= 10 and not any(tokenizer.eos_token_id in e.completion or e.ended for e in found)
    assert "capital of France" in tokenizer.decode(found[1].prompt) and "Paris" in tokenizer.decode(found[1].completion)
