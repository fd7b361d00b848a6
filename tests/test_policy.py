"""The policy's forward passes: log-probabilities, padding, the reference, what can be trained."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from playground.models import adapter_reading, attention, structure
from playground.settings import Settings
from tests.families import IDS, MODELS, SIZES, WINDOW, made
from tests.tiny import tiny_model, tiny_tokenizer
from training.policy import Batch, PolicyModel
from training.rollout import Episode

EPISODES = [
    Episode([5, 6, 7], [20, 21, 22, 2], True),
    Episode(list(range(30, 42)), [50, 51], False),
    Episode([8], list(range(60, 69)), False),
    Episode([9, 10], [70, 71, 72], True),
]
SCORES = torch.tensor([1.0, -1.0, 0.5, -0.5])
END = frozenset({tiny_tokenizer().eos_token_id})


def settings(**changes):
    return Settings(
        device="cpu",
        dtype="float32",
        threads=1,
        chat={"temperature": 0.8},
        ppo={
            "lora_rank": 4,
            "lora_alpha": 8,
            "iterations": 3,
            "episodes": 8,
            "replies": 2,
            "minibatch": 4,
            "epochs": 2,
            "rollout_tokens": 8,
            "value_warmup": 2,
            "lr": 2e-3,
            "kl_target": 1e6,
            "kl_stop": 1e6,
        },
        gate={"kl_budget": 1e6},
    ).with_values(**changes)


def moved(policy, size=0.1):
    """The policy with a LoRA that is not zero."""
    noise = torch.Generator().manual_seed(1)
    policy.load({k: v + size * torch.randn(v.shape, generator=noise) for k, v in policy.state().items()})
    return policy


# -- log-probabilities


def test_logprobs_are_those_of_a_plain_forward_at_the_temperature():
    policy = moved(PolicyModel(tiny_model(), settings()))
    e = EPISODES[0]
    with torch.no_grad():
        logits = policy.causal(torch.tensor([e.prompt + e.completion])).logits[0, 2:6]
        expected = torch.log_softmax(logits / 0.8, -1).gather(-1, torch.tensor(e.completion)[:, None])[:, 0]
        torch.testing.assert_close(policy.logprobs(Batch.of([e], "cpu"))[0], expected, rtol=1e-4, atol=1e-5)


def test_positions_are_counted_from_the_first_real_token():
    """Without it a left-padded prompt stands somewhere else; rotary positions forgive that, learned ones do not."""
    policy, seen = PolicyModel(tiny_model(), settings()), []
    policy.causal.base_model.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(inputs["position_ids"].tolist()), with_kwargs=True
    )
    policy.hidden(Batch.of([Episode([5, 6], [7], True), Episode([8], [9, 2], True)], "cpu"))
    assert seen == [[[0, 1, 2], [0, 0, 1]]]  # the last token predicts nothing and is not read


def test_padding_does_not_change_logprobs():
    policy = moved(PolicyModel(tiny_model(), settings()))
    with torch.no_grad():
        together = policy.logprobs(Batch.of(EPISODES, "cpu"))
        for row, e in zip(together, EPISODES, strict=True):
            torch.testing.assert_close(
                row[: len(e.completion)], policy.logprobs(Batch.of([e], "cpu"))[0], rtol=1e-4, atol=1e-4
            )


def test_logprobs_are_zero_on_padding():
    policy = PolicyModel(tiny_model(), settings())
    batch = Batch.of(EPISODES, "cpu")
    with torch.no_grad():
        assert not policy.logprobs(batch)[batch.mask == 0].any()


def test_a_batch_pads_prompts_left_and_completions_right():
    batch = Batch.of([Episode([5, 6], [7], True), Episode([8], [9, 2], True)], "cpu")
    assert batch.ids.tolist() == [[5, 6, 7], [0, 8, 9]]  # a last token that stands where others go on is not looked at
    assert batch.attention.tolist() == [[1, 1, 0], [0, 1, 1]]
    assert batch.completion.tolist() == [[7, 0], [9, 2]] and batch.mask.tolist() == [[1, 0], [1, 1]]


SIBLINGS = [
    Episode(prompt, completion, True)
    for prompt, completions in (
        ([5, 6, 7, 8], ([20, 21, 22, 2], [30, 2], [40, 41, 42])),
        ([9, 10], ([50], [60, 61], [70, 71, 72, 73])),
    )
    for completion in completions
]


def test_a_prompt_is_read_once_for_the_replies_to_it_in_a_row():
    batch = Batch.of(SIBLINGS, "cpu")
    assert batch.ids.tolist() == [
        [5, 6, 7, 8, 20, 21, 22, 30, 2, 0, 40, 41, 42],
        [0, 0, 9, 10, 50, 0, 0, 60, 61, 0, 70, 71, 72],
    ]
    assert batch.positions.tolist() == [[0, 1, 2, 3] + [4, 5, 6] * 3, [0, 0, 0, 1] + [2, 3, 4] * 3]


def test_replies_that_share_a_prompt_do_not_see_each_other():
    """Each position's view, by hand: the real prompt before it, and its own reply so far."""
    mask = Batch.of(SIBLINGS, "cpu").attention
    visible = (mask == 0).squeeze(1)
    assert visible.shape == (2, 13, 13)
    assert visible[0, 8].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 7] and visible[0, 11].nonzero()[:, 0].tolist() == [
        0,
        1,
        2,
        3,
        10,
        11,
    ]
    assert visible[1, 12].nonzero()[:, 0].tolist() == [2, 3, 10, 11, 12] and visible[1, 3].nonzero()[:, 0].tolist() == [
        2,
        3,
    ]


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "grouped"])
def test_shared_prompts_change_neither_logprobs_nor_gradients(implementation):
    policy = moved(PolicyModel(tiny_model(), settings()))
    policy.causal.set_attn_implementation(implementation)
    found = []
    for shared in (True, False):
        batch = Batch.of(SIBLINGS, "cpu", shared)
        logprobs = policy.logprobs(batch)
        weight = torch.linspace(-1, 1, batch.mask.numel()).view_as(batch.mask)
        found.append([logprobs, *torch.autograd.grad((weight * logprobs).sum(), list(policy.parameters.values()))])
    assert len(found[0]) == 1 + len(policy.parameters)
    for together, alone in zip(*found, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["mistral with a window", "qwen3 with windows and biases", "phi3", "gemma3"])
def test_a_reply_beyond_the_sliding_window_has_the_logprobs_that_it_has_alone(name):
    """Replies that shared a reading of their prompt saw all of it: transformers takes a mask for each token as it
    is.
    """
    policy = moved(PolicyModel(MODELS[name](), settings()))
    siblings = [Episode(IDS, completion, True) for completion in ([5, 6, 7, 2], [8, 9, 10, 2])]
    batch = policy.batch(siblings)
    with torch.no_grad():
        found = policy.logprobs(batch)
    for episode, row in zip(siblings, found, strict=True):
        with torch.no_grad():
            logits = policy.causal(torch.tensor([IDS + episode.completion])).logits[0, len(IDS) - 1 : -1]
        said = torch.log_softmax(logits / policy.temperature, -1).gather(-1, torch.tensor(episode.completion)[:, None])
        torch.testing.assert_close(row, said[:, 0], rtol=1e-4, atol=1e-4)
    short = [Episode(IDS[:3], episode.completion, True) for episode in siblings]
    assert (
        len(batch.ids) == 2 and len(policy.batch(short).ids) == 1
    )  # where the window reaches over all, it is read once


@pytest.mark.parametrize(
    ("model", "window"),
    [
        (lambda: made(LlamaConfig(**SIZES, sliding_window=WINDOW)), None),
        (lambda: made(Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=3)), None),
        (MODELS["qwen2 with windows"], WINDOW),
        (lambda: made(MistralConfig(**SIZES, sliding_window=0)), 0),
    ],
    ids=["llama", "qwen2 without", "qwen2", "mistral that sees nothing"],
)
def test_a_window_counts_where_the_masks_of_a_layer_have_it(model, window):
    """A config may name one for no layer: replies then share a reading of their prompt."""
    policy = PolicyModel(model(), settings())
    assert structure.window(policy.causal) == window
    siblings = [Episode(IDS, completion, True) for completion in ([5, 6, 7, 2], [8, 9, 10, 2])]
    assert len(policy.batch(siblings).ids) == (1 if window is None else 2)


def test_replies_attended_one_by_one_are_those_under_the_mask_of_all():
    policy = moved(PolicyModel(tiny_model(), settings()))
    policy.causal.set_attn_implementation("grouped")
    batch = Batch.of(SIBLINGS, "cpu")
    assert batch.branches == attention.Branches(prompt_length=4, count=3)
    found = []
    for one in (batch, replace(batch, branches=None)):
        logprobs = policy.logprobs(one)
        found.append([logprobs, *torch.autograd.grad(logprobs.sum(), list(policy.parameters.values()))])
    for one_by_one, masked in zip(*found, strict=True):
        torch.testing.assert_close(one_by_one, masked, rtol=1e-3, atol=1e-4)


def test_prompts_with_unlike_numbers_of_replies_are_read_once_a_reply():
    assert len(Batch.of(SIBLINGS[:4], "cpu").ids) == 4 and len(Batch.of(SIBLINGS, "cpu").ids) == 2


@pytest.mark.parametrize(
    "replies", [SIBLINGS[:1], SIBLINGS[3:4], [Episode([5, 6], [7], True), Episode([5, 6], [8], True)]]
)
def test_replies_of_one_token_can_be_measured(replies):
    policy = moved(PolicyModel(tiny_model(), settings()))
    with torch.no_grad():
        expected = [policy.logprobs(Batch.of([e], "cpu"))[0, 0] for e in replies]
        torch.testing.assert_close(
            policy.logprobs(Batch.of(replies, "cpu"))[:, 0], torch.stack(expected), rtol=1e-4, atol=1e-5
        )


def test_an_end_token_that_is_also_the_pad_token_counts_as_reply():
    """Masks made by comparing with pad lose the end of every reply where pad is eos."""
    end = tiny_tokenizer().pad_token_id
    assert Batch.of([Episode([5, end], [7, end], True)], "cpu").mask.tolist() == [[1, 1]]


# -- the start


def test_a_fresh_policy_is_the_reference():
    policy = PolicyModel(tiny_model(), settings())
    batch = Batch.of(EPISODES, "cpu")
    with torch.no_grad():
        with policy.reference():
            reference = policy.logprobs(batch)
        torch.testing.assert_close(policy.logprobs(batch), reference, rtol=0, atol=0)
    assert policy.totals(EPISODES, 2).kl == [0.0] * 4


def test_a_policy_that_has_not_moved_is_read_once_and_compares_as_with_its_reference():
    policy, forwards = PolicyModel(tiny_model(), settings()), []
    policy.causal.base_model.register_forward_pre_hook(lambda *_: forwards.append(1))
    batch = Batch.of(EPISODES, "cpu")
    once, twice = policy.compare(batch, policy.has_moved), policy.compare(batch)
    assert len(forwards) == 1 + 2
    for name in ("logprob", "ref_logprob", "entropy", "kl"):
        assert torch.equal(getattr(once, name), getattr(twice, name))
    assert moved(policy).has_moved


def test_between_two_states_lie_both_ends_and_a_line():
    policy = PolicyModel(tiny_model(), settings())
    start = policy.state()
    end = moved(policy).state()
    for share in (0.0, 1.0, 0.25):
        policy.interpolate(start, end, share)
        for name, tensor in policy.state().items():
            torch.testing.assert_close(tensor, (1 - share) * start[name] + share * end[name])
    policy.interpolate(start, end, 0.0)
    assert all(torch.equal(start[name], tensor) for name, tensor in policy.state().items())


def test_the_kl_from_a_start_is_that_to_the_base_where_the_start_is_the_base_and_leaves_the_policy():
    policy = PolicyModel(tiny_model(), settings())
    base = policy.state()
    before = moved(policy).state()
    totals = policy.totals(EPISODES, 2)
    k1 = sum(a - b for a, b in zip(totals.logprob, totals.ref_logprob, strict=True)) / 4
    assert policy.kl_from(base, EPISODES, totals.logprob, 2) == pytest.approx(k1, abs=1e-4)
    assert abs(k1) > 1e-3
    assert policy.kl_from(before, EPISODES, totals.logprob, 2) == pytest.approx(0, abs=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.state().items())
    wrong = {name: tensor[:1] for name, tensor in base.items()}
    with pytest.raises(adapter_reading.BadAdapter):
        policy.kl_from(wrong, EPISODES, totals.logprob, 2)
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.state().items())


def test_values_start_at_zero():
    policy = PolicyModel(tiny_model(), settings())
    assert not policy.values(policy.hidden(Batch.of(EPISODES, "cpu"))).any()


def test_only_the_lora_can_be_trained():
    policy = PolicyModel(tiny_model(), settings())
    trainable = [n for n, p in policy.peft.named_parameters() if p.requires_grad]
    assert len(trainable) == len(policy.parameters) == 4 * 7 * 2  # blocks, linear layers, A and B
    assert all("lora_" in n for n in trainable)


def test_no_dropout_is_active():
    """Dropout in one of two forwards makes the first ratio something else than 1."""
    policy = moved(PolicyModel(tiny_model(), settings()))
    batch = Batch.of(EPISODES, "cpu")
    assert torch.equal(policy.logprobs(batch), policy.logprobs(batch))


def test_the_policys_start_depends_on_the_seed_alone():
    torch.manual_seed(99)
    first = PolicyModel(tiny_model(), settings(seed=3)).state()
    second = PolicyModel(tiny_model(), settings(seed=3)).state()
    assert all(torch.equal(first[k], second[k]) for k in first)
