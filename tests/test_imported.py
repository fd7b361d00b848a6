"""Imported data as a round reads it: as token ids of the model of now, marked, weighed, and nobody's votes."""

import json
from types import SimpleNamespace

import pytest
import torch

from playground.models import prompts
from playground.settings import Settings
from playground.store import ImportedRow, Store
from tests.stores import cast
from tests.test_evidence import agreeing, assess
from tests.test_preferences import vote
from tests.tiny import tiny_tokenizer
from training import imported, preferences, reward_validation
from training.preferences import TIE, A, B, CountedVote, Pair, PointwiseLabel, Preferences
from training.round_models import RoundModels

HELLO = [{"role": "user", "content": "Hello"}]
TOKENIZER = tiny_tokenizer()


def settings(**more):
    return Settings(_env_file=None, **more)


def row(name, kind="pair", weight=1.0, **record):
    return ImportedRow(f"hash {name}", kind, weight, {"messages": HELLO, **record})


def pair(name, left="good", right="bad", choice="a", **more):
    return row(name, left=f"{name} {left}", right=f"{name} {right}", choice=choice, **more)


def texts(prefs, index):
    return prompts.decode(prefs.replies[index][1], TOKENIZER)


def collect(votes=(), rows=(), annotator_weight=64.0):
    return preferences.collect(
        list(votes),
        [],
        [],
        lambda text: [ord(c) for c in text],
        imported=rows,
        heldout_fraction=0.5,
        annotator_weight=annotator_weight,
        seed=0,
    )


def as_read(n, source="file", weight=1.0, choice="a", prompt=(7,)):
    ids = {"prompt": [*prompt], "left_ids": [1000 + n, 2], "right_ids": [2000 + n, 2]}
    return {"source": source, "weight": weight, "choice": choice, **ids}


# -- from the store


def test_pairs_come_as_token_ids_of_the_model_with_their_system_prompt():
    store = Store()
    system = [{"role": "system", "content": "Be brief."}]
    store.add_imported("file", [pair("one", weight=0.5), row("two", left="x", right="y", choice="b")])
    store.add_imported("file", [ImportedRow("3", "pair", 1.0, {**pair("three").record, "messages": system + HELLO})])
    found = imported.pairs(store, TOKENIZER, settings())
    assert [(found[0][name]) for name in ("source", "weight", "choice")] == ["file", 1.0, "a"], (
        "drawn by hash: '3' first"
    )
    assert found[0]["prompt"] == prompts.encode(HELLO, TOKENIZER, 1000, "Be brief.")
    assert found[1]["prompt"] == prompts.encode(HELLO, TOKENIZER, 1000) and found[1]["weight"] == 0.5
    assert found[2]["left_ids"] == prompts.encode_reply("x", TOKENIZER)


def test_a_reply_is_cut_to_what_one_in_the_chat_may_have_and_a_long_prompt_is_left_out():
    store = Store()
    store.add_imported("file", [pair("one", left="long " * 100)])
    long = ImportedRow(
        "long", "pair", 1.0, {**pair("two").record, "messages": [{"role": "user", "content": "x " * 500}]}
    )
    store.add_imported("file", [long])
    found = imported.pairs(store, TOKENIZER, settings(chat={"reply_tokens": 8, "context_tokens": 64}))
    assert [len(row["left_ids"]) for row in found] == [8]


def test_a_round_reads_at_most_so_many_and_always_the_same():
    store = Store()
    store.add_imported("file", [pair(f"{n}") for n in range(6)])
    first = imported.pairs(store, TOKENIZER, settings(preferences={"imported": 4}))
    assert len(first) == 4 and first == imported.pairs(store, TOKENIZER, settings(preferences={"imported": 4}))
    assert imported.pairs(store, TOKENIZER, settings(preferences={"imported": 0})) == []


def test_a_round_can_be_left_between_any_two_rows(monkeypatch):
    """It used to read all of them, for hours where they were long, before it saw that it was to stop."""

    class Stopped(Exception):
        pass

    def obey():
        calls.append(1)
        if len(calls) == 2:
            raise Stopped

    store = Store()
    store.add_imported("file", [pair(f"{n}") for n in range(3)])
    store.add_imported("file", [row(f"demonstration {n}", "demonstration", reply="Hi.") for n in range(3)])
    store.add_imported("file", [row(f"prompt {n}", "prompt") for n in range(3)])
    this = RoundModels(store, settings(), 1, None, obey)
    this.__dict__ |= {"tokenizer": TOKENIZER, "preferences": Preferences()}
    monkeypatch.setattr(RoundModels, "base", {"hash": "b"})
    for reading in (
        lambda: preferences.from_store(store, "b", TOKENIZER, settings(), obey),
        lambda: this.demonstrations(None),
        lambda: this._training_seeds,
    ):
        calls = []
        with pytest.raises(Stopped):
            reading()


def test_from_store_has_votes_and_imported_pairs():
    store = Store()
    for choice in "ab":
        cast(store, choice)
    store.add_imported("file", [pair("one")])
    found = preferences.from_store(store, "base hash", TOKENIZER, settings())
    assert [(p.vote, p.imported) for p in found.pairs] == [(1, False), (2, False), (None, True)]
    assert (texts(found, found.pairs[2].left), texts(found, found.pairs[2].right)) == ("one good", "one bad")
    assert len(found.votes) == 2 == len(found.judged)
    store = Store()
    store.add_imported("file", [pair("one")])
    assert len(preferences.from_store(store, "any base", TOKENIZER, settings()).pairs) == 1, "texts fit every base"


# -- beside votes


def test_choices_are_those_of_votes():
    found = collect(rows=[as_read(n, choice=choice) for n, choice in enumerate(("a", "b", "tie", "both_bad"))])
    assert [p.outcome for p in found.pairs] == [A, B, TIE]
    assert found.labels == [
        PointwiseLabel(6, False, 0.5, found.pairs[0].group),
        PointwiseLabel(7, False, 0.5, found.pairs[0].group),
    ]


def test_a_source_weighs_at_most_as_much_as_one_person():
    rows = [as_read(n, "large") for n in range(100)] + [as_read(100 + n, "small", 0.5) for n in range(4)]
    found = collect(rows=rows, annotator_weight=10.0)
    weights = [p.weight for p in found.pairs]
    assert sum(weights[:100]) == pytest.approx(10) and weights[100:] == [0.5] * 4


def test_they_are_never_held_out_and_count_as_nobodys_votes():
    votes = [vote(n) for n in range(1, 9)]
    alone, both = collect(votes), collect(votes, [as_read(n, prompt=(n,)) for n in range(50)])
    assert both.heldout == alone.heldout and both.votes == alone.votes == [
        CountedVote(n, f"conversation {n}") for n in range(1, 9)
    ]
    assert len(both.judged) == 8 and len(both.pairs) == 58
    assert sum(p.imported for p in both.training_part().pairs) == 50


def test_they_stay_marked_in_the_file_of_a_round():
    found = collect([vote(1)], [as_read(1)])
    assert Preferences.from_json(json.loads(json.dumps(found.as_json()))) == found
    earlier = found.as_json() | {"pairs": [values[:6] for values in map(list, found.as_json()["pairs"])]}
    assert not any(p.imported for p in Preferences.from_json(earlier).pairs), "rounds from before go on"


def test_cross_validation_learns_from_them_and_tells_of_votes_alone():
    found = collect([vote(n) for n in range(1, 9)], [as_read(n, prompt=(n,)) for n in range(20)])
    seen = []

    def scores_from(part):
        seen.append(sum(p.imported for p in part.pairs))
        return torch.zeros(len(found.replies)), 0.0

    predictions, indices = reward_validation.cross_validate(found, 0, scores_from)
    assert sorted(indices) == list(range(8)) and len(predictions.outcome) == 8
    assert all(n > 10 for n in seen)


def test_without_votes_they_are_no_evidence():
    features, prefs = agreeing(40)
    elsewhere = Preferences(
        prefs.replies, [Pair(p.left, p.right, p.outcome, 1.0, p.group, None, True) for p in prefs.pairs]
    )
    found = assess(features, elsewhere)
    assert not found.enough and "no vote says which reply is better" in str(found.reason)


def test_with_them_fewer_votes_are_enough_evidence():
    """What is known beforehand is bet on; that votes agree with it is then seen early."""
    features, prefs = agreeing(48)
    few = Preferences(prefs.replies, prefs.pairs[40:])
    known = [Pair(p.left, p.right, p.outcome, 1.0, p.group, None, True) for p in prefs.pairs[:40]]
    assert (
        assess(features, Preferences(prefs.replies, [*known, *few.pairs])).e_value > 2 * assess(features, few).e_value
    )


# -- demonstrations and prompts


def test_demonstrations_and_prompts_come_as_those_of_people():
    store = Store()
    store.add_imported("file", [row("one", "demonstration", reply="Hi."), row("two", "prompt")])
    (edit,) = imported.demonstrations(store, TOKENIZER, settings())
    encoded = prompts.encode(HELLO, TOKENIZER, 1000)
    assert (edit["after"], edit["prompt"]) == ("Hi.", encoded) and edit["created"] > "2026"
    assert imported.prompts(store, TOKENIZER, settings()) == [encoded]


def models(store):
    """A round's data without its models."""
    this = RoundModels(store, settings(), 1, None)
    this.__dict__ |= {"tokenizer": TOKENIZER, "preferences": Preferences()}
    return this


def test_a_round_from_the_base_learns_all_demonstrations_and_one_that_goes_on_the_new_ones(monkeypatch):
    store = Store()
    store.add_imported("file", [row("one", "demonstration", reply="Hi.")])
    monkeypatch.setattr(RoundModels, "base", {"hash": "b"})
    monkeypatch.setattr(RoundModels, "max_tokens", None)
    this = models(store)
    (episode,) = this.demonstrations(None)
    assert prompts.decode(episode.completion, TOKENIZER) == "Hi." and episode.ended
    this.store = SimpleNamespace(
        demonstrations=store.demonstrations,
        imported_sample=store.imported_sample,
        round=lambda number: {"started": "9999", "metrics": {}},
    )
    assert this.demonstrations({"round": 1}) == []


def test_rollouts_draw_from_imported_prompts_too():
    store = Store()
    store.add_imported("file", [row("one", "prompt")])
    this = models(store)
    shipped = this.seed_prompts("train")
    assert this._training_seeds == [*shipped, prompts.encode(HELLO, TOKENIZER, 1000)]
    assert len(this.seed_prompts("heldout")) == len(models(Store()).seed_prompts("heldout"))
