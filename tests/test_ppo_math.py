"""Every function of PPO's mathematics against numbers worked out by hand."""

import math

import pytest
import torch

from training import ppo_math


def near(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(torch.as_tensor(actual), torch.tensor(expected), rtol=0, atol=tolerance)


# a reply of two tokens and one of three; 99 and 77 are garbage on padding
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])


# -- means and whitening


def test_masked_mean_leaves_padding_out():
    near(ppo_math.masked_mean(torch.tensor([[1.0, 2.0, 99.0], [3.0, 4.0, 5.0]]), MASK), 3.0)  # (1+2+3+4+5)/5


def test_masked_whiten_by_hand():
    # mean (1+3+5+5+1)/5 = 3, variance (4+0+4+4+4)/5 = 3.2, deviation 1.7888544; 2/1.7888544 = 1.1180340
    whitened = ppo_math.masked_whiten(torch.tensor([[1.0, 3.0, 99.0], [5.0, 5.0, 1.0]]), MASK)
    near(whitened, [[-1.118034, 0.0, 0.0], [1.118034, 1.118034, -1.118034]])


def test_masked_whiten_ignores_what_stands_on_padding():
    """A whitening over padded entries too scales advantages by how much padding a batch happens to have."""
    one = ppo_math.masked_whiten(torch.tensor([[1.0, 3.0, 99.0], [5.0, 5.0, 1.0]]), MASK)
    other = ppo_math.masked_whiten(torch.tensor([[1.0, 3.0, -7.0], [5.0, 5.0, 1.0]]), MASK)
    assert torch.equal(one, other)


def test_masked_whiten_subtracts_the_mean():
    """One public library's whiten(shift_mean=True) adds the mean back."""
    whitened = ppo_math.masked_whiten(torch.tensor([[11.0, 13.0, 0.0], [15.0, 15.0, 11.0]]), MASK)
    near(whitened.sum(), 0.0)


def test_masked_whiten_of_equal_entries_is_zero_and_finite():
    near(ppo_math.masked_whiten(torch.full((2, 3), 4.0), MASK), [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


# -- log-probabilities and entropy


def head(*rows, bias=None, dtype=torch.float32):
    """A head whose logits are the hidden state itself times each row."""
    return ppo_math.Head(torch.tensor(rows, dtype=dtype), None if bias is None else torch.tensor(bias, dtype=dtype))


def test_log_probabilities_and_entropy_by_hand():
    # softmax(0, ln 3) = (1/4, 3/4); ln 1/4 = -1.3862944, ln 3/4 = -0.2876821; entropy 1/4·ln 4 + 3/4·ln 4/3 = 0.5623351
    args = head([0.0], [math.log(3)]), torch.tensor([[0, 1]]), 1.0
    hidden = torch.tensor([[[1.0], [1.0]]])
    near(ppo_math.head_logprobs(hidden, *args), [[-1.3862944, -0.2876821]])
    logprobs, ref_logprobs, entropy, _ = ppo_math.head_comparison(hidden, 0 * hidden, *args)
    near(logprobs, [[-1.3862944, -0.2876821]])
    near(ref_logprobs, [[-0.6931472, -0.6931472]])
    near(entropy, [[0.5623351, 0.5623351]])


def test_a_bias_counts_among_the_logits():
    near(
        ppo_math.head_logprobs(torch.zeros(1, 1), head([5.0], [5.0], bias=[0.0, math.log(3)]), torch.tensor([0]), 1.0),
        [-1.3862944],
    )


def test_temperature_divides_the_logits():
    # ln 9 / 2 = ln 3, so temperature 2 makes (0, ln 9) the (1/4, 3/4) of above
    args = head([0.0], [math.log(9)]), torch.tensor([1]), 2.0
    near(ppo_math.head_logprobs(torch.ones(1, 1), *args), [-0.2876821])
    logprobs, _, entropy, _ = ppo_math.head_comparison(torch.ones(1, 1), torch.ones(1, 1), *args)
    near(logprobs, [-0.2876821])
    near(entropy, [0.5623351])


def test_log_probabilities_are_fp32_from_bf16():
    """Log-softmax in bf16 has three digits: ratios and KL drown in its rounding."""
    logprobs = ppo_math.head_logprobs(
        torch.zeros(1, 1, dtype=torch.bfloat16), head([1.0], [2.0], [3.0], dtype=torch.bfloat16), torch.tensor([0]), 0.7
    )
    assert logprobs.dtype == torch.float32
    near(logprobs, [-1.0986123], 1e-6)  # ln 1/3


@pytest.mark.parametrize("words", [16, 25, 2048])
@pytest.mark.parametrize("bias", [None, "bias"])
def test_log_probabilities_entropy_and_gradient_are_autograds(bias, words, monkeypatch):
    """More rows and words than are multiplied at once, and not a multiple of them."""
    monkeypatch.setattr(ppo_math, "HEAD_ROWS", 96)
    monkeypatch.setattr(ppo_math, "WORDS", words)
    torch.manual_seed(0)
    n = 2 * ppo_math.HEAD_ROWS + 5
    hidden, tokens, linear = (
        torch.randn(n, 16, requires_grad=True),
        torch.randint(50, (n,)),
        torch.nn.Linear(16, 50, bias=bool(bias)).requires_grad_(False),
    )
    weight = torch.randn(n)
    of_words = ppo_math.Head(linear.weight, linear.bias)
    logprobs = ppo_math.head_logprobs(hidden, of_words, tokens, 0.7)
    (found,) = torch.autograd.grad((weight * logprobs).sum(), hidden)
    whole = torch.log_softmax(linear(hidden) / 0.7, -1)
    (expected,) = torch.autograd.grad((weight * whole[torch.arange(n), tokens]).sum(), hidden)
    torch.testing.assert_close(logprobs, whole[torch.arange(n), tokens], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    other = torch.randn(n, 16)
    ref = torch.log_softmax(linear(other) / 0.7, -1)
    compared = ppo_math.head_comparison(hidden, other, of_words, tokens, 0.7)
    assert torch.equal(compared[0], logprobs)  # bit for bit: the first ratio is 1
    torch.testing.assert_close(compared[1], ref[torch.arange(n), tokens], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compared[2], -(whole.exp() * whole).sum(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compared[3], (whole.exp() * (whole - ref)).sum(-1), rtol=1e-4, atol=1e-5)
    assert not any(x.requires_grad for x in compared)


def test_a_token_of_vanishing_probability_keeps_its_logarithm():
    near(ppo_math.head_logprobs(torch.ones(1, 1), head([0.0], [300.0]), torch.tensor([0]), 1.0), [-300.0])


# -- KL


def test_kl_over_the_vocabulary_by_hand():
    # KL((1/4, 3/4) ‖ (1/2, 1/2)) = ln 2 - 0.5623351 = 0.1308121; of a distribution to itself 0
    found = ppo_math.head_comparison(
        torch.ones(2, 1), torch.tensor([[0.0], [1.0]]), head([0.0], [math.log(3)]), torch.tensor([0, 0]), 1.0
    )
    near(found[3], [0.1308121, 0.0])


def test_kl_k1_is_the_difference_and_may_be_negative():
    near(ppo_math.kl_k1(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])), [[0.5, -1.0]])


def test_kl_k3_by_hand():
    # r = e^(ref − new): e^-0.5 − 1 + 0.5 = 0.1065307; e^1 − 1 − 1 = 0.7182818; equal ones give 0
    near(
        ppo_math.kl_k3(torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-1.5, -1.0, -3.0]])),
        [[0.1065307, 0.7182818, 0.0]],
    )


def test_kl_k3_is_never_negative():
    torch.manual_seed(0)
    assert (ppo_math.kl_k3(torch.randn(50, 20), torch.randn(50, 20)) >= -1e-6).all()


# -- rewards


def test_the_score_is_put_on_the_last_real_token_not_on_padding():
    """TRL #3750: the score stood on the first pad, where no advantage ever sees it."""
    rewards = ppo_math.token_rewards(torch.tensor([2.0, -1.0]), torch.zeros(2, 3), MASK, 0.5)
    near(rewards, [[0.0, 2.0, 0.0], [0.0, 0.0, -1.0]])


def test_kl_is_paid_on_every_real_token_beside_the_score():
    kl = torch.tensor([[1.0, -2.0, 99.0], [0.0, 4.0, 6.0]])
    rewards = ppo_math.token_rewards(torch.tensor([2.0, -1.0]), kl, MASK, 0.5)
    near(rewards, [[-0.5, 3.0, 0.0], [0.0, -2.0, -4.0]])  # 2 − 0.5·(−2) = 3; −1 − 0.5·6 = −4


# -- advantages

REWARDS = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]])
VALUES = torch.tensor([[0.5, 1.0, 0.0], [1.0, 2.0, 1.0]])
# deltas: first row 1+1−0.5 = 1.5, 2−1 = 1; second 0+2−1 = 1, −1+1−2 = −2, 3−1 = 2
# lam 0.95: first 1.5+0.95·1 = 2.45, 1; second 1+0.95·(−0.1) = 0.905, −2+0.95·2 = −0.1, 2
ADVANTAGES = [[2.45, 1.0, 0.0], [0.905, -0.1, 2.0]]
RETURNS = [[2.95, 2.0, 0.0], [1.905, 1.9, 3.0]]  # advantage + value


def test_a_score_is_measured_against_its_siblings():
    # 6 − (0 + 3)/2, 0 − (6 + 3)/2, 3 − (6 + 0)/2; then 1, whose siblings are as good
    near(ppo_math.leave_one_out(torch.tensor([6.0, 0.0, 3.0, 1.0, 1.0, 1.0]), 3), [4.5, -4.5, 0.0, 0.0, 0.0, 0.0])
    near(ppo_math.leave_one_out(torch.tensor([6.0, 0.0]), 1), [6.0, 0.0])


def test_gae_by_hand():
    advantages, returns = ppo_math.gae(REWARDS, VALUES, MASK, 1.0, 0.95)
    near(advantages, ADVANTAGES)
    near(returns, RETURNS)


def test_gae_discounts_by_gamma():
    # gamma 0.5, lam 1: deltas 1+0.5·1−0.5 = 1 and 2−1 = 1; the first advantage is 1 + 0.5·1
    advantages, _ = ppo_math.gae(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 1.0]]), torch.ones(1, 2), 0.5, 1.0)
    near(advantages, [[1.5, 1.0]])


def test_gae_with_lambda_one_is_return_minus_value():
    advantages, returns = ppo_math.gae(REWARDS, VALUES, MASK, 1.0, 1.0)
    near(returns, [[3.0, 2.0, 0.0], [2.0, 2.0, 3.0]])  # plain sums of what is still to come
    near(advantages, [[2.5, 1.0, 0.0], [1.0, 0.0, 2.0]])


def test_gae_bootstraps_nothing_past_the_end_of_a_reply():
    """A value read off the padding would count as reward still to come."""
    advantages, _ = ppo_math.gae(
        torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.25, 50.0]]), torch.tensor([[1.0, 1.0, 0.0]]), 1.0, 0.95
    )
    near(advantages, [[0.9625, 0.75, 0.0]])  # 1 − 0.25 = 0.75; 0.25 + 0.95·0.75 = 0.9625


def test_garbage_on_padding_does_not_change_gae():
    rewards, values = REWARDS.clone(), VALUES.clone()
    rewards[0, 2], values[0, 2] = 99.0, 77.0
    advantages, returns = ppo_math.gae(rewards, values, MASK, 1.0, 0.95)
    near(advantages, ADVANTAGES)
    near(returns, RETURNS)


# -- losses


def policy_loss(ratio, advantage):
    loss, fraction = ppo_math.policy_loss(
        torch.tensor([[math.log(ratio)]]), torch.zeros(1, 1), torch.tensor([[advantage]]), torch.ones(1, 1), 0.2
    )
    return loss.item(), fraction.item()


def test_a_good_token_gains_nothing_above_the_clip():
    near(policy_loss(1.5, 2.0), [-2.4, 1.0])  # −2·1.2


def test_a_bad_token_is_punished_in_full_above_the_clip():
    near(policy_loss(1.5, -2.0), [3.0, 0.0])  # max(2·1.5, 2·1.2)


def test_a_good_token_is_pulled_back_in_full_below_the_clip():
    near(policy_loss(0.5, 2.0), [-1.0, 0.0])  # max(−2·0.5, −2·0.8)


def test_a_bad_token_gains_nothing_below_the_clip():
    near(policy_loss(0.5, -2.0), [1.6, 1.0])  # 2·0.8


def test_a_clipped_token_has_no_gradient():
    logprobs = torch.tensor([[math.log(1.5), 0.0]], requires_grad=True)
    ppo_math.policy_loss(logprobs, torch.zeros(1, 2), torch.tensor([[2.0, 2.0]]), torch.ones(1, 2), 0.2)[0].backward()
    near(logprobs.grad, [[0.0, -1.0]])  # −advantage·ratio over two tokens


def test_policy_loss_is_a_token_mean_without_padding():
    # ratios 1.5, 1 | 0.5, 1, 1; advantages 1, 3 | −2, 1, 1: −1.2 − 3 + 1.6 − 1 − 1 = −4.6 over 5 tokens, 2 of them
    # clipped
    logprobs = torch.tensor([[math.log(1.5), 0.0, 3.0], [math.log(0.5), 0.0, 0.0]])
    advantages = torch.tensor([[1.0, 3.0, 99.0], [-2.0, 1.0, 1.0]])
    loss, fraction = ppo_math.policy_loss(logprobs, torch.zeros(2, 3), advantages, MASK, 0.2)
    near([loss.item(), fraction.item()], [-0.92, 0.4])


def value_loss(value, old, target):
    return ppo_math.value_loss(
        torch.tensor([[value]]), torch.tensor([[old]]), torch.tensor([[target]]), torch.ones(1, 1), 0.2
    ).item()


def test_value_loss_takes_the_clipped_error_where_that_is_larger():
    near(value_loss(2.0, 1.0, 2.0), 0.32)  # clipped to 1.2: ½·0.8²; the unclipped error is 0


def test_value_loss_takes_the_unclipped_error_where_that_is_larger():
    near(value_loss(2.0, 1.0, 0.0), 2.0)  # ½·2², the clipped one is ½·1.2²


def test_value_loss_inside_the_clip_is_half_the_squared_error():
    near(value_loss(1.1, 1.0, 2.1), 0.5)


def test_value_loss_is_a_token_mean_without_padding():
    values = torch.tensor([[1.0, 0.0, 99.0], [0.0, 0.0, 2.0]])
    loss = ppo_math.value_loss(values, values.clone(), torch.zeros(2, 3), MASK, 0.2)
    near(loss, 0.5)  # ½·(1 + 0 + 0 + 0 + 4)/5


# -- how it is going

RETURNS_T = torch.tensor([[1.0, 3.0, -50.0], [2.0, 4.0, 5.0]])


def test_explained_variance_of_perfect_values_is_one():
    assert ppo_math.explained_variance(RETURNS_T, RETURNS_T, MASK) == 1


def test_explained_variance_of_a_constant_is_zero():
    near(ppo_math.explained_variance(torch.full((2, 3), 7.0), RETURNS_T, MASK), 0.0)


def test_explained_variance_leaves_padding_out():
    # returns 1 3 | 2 4 5, values 1 3 | 2 4 0: errors 0 0 0 0 5 with variance 25/5 − 1 = 4; returns' variance 11 − 9 = 2
    values = torch.tensor([[1.0, 3.0, 99.0], [2.0, 4.0, 0.0]])
    near(ppo_math.explained_variance(values, RETURNS_T, MASK), -1.0)


def test_beta_rises_where_kl_is_above_target():
    assert ppo_math.adapted_beta(0.1, 6.6, 6.0, 32, 64) == pytest.approx(0.105)  # 0.1·(1 + 0.1·0.5)


def test_beta_falls_where_kl_is_below_target():
    assert ppo_math.adapted_beta(0.1, 5.4, 6.0, 32, 64) == pytest.approx(0.095)


def test_beta_rises_by_no_more_than_its_clip():
    assert ppo_math.adapted_beta(0.1, 600.0, 6.0, 64, 64) == pytest.approx(0.12)


def test_beta_falls_by_no_more_than_its_clip():
    assert ppo_math.adapted_beta(0.1, -3.0, 6.0, 64, 64) == pytest.approx(0.08)


def test_beta_stays_on_target():
    assert ppo_math.adapted_beta(0.1, 6.0, 6.0, 64, 64) == 0.1
