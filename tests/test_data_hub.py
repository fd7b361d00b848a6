"""Datasets of the hub as rows, from a local server that answers as the hub does: which files are read, where the rows
come from, and what is said where there are none.
"""

import json
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from playground.data import export, hub, importing, queueing
from playground.data.__main__ import main
from playground.data.hub import CannotReadDataset
from playground.settings import Settings, SettingsError
from playground.store import Store
from tests import fake_hub
from tests.fake_hub import TOKEN
from tests.stores import store  # noqa: F401 (fixture)

CARD = b"---\nlicense: mit\n---\n# A dataset\n"


def pairs(n, first=0):
    return [
        {"prompt": f"Question {i}", "chosen": f"Good {i}.", "rejected": f"Bad {i}."} for i in range(first, first + n)
    ]


def parquet(rows):
    out = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue().to_pybytes()


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def served(monkeypatch):
    with fake_hub.serving(monkeypatch) as served:
        yield served


@pytest.fixture
def nobody(monkeypatch):
    """Without a token."""
    with fake_hub.serving(monkeypatch, token=None) as served:
        yield served


def prompts(dataset):
    return [row["prompt"] for _, row in dataset.rows()]


def why(where, split=None):
    with pytest.raises(CannotReadDataset) as refused:
        list(hub.find(where, split).rows())
    return str(refused.value)


# -- which files


def test_the_shards_of_the_split_train_are_read_in_their_order_and_counted_through(served):
    served.add(
        "ann/pairs",
        files={
            "README.md": CARD,
            "data/train-00001-of-00002.parquet": parquet(pairs(2, 3)),
            "data/train-00000-of-00002.parquet": parquet(pairs(3)),
            "data/test-00000-of-00001.parquet": parquet(pairs(1, 90)),
            "extra.jsonl": jsonl(pairs(1, 99)),
        },
    )
    dataset = hub.find("hf://datasets/ann/pairs")
    assert [(number, row["prompt"]) for number, row in dataset.rows()] == [(i + 1, f"Question {i}") for i in range(5)]
    assert prompts(hub.find("hf://datasets/ann/pairs", "test")) == ["Question 90"]
    assert prompts(hub.find("hf://datasets/ann/pairs/extra.jsonl")) == ["Question 99"]
    page = "https://huggingface.co/datasets/ann/pairs/blob/main/extra.jsonl"
    assert hub.is_address(page) and prompts(hub.find(page)) == ["Question 99"]


def test_the_converted_branch_is_read_where_there_is_no_parquet(served):
    """As of HH-RLHF, whose own files are packed lines."""
    served.add(
        "ann/hh",
        files={"README.md": CARD, "harmless-base/train.jsonl.gz": b"packed"},
        converted={
            "default/train/0000.parquet": parquet(pairs(1)),
            "default/train/0001.parquet": parquet(pairs(1, 1)),
            "default/partial-test/0000.parquet": parquet(pairs(1, 2)),
        },
    )
    dataset = hub.find("hf://datasets/ann/hh")
    assert prompts(dataset) == ["Question 0", "Question 1"]
    assert dataset.commit == served.repositories["dataset", "ann/hh"].revisions()[fake_hub.CONVERTED][0]
    assert dataset.license == "mit"  # of the branch main
    assert prompts(hub.find("hf://datasets/ann/hh@refs/convert/parquet/default", "test")) == ["Question 2"]


def test_lines_are_read_where_nothing_is_converted(served):
    served.add("ann/lines", files={"data.jsonl": jsonl(pairs(2)), "dataset_infos.json": b"{}"})
    dataset = hub.find("hf://datasets/ann/lines")
    assert prompts(dataset) == ["Question 0", "Question 1"] and dataset.license is None


def test_a_split_a_folder_or_a_file_is_asked_for_where_several_are_there(served):
    served.add(
        "ann/many",
        files={f"{part}/{split}.jsonl": jsonl(pairs(1)) for part in ("easy", "hard") for split in ("dev", "eval")},
    )
    assert why("hf://datasets/ann/many") == "ann/many has these splits; name one with --split: dev, eval"
    assert why("hf://datasets/ann/many", "train") == "ann/many has these splits; name one with --split: dev, eval"
    assert "add one of them to the address: easy, hard" in why("hf://datasets/ann/many", "dev")
    assert hub.find("hf://datasets/ann/many/hard", "dev").files[0].path == "hard/dev.jsonl"


# -- what is said where there is nothing to read


def test_what_is_no_address_is_refused_before_the_hub_is_asked(served):
    for where in ("hf://datasets/squad", "hf://ann/model", "hf://buckets/ann/b", "hf://", "hf://datasets/a/b@"):
        assert "is no dataset of the hub" in why(where)
    assert served.asked == []


def test_a_dataset_that_is_missing_or_private_says_what_to_do(served, monkeypatch):
    served.add("ann/secret", files={"data.jsonl": jsonl(pairs(1))}, private=True)
    assert prompts(hub.find("hf://datasets/ann/secret")) == ["Question 0"]
    assert why("hf://datasets/ann/none") == "The hub has no ann/none that the token in HF_TOKEN may see."
    monkeypatch.delenv("HF_TOKEN")
    assert why("hf://datasets/ann/secret").endswith("If it is private, set HF_TOKEN to a token that may see it.")
    assert served.tokens == {TOKEN, None}


def test_a_gated_dataset_says_where_its_terms_are(nobody):
    nobody.add("ann/gated", files={"data.jsonl": jsonl(pairs(1))}, gated=True)
    assert f"accept its terms at {nobody.url}/datasets/ann/gated" in why("hf://datasets/ann/gated")


def test_other_ways_to_fail_are_said_too(served, monkeypatch):
    served.add("ann/pairs", files={"data.jsonl": jsonl(pairs(1)), "notes/a.pdf": b"1", "b.arrow": b"2"})
    assert why("hf://datasets/ann/pairs@v9") == "ann/pairs has no such revision."
    assert why("hf://datasets/ann/pairs/none") == "ann/pairs has no such file or folder."
    assert "(.parquet, .jsonl, .json, .csv). It has: .pdf" in why("hf://datasets/ann/pairs/notes")
    served.add("ann/empty", files={"README.md": CARD})
    assert "no data files that can be read" in why("hf://datasets/ann/empty")
    served.fails = 500
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's own tries
    assert why("hf://datasets/ann/pairs") == "The hub answers with the error 500. Try again later."


def test_a_hub_that_cannot_be_reached_is_said(served, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert why("hf://datasets/ann/pairs").startswith("The hub cannot be reached.")


def test_columns_that_nobody_knows_are_named(served):
    served.add("ann/other", files={"data.jsonl": jsonl([{"question": "Why?", "answer": "So."}])})
    assert why("hf://datasets/ann/other").endswith(": no known columns among: question, answer")


def test_a_file_that_is_too_large_is_not_downloaded(served, monkeypatch):
    repository = served.add("ann/huge", files={"data.jsonl": jsonl(pairs(1))})
    repository.sizes["data.jsonl"] = 5 << 30
    assert "data.jsonl is too large: it has 5.0 GB, and at most 4 GB can be read." in why("hf://datasets/ann/huge")
    repository.sizes["data.jsonl"] = 3 << 30
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 3 << 30})())
    assert "there is no room for data.jsonl" in why("hf://datasets/ann/huge")
    assert not any("/resolve/" in path for _, path in served.asked)


def test_a_file_that_is_none_is_named_as_the_dataset_names_it(served):
    served.add("ann/bad", files={"data/train-00000-of-00001.parquet": b"no Parquet"})
    assert why("hf://datasets/ann/bad").endswith(": data/train-00000-of-00001.parquet: this is not a Parquet file.")


# -- into the store


def test_rows_are_kept_with_their_commit_and_licence(served, store, tmp_path):  # noqa: F811
    served.add("ann/pairs", files={"README.md": CARD, "train.jsonl": jsonl(pairs(3))})
    dataset = hub.find("hf://datasets/ann/pairs")
    assert importing.load(store, dataset, dataset.name).added == Counter(pair=3)
    (source,) = store.imported_sources()
    assert (source["source"], source["rows"], source["license"]) == (f"ann/pairs@{dataset.commit[:7]}", 3, "mit")
    assert (source["url"], source["split"]) == (f"hf://datasets/ann/pairs@{dataset.commit}", "train")
    assert importing.load(store, hub.find("hf://datasets/ann/pairs"), "again").known == 3
    export.write(store, export.Export("preference", imported=True), tmp_path / "out")
    said = f"Imported from `{source['url']}`, split train. Its licence: mit."
    assert said in (tmp_path / "out" / "README.md").read_text()
    store.remove_imported(source["source"])
    assert store.rows("select * from origin") == []


def test_no_more_files_are_downloaded_than_the_rows_need(served, store, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    served.add("ann/pairs", files={f"train-{i:05}-of-00003.parquet": parquet(pairs(4, 4 * i)) for i in range(3)})
    report = importing.load(store, hub.find("hf://datasets/ann/pairs"), "test", most_rows=5)
    assert report.added == Counter(pair=5) and report.left_over
    downloaded = {path.rsplit("/", 1)[1] for method, path in served.asked if method == "GET" and "/resolve/" in path}
    assert downloaded == {"train-00000-of-00003.parquet", "train-00001-of-00003.parquet"}
    assert list(tmp_path.iterdir()) == []


def test_the_command_imports_a_dataset_beside_a_file(served, tmp_path, capsys):
    served.add("ann/pairs", files={"README.md": CARD, "train.jsonl": jsonl([*pairs(2), {"chosen": "x"}])})
    file = tmp_path / "more.jsonl"
    file.write_bytes(jsonl(pairs(1, 50)))
    asked = ["import", "hf://datasets/ann/pairs", str(file), "--data-dir", str(tmp_path)]
    assert main(asked) == 3
    out, err = capsys.readouterr()
    assert "split train, 1 file of 0.0 MB, licence mit" in out and "row 3 is left out: no pair" in err
    assert "pairs 2" in out and TOKEN not in out + err
    assert main(["sources", "--data-dir", str(tmp_path)]) == 0
    assert ", split train, licence mit" in capsys.readouterr().out
    assert Store(tmp_path / "nudge.db").imported_counts() == {"pair": 3}
    assert main(["import", "hf://datasets/ann/none", "--data-dir", str(tmp_path)]) == 1
    assert "The hub has no ann/none" in capsys.readouterr().err


def test_the_prompt_queue_takes_a_dataset(served, store):  # noqa: F811
    served.add("ann/pairs", files={"train.jsonl": jsonl(pairs(2))})
    queueing.fill(store, Settings(_env_file=None, queue={"prompts": "hf://datasets/ann/pairs"}))
    assert [json.loads(row["messages"])[-1]["content"] for row in store.rows("select messages from queued_prompt")] == [
        "Question 0",
        "Question 1",
    ]
    missing = Settings(_env_file=None, queue={"prompts": "hf://datasets/ann/none"})
    with pytest.raises(SettingsError, match="--queue.prompts: The hub has no ann/none"):
        queueing.fill(store, missing)
