"""The scorer: features that do not depend on their batch, views of them, and a head with its posterior that survives a
reload.
"""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from playground.models import feature_trunk, scorer
from playground.models.feature_trunk import FeatureTrunk
from playground.models.scorer import Head, RewardModel
from playground.settings import Settings
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def trunks(folder):
    """One trunk of each number format."""
    return {q: FeatureTrunk(settings(folder, reward={"quantisation": q})) for q in ("none", "nf4")}


def settings(folder, **changes):
    return Settings(
        model=folder, device="cpu", dtype="float32", threads=2, reward={"quantisation": "none", "layer": 0.67}
    ).with_values(**changes)


# -- the model


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def head(**changes):
    """One head on two features, of which votes have compared the first; penalty 4."""
    only = Head(
        "layers",
        1.0,
        centre=torch.tensor([0.5, 0.0]),
        scale=torch.tensor([2.0, 1.0]),
        weight=torch.tensor([1.0, -2.0]),
        basis=torch.tensor([[1.0], [0.0]]),
        factor=torch.tensor([[0.1]]),
        influence=torch.tensor([[0.03, 0.04]]),
        penalty=4.0,
    )
    return RewardModel(
        [only], [1, 1, 0], [], **{"log_nu": -0.7, "threshold": 0.3, "shift": 1.5, "spread": 2.5, **changes}
    )


def two_heads():
    """That head with three quarters of the score, and one on the length with the rest."""
    model = head()
    length = Head(
        "length",
        0.25,
        centre=torch.zeros(1),
        scale=torch.ones(1),
        weight=torch.tensor([2.0]),
        basis=torch.ones(1, 1),
        factor=torch.tensor([[0.2]]),
        influence=torch.tensor([[0.0, 0.05]]),
        penalty=4.0,
    )
    model.heads = [replace(model.heads[0], share=0.75), length]
    return model


X = torch.tensor([[4.5, 1.0]])  # x = ((4.5 − 0.5)/2, 1) = (2, 1)


def test_raw_and_reward_by_hand():
    torch.testing.assert_close(head().raw(X), torch.tensor([0.0]))  # (2, 1)·(1, −2)
    torch.testing.assert_close(head().reward(X), torch.tensor([-0.6]))  # (0 − 1.5)/2.5


def test_deviation_by_hand_is_the_posteriors_where_votes_speak_and_the_priors_elsewhere():
    torch.testing.assert_close(head().deviation(X), torch.tensor([0.29**0.5]))  # (2·0.1)² + 1²/4


def test_pessimism_takes_deviations_off_the_reward():
    torch.testing.assert_close(head(pessimism=2.0).reward(X), torch.tensor([(-2 * 0.29**0.5 - 1.5) / 2.5]))


def test_drawn_heads_differ_as_the_votes_influence_says():
    features = torch.tensor([[4.5, 1.0], [2.5, 3.0]])  # x = (2, 1) and (1, 3), of which votes compared the first
    drawn = head().draws(features, 40_000, seed=0)
    torch.testing.assert_close(drawn.mean(0), head().raw(features), atol=0.01, rtol=0)
    # 0.03² + 0.04² = 0.0025 along the first, nothing along the second: 0.0025·(2, 1)ᵀ(2, 1)
    torch.testing.assert_close(
        torch.cov(drawn.T), 0.0025 * torch.tensor([[4.0, 2.0], [2.0, 1.0]]), rtol=0.05, atol=1e-5
    )
    assert torch.equal(head().draws(features, 3, seed=1), head().draws(features, 3, seed=1))


def test_posterior_draws_are_in_doubt_where_no_vote_compared():
    """A direction that no vote spoke of had no doubt at all, so that Thompson sampling never asked about it."""
    compared, other = torch.tensor([[4.5, 0.0], [0.5, 0.0]]), torch.tensor([[0.5, 2.0], [0.5, 0.0]])
    gains = [(drawn[:, 0] - drawn[:, 1]).std().item() for drawn in map(many_draws, (compared, other))]
    assert gains == pytest.approx([0.2, 1.0], rel=0.05)  # 2 units of x each; deviations 0.1 and the prior's ½


def many_draws(features):
    return head().posterior_draws(features, 20_000, generator())


def test_posterior_draws_have_the_posteriors_deviation():
    drawn = head().posterior_draws(X, 40_000, generator())
    assert drawn.mean().item() == pytest.approx(0.0, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.29**0.5, rel=0.03)


def test_two_heads_by_hand():
    """x is (2, 1) for one head and 1 for the other: scores 0 and 2, deviations 0.29^½ and 0.2."""
    model = two_heads()
    torch.testing.assert_close(model.raw(X), torch.tensor([0.25 * 2]))
    torch.testing.assert_close(model.deviation(X), torch.tensor([0.75 * 0.29**0.5 + 0.25 * 0.2]))
    # the first vote moves one head by 0.03·2, the second both, by 0.04·2 and 0.05
    variance = (0.75 * 0.06) ** 2 + (0.75 * 0.08 + 0.25 * 0.05) ** 2
    assert model.draws(X, 40_000, seed=0).var().item() == pytest.approx(variance, rel=0.05)


def test_several_heads_survive_a_reload(tmp_path):
    model = two_heads()
    model.save(tmp_path / "reward.safetensors")
    loaded, x = RewardModel.load(tmp_path / "reward.safetensors"), torch.randn(5, 2)
    assert torch.equal(loaded.raw(x), model.raw(x)) and torch.equal(loaded.draws(x, 4, 0), model.draws(x, 4, 0))
    assert [(head.feature_set, head.share) for head in loaded.heads] == [("layers", 0.75), ("length", 0.25)]


def test_a_file_from_when_there_was_one_head_is_still_read(tmp_path):
    """A round that began before an upgrade goes on after it."""
    model = head()
    numbers = {"view": "layers", "penalty": 4.0, "parts": [1, 1, 0], "tokens": [], "pessimism": 0.0}
    numbers |= {"log_nu": -0.7, "threshold": 0.3, "shift": 1.5, "spread": 2.5}
    tensors = {name: getattr(model.heads[0], name) for name in scorer.HEAD_TENSORS}
    save_file(tensors | {"lora/a": torch.ones(2)}, tmp_path / "old.safetensors", {"numbers": json.dumps(numbers)})
    loaded, x = RewardModel.load(tmp_path / "old.safetensors"), torch.randn(5, 2)
    assert torch.equal(loaded.reward(x), model.reward(x)) and list(loaded.lora) == ["a"]
    assert torch.equal(loaded.deviation(x), model.deviation(x))


def test_save_and_load_give_the_same_model(tmp_path):
    """Heads lost on reload made the second round start from noise (TRL #1379, OpenRLHF #1342)."""
    model = head(lora={"layers.0.lora_A.weight": torch.randn(2, 3)}, pessimism=0.5)
    model.save(tmp_path / "reward.safetensors")
    loaded = RewardModel.load(tmp_path / "reward.safetensors")
    x = torch.randn(5, 2)
    assert torch.equal(loaded.reward(x), model.reward(x))
    assert (loaded.log_nu, loaded.threshold, loaded.shift, loaded.spread, loaded.tokens) == (-0.7, 0.3, 1.5, 2.5, [])
    assert torch.equal(loaded.lora["layers.0.lora_A.weight"], model.lora["layers.0.lora_A.weight"])


def test_standardised_rewards_have_mean_zero_and_deviation_one():
    model, x = head(), torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1
    model.standardise(x)
    assert model.reward(x).mean().abs() < 1e-5
    assert model.reward(x).std().item() == pytest.approx(1, abs=1e-5)


def test_standardising_equal_scores_does_not_divide_by_zero():
    model = head()
    model.standardise(torch.ones(4, 2))
    assert model.reward(torch.ones(4, 2)).isfinite().all()


# -- views


def test_views_by_hand():
    # four layers of one, a reply of 50 tokens, and counts of two
    features = torch.tensor([[1.0, 2.0, 3.0, 4.0, torch.log(torch.tensor(50.0)), 8.0, 9.0]])
    blocks = {name: scorer.feature_blocks(features, [1, 1, 1, 1, 1, 2], name) for name in scorer.FEATURE_SETS}
    assert all(torch.equal(last, features[:, 4:5]) for *_, last in blocks.values())
    shown = {name: torch.cat([torch.zeros(1, 0), *others], -1)[0].tolist() for name, (*others, _) in blocks.items()}
    assert shown == {
        "layers": [2, 3, 4],
        "words": pytest.approx([0.5]),
        "meaning": [3, 4],
        "style": [8, 9],
        "length": [],
    }


def test_views_of_one_layer_or_by_name():
    assert scorer.feature_set_names([2, 1, 9]) == ["layers", "words", "style", "length"]
    assert scorer.feature_set_names([2] * 4 + [1, 9]) == ["layers", "words", "style", "length", "meaning"]
    assert scorer.feature_set_names([2] * 4 + [1, 9], "length") == ["length"]
    features = torch.tensor([[3.0, 0.0, 1.0]])  # one layer of one, a reply of one token, and its count
    blocks = {
        name: len(scorer.feature_blocks(features, [1, 1, 1], name)) for name in scorer.feature_set_names([1, 1, 1])
    }
    assert blocks == {"layers": 2, "words": 2, "style": 2, "length": 1}


# -- counts of common tokens


def test_the_tokens_that_most_replies_have_are_counted(monkeypatch):
    replies = [([1], [7, 7, 7, 5]), ([1], [5, 8]), ([1], [8, 9, 5]), ([1], [6])]
    assert scorer.common_tokens(replies) == [5, 8, 6, 7, 9]
    monkeypatch.setattr(scorer, "COMMON_TOKENS", 2)
    assert scorer.common_tokens(replies) == [5, 8]  # one reply repeating itself makes nothing common


def test_counts_follow_the_features_in_logs():
    counted = scorer.with_counts(torch.tensor([[0.5], [0.25]]), [([7], [7, 7, 7, 5]), ([7], [6])], [7, 5])
    torch.testing.assert_close(
        counted, torch.tensor([[0.5, math.log(4), math.log(2)], [0.25, 0.0, 0.0]])
    )  # the prompt's own 7 is not counted


def test_nothing_to_count_leaves_the_features():
    assert torch.equal(scorer.with_counts(torch.ones(2, 3), [([7], [1]), ([7], [])], []), torch.ones(2, 3))


def test_a_reading_counts_what_is_common_among_its_replies():
    reading = scorer.ExtractedFeatures.of(torch.ones(2, 3), [2, 1], [([7], [5]), ([7], [5, 6])])
    assert (reading.parts, reading.tokens, reading.features.shape) == ([2, 1, 2], [5, 6], (2, 5))


# -- features

REPLIES = [([5, 6, 7], [20, 21]), ([8] * 30, list(range(40, 70))), ([9], [11] * 12), ([4, 4, 4, 4], [33])]


@pytest.mark.parametrize("quantisation", ["none", "nf4"])
def test_a_reply_scores_the_same_alone_and_among_longer_ones(trunks, quantisation):
    """Reward scores that depend on padding: transformers #35909, TRL #2778."""
    trunk = trunks[quantisation]
    alone = torch.cat([trunk.batch_features([r]).cpu() for r in REPLIES])
    together = trunk.batch_features(REPLIES)
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


def test_features_come_back_in_the_order_given(folder):
    small = FeatureTrunk(settings(folder, reward={"batch": 2}))
    torch.testing.assert_close(
        small.features(REPLIES), torch.cat([small.features([r]) for r in REPLIES]), rtol=1e-4, atol=1e-4
    )


def test_long_conversations_are_read_a_few_at_a_time(folder, monkeypatch):
    monkeypatch.setattr(feature_trunk, "BATCH_TOKENS", 64)
    trunk, sizes = FeatureTrunk(settings(folder)), []
    whole, together = trunk.batch_features, trunk.features(REPLIES)
    trunk.batch_features = lambda replies: sizes.append(len(replies)) or whole(replies)
    torch.testing.assert_close(trunk.features(REPLIES), together, rtol=1e-4, atol=1e-4)
    assert sizes == [3, 1]  # 5, 5 and 13 tokens; then the one of 60


def test_only_the_replys_tokens_are_pooled(trunks):
    """The mean over prompt and reply would score the question."""
    trunk = trunks["none"]
    prompt, reply = REPLIES[0]
    feature = trunk.features([(prompt, reply)])[0]
    states = trunk._hidden[3][0]  # (5, d), of the forward just made
    torch.testing.assert_close(feature[:-1], (states[3] + states[4]) / 2)


def test_the_prompt_still_changes_how_a_reply_is_read(trunks):
    first, second = trunks["none"].features([([5, 6, 7], [20, 21]), ([9, 9, 9], [20, 21])])
    assert (first - second).abs().max() > 1e-3


def test_features_are_the_hidden_states_after_the_layer_asked_for(trunks):
    """Four blocks, depth 0.67: what transformers calls hidden_states[3]."""
    whole = AutoModelForCausalLM.from_pretrained(trunks["none"].model.config._name_or_path, dtype=torch.float32)
    states = whole(torch.tensor([[5, 6, 7, 20, 21]]), output_hidden_states=True).hidden_states[3][0]
    torch.testing.assert_close(trunks["none"].features([REPLIES[0]])[0, :-1], states[3:].mean(0), rtol=1e-4, atol=1e-4)


def test_the_layers_and_the_length_are_the_features(folder):
    trunk, replies = FeatureTrunk(settings(folder, reward={"layer": 0})), REPLIES[:2]
    assert trunk.layers == [1, 3] and trunk.parts == [
        64,
        64,
        1,
    ]  # of four blocks the first, a tenth and a third are all the first
    for n, layer in enumerate(trunk.layers):
        one = FeatureTrunk(settings(folder, reward={"layer": layer / 4})).features(replies)
        torch.testing.assert_close(trunk.features(replies)[:, 64 * n : 64 * (n + 1)], one[:, :-1])
    torch.testing.assert_close(trunk.features(replies)[:, -1], torch.tensor([2.0, 30.0]).log())
