"""The benchmark on real people's votes, on rows of its own."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import human_votes, voted_pairs
from benchmarks.human_votes import HumanVotesSettings
from benchmarks.voted_pairs import VotedPair, Votes
from playground.settings import SettingsError
from tests.tiny import tiny_folder
from training.preferences import TIE, A, B, Pair, Preferences


def row(number: int, votes: list[int]) -> dict:
    """A row whose first reply is the longer one."""
    return {
        "instruction": f"question {number}",
        "input": "text" if number % 2 else "",
        "reply_1": "one two three four five",
        "reply_2": f"one {number}",
        "votes": votes,
    }


@pytest.fixture
def votes_file(tmp_path: Path) -> Path:
    """Forty rows on twenty prompts; people like the longer reply."""
    rows = [row(number % 20, [1, 1, 2 if number % 7 == 0 else 1]) for number in range(40)]
    file = tmp_path / "votes.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_a_pairs_vote_is_what_most_people_said():
    said = {(1, 1, 2): A, (2, 2, 2): B, (0, 0, 1): TIE, (0, 1, 2): None, (1, 2): None}
    assert {votes: VotedPair("p", ("a", "b"), votes).majority for votes in said} == said


def test_agreement_is_over_the_choices_that_both_people_made():
    pairs = [VotedPair("p", ("a", "b"), votes) for votes in ((1, 1, 2), (2, 0, 2), (0, 0, 1))]
    assert voted_pairs.agreement(pairs) == (
        2 / 4,
        4,
    )  # of the first pair 1 of 3, of the second 1 of 1, of the third none


def test_rows_are_read_with_their_input_and_without_two_equal_replies(tmp_path):
    same = {**row(3, [1, 1, 1]), "reply_2": "one two three four five"}
    file = tmp_path / "votes.jsonl"
    file.write_text("\n".join(map(json.dumps, [row(1, [1, 1, 2]), same])))
    assert voted_pairs.read_votes(file) == [
        VotedPair("question 1\n\ntext", ("one two three four five", "one 1"), (1, 1, 2))
    ]


def planted(prompts: int = 60) -> Votes:
    """Two votes on each prompt for the reply whose first feature is larger; all replies are of one length."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4 * prompts, 3, generator=generator)
    features[:, 2] = 1.0
    pairs = []
    for left in range(0, 4 * prompts, 2):
        outcome = A if features[left, 0] > features[left + 1, 0] else B
        pairs.append(Pair(left, left + 1, outcome, group=f"prompt {left // 4}"))
    replies = [([1], [2, 3]) for _ in range(4 * prompts)]
    return Votes(Preferences(replies=replies, pairs=pairs), [("p", "r")] * len(replies), features, [2, 1])


def test_every_decided_pair_is_predicted_by_votes_on_other_prompts(monkeypatch):
    votes = planted()
    seen = []

    def spy(votes, indices, heldout, settings):
        seen.append(({votes.prefs.pairs[i].group for i in indices}, {pair.group for pair in heldout}))
        return human_votes.Predictions.of(votes.features[:, 0], 0.0, heldout)

    monkeypatch.setattr(human_votes, "predict", spy)
    [found] = human_votes.predict_all(votes, 0, 1, HumanVotesSettings())
    assert len(found.outcome) == 120 and human_votes.hits(found).mean() == 1
    assert all(not known & heldout for known, heldout in seen)
    assert set().union(*(heldout for _, heldout in seen)) == {pair.group for pair in votes.prefs.pairs}


def test_a_reward_model_of_more_votes_is_better_and_the_length_is_a_coin():
    votes, settings = planted(), HumanVotesSettings()
    few, many = (human_votes.mean_hits(human_votes.predict_all(votes, n, 2, settings)).mean() for n in (8, 80))
    assert many > max(few, 0.85)
    by_length = settings.with_values(reward={"features": "length"})
    assert human_votes.mean_hits(human_votes.predict_all(votes, 80, 1, by_length)).mean() == 0.5


def test_the_peer_gets_decided_votes_with_the_better_reply_first():
    votes = planted(2)
    votes.texts[:] = [("p", f"reply {i}") for i in range(8)]
    votes.prefs.pairs[:] = [Pair(0, 1, B), Pair(2, 3, TIE), Pair(4, 5, A), Pair(6, 7, A)]
    job = human_votes.peer_job(votes, [0, 1, 2], votes.prefs.pairs[3:], HumanVotesSettings())
    assert job["pairs"] == [("p", "reply 1", "reply 0"), ("p", "reply 4", "reply 5")]
    assert job["replies"] == [("p", "reply 6"), ("p", "reply 7")]


def test_the_whole_benchmark_and_that_features_are_read_once(votes_file, tmp_path, monkeypatch):
    settings = HumanVotesSettings(
        model=str(tiny_folder(tmp_path / "model")),
        device="cpu",
        dtype="float32",
        data_dir=tmp_path / "data",
        votes_file=votes_file,
        quick=True,
        reward={"quantisation": "none"},
    )
    monkeypatch.setattr(human_votes, "SIZES", (8, 16))
    monkeypatch.setattr(human_votes, "run_peer", lambda job, *_: {"scores": [1.0, 0.0] * (len(job["replies"]) // 2)})
    said: list[str] = []
    rows = human_votes.run(settings, said.append)
    found = {row["what"]: row for row in rows}
    assert found["one person's choice is another's, of 120"]["value"] == pytest.approx(1 - 12 / 120)
    length = next(row for what, row in found.items() if what.startswith("16 votes, the length alone: accuracy"))
    assert length["value"] == 1.0
    theirs, ours, above = (row for what, row in found.items() if what.startswith("100 votes, 1 of 5 folds"))
    assert "TRL's RewardTrainer" in theirs["what"]
    assert theirs["value"] == 1.0  # the longer reply is always the left one
    assert above["value"] == pytest.approx(ours["value"] - theirs["value"])
    assert any("features" in line for line in said)

    said.clear()
    assert human_votes.run(settings, said.append) == rows
    assert not any("features" in line for line in said)


def test_without_a_file_it_says_what_is_missing():
    with pytest.raises(SettingsError, match="--votes-file"):
        human_votes.run(HumanVotesSettings())
