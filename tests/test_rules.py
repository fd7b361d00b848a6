"""Rewards that a person writes."""

import pytest
import torch

from playground.settings import SettingsError
from tests.test_round import folder, running  # noqa: F401
from training import rules
from training.rollout import Episode

TEXTS = [("q", "one"), ("q", "one two"), ("q", "one two three"), ("q", "one two three four")]


def words(_prompt: str, reply: str) -> float:
    return len(reply.split())


def broken(_prompt: str, reply: str) -> float:
    return {"raises": 1 / 0}[reply] if reply == "one" else float("nan")


def test_rules_are_standardised_on_the_references_replies_and_weighted():
    found = rules.read("tests.test_rules:words=2, brevity=-0.5")
    assert [(rule.name, rule.weight) for rule in found] == [("tests.test_rules:words", 2), ("brevity", -0.5)]
    fitted = [rule.standardised_on(TEXTS) for rule in found]
    rewards = rules.rewards(fitted, TEXTS)
    assert rewards.mean().item() == pytest.approx(0, abs=1e-6)
    # brevity is minus the words, so both say the same: 2.5 deviations together
    assert rewards.std(unbiased=False).item() == pytest.approx(2.5)
    assert rules.rewards(fitted, [("q", "one two")]).item() == pytest.approx(rewards[1].item())


def test_a_rule_that_says_the_same_of_all_replies_adds_nothing():
    [rule] = [rule.standardised_on(TEXTS) for rule in rules.read("question=3")]
    assert rules.rewards([rule], TEXTS).tolist() == [0] * 4


def tenth(_prompt: str, reply: str) -> float:
    return 0.3 if reply == "rare" else 0.1


def test_a_rule_whose_equal_scores_have_a_deviation_by_rounding_is_not_divided_by_it():
    texts = [("q", "often")] * 64
    [rule] = [rule.standardised_on(texts) for rule in rules.read("tests.test_rules:tenth")]
    assert rules.rewards([rule], [*texts[:1], ("q", "rare")]).tolist() == pytest.approx([0, 0.2], abs=1e-6)


NUMBER = 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nobody=1", "--reward.rules: got 'nobody'; accepted: brevity"),
        ("tests.test_rules:gone", "has no attribute 'gone'"),
        ("no.such.module:f=1", "No module named"),
        ("brevity=much", "--reward.rules: got 'brevity=much'; the weight after = must be a number"),
        ("brevity=nan", "--reward.rules: got 'brevity=nan'; the weight after = must be a number"),
        ("brevity=inf", "must be a number"),
        (":words", "--reward.rules: got ':words'; accepted: brevity"),
        (".rules:words", "--reward.rules: got '.rules:words'; TypeError"),
        ("tests.test_rules:NUMBER", "it cannot be called"),
    ],
)
def test_a_rule_that_is_not_there_is_refused(text, said):
    with pytest.raises(SettingsError, match=None) as refusal:
        rules.read(text)
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("reply", "said"), [("one", "broken raised ZeroDivisionError: division by zero"), ("two", "broken returned nan")]
)
def test_a_rule_that_fails_says_which_and_why(reply, said):
    [rule] = rules.read("tests.test_rules:broken")
    with pytest.raises(rules.RuleFailed, match="--reward.rules") as failure:
        rule.scores([("q", reply)])
    assert said in str(failure.value)


def test_a_round_adds_its_rules_to_the_reward_and_says_so(folder, tmp_path):  # noqa: F811
    this = running(folder, tmp_path, reward={"rules": "tests.test_rules:words=2"})
    texts = ["tea", "tea about tea", "tea about tea about tea"]
    episodes = [Episode([5, 6], this.models.encode_reply(text), True) for text in texts]
    this._standardise_rules(episodes)
    assert this.store.round(this.id)["metrics"]["rules"] == {"tests.test_rules:words": 2}
    added = this.models.rule_rewards(episodes)
    assert added.mean().item() == pytest.approx(0, abs=1e-6) and added[2] > added[1] > added[0]
    this.models.reward_model = Constant()
    this.models.features = lambda model, episodes: torch.zeros(len(episodes), 1)
    assert torch.equal(this.models.reward(episodes), 7 + added)


def test_a_round_without_rules_adds_nothing(folder, tmp_path):  # noqa: F811
    this = running(folder, tmp_path)
    this._standardise_rules([])
    assert not (this.folder / "rules.json").exists()
    assert this.models.rule_rewards([Episode([5], [6], True)]).tolist() == [0]


def test_a_setting_without_a_rule_adds_nothing(folder, tmp_path):  # noqa: F811
    this = running(folder, tmp_path, reward={"rules": " , "})
    this._standardise_rules([])
    assert this.models.rule_rewards([Episode([5], [6], True)]).tolist() == [0]


def test_a_rule_that_is_not_there_ends_the_round_in_its_first_phase(folder, tmp_path):  # noqa: F811
    this = running(folder, tmp_path, reward={"rules": "nobody"})
    with pytest.raises(SettingsError, match="nobody"):
        this._collect()


class Constant:
    """A reward model for which every reply is worth 7."""

    def reward(self, features):
        return torch.full((len(features),), 7.0)
