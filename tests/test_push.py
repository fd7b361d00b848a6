"""What is pushed to the hub, and over what it never goes, with a local server that answers as the hub does."""

import json

import pytest

from playground.data.__main__ import main
from playground.store import Store
from playground.system import pushing
from playground.system.hub import HubError
from playground.system.pushing import MARKER, Push
from tests import fake_hub
from tests.fake_hub import TOKEN
from tests.test_data_export import say
from tests.test_merge import publish_into, site  # noqa: F401 (fixture)
from training import merge


@pytest.fixture
def served(monkeypatch):
    with fake_hub.serving(monkeypatch) as served:
        yield served


@pytest.fixture
def data_dir(tmp_path):
    store = Store(tmp_path / "data" / "nudge.db")
    for choice in ("a", "tie"):
        say(store, store.annotator("ann"), f"Hello {choice}", choice=choice)
    return tmp_path / "data"


def push(data_dir, out, *more, name="ann/votes"):
    asked = ["export", "--out", str(data_dir.parent / out), "--data-dir", str(data_dir), "--push", name]
    return main([*asked, *more])


def dataset(served, name="ann/votes"):
    return served.repositories["dataset", name]


def test_an_export_is_pushed_in_one_commit_into_a_private_dataset(served, data_dir, capsys):
    assert push(data_dir, "out", "--format", "preference", "--license", "cc-by-4.0") == 0
    made = dataset(served)
    assert made.private and made.commits == [["README.md", "preference.jsonl", "undecided.jsonl"]]
    out = data_dir.parent / "out"
    assert {name: made.files[name] for name in made.commits[0]} == {
        path.name: path.read_bytes() for path in out.iterdir()
    }
    assert b"license: cc-by-4.0\n" in made.files["README.md"]
    said = capsys.readouterr()
    assert f"{served.url}/datasets/ann/votes (private) has it now." in said.out
    assert TOKEN not in said.out + said.err + made.files["README.md"].decode()


def test_a_second_push_sends_what_changed_and_removes_what_is_not_exported_any_more(served, data_dir, capsys):
    push(data_dir, "one", "--format", "preference")
    push(data_dir, "two", "--format", "preference")
    assert len(dataset(served).commits) == 1 and "had all of it already" in capsys.readouterr().out
    dataset(served).files["LICENSE"] = b"mine"
    store = Store(data_dir / "nudge.db")
    say(store, store.annotator("bob"), "More", choice="a")
    push(data_dir, "three", "--format", "preference")
    assert dataset(served).commits[1] == ["README.md", "preference.jsonl"], "the ties are the same"
    push(data_dir, "four", "--format", "prompts")
    assert dataset(served).commits[2] == ["README.md", "prompts.jsonl", "-preference.jsonl", "-undecided.jsonl"]
    assert set(dataset(served).files) == {".gitattributes", "LICENSE", "README.md", "prompts.jsonl"}


def test_what_is_not_ours_is_not_written_over(served, data_dir, capsys):
    served.add("ann/votes", private=True, files={"README.md": b"# Mine", "preference.jsonl": b"mine"})
    before = dict(dataset(served).files)
    assert push(data_dir, "out") == 1
    assert "ann/votes was not pushed from here" in capsys.readouterr().err
    assert dataset(served).files == before and not (data_dir.parent / "out").exists(), "asked before it is written"
    assert push(data_dir, "out", "--force") == 0
    assert MARKER.encode() in dataset(served).files["README.md"]
    assert "preference.jsonl" not in dataset(served).files


def test_nothing_becomes_public_that_was_not_said_to_be(served, data_dir, capsys):
    served.add("ann/votes", files={})
    assert push(data_dir, "out") == 1 and "Everybody can see ann/votes" in capsys.readouterr().err
    assert push(data_dir, "out", "--public") == 0 and "(public)" in capsys.readouterr().out
    assert push(data_dir, "new", "--public", name="ann/new") == 0 and not dataset(served, "ann/new").private


@pytest.mark.parametrize(
    ("name", "token", "says"),
    [
        ("votes", TOKEN, "A repository of the hub is named like OWNER/NAME."),
        ("ann/votes", None, "Set HF_TOKEN to a token that may write to ann/votes."),
        ("ann/votes", "hf_of_somebody_else", "The hub does not let the token in HF_TOKEN do this to ann/votes."),
    ],
)
def test_why_nothing_can_be_pushed_is_said(served, data_dir, capsys, monkeypatch, name, token, says):
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    assert push(data_dir, "out", name=name) == 1
    assert capsys.readouterr().err.strip().endswith(says) and served.repositories == {}


def test_a_card_that_the_hub_refuses_is_said_and_nothing_is_pushed(served, data_dir, capsys):
    assert push(data_dir, "out", "--license", "my-own") == 1
    said = capsys.readouterr().err
    assert "The hub refuses it: " in said and "license is none that is known" in said
    assert dataset(served).commits == [] and (data_dir.parent / "out" / "pairs.jsonl").exists()


def test_a_change_of_somebody_else_meanwhile_is_not_written_over(served, tmp_path, monkeypatch):
    served.add("ann/votes", private=True, files={})
    ours = pushing._ours

    def then_changed(push):
        info = ours(push)
        dataset(served).files["theirs.txt"] = b"theirs"
        return info

    monkeypatch.setattr(pushing, "_ours", then_changed)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    with pytest.raises(HubError, match="Somebody else has changed ann/votes meanwhile"):
        pushing.send(Push("ann/votes", "dataset"), tmp_path, merge.FILES)
    assert set(dataset(served).files) == {"theirs.txt"}


def test_a_version_is_pushed_as_an_adapter_and_merged(served, site, tmp_path, capsys):  # noqa: F811
    version = publish_into(site, 0.1)
    flags = ["--model", str(site.folder), "--data-dir", str(site.settings.data_dir), "--version", str(version)]
    merge.main([*flags, "--out", str(tmp_path / "adapter"), "--adapter", "--push", "ann/model"])
    made = served.repositories["model", "ann/model"]
    assert made.private and made.commits == [["README.md", "adapter_config.json", "adapter_model.safetensors"]]
    assert json.loads(made.files["adapter_config.json"])["peft_type"] == "LORA"
    merge.main([*flags, "--out", str(tmp_path / "merged"), "--push", "ann/model"])
    assert {"model.safetensors", "config.json", "tokenizer.json", "-adapter_config.json"} <= set(made.commits[1])
    assert b"transformers" in made.files["README.md"] and "adapter_model.safetensors" not in made.files
    assert "v1 is in" in capsys.readouterr().out
