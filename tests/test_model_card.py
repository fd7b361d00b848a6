"""The model card of a version: what a stranger reads before loading it."""

import re

import pytest

from playground.models import model_card
from playground.models.model_card import Base, Facts
from playground.models.ratings import Duels, rate
from playground.settings import Settings
from tests import rounds
from tests.stores import cast, store  # noqa: F401  # the fixture

MOST_WEIGHT = 64.0


def settings(**values):
    return Settings(_env_file=None, **values)


@pytest.fixture
def facts(store, tmp_path):  # noqa: F811
    """Of a published version that people compared with the base: 5 wins, 1 loss, 1 tie."""
    rounds.published(store, settings(data_dir=tmp_path))
    who = store.annotator("somebody")
    for choice in ("a", "a", "a", "a", "a", "b", "tie"):
        cast(store, choice, who, versions=(1, 0))
    return Facts.of(store, 1, MOST_WEIGHT)


def figures(text):
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE))


def test_the_card_has_the_figures_of_the_versions_tab(facts):
    found = figures(model_card.card(facts, Base("base", None, None), "adapter"))
    assert found["made from"] == "the base model" and found["rounds since the base"] == "1"
    assert found["KL to the base, nats a reply"] == "5.6"
    assert found["tokens of a reply"] == "60; the base's: 72"
    assert found["votes on pairs of it and another version"] == "7"
    expected = rate([Duels(1, 0, 1, 5, 1, 1)], {1: 0}, MOST_WEIGHT)[1].over_base
    assert found["preferred to the base"] == f"{expected.mean:.0%} [{expected.low:.0%}, {expected.high:.0%}]"
    assert found["preferred to the base"].startswith("75%"), "(5 + 1) of (6 + 2) with the prior"


def test_only_settings_that_were_changed_are_listed(store, tmp_path):  # noqa: F811
    store.request_round()
    row = store.take_round("w", lease_seconds=30, config={"ppo.lr": 0.01, "gate.kl_budget": 60.0, "host": "0.0.0.0"})
    version = store.add_policy(row["id"], "w", parent=0)
    store.publish(row["id"], "w", version, "nowhere", "abc", {})
    text = model_card.card(Facts.of(store, version, MOST_WEIGHT), Base("base", None, None), "adapter")
    assert figures(text)["ppo.lr"] == "`0.01`" and "kl_budget" not in text and "0.0.0.0" not in text
    assert figures(text)["preferred to the base"] == "nobody has compared it yet"


def test_the_front_matter_names_base_and_licence_where_they_are_known(facts):
    hub = Base("Org/model", "Org/model", "mit")
    adapter, merged = (model_card.card(facts, hub, kind) for kind in ("adapter", "merged"))
    assert adapter.startswith('---\nlibrary_name: "peft"\n') and 'license: "mit"\n' in adapter
    assert 'base_model: "Org/model"\nbase_model_relation: "adapter"' in adapter
    assert 'base_model_relation: "finetune"' in merged and 'from_pretrained(".")' in merged
    unknown = model_card.card(facts, Base("folder", None, None), "adapter")
    assert "license:" not in unknown and "base_model:" not in unknown


def test_the_licence_is_that_of_the_folders_own_card(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    assert Base.of("model", settings(model=str(folder))) == Base("model", None, None)
    (folder / "README.md").write_text("# No front matter\nlicense: no\n")
    assert Base.of("model", settings(model=str(folder))).license is None
    (folder / "README.md").write_text("---\ntags:\n- x\nlicense: llama3.1\n---\n# It\n")
    assert Base.of("model", settings(model=str(folder))).license == "llama3.1"
    assert Base.of("other", settings(model=str(folder))).license is None, "made from a model that is not this one"


def test_the_embedded_model_is_known_by_its_name_on_the_hub():
    here = settings()
    name = model_card.sources.embedded_folder(here).name
    assert Base.of(name, here) == Base(*2 * ("HuggingFaceTB/SmolLM2-135M-Instruct",), "apache-2.0")
