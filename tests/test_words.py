"""Every string a person reads is there in both languages, with the same places for figures."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from playground.settings import Settings, sections
from playground.ui import words
from playground.ui.words import CATALOGUES, CHINESE, Words

ROOT = Path(__file__).parent.parent
CATALOGUE = CATALOGUES[CHINESE]
UI = sorted((ROOT / "playground" / "ui").glob("*.py"))
# exceptions whose text a person is shown
SPEAKERS = {
    "Refused",
    "TooMuch",
    "NotTheirs",
    "StoreError",
    "StoreBusy",
    "StoreFull",
    "StoreLost",
    "StoreUnavailable",
    "BadMessage",
    "NoCookie",
    "NotAllowed",
    "WrongSignIn",
    "TooMany",
}
SPOKEN = [*sorted((ROOT / "playground").rglob("*.py")), *sorted((ROOT / "training").glob("*.py"))]


@cache
def calls(path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def is_words(function):
    """translate(…), words.of(request)(…), words.label(…) or words.mark(…)."""
    text = ast.unparse(function)
    return (
        text == "translate"
        or text in ("words.label", "words.mark")
        or re.fullmatch(r"words\.of\(\w+\)", text) is not None
    )


@cache
def keys():
    return {
        (path.name, ast.unparse(node.args[0])): node.args[0]
        for path in UI
        for node in calls(path)
        if is_words(node.func) and path.name != "words.py"
    }


def sample(node, figure="7"):
    """A message as a person gets it: an f-string with a figure at each place."""
    if isinstance(node, ast.JoinedStr):
        # `asked` is a clause that is there or not
        return "".join(
            part.value if isinstance(part, ast.Constant) else "" if ast.unparse(part.value) == "asked" else figure
            for part in node.values
        )
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp):
        return sample(node.left, figure) + sample(node.right, figure)
    return None


@cache
def said():
    """(file, text) of every message that an exception or a round's end carries to the page."""
    found = []
    for path in SPOKEN:
        for node in calls(path):
            name = ast.unparse(node.func)
            argument = None
            if name.split(".")[-1] in SPEAKERS and node.args or name in ("refusals.append",) and path.name == "gate.py":
                argument = node.args[0]
            elif name in ("self.end", "store.end_round", "self.store.end_round"):
                argument = node.args[-1]
            text = argument is not None and sample(argument)
            if text and len(text) > 3:
                found.append((path.name, text))
    return sorted(set(found))


@pytest.mark.parametrize("where", sorted(keys()))
def test_a_string_of_the_page_is_a_literal_and_has_its_translation(where):
    node = keys()[where]
    if isinstance(node, ast.Constant):
        assert node.value in CATALOGUE, "not in assets/words/zh-CN.json"
    else:  # a table's entry, marked where it stands
        assert not isinstance(node, (ast.JoinedStr, ast.BinOp)), "the text must be one literal, with {places}"


@pytest.mark.parametrize("name", [name for names in sections().values() for name in names])
def test_a_setting_that_admins_change_is_explained_in_both_languages(name):
    assert " ".join(Settings.model_fields[name].description.split()) in CATALOGUE


@pytest.mark.parametrize(("where", "text"), said())
def test_what_other_modules_say_in_english_is_translated(where, text):
    chinese = Words(CHINESE).said(text)
    assert not re.search(r"[a-z]{4,} [a-z]{3,}", chinese), chinese
    assert sorted(re.findall(r"7", text)) == sorted(re.findall(r"7", chinese)), "every figure is said"


@pytest.mark.parametrize("english", sorted(CATALOGUE))
def test_a_translation_has_the_same_places_and_is_not_empty(english):
    chinese = CATALOGUE[english]
    assert chinese.strip()
    assert set(re.findall(r"\{(\w+)\}", english)) == set(re.findall(r"\{(\w+)\}", chinese))


def test_there_are_messages_to_look_at():
    assert len(keys()) > 60 and len(said()) > 20


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh-CN"),
        ("zh", "zh-CN"),
        ("en-US,en;q=0.9", "en"),
        ("de,en;q=0.5", "en"),
        ("en,zh-CN", "en"),
        ("", "en"),
        ("fr", "en"),
    ],
)
def test_the_language_is_the_browsers_first_that_there_is(accepted, language):
    assert words.language(accepted) == language


def test_a_sentence_that_others_joined_is_translated_part_by_part():
    text = (
        "it moved too far from the base: 13.2 nats a reply, and the budget is 12; "
        "10% of its replies are empty, and 5% is the limit"
    )
    chinese = Words(CHINESE).said(text)
    assert all(figure in chinese for figure in ("13.2", "12", "10%", "5%")) and "；" in chinese
    assert not re.search(r"[a-z]{4,}", chinese)


def test_an_unknown_sentence_stays_as_it_is():
    assert Words(CHINESE).said("CUDA out of memory in kernel x") == "CUDA out of memory in kernel x"
    assert Words().said("Anything; at all") == "Anything; at all"
