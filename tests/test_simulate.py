"""Votes by a scripted annotator, and what a simulation reports."""

import json
import os
import subprocess
import sys
from pathlib import Path

from playground.models import loading
from playground.store import Store
from tests.test_loop import settings_for
from training import simulate
from training.annotators import Person

ROOT = Path(__file__).parent.parent


def shorter(prompt, reply):
    """An annotator of one's own, named by module:function."""
    return -len(reply)


def voted(folder, people=None, **changes):
    """A store in memory with simulated votes on the tiny model's replies: (store, ties)."""
    settings = simulate.SimulateSettings.like(settings_for(folder), **{"votes": 24, **changes})
    store = Store()
    people = people or {"shorter": Person(shorter, flip=settings.flip)}
    ties = simulate.make_duels(
        store, settings, loading.load_trunk(settings), loading.load_tokenizer(settings), people, log=lambda text: None
    )
    return store, ties


def choices(store):
    """(what the annotator prefers, what was voted) of each duel."""
    rows = store.rows("select d.id, v.choice from vote v join duel d on d.id = v.duel order by d.id")
    texts = [(store.duel(r["id"])["left"]["text"], store.duel(r["id"])["right"]["text"]) for r in rows]
    return [
        ("tie" if len(a) == len(b) else "a" if len(a) < len(b) else "b", r["choice"])
        for (a, b), r in zip(texts, rows, strict=True)
    ]


def test_votes_without_flips_are_the_annotators(tmp_path):
    store, ties = voted(tmp_path)
    cast = choices(store)
    assert (
        len(cast) == 24
        and all(said == meant for meant, said in cast)
        and ties == sum(said == "tie" for _, said in cast)
    )
    assert len({r["conversation"] for r in store.rows("select conversation from duel")}) == 24


def test_flipped_votes_are_about_as_many_as_asked_for(tmp_path):
    store, _ = voted(tmp_path, votes=200, flip=0.25, chat={"reply_tokens": 4})
    decided = [meant == said for meant, said in choices(store) if meant != "tie"]
    assert 0.12 < 1 - sum(decided) / len(decided) < 0.40


def longer(prompt, reply):
    return len(reply)


def test_people_of_different_tastes_vote_in_one_simulation(tmp_path):
    store, _ = voted(tmp_path, people={"long": Person(longer), "short": Person(shorter)}, votes=40)
    said = {}
    rows = store.rows("select d.id, v.choice, v.annotator from vote v join duel d on d.id = v.duel")
    for row in rows:
        duel = store.duel(row["id"])
        a, b = len(duel["left"]["text"]), len(duel["right"]["text"])
        said.setdefault(row["annotator"], set()).add("tie" if a == b else (row["choice"] == "a") == (a > b))
    assert sorted(len(v - {"tie"}) for v in said.values()) == [1, 1] and len(said) == 2
    assert {taste for v in said.values() for taste in v - {"tie"}} == {True, False}


def test_a_simulation_reports_what_it_changed(tmp_path):
    """The command itself, with a tiny model: figures on the page and in the file, the win rate too where the gate
    refuses.
    """
    settings = settings_for(
        tmp_path,
        ppo={"iterations": 1},
        gate={"prompts": 4},
        reward={"evidence_confidence": 0.0, "features": "layers"},
        chat={"reply_tokens": 8},
    )
    command = [
        sys.executable,
        "-m",
        "training.simulate",
        "--votes",
        "12",
        "--annotator",
        "tests.test_simulate:shorter",
        "--eval-prompts",
        "8",
        "--json",
        str(tmp_path / "figures.json"),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **settings.environ()}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {
        "win_rate",
        "win_rate_ci",
        "score_before",
        "score_after",
        "rm_accuracy",
        "kl",
        "minutes",
        "peak_mb",
        "published",
        "refused_because",
    } <= figures.keys()
    assert figures["by_annotator"]["tests.test_simulate:shorter"]["win_rate"] == figures["win_rate"]
    assert 0 <= figures["win_rate_ci"][0] <= figures["win_rate"] <= figures["win_rate_ci"][1] <= 1
    assert figures["published"] == (figures["state"] == "published") and (
        figures["published"] or figures["refused_because"]
    )
    assert figures["minutes"] > 0 and figures["peak_mb"] > 100 and "win_rate" in done.stdout
    again = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **settings.environ()}, capture_output=True, text=True, timeout=300
    )
    assert again.returncode and "already holds votes" in again.stderr
