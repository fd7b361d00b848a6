"""What the benchmarks' figures are made of; the figures themselves are the benchmarks' own."""

import json
import math
from dataclasses import replace

import pytest
import torch

from benchmarks import gold, last_token, learning, learning_cells, pairs, plots, quantisation, report, rounds
from benchmarks import pool as pools
from playground.models import loading
from tests.test_loop import settings_for
from training import annotators
from training.annotators import Person
from training.preferences import TIE, A, B, Pair, Preferences

PROMPTS = [f"prompt {i}" for i in range(12)]


@pytest.fixture
def pool():
    """Four replies to each of twelve prompts, the last four held out; a reply's features are noise, its number of
    words, and the log of it.
    """
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 40, (48,), generator=generator).tolist()
    words = torch.tensor(counts).float()[:, None]
    features = torch.cat([torch.randn(48, 2, generator=generator), words, words.log()], -1)
    return pools.Pool(
        [p for p in PROMPTS for _ in range(4)],
        ["word " * n for n in counts],
        [([1], [i] * n) for i, n in enumerate(counts)],
        [True] * 48,
        [i >= 32 for i in range(48)],
        features,
        [2, 1, 1],
    )


# -- the table


@pytest.mark.parametrize(
    ("value", "bar", "ok"),
    [
        (0.8, "≥ 0.8", True),
        (0.79, "≥ 0.8", False),
        (2.0, "≤ 2", True),
        (2.1, "≤ 2", False),
        (None, "≥ 0.8", None),
        (0.5, None, None),
    ],
)
def test_a_row_says_whether_it_holds(value, bar, ok):
    assert report.row("what", value, "s", bar) == {"what": "what", "value": value, "unit": "s", "bar": bar, "ok": ok}


def test_rows_that_fall_short_or_were_not_run_stay_in_the_table(tmp_path, capsys):
    rows = [
        report.row("good", 1.0, "", "≥ 0.5"),
        report.row("bad", 0.25, "", "≥ 0.5"),
        report.row("missing", None, "", "≥ 0.5"),
    ]
    report.show(rows, str(tmp_path / "rows.json"))
    printed = capsys.readouterr().out.splitlines()[2:]
    assert [line.split("|")[2].strip() for line in printed] == ["1", "0.25", "not run"] and "NO" in printed[1]
    assert json.loads((tmp_path / "rows.json").read_text()) == rows


# -- the pool


def test_votes_fall_on_prompts_that_are_not_held_out_one_each_before_a_second(pool):
    prefs, chosen = pools.vote(pool, Person(annotators.brevity), 8, 0)
    assert len({pair.group for pair in prefs.pairs}) == 8 and not any(pool.heldout[i] for i in chosen)
    prefs, _ = pools.vote(pool, Person(annotators.brevity), 16, 0)
    assert len(prefs.pairs) == 16 and len({pair.group for pair in prefs.pairs}) == 8


def test_votes_are_the_annotators_and_shuffled_ones_are_not(pool):
    words = [len(t.split()) for t in pool.texts]

    def agreement(**changes):
        prefs, chosen = pools.vote(pool, Person(annotators.brevity), 48, 0, **changes)
        gaps = [words[chosen[pair.left]] - words[chosen[pair.right]] for pair in prefs.pairs]
        return [
            pair.outcome == (TIE if gap == 0 else A if gap < 0 else B)
            for gap, pair in zip(gaps, prefs.pairs, strict=True)
        ]

    assert all(agreement()) and sum(agreement(shuffled=True)) < 36


def test_a_result_is_made_once_for_each_key_and_code(tmp_path):
    cache, made = pools.Cache(learning_cells.LearningSettings(data_dir=tmp_path)), []

    def make():
        made.append(1)
        return {"value": len(made)}

    assert cache.known(report, n=1) is None
    assert cache.get(make, report, n=1) == cache.get(make, report, n=1) == cache.known(report, n=1) == {"value": 1}
    assert cache.get(make, report, n=2) == {"value": 2} and cache.get(make, annotators, n=1) == {"value": 3}


# -- cells, rows and pictures


def test_a_reward_model_of_the_right_feature_is_found_to_be_right(pool, tmp_path):
    found = learning_cells.reward_cell(pool, learning_cells.LearningSettings(data_dir=tmp_path), "brevity", 32, 0.0, 0)
    assert found["accuracy"] > 0.9 and found["enough"] and found["cv"] > 0.8
    assert (
        sum(count for _, _, count in found["reliability"]) <= 24
    )  # six pairs of each of four held-out prompts, ties aside


@pytest.mark.parametrize("among", [None, 2])
def test_the_best_of_several_by_the_right_feature_wins(pool, tmp_path, among):
    candidates = replace(
        pool, texts=pool.texts[::-1], ids=pool.ids[::-1], features=pool.features.flip(0)
    )  # held out are other replies
    candidates.features[:, -2:] = torch.tensor(
        [[float(len(text.split())), math.log(len(text.split()))] for text in candidates.texts]
    )
    found = learning_cells.best_of_cell(
        pool, candidates, learning_cells.LearningSettings(data_dir=tmp_path), "brevity", 32, 0.0, 0, among
    )
    truth = [
        [len(text.split()) for text, held in zip(p.texts, p.heldout, strict=True) if held] for p in (candidates, pool)
    ]
    best = [min(truth[0][i : i + (among or 4)]) for i in range(0, 16, 4)]
    wins = [
        sum((b < o) + 0.5 * (b == o) for o in truth[1][i : i + 4]) / 4
        for b, i in zip(best, range(0, 16, 4), strict=True)
    ]
    assert (
        found["win_rate"] == pytest.approx(sum(wins) / 4, abs=0.13)
        and found["interval"][0] <= found["win_rate"] <= found["interval"][1]
    )


def test_a_lora_with_a_last_token_head_learns_a_token(tmp_path, monkeypatch):
    """Votes for the reply that ends with token 100, on the tiny model; both of a pair are scored alone as together."""
    monkeypatch.setattr(last_token, "LR", 1e-2)
    settings = settings_for(tmp_path)
    replies = [([3, 4, 5], [200 + i, 100 if i % 2 else 150]) for i in range(32)]
    prefs = Preferences(replies, [Pair(i, i + 1, B) if i % 4 else Pair(i + 1, i, A) for i in range(0, 32, 2)])
    fresh = [([6, 7], [300 + i, 100 if i % 2 else 150]) for i in range(8)]
    found = last_token.accuracies(prefs, fresh, [Pair(i, i + 1, B) for i in range(0, 8, 2)], settings, 0)
    assert len(found) == last_token.EPOCHS and found[-1] == 1
    model = last_token.LastToken(settings, 0)
    torch.testing.assert_close(
        last_token.all_scores(model, [*replies[:3], ([9], [8] * 7)]),
        torch.cat([model([reply]) for reply in [*replies[:3], ([9], [8] * 7)]]).detach(),
        rtol=1e-3,
        atol=1e-4,
    )


def test_rounds_that_were_not_run_are_shown_as_not_run(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "make_pool", lambda *_: pool)
    settings = learning_cells.LearningSettings(data_dir=tmp_path, rounds="known")
    rows = learning.round_rows(learning_cells.Cells(settings, print), quick=False)
    assert len(rows) > 50 and all(r["value"] is None and r["ok"] is None for r in rows)
    assert [r["bar"] for r in rows if r["what"].startswith("brevity, 100 votes: true win rate")] == ["≥ 0.85"]


def test_the_pictures_show_what_there_is(pool, tmp_path):
    settings = learning_cells.LearningSettings(data_dir=tmp_path)
    figures = learning_cells.reward_cell(pool, settings, "brevity", 16, 0.0, 0)
    kind = {"kind": "reward model", "shuffled": False, "annotator": "brevity", "flip": 0.0}
    cells = [
        {**kind, "n": n, "seed": seed, **figures, "accuracy": figures["accuracy"] - 0.1 * seed}
        for n in (16, 32)
        for seed in (0, 1)
    ]
    assert [f.name for f in plots.draw(cells, tmp_path)] == ["learning-accuracy.svg", "learning-calibration.svg"]
    done = {
        "kind": "round",
        "arm": "PPO",
        "annotator": "brevity",
        "n": 100,
        "flip": 0.0,
        "seed": 0,
        "win_rate": 0.8,
        "interval": [0.7, 0.9],
        "state": "published",
        "curve": [],
    }
    far = {
        **done,
        "arm": "far beyond the KL target",
        "curve": [{"kl": k, "proxy": k, "true": -k} for k in (0.0, 1.0, 4.0)],
    }
    assert [f.name for f in plots.draw([done, far], tmp_path)] == [
        "learning-win-rate.svg",
        "learning-over-optimisation.svg",
    ]
    assert "<svg" in (tmp_path / "learning-win-rate.svg").read_text()


def test_a_round_of_the_benchmark_is_a_real_one_and_its_truth_is_measured(tmp_path):
    """The pool of a tiny model, votes by a known score, a worker process, and the win rate on the held-out prompts."""
    tiny = settings_for(
        tmp_path,
        ppo={"iterations": 2},
        gate={"prompts": 4},
        reward={"evidence_confidence": 0.0, "features": "layers"},
        chat={"reply_tokens": 8},
    )
    settings = learning_cells.LearningSettings.like(tiny, replies=2)
    pool = pools.make_pool(settings, pools.Cache(settings), 16, lambda text: None)
    assert len(pool.ids) == 64 and sum(pool.heldout) == 32
    trunk = loading.load_trunk(settings)
    base = rounds.Base(loading.base_identity(trunk, settings), loading.template_hash(loading.load_tokenizer(settings)))
    cell = rounds.round_cell(pool, base, settings, "brevity", 16, 0.0, 0, log=lambda text: None)
    assert (
        cell["state"] in ("published", "refused")
        and 0 <= cell["interval"][0] <= cell["win_rate"] <= cell["interval"][1] <= 1
    )
    assert len(cell["curve"]) == 2 and cell["curve"][0]["kl"] == pytest.approx(0, abs=0.05) and cell["peak_mb"] > 100
    assert (
        pools.make_pool(settings, pools.Cache(settings), 16, pytest.fail).texts == pool.texts
    )  # nothing is sampled twice


def test_each_number_format_reads_replies_in_a_process_of_its_own(tmp_path):
    settings = quantisation.QuantisationSettings.like(settings_for(tmp_path))
    side = quantisation.measured(settings, "nf4", [([5, 6, 7], [20, 21])] * 4)
    assert side["tokens_per_second"] > 0 and side["peak_mb"] > 100


def test_a_gold_reward_model_scores_replies_by_a_rule_that_was_never_written_down(tmp_path, monkeypatch):
    """Here the rule is to say `good answer` often; the gold model sees it in votes on 30 pairs of replies alone."""
    settings = learning_cells.LearningSettings.like(settings_for(tmp_path))
    tokenizer, often = loading.load_tokenizer(settings), [i * 7 % 5 for i in range(80)]
    texts = [f"the story {'good answer ' * n}and the light number {i}" for i, n in enumerate(often)]
    ids = [([1], tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    pool = pools.Pool(
        [f"prompt {i // 2}" for i in range(80)],
        texts,
        ids,
        [True] * 80,
        [i >= 60 for i in range(80)],
        torch.zeros(80, 1),
        [1],
    )
    monkeypatch.setattr(gold, "hidden_rule", lambda pool: often)
    gold.make(pool, pools.Cache(settings), settings, lambda text: None)
    for name, value in settings.environ().items():
        monkeypatch.setenv(name, value)
    said = pool.scores(annotators.find(gold.NAME))
    decided = [(a, b) for ((a, b),) in pool.pairs(heldout=True) if often[a] != often[b]]
    assert sum((said[a] > said[b]) == (often[a] > often[b]) for a, b in decided) >= 0.9 * len(decided) > 7
    gold.make(pool, pools.Cache(settings), settings, pytest.fail)  # made once


def test_active_and_random_pairs_are_both_learnt_from(pool, tmp_path):
    settings = learning_cells.LearningSettings(data_dir=tmp_path)
    for actively in (False, True):
        assert pairs.cell(pool, settings, "brevity", 32, 0, actively) > 0.85
