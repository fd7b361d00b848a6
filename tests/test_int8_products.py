"""Training's products in int8, against the same rounded weights in fp32 or fp64."""

import logging
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from playground.decoding import tuning
from playground.decoding.number_formats import Int8Weight
from playground.models import adapters, lora, structure
from tests.test_lean_layers import biased_model
from tests.test_policy import END, EPISODES, SCORES, moved, settings
from tests.tiny import tiny_model
from training import int8_kernel, ppo, ppo_math, rounding, selftest, selftest_files
from training.int8_products import RoundedHead, RoundedWeight
from training.policy import PolicyModel

ROOT = Path(__file__).parent.parent
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
        moved(PolicyModel(tiny_model(), settings(ppo={"multiply_in": "int8"}))),
        moved(PolicyModel(rounded_model(), settings(ppo={"multiply_in": "trunk"}))),
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


TILE = int8_kernel.OUTPUTS


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        ((TILE, TILE), True),
        ((3 * TILE, 5 * TILE), True),
        ((TILE, TILE + TILE // 2), False),
        ((TILE // 2, TILE), False),
        ((TILE + 1, TILE), False),
    ],
)
def test_weights_fit_where_they_fill_whole_tiles_both_ways(shape, fits):
    assert RoundedWeight.fits(torch.zeros(shape)) == fits
    assert not RoundedWeight.fits(torch.zeros(shape, dtype=torch.bfloat16))


def test_many_inputs_leave_fewer_levels_and_sums_stay_whole():
    """All products of the same sign: the sum is as large as it can be."""
    inputs = 256 * TILE
    product = RoundedWeight(torch.ones(TILE, inputs))
    found = product.times(torch.ones(2, inputs))
    torch.testing.assert_close(found, torch.full((2, TILE), float(inputs)), rtol=5e-3, atol=0)
    heavy = torch.randn(3, inputs) / (torch.rand(3, inputs) + 1e-3)
    weight = torch.randn(TILE, inputs)
    exact = heavy.double() @ rounded(weight).double().T
    assert (RoundedWeight(weight).times(heavy) - exact).norm() < 1e-2 * exact.norm()


def test_a_buffer_of_another_shape_is_refused_before_anything_is_written():
    product = RoundedWeight(torch.randn(TILE, 2 * TILE))
    for x, y in ((torch.zeros(3, TILE), None), (torch.zeros(3, 2 * TILE), torch.zeros(3, TILE + 1))):
        with pytest.raises(AssertionError):
            product.times(x, y)


# -- the head


@pytest.mark.parametrize("spread", [0.1, 1.5])  # nearly even, and peaked
@pytest.mark.parametrize("bias", [None, "bias"])
def test_a_head_of_several_blocks_has_the_log_probabilities_and_gradients_of_its_rounded_weight(bias, spread):
    torch.manual_seed(0)
    words, n = 2 * ppo_math.WORDS + 64, 50
    hidden, tokens = torch.randn(n, 32, requires_grad=True), torch.randint(words, (n,))
    weight, shift = torch.randn(words, 32) * spread, torch.randn(words) if bias else None
    found = ppo_math.head_logprobs(hidden, RoundedHead(weight, shift), tokens, 0.7)
    expected = ppo_math.head_logprobs(hidden, ppo_math.Head(rounded(weight), shift), tokens, 0.7)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    slope, exact = (torch.autograd.grad(logprobs.sum(), hidden)[0] for logprobs in (found, expected))
    assert (slope - exact).norm() < 2e-3 * exact.norm()
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
    policy = PolicyModel(tiny_model(), settings(ppo={"multiply_in": "int8"}))
    comparison = policy.compare(policy.batch(EPISODES), moved=True)
    assert torch.equal(comparison.logprob, comparison.ref_logprob)
    assert policy.multiplies_in == torch.int8


def test_layers_with_a_bias_have_it():
    found = []
    for wanted in ("int8", "trunk"):
        torch.manual_seed(0)
        model = biased_model(hidden_size=64, intermediate_size=128, initializer_range=0.1)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
        policy = moved(PolicyModel(model, settings(ppo={"multiply_in": wanted})))
        assert policy.multiplies_in == (torch.int8 if wanted == "int8" else torch.float32)
        found.append(policy.logprobs(policy.batch(EPISODES)).detach())
    torch.testing.assert_close(*found, rtol=0.02, atol=0.1)
    assert not torch.equal(*found)


def test_who_takes_the_policys_model_has_it_as_it_is():
    """The version that is published is compared with it, and the chat's forward, and rollouts run on it."""
    rounds, own = (moved(PolicyModel(tiny_model(), settings(ppo={"multiply_in": name}))) for name in ("int8", "trunk"))
    batch = rounds.batch(EPISODES)
    assert not torch.equal(rounds.hidden(batch), own.hidden(batch))
    ids = torch.tensor([EPISODES[1].prompt])
    assert torch.equal(rounds.causal(ids).logits, own.causal(ids).logits)
    with rounds.reference(), own.reference():
        assert torch.equal(rounds.causal(ids).logits, own.causal(ids).logits)


def test_a_version_that_was_trained_so_is_published(tmp_path):
    chosen = settings(ppo={"multiply_in": "int8"}, data_dir=tmp_path)
    bare = tiny_model()
    policy = moved(PolicyModel(lora.tied_copy(bare), chosen))
    base = {"model": "tiny", "hash": "0" * 64}
    for alpha in (8, 16):
        folder, sha256 = adapters.write(
            tmp_path, alpha, policy.state(), rank=4, alpha=alpha, targets=policy.targets, base=base, parent=0,
            round_id=1, scores={},
        )  # fmt: skip
        check = partial(
            selftest_files.check_adapter, policy, chosen, folder, bare, base_hash="0" * 64, expected_sha256=sha256
        )
        if alpha == 8:
            check()
        else:
            with pytest.raises(selftest.SelfTestFailed, match="rank, alpha or targets"):
                check()


def test_the_selftest_and_ppo_run_in_int8():
    chosen = settings(ppo={"multiply_in": "int8"})
    policy = PolicyModel(tiny_model(), chosen)
    selftest.check_policy(policy, chosen)
    trainer = ppo.Trainer(policy, chosen)
    prompts = [[5, 6, 7], [8, 9], [10], [11, 12, 13, 14]]
    ppo.train_ppo(trainer, lambda n, rng: prompts, lambda episodes: torch.randn(len(episodes)), END)
    assert trainer.iteration == 3 and policy.has_moved


# -- the choice


@pytest.mark.parametrize(
    ("wanted", "large", "faster", "expected"),
    [
        ("int8", False, False, torch.int8),
        ("trunk", True, True, torch.float32),
        ("auto", False, True, torch.float32),  # a small model's rounds are over before anything is compiled
        ("auto", True, True, torch.int8),
        ("auto", True, False, torch.float32),
    ],
)
def test_weights_are_rounded_where_that_is_wanted_or_saves_time(wanted, large, faster, expected, monkeypatch):
    monkeypatch.setattr(rounding, "LARGE", 0 if large else 10**9)
    monkeypatch.setattr(rounding, "_is_faster", lambda: faster)
    assert PolicyModel(tiny_model(), settings(ppo={"multiply_in": wanted})).multiplies_in == expected


def test_a_trunk_in_bf16_keeps_its_format():
    policy = PolicyModel(tiny_model().bfloat16(), settings(ppo={"multiply_in": "int8"}))
    assert policy.multiplies_in == torch.bfloat16


def test_with_gradient_checkpointing_the_trunk_keeps_its_format():
    policy = PolicyModel(tiny_model(), settings(ppo={"multiply_in": "int8", "gradient_checkpointing": True}))
    assert policy.multiplies_in == torch.float32


def test_layers_that_are_not_plain_keep_their_format():
    policy = PolicyModel(GPT2LMHeadModel(GPT2Config(**GPT2)).eval(), settings(ppo={"multiply_in": "int8"}))
    assert policy.multiplies_in == torch.float32


GPT2 = {"vocab_size": 480, "n_embd": 64, "n_layer": 2, "n_head": 2}


@pytest.mark.parametrize(("wanted", "limit"), [("auto", "MAX_KL"), ("int8", "MAX_KL_CONFIGURED")])
def test_a_model_that_says_something_else_in_int8_is_trained_in_fp32(wanted, limit, monkeypatch, caplog):
    monkeypatch.setattr(rounding, "LARGE", 0)
    monkeypatch.setattr(rounding, "_is_faster", lambda: True)
    chosen = settings(ppo={"multiply_in": wanted})
    policy = PolicyModel(tiny_model(), chosen)
    monkeypatch.setattr(tuning, "MAX_KL", 1e-9)
    monkeypatch.setattr(tuning, "MAX_KL_CONFIGURED", 1e-9)
    with caplog.at_level(logging.WARNING):
        with monkeypatch.context() as patch:
            patch.setattr(tuning, limit, 1.0)
            rounding.check(policy, EPISODES, chosen)
        assert policy.multiplies_in == torch.int8 and not caplog.records
        rounding.check(policy, EPISODES, chosen)
    assert policy.multiplies_in == torch.float32
    assert "training multiplies in fp32" in caplog.text
    rounding.check(policy, EPISODES, chosen)  # which is not rounded
    assert len(caplog.records) == 1


def test_a_model_whose_padding_shows_in_int8_is_trained_in_fp32(monkeypatch, caplog):
    chosen = settings(ppo={"multiply_in": "int8"})
    policy = PolicyModel(tiny_model(), chosen)
    monkeypatch.setitem(selftest.PADDING, torch.int8, 1e-12)
    with caplog.at_level(logging.WARNING):
        selftest.check_policy(policy, chosen)
    assert policy.multiplies_in == torch.float32
    assert "in int8 padding changes log-probabilities" in caplog.text


@pytest.mark.parametrize("missing", ["numba", "playground.decoding.openmp"])
def test_without_numba_or_openmp_the_trunk_multiplies_and_the_log_says_why(missing, tmp_path):
    program = f"""
import logging, sys
sys.modules[{missing!r}] = None
logging.basicConfig()
from tests.test_policy import PolicyModel, settings, tiny_model
print(PolicyModel(tiny_model(), settings(ppo={{"multiply_in": "int8"}})).multiplies_in)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["torch.float32"], done.stderr
    assert "training cannot multiply in int8 here" in done.stderr


def test_which_one_is_faster_is_measured(monkeypatch):
    monkeypatch.setattr(rounding, "FASTER", 0.0)
    assert rounding._is_faster()
    monkeypatch.setattr(rounding, "FASTER", 1e9)
    assert not rounding._is_faster()
