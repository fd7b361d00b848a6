"""What the benchmarks' figures are made of; the figures themselves are the benchmarks' own."""

import json
import math

import pytest
import torch

from benchmarks import learning, report
from training import annotators
from training.annotators import Person
from training.preferences import TIE, A, B

PROMPTS = [f"prompt {i}" for i in range(12)]


@pytest.fixture
def pool():
    """Four replies to each of twelve prompts, the last four held out; a reply's one feature is its number of words."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1, 40, (48,), generator=generator).tolist()
    return learning.Pool([p for p in PROMPTS for _ in range(4)], ["word " * n for n in words], [([1], [i] * n) for i, n in enumerate(words)],
                         [i >= 32 for i in range(48)], torch.tensor(words).float()[:, None], [1])


# -- the table

@pytest.mark.parametrize(("value", "bar", "ok"), [(0.8, "≥ 0.8", True), (0.79, "≥ 0.8", False), (2.0, "≤ 2", True), (2.1, "≤ 2", False),
                                                  (None, "≥ 0.8", None), (0.5, None, None)])
def test_a_row_says_whether_it_holds(value, bar, ok):
    assert report.row("what", value, "s", bar) == {"what": "what", "value": value, "unit": "s", "bar": bar, "ok": ok}


def test_rows_that_fall_short_or_were_not_run_stay_in_the_table(tmp_path, capsys):
    rows = [report.row("good", 1.0, "", "≥ 0.5"), report.row("bad", 0.25, "", "≥ 0.5"), report.row("missing", None, "", "≥ 0.5")]
    report.show(rows, str(tmp_path / "rows.json"))
    printed = capsys.readouterr().out.splitlines()[2:]
    assert [line.split("|")[2].strip() for line in printed] == ["1", "0.25", "not run"] and "NO" in printed[1]
    assert json.loads((tmp_path / "rows.json").read_text()) == rows


# -- learning

def test_votes_fall_on_prompts_that_are_not_held_out_one_each_before_a_second(pool):
    prefs, chosen = learning.vote(pool, Person(annotators.brevity), 8, 0)
    assert len({p[4] for p in prefs.pairs}) == 8 and not any(pool.heldout[i] for i in chosen)
    prefs, _ = learning.vote(pool, Person(annotators.brevity), 16, 0)
    assert len(prefs.pairs) == 16 and len({p[4] for p in prefs.pairs}) == 8


def test_votes_are_the_annotators_and_shuffled_ones_are_not(pool):
    words = [len(t.split()) for t in pool.texts]

    def agreement(**changes):
        prefs, chosen = learning.vote(pool, Person(annotators.brevity), 48, 0, **changes)
        gaps = [words[chosen[a]] - words[chosen[b]] for a, b, *_ in prefs.pairs]
        return [outcome == (TIE if gap == 0 else A if gap < 0 else B) for gap, (_, _, outcome, *_) in zip(gaps, prefs.pairs, strict=True)]

    assert all(agreement()) and sum(agreement(shuffled=True)) < 36


def test_a_reward_model_of_the_right_feature_is_found_to_be_right(pool, tmp_path):
    found = learning.reward_cell(pool, learning.LearningSettings(data_dir=tmp_path), "brevity", 32, 0.0, 0)
    assert found["accuracy"] > 0.95 and found["enough"] and found["cv"] > 0.8


def test_calibration_error_by_hand():
    # four pairs, all given P(a) = 0.8, three of them won by a: |0.8 − 0.75|
    raw = torch.tensor([math.log(4), 0.0])
    assert learning.calibration_error(raw, [(0, 1)] * 5, [A, A, A, B, TIE], bins=1) == pytest.approx(0.05, abs=1e-6)


def test_a_result_is_made_once_for_each_key_and_code(tmp_path):
    cache, made = learning.Cache(learning.LearningSettings(data_dir=tmp_path)), []

    def make():
        made.append(1)
        return {"value": len(made)}

    assert cache.get(make, report, n=1) == cache.get(make, report, n=1) == {"value": 1}
    assert cache.get(make, report, n=2) == {"value": 2} and cache.get(make, annotators, n=1) == {"value": 3}
