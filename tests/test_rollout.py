"""Prompts for training, and the policy's replies to them."""

import pytest
import torch

from playground.decoding import graph_forward, lean_model, measuring, tuning
from playground.decoding.fused import FusedForward
from playground.decoding.transformers_forward import TransformersForward
from playground.decoding.w8a16 import W8A16Forward
from playground.settings import Settings
from tests.families import LONG_TOKENS, phi3
from tests.tiny import tiny_model, tiny_tokenizer
from training import gpu, rollout, selftest
from training.policy import PolicyModel

TOKENIZER = tiny_tokenizer()
END = frozenset({TOKENIZER.eos_token_id})


@pytest.fixture(scope="module")
def model():
    return tiny_model(TOKENIZER)


def sample(model, chosen, seed=0, **changes):
    options = {"replies": 2, "max_tokens": 12, "temperature": 1.0, "end_tokens": END, **changes}
    return rollout.Rollouts(model).sample(chosen, rollout.generator(seed), **options)


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


# -- on a GPU, whose forward runs here without its graphs


@pytest.fixture
def graphs(monkeypatch):
    """As if the models were on a GPU with 1 TB free; returns (the forwards that are made, the free bytes)."""
    made, free = [], [10**12]

    class Recorded(graph_forward.GraphForward):
        def __init__(self, *args, **options):
            made.append(self)
            super().__init__(*args, **options)

    monkeypatch.setattr(rollout, "GraphForward", Recorded)
    monkeypatch.setattr(graph_forward, "fits", lambda _model, _tokens: True)
    monkeypatch.setattr(gpu, "free_bytes", lambda _device: free[0])
    return made, free


def write(rollouts, chosen, seed=0, **changes):
    options = {"replies": 2, "max_tokens": 12, "temperature": 1.0, "end_tokens": END, **changes}
    return rollouts.sample(chosen, rollout.generator(seed), **options)


def new_policy(tmp_path):
    settings = Settings(data_dir=tmp_path, device="cpu", dtype="float32")
    return PolicyModel(tiny_model(TOKENIZER), settings)


PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]


@pytest.mark.parametrize("merged_parameters", [10**9, 0])
def test_rollouts_keep_their_forward_and_follow_the_lora(graphs, tmp_path, monkeypatch, merged_parameters):
    """A forward that kept old weights would sample another policy than the one whose ratios are taken."""
    made, _ = graphs
    monkeypatch.setattr(lean_model, "MERGED_PARAMETERS", merged_parameters)
    policy = new_policy(tmp_path)
    bare = [parameter.clone() for parameter in tiny_model(TOKENIZER).parameters()]
    with policy.reference():
        reference = write(policy.rollouts, PROMPTS)
    assert reference == sample(tiny_model(TOKENIZER), PROMPTS)
    kept = len(made)
    seen = [reference]
    for size in (0.5, 1.0):
        selftest.set_b(policy.parameters, size)
        ours = write(policy.rollouts, PROMPTS)
        assert ours == sample(policy.causal, PROMPTS)
        assert ours not in seen
        seen.append(ours)
    with policy.reference():
        assert write(policy.rollouts, PROMPTS) == reference
    own = [forward for forward in made if forward is policy.rollouts._graphs]
    assert len(own) == 1 and made.index(own[0]) < kept
    weights = [parameter for name, parameter in policy.causal.named_parameters() if "lora_" not in name]
    assert all(torch.equal(a, b) for a, b in zip(weights, bare, strict=True))


def test_more_prompts_or_longer_ones_get_a_forward_with_room_for_them(graphs):
    made, _ = graphs
    rollouts = rollout.Rollouts(tiny_model(TOKENIZER))
    write(rollouts, PROMPTS[:1])
    assert len(made) == 1 and (made[0].slots, made[0].slot_tokens) == (1, rollout.COLUMNS)
    write(rollouts, PROMPTS)
    write(rollouts, PROMPTS[:2], replies=1)
    assert len(made) == 2 and made[1].slots == 3
    write(rollouts, PROMPTS, max_tokens=rollout.COLUMNS // 2)
    assert len(made) == 3 and made[2].slot_tokens == 2 * rollout.COLUMNS


def test_a_gpu_with_little_room_decodes_fewer_replies_at_once_and_writes_the_same(graphs):
    made, free = graphs
    model = tiny_model(TOKENIZER)
    chosen = PROMPTS * 6
    with_room = write(rollout.Rollouts(model), chosen)
    free[0] = 0
    assert write(rollout.Rollouts(model), chosen) == with_room
    assert [forward.slots for forward in made] == [18, gpu.LEAST_ROWS // 2]


def test_graphs_that_say_something_else_write_nothing(graphs, monkeypatch):
    made, _ = graphs
    tried = []
    monkeypatch.setattr(tuning, "divergence", lambda forward: tried.append(forward) or 0.5)
    model = tiny_model(TOKENIZER)
    rollouts = rollout.Rollouts(model)
    assert write(rollouts, PROMPTS) == write(rollouts, PROMPTS) == sample(tiny_model(TOKENIZER), PROMPTS)
    assert not made and len(tried) == 2  # one for each Rollouts


def test_ended_replies_leave_no_keys_and_values_behind(graphs):
    made, _ = graphs
    write(rollout.Rollouts(tiny_model(TOKENIZER)), PROMPTS)
    forward = made[0]
    cache = forward.new_cache(2, 3, 4)
    forward.prefill(cache, [1, 2, 3])
    forward.decode([cache], [4, 5])
    for reply in (0, 1):
        cache.drop(reply)
    forward.finish(cache)
    assert not cache.reply_kv and not cache.slots


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_model_writes_by_the_compiled_step_where_that_is_faster(monkeypatch, dtype):
    """A small one is not worth the import of the compiler."""
    model = tiny_model().to(dtype)
    times = {W8A16Forward: 1.0, FusedForward: 2.0}
    measured = []

    def milliseconds(forward, replies):
        assert replies == rollout.ROWS
        measured.append(type(forward))
        return times[type(forward)]

    monkeypatch.setattr(measuring.Products, "milliseconds", lambda self: 0.0)
    monkeypatch.setattr(measuring, "crowd_milliseconds", milliseconds)
    monkeypatch.setattr(rollout, "_compiled_is_faster", {})
    assert type(rollout.forward_of(model, 64)) is FusedForward and not measured
    monkeypatch.setattr(rollout, "LARGE", 0)
    assert type(rollout.forward_of(model, 64)) is W8A16Forward
    assert type(rollout.forward_of(model, 64)) is W8A16Forward
    assert measured == [W8A16Forward, FusedForward], "once"
    with torch.no_grad():  # outliers, for which eight bits are too few
        for block in model.model.layers:
            for layer in (*block.self_attn.children(), *block.mlp.children()):
                if isinstance(layer, torch.nn.Linear):
                    layer.weight[:, 3] *= 200
    assert type(rollout.forward_of(model, 64)) is FusedForward
    times[FusedForward] = 0.5
    monkeypatch.setattr(rollout, "_compiled_is_faster", {})
    assert type(rollout.forward_of(tiny_model().to(dtype), 64)) is FusedForward


def test_a_format_whose_products_alone_take_longer_than_the_compiled_step_is_not_measured(monkeypatch):
    """To pack it and to try it took twelve seconds of a worker's first rollouts."""
    measured = []
    monkeypatch.setattr(measuring, "crowd_milliseconds", lambda forward, _replies: measured.append(type(forward)) or 1)
    products = []
    monkeypatch.setattr(measuring.Products, "milliseconds", lambda those: products.append(those) or 2)
    monkeypatch.setattr(rollout, "_compiled_is_faster", {})
    monkeypatch.setattr(rollout, "LARGE", 0)
    policy = PolicyModel(tiny_model(), Settings())
    assert type(rollout.forward_of(policy.causal, 64)) is W8A16Forward and measured == [W8A16Forward]
    [of_policy], of_base = products, measuring.Products(tiny_model(), "float32")
    assert all(len(x) == rollout.ROWS for x in of_policy._inputs)
    shapes = [[weight.weight.shape for weight in those._of_block] for those in (of_policy, of_base)]
    assert shapes[0] == shapes[1], "without the LoRA, which is merged"


def test_the_step_of_a_crowd_is_timed():
    assert 0 < measuring.crowd_milliseconds(FusedForward(tiny_model(), "float32"), 6) < 1000


def test_replies_longer_than_a_models_frequencies_serve_are_written_by_transformers():
    model = phi3()
    assert type(rollout.forward_of(model, LONG_TOKENS)) is FusedForward
    assert type(rollout.forward_of(model, LONG_TOKENS + 1)) is TransformersForward
