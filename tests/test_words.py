"""Every sentence that can reach a person is there in both languages, with the same places for values."""

import ast
import re
import string
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from playground.chat.votes import REASONS
from playground.settings import Settings, fields, overridden, sections
from playground.system.messages import Message, UserFacingError, joined, loads, plain
from playground.ui import words
from playground.ui.words import CATALOGUES, CHINESE, Words

ROOT = Path(__file__).parent.parent
CATALOGUE = CATALOGUES[CHINESE]
MODULES = [ROOT / "app.py", *sorted((ROOT / "playground").rglob("*.py")), *sorted((ROOT / "training").glob("*.py"))]
LISTS = {"{first}; {next}", "{first}\n{next}"}  # of `joined` and `lines`
# templates with a number that is never 1
SEVERAL = {
    "{n} replies are being written, {done} of at most {limit} tokens; you will see two of them",
    "A chat has from 1 to {limit} messages.",
}
# user-facing errors that may say a plain English text, which no page shows: on the command line, in the log, and to
# whoever sends what the page does not
ENGLISH_ALONE = {"SettingsError", "LeaseLost", "Refusal"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(path)))


@cache
def speakers() -> frozenset[str]:
    """Names of all classes that descend from UserFacingError."""
    bases = {
        node.name: {ast.unparse(base).split(".")[-1] for base in node.bases}
        for path in MODULES
        for node in nodes(path)
        if isinstance(node, ast.ClassDef)
    }
    found = {"UserFacingError"}
    while more := {name for name, names in bases.items() if names & found} - found:
        found |= more
    return frozenset(found)


@cache
def constants() -> dict[str, list[str]]:
    """The module-level constants of all modules: {name: its values, as they are written}."""
    found: dict[str, list[str]] = {}
    for path in MODULES:
        for node in tree(path).body:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    found.setdefault(ast.unparse(target), []).append(ast.unparse(node.value))
    return found


@dataclass(frozen=True)
class Sentence:
    """A call that makes a sentence for people: where it stands, its first argument, and the values it gives."""

    where: str
    template: ast.expr
    values: frozenset[str] | None  # None where they come from a dict

    def __str__(self) -> str:
        return f"{self.where} {ast.unparse(self.template)[:80]}"


def shows(path: Path, function: ast.expr) -> bool:
    """Whether a call shows a text of the page: translate(…), words.of(…)(…), words.label(…), words.mark(…)."""
    if not ("ui" in path.parts or path.name == "server.py") or path.name == "words.py":
        return False
    if called(function) not in ("translate", "label", "mark", None):
        return False
    text = ast.unparse(function)
    return text in ("translate", "words.label", "words.mark") or re.fullmatch(r"words\.of\(\w+\)", text) is not None


def called(function: ast.expr) -> str | None:
    """The last name of what is called; None where it has none, as what another call gives."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None


@cache
def sentences() -> tuple[Sentence, ...]:
    found, errors = [], speakers() - ENGLISH_ALONE
    for path in MODULES:
        if path.name in ("words.py", "languages.py", "messages.py"):
            continue
        for node in nodes(path):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = called(node.func)
            if name in ("Message", "Sentence") or name in errors or shows(path, node.func):
                values = frozenset(keyword.arg or "**" for keyword in node.keywords)
                found.append(Sentence(f"{path.name}:{node.lineno}", node.args[0], None if "**" in values else values))
    return tuple(found)


def literal(sentence: Sentence) -> str | None:
    node = sentence.template
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


@cache
def templates() -> frozenset[str]:
    """Every template that a person may read."""
    literals = {text for sentence in sentences() if (text := literal(sentence)) is not None}
    tags = {tag for tags in REASONS.values() for tag in tags}
    return frozenset(literals | tags | LISTS | set(descriptions()))


def descriptions() -> list[str]:
    """What the settings mean that admins change on the page."""
    names = [name for names in sections().values() for name in names]
    return [" ".join(fields(Settings)[name].description.split()) for name in names]


def places(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


# -- what the source says, and what the catalogue has


def test_each_sentence_for_people_has_its_translation():
    assert templates() - CATALOGUE.keys() == set(), "not in assets/words/zh-CN.json"


def test_each_translation_belongs_to_a_sentence_has_its_places_and_is_not_empty():
    assert CATALOGUE.keys() - templates() == set(), "nothing says these any more"
    assert [english for english, chinese in CATALOGUE.items() if not chinese.strip()] == []
    assert [english for english, chinese in CATALOGUE.items() if places(english) != places(chinese)] == []


def test_each_template_is_a_literal_with_a_value_for_each_place():
    """Or it is a Message, or a text from a table that marks it, or a setting's description."""
    assert [str(sentence) for sentence in sentences() if not has_its_values(sentence)] == []


def has_its_values(sentence):
    text = literal(sentence)
    if text is not None:
        return sentence.values is None or places(text) == sentence.values
    node, written = sentence.template, ast.unparse(sentence.template)
    if not (isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)) or ".get(" in written):
        return ".description" in written
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and part.id in constants()}
    return all(any("Message(" in value or "words.mark(" in value for value in constants()[name]) for name in names)


def test_there_are_sentences_to_look_at():
    assert len(templates()) > 300 and len([s for s in sentences() if literal(s)]) > 300


# -- a Message


def test_a_message_is_english_until_somebody_reads_it_in_another_language():
    message = Message("The message has {n} characters; at most {limit} fit. Please shorten it.", n="4,001", limit=4000)
    assert str(message) == "The message has 4,001 characters; at most 4000 fit. Please shorten it."
    assert Words().message(message) == str(message)
    assert Words(CHINESE).message(message) == "消息有 4,001 个字符，最多 4000 个。请缩短。"


@pytest.mark.parametrize(
    ("n", "english"), [(0, "0 new votes"), (1, "1 new vote"), ("1", "1 new vote"), (2, "2 new votes")]
)
def test_a_word_goes_with_its_number(n, english):
    """The page said "1 votes"."""
    message = Message("{n} new {n:vote|votes}", n=n)
    assert str(message) == english == str(loads(message.dumps()))
    assert Words(CHINESE).message(message) == f"{n} 张新投票"


def test_a_number_of_things_is_told_with_both_forms():
    """One thing may be what there is; a template that means several is in the list."""
    plural = re.compile(r"\{\w+\} (?:\w+ )?(?:votes|replies|pairs|picks|messages|snapshots|prompts|rows|versions)\b")
    assert {text for text in templates() if plural.search(text)} == SEVERAL


def test_messages_in_a_message_are_translated_too():
    refusals = [
        Message("it moved too far from the base: {kl} nats a reply, and the budget is {limit}", kl="13.2", limit="12"),
        Message("{empty} of its replies are empty, and {limit} is the limit", empty="10%", limit="5%"),
        Message("{empty} of its replies are empty, and {limit} is the limit", empty="20%", limit="5%"),
    ]
    reason = Message("The new version was not published: {reason}.", reason=joined(refusals))
    assert str(reason).count("; ") == 2 and str(reason).endswith("20% of its replies are empty, and 5% is the limit.")
    chinese = Words(CHINESE).message(reason)
    assert all(figure in chinese for figure in ("13.2", "12", "10%", "5%")) and chinese.count("；") == 2
    assert not re.search(r"[a-z]{4,}", chinese)


def test_a_stored_message_is_the_same_when_it_is_read():
    inner = Message("{empty} of its replies are empty, and {limit} is the limit", empty="10%", limit=5)
    message = Message("The new version was not published: {reason}.", reason=inner)
    assert loads(message.dumps()) == message and loads(inner.dumps()) == inner


@pytest.mark.parametrize(
    "text", ["worse {than} before", "{}", '{"a": 1}', "[1]", "7", "", "An admin stopped this round."]
)
def test_what_an_earlier_version_stored_is_read_as_it_is(text):
    assert str(loads(text)) == text and Words().message(loads(text)) == text


def test_a_plain_text_and_what_has_no_translation_stay_as_they_are():
    assert Words(CHINESE).message(plain("CUDA out of {memory} in kernel x")) == "CUDA out of {memory} in kernel x"
    assert Words(CHINESE)("Anything; at {what}", what="all") == "Anything; at all"


def test_an_error_for_people_says_its_message():
    error = UserFacingError("The name has {n} characters; at most {limit} fit.", n=70, limit=64)
    assert str(error) == "The name has 70 characters; at most 64 fit."
    assert str(UserFacingError(error.message)) == str(error)


def test_a_setting_that_does_not_fit_is_explained_in_both_languages():
    with pytest.raises(UserFacingError) as caught:
        overridden(Settings(_env_file=None), {"round.votes": 0, "preferences.heldout_fraction": 2.0})
    english, chinese = str(caught.value), Words(CHINESE).message(caught.value.message)
    assert "got 0; accepted: an integer at least 1 and at most 100000. New votes after which" in english
    assert "a number above 0 and below 1" in english and english.count("\n") == 1
    assert "整数，至少 1，至多 100000" in chinese and "数字，大于 0，小于 1" in chinese and chinese.count("\n") == 1
    assert not re.search(r"[a-z]{4,} [a-z]{3,}", chinese)


# -- whose language it is


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
