"""The warm start on demonstrations."""

import copy

import pytest
import torch

from tests.test_policy import settings
from tests.tiny import tiny_model
from training import sft_train
from training.policy import Batch, PolicyModel
from training.rollout import Episode

DEMONSTRATIONS = [Episode([5, 6, 7], [20, 21, 22, 2], True), Episode([30, 31], [50, 51, 52, 53, 2], True)]


def nll(policy):
    batch = Batch.of(DEMONSTRATIONS, "cpu")
    with torch.no_grad():
        return -(policy.logprobs(batch).sum() / batch.mask.sum()).item()


def test_sft_lowers_the_loss_of_the_demonstrations():
    s = settings(sft={"epochs": 10, "lr": 5e-3}, chat={"temperature": 1.0})
    policy, losses = PolicyModel(tiny_model(), s), []
    before = nll(policy)
    last = sft_train.train(policy, DEMONSTRATIONS, s, lambda step, steps, loss: losses.append((step, steps, loss)))
    assert losses[0][2] == pytest.approx(before, abs=1e-4)  # the loss is over completion tokens alone, at temperature 1
    assert last < before - 0.5 and nll(policy) < before - 0.5
    assert [x[:2] for x in losses] == [(i + 1, 10) for i in range(10)]


def test_sft_returns_the_mean_loss_of_its_last_epoch():
    s, losses = settings(sft={"epochs": 2}, ppo={"microbatch": 1}), []
    last = sft_train.train(
        PolicyModel(tiny_model(), s), DEMONSTRATIONS, s, lambda step, steps, loss: losses.append(loss)
    )
    assert len(losses) == 4 and last == pytest.approx((losses[2] + losses[3]) / 2)


def test_sft_of_no_epochs_changes_nothing():
    s = settings(sft={"epochs": 0})
    policy = PolicyModel(tiny_model(), s)
    before = copy.deepcopy(policy.state())
    assert sft_train.train(policy, DEMONSTRATIONS, s) is None
    assert all(torch.equal(before[k], v) for k, v in policy.state().items())


def test_of_demonstrations_with_prompts_too_long_for_training_the_prompt_is_cut():
    rows = [{"prompt": [1, 2, 3], "after": "ab"}, {"prompt": [1, 2, 3, 4], "after": "ab"}]
    found = sft_train.examples(rows, lambda text: [ord(c) for c in text], lambda prompt: prompt[-3:])
    assert found == [Episode([1, 2, 3], [97, 98], True), Episode([2, 3, 4], [97, 98], True)]
