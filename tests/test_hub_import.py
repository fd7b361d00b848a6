"""A dataset of the hub imported from the page: by admins alone, one at a time, and what is said of it."""

import threading

import pytest

from playground.data import hub_import, importing
from playground.data.hub_import import HubImport
from playground.ui.quick_gradio import gradio as gr
from tests import fake_hub
from tests.controls import STRANGER, Request
from tests.test_data_hub import jsonl, pairs
from tests.test_data_page import drawn, search, tab  # noqa: F401 (fixtures)


@pytest.fixture
def served(monkeypatch):
    with fake_hub.serving(monkeypatch) as served:
        served.add(
            "ann/pairs", files={"train.jsonl": jsonl([*pairs(3), {"chosen": "x"}]), "test.jsonl": jsonl(pairs(1))}
        )
        yield served


@pytest.fixture
def fold(tab):  # noqa: F811
    tab.hub_import.job = HubImport(tab.store)
    return tab.hub_import


def begin(fold, address, split="", rows="100", **asked):
    return fold.on_begin(address, split, rows, Request(**asked))


def said(fold, updates=None):
    fold.job.join()
    return (updates or fold.on_look(Request()))[fold.html]


def test_an_admin_imports_a_dataset_by_its_name(served, fold, tab):  # noqa: F811
    begun = begin(fold, " ann/pairs ")
    assert begun[fold.poll]["active"] is True
    assert ": rows read: 4; new: 3; there already: 0; left out: 1.</p>" in said(fold)
    assert fold.on_look(Request())[fold.poll]["active"] is False
    (source,) = tab.store.imported_sources()
    assert source["source"].startswith("ann/pairs@") and source["rows"] == 3
    assert "Imported: pairs 3" in search(tab)[tab.downloads]
    begin(fold, "hf://datasets/ann/pairs", "test")
    assert "rows read: 1; new: 0; there already: 1" in said(fold)
    begin(fold, "ann/pairs", rows="2")
    assert ": rows read: 2" in said(fold)


def test_nobody_else_can_begin_or_look(served, fold, tab):  # noqa: F811
    tab.store.annotator(STRANGER)
    with pytest.raises(gr.Error, match="Only admins"):
        begin(fold, "ann/pairs", token=STRANGER)
    assert fold.job.state is None and served.asked == []
    assert fold.on_look(Request(STRANGER)) == gr.skip()
    assert not search(tab, STRANGER)[fold.fold]["visible"] and search(tab)[fold.fold]["visible"]


@pytest.mark.parametrize(
    ("address", "rows", "says"),
    [
        ("", "9", "Write the name"),
        ("a/" * 999, "9", "Write the name"),
        ("ann/pairs", "0", "a number from 1 to 100,000"),
        ("ann/pairs", "100001", "a number from 1 to 100,000"),
        ("ann/pairs", "\u0663", "a number from 1 to 100,000"),
        ("<b>x", "9", "&lt;b&gt;x is no dataset of the hub"),
        ("https://elsewhere.example/datasets/a/b", "9", "is no dataset of the hub"),
        ("ann/none", "9", "The hub has no ann/none"),
    ],
)
def test_what_cannot_be_imported_is_said(served, fold, address, rows, says):
    updates = begin(fold, address, rows=rows)
    assert says in (updates[fold.html] if fold.job.state is None else said(fold))


def test_one_import_runs_at_a_time_and_a_failure_ends_it(served, fold, monkeypatch, caplog):
    over = threading.Event()

    def load(*_, report, **__):
        report.read = 5
        over.wait(20)
        raise RuntimeError("what somebody wrote")

    monkeypatch.setattr(importing, "load", load)
    begin(fold, "ann/pairs")
    assert "An import is running" in begin(fold, "ann/other")[fold.html]
    while fold.job.state.report.read != 5:
        threading.Event().wait(0.01)
    assert "rows read: 5" in fold.on_look(Request())[fold.html] and "It goes on." in fold.on_look(Request())[fold.html]
    over.set()
    assert "The import failed; the log says more." in said(fold) and "somebody wrote" not in said(fold)
    monkeypatch.setattr(hub_import.importing, "load", lambda *_, **__: None)
    begin(fold, "ann/pairs")
    assert "rows read: 0" in said(fold)
