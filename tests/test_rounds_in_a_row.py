"""The benchmark of rounds in a row, on the tiny model: what a chain writes down, and that it goes on where it was."""

import json

import pytest
from matplotlib.figure import Figure

from benchmarks import plots, rounds_in_a_row
from benchmarks.crowd import Crowd
from benchmarks.rounds_in_a_row import Chain, ChainSettings
from playground.models import loading
from playground.store import Store
from tests.tiny import tiny_folder
from training import annotators


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model")))


def chain_settings(folder, tmp_path, **changes):
    return ChainSettings(
        _env_file=None,
        quick=True,
        model=folder,
        data_dir=tmp_path,
        results=tmp_path / "results.jsonl",
        device="cpu",
        dtype="float32",
        decode_format="float32",
        threads=1,
        votes=8,
        eval_prompts=4,
        chat={"reply_tokens": 12},
        reward={"evidence_confidence": 0, "quantisation": "none", "features": "layers"},
        **changes,
    )


def test_a_chain_votes_trains_and_says_what_is_true_and_is_not_run_twice(folder, tmp_path):
    settings = chain_settings(folder, tmp_path, gate={"better": 0.01, "not_worse": 0.01})
    chain = Chain(settings, "ratchet", "brevity")
    chain.job = chain.job.with_values(ppo={"iterations": 1, "episodes": 8, "rollout_tokens": 8}, gate={"prompts": 4})
    done = chain.run()
    assert [row["round"] for row in done] == [1, 2] and [row["voted_on"] for row in done][0] == 0
    written = [json.loads(line) for line in settings.results.read_text().splitlines()]
    assert written == done == chain.run()  # the second time it is read
    for row in done:
        assert row["state"] in ("published", "refused") and 0 <= row["over_base"] <= 1 and 0 <= row["over_before"] <= 1
    rows = rounds_in_a_row.rows_of(chain, done)
    assert rows[0]["what"] == "brevity, ratchet, seed 0: win rate over base after 2 rounds"
    assert rows[1]["value"] == sum(row["state"] == "published" for row in done)
    store = Store(chain.job.database)
    assert len(store.votes_for_training(store.last_base_hash())) == 16


def test_people_meet_the_version_on_trial_and_roll_back_a_worse_one(folder, tmp_path):
    settings = chain_settings(folder, tmp_path)
    chain = Chain(settings, "ratchet", "brevity")
    store = Store(chain.job.database)
    trunk, tokenizer = loading.load_trunk(chain.job), loading.load_tokenizer(chain.job)
    people = annotators.people("brevity")
    chat = Crowd(store, chain.job, trunk, tokenizer, people)
    assert chat.vote(4, 0) == {"own": 4, "before": 0, "base": 0, "wins": 0, "losses": 0}
    assert chat.replies(0, ["Hello"], "x") == chat.replies(0, ["Hello"], "x")
    ours = [[chat.replies(0, ["Hello"], "x")[0]]]
    assert chat.win_rate(ours, ours)[0] == 0.5


def test_a_chain_that_was_started_over_is_one_line():
    def row(number, win_rate):
        chain = {"arm": "ratchet", "annotator": "lists", "seed": 0, "votes": 25, "state": "published"}
        return {**chain, "round": number, "live_over_base": win_rate, "live_interval": [0.4, 0.9]}

    axes = Figure().subplots()
    plots.rounds_in_a_row(axes, [row(1, 0.5), row(2, 0.6), row(1, 0.7), row(2, 0.8), row(3, 0.85)])
    assert axes.lines[0].get_xydata().tolist() == [[0, 0.5], [25, 0.7], [50, 0.8], [75, 0.85]]
