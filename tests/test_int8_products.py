"""Training's products in int8, against the same rounded weights in fp32 or fp64."""

import logging

import pytest
import torch

from playground.decoding.number_formats import Int8Weight
from playground.models import structure
from tests.test_policy import END, EPISODES, SCORES, moved, settings
from tests.tiny import tiny_model
from training import int8_kernel, int8_products, ppo, ppo_math, selftest
from training.int8_products import RoundedHead, RoundedWeight
from training.policy import PolicyModel

SIZES = [(32, 64), (96, 32), (64, 1536)]  # outputs, inputs


def rounded(weight):
    """What a weight stands for once it is rounded, in fp32."""
    packed = Int8Weight(weight)
    return packed.weight.float() * packed.scale.float()[:, None]


def rounded_model():
    """The tiny model with rounded weights in its blocks and its head, which has embeddings of its own then."""
    model = tiny_model()
    output = structure.output_embeddings(model)
    whole = RoundedHead(output.weight, None).of_tokens(torch.arange(len(output.weight)))
    output.weight = torch.nn.Parameter(whole, requires_grad=False)
    with torch.no_grad():
        for layer in structure.blocks(model).modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.copy_(rounded(layer.weight))
    return model


def policies():
    """One that multiplies in int8, and one in fp32 with the same rounded weights; with the same LoRA."""
    return (
        moved(PolicyModel(tiny_model(), settings(ppo={"products": "int8"}))),
        moved(PolicyModel(rounded_model(), settings(ppo={"products": "own"}))),
    )


# -- the product


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
@pytest.mark.parametrize("rows", [1, int8_kernel.ROWS - 1, int8_kernel.ROWS + 1, int8_kernel.BLOCK + 7])
def test_products_are_those_of_the_rounded_weight_both_ways(outputs, inputs, rows):
    source = torch.Generator().manual_seed(0)
    weight, x, gradient = (
        torch.randn(*shape, generator=source) for shape in ((outputs, inputs), (rows, inputs), (rows, outputs))
    )
    product, exact = RoundedWeight(weight, torch.arange(outputs).float()), rounded(weight).double()
    there = x.double() @ exact.T
    back = gradient.double() @ exact
    assert (product.times(x) - there - torch.arange(outputs)).abs().max() < 3e-4 * there.abs().max()
    assert (product.back(gradient) - back).abs().max() < 3e-4 * back.abs().max()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_is_the_same_to_the_last_bit_whatever_is_beside_it(threads):
    product, x = RoundedWeight(torch.randn(96, 64)), torch.randn(int8_kernel.BLOCK + 5, 64)
    alone = torch.cat([product.times(row[None]) for row in x])
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(product.times(x), alone)
    finally:
        torch.set_num_threads(threads_before)


def test_no_rows_are_no_products():
    assert RoundedWeight(torch.randn(32, 64)).times(torch.zeros(0, 64)).shape == (0, 32)


def test_a_column_view_is_read_as_it_looks():
    product, x = RoundedWeight(torch.randn(32, 64)), torch.randn(64, 5)
    assert torch.equal(product.times(x.T), product.times(x.T.contiguous()))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so_and_in_its_own_row(value):
    product, x = RoundedWeight(torch.randn(32, 64)), torch.randn(7, 64)
    expected = product.times(x)
    x[3, 5] = value
    found = product.times(x)
    assert not found[3].isfinite().any()
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(found[others], expected[others])


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-20, 1e20, 1e30])
def test_rows_of_any_size_keep_their_digits(scale):
    weight, x = torch.randn(32, 64), torch.randn(3, 64)
    found, expected = RoundedWeight(weight).times(scale * x), scale * (x @ rounded(weight).T)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3 * scale)


@pytest.mark.parametrize("shape", [(32, 65), (33, 64), (40, 64), (64, 40)])
def test_weights_that_fill_no_whole_tiles_do_not_fit(shape):
    assert (
        not RoundedWeight.fits(torch.zeros(shape)) or int8_kernel.OUTPUTS < 32 and shape[0] % 16 == shape[1] % 16 == 0
    )
    assert not RoundedWeight.fits(torch.zeros(64, 64, dtype=torch.bfloat16))


# -- the head


@pytest.mark.parametrize("bias", [None, "bias"])
def test_a_head_of_several_blocks_has_the_log_probabilities_and_gradients_of_its_rounded_weight(bias):
    torch.manual_seed(0)
    words, n = 2 * int8_products.WORDS + 64, 50
    hidden, tokens = torch.randn(n, 32, requires_grad=True), torch.randint(words, (n,))
    weight, shift = torch.randn(words, 32) / 4, torch.randn(words) if bias else None
    found = ppo_math.head_logprobs(hidden, RoundedHead(weight, shift), tokens, 0.7)
    expected = ppo_math.head_logprobs(hidden, ppo_math.Head(rounded(weight), shift), tokens, 0.7)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    slopes = [torch.autograd.grad(logprobs.sum(), hidden)[0] for logprobs in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-2, atol=5e-3)
    compared = ppo_math.head_comparison(hidden, 0 * hidden, RoundedHead(weight, shift), tokens, 0.7)
    assert torch.equal(compared[0], found)  # bit for bit: the first ratio is 1


# -- the policy


def test_a_policy_has_the_log_probabilities_and_gradients_of_its_rounded_weights():
    found = []
    for policy in policies():
        logprobs = policy.logprobs(policy.batch(EPISODES))
        (SCORES[:, None] * logprobs).sum().backward()
        found.append((logprobs.detach(), {name: p.grad for name, p in policy.parameters.items()}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=3e-3)
    for name, gradient in found[0][1].items():
        expected = found[1][1][name]
        assert (gradient - expected).norm() < 5e-3 * expected.norm(), name


def test_its_reference_is_rounded_too_so_that_a_policy_that_has_not_moved_has_no_kl():
    policy = PolicyModel(tiny_model(), settings(ppo={"products": "int8"}))
    comparison = policy.compare(policy.batch(EPISODES), moved=True)
    assert torch.equal(comparison.logprob, comparison.ref_logprob)
    assert policy.lora_layers[0].frozen is not None


def test_the_selftest_and_ppo_run_in_int8():
    chosen = settings(ppo={"products": "int8"})
    policy = PolicyModel(tiny_model(), chosen)
    selftest.check_policy(policy, chosen)
    trainer = ppo.Trainer(policy, chosen)
    prompts = [[5, 6, 7], [8, 9], [10], [11, 12, 13, 14]]
    ppo.train_ppo(trainer, lambda n, rng: prompts, lambda episodes: torch.randn(len(episodes)), END)
    assert trainer.iteration == 3 and policy.has_moved


# -- the choice


def multiplies_in_int8(policy):
    rounded_layers = {layer.frozen is not None for layer in policy.lora_layers}
    rounded_layers.add(isinstance(policy.head, RoundedHead))
    assert len(rounded_layers) == 1
    return rounded_layers.pop()


@pytest.mark.parametrize(
    ("products", "large", "faster", "expected"),
    [
        ("int8", False, False, True),
        ("own", True, True, False),
        ("auto", False, True, False),  # a small model's rounds are over before anything is compiled
        ("auto", True, True, True),
        ("auto", True, False, False),
    ],
)
def test_weights_are_rounded_where_that_is_wanted_or_saves_time(products, large, faster, expected, monkeypatch):
    monkeypatch.setattr(int8_products, "LARGE", 0 if large else 10**9)
    monkeypatch.setattr(int8_products, "_are_faster", lambda: faster)
    assert multiplies_in_int8(PolicyModel(tiny_model(), settings(ppo={"products": products}))) == expected


def test_a_trunk_in_bf16_keeps_its_format():
    assert not multiplies_in_int8(PolicyModel(tiny_model().bfloat16(), settings(ppo={"products": "int8"})))


def test_a_model_that_says_something_else_in_int8_is_trained_in_fp32(monkeypatch, caplog):
    policy = PolicyModel(tiny_model(), settings(ppo={"products": "int8"}))
    monkeypatch.setattr(int8_products, "MOST_KL", 1.0)
    int8_products.check(policy, EPISODES)
    assert multiplies_in_int8(policy) and not caplog.records
    monkeypatch.setattr(int8_products, "MOST_KL", 1e-9)
    with caplog.at_level(logging.WARNING):
        int8_products.check(policy, EPISODES)
    assert not multiplies_in_int8(policy)
    assert "training multiplies in fp32" in caplog.text
    int8_products.check(policy, EPISODES)  # which is not rounded
    assert len(caplog.records) == 1


def test_it_says_why_there_are_no_int8_products(monkeypatch, caplog):
    def missing():
        raise ImportError("no numba")

    monkeypatch.setattr(int8_products, "LARGE", 0)
    monkeypatch.setattr(int8_products, "_are_faster", missing)
    with caplog.at_level(logging.WARNING):
        assert not multiplies_in_int8(PolicyModel(tiny_model(), settings(ppo={"products": "auto"})))
    assert "int8 products cannot be used here: ImportError: no numba" in caplog.text


def test_which_one_is_faster_is_measured():
    assert int8_products._are_faster() in (True, False)
