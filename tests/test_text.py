"""Untrusted text as HTML: every character shows, nothing runs, and the text comes back as it was."""

import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from playground.ui.text import MAX_PARSED_CHARS, as_markdown, as_typed, one_line, original, visible

MADE = {
    "div",
    "span",
    "p",
    "br",
    "hr",
    "em",
    "strong",
    "s",
    "code",
    "pre",
    "button",
    "ul",
    "ol",
    "li",
    "blockquote",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "a",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
}  # of HTML, nothing else is ever made
ATTRIBUTES = {"class", "dir", "hidden", "title", "href", "value", "start", "style"}
PIECES = [
    "`",
    "``",
    "```",
    "\n",
    "\n\n",
    "- ",
    "1. ",
    "> ",
    "# ",
    "*",
    "**",
    "_",
    "~~",
    "![",
    "[",
    "](",
    ")",
    "][1]",
    "[1]: http://e/x",
    "<img src=http://e/x>",
    "<b>",
    "</b>",
    "<!--",
    "-->",
    "<http://e/x>",
    "&lt;",
    "&#60;",
    "$$",
    "\\",
    "|",
    "|---|",
    "\t",
    "    ",
    "```mermaid\n",
    "---",
    "<think>",
    "a",
    "b ",
    "http://e/x.png",
    '"',
    "\u202e",
    "\x00",
    "é",
    "x",
]
markdown = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


class ParsedHtml(HTMLParser):
    """What a browser makes of the HTML: its visible text, tags and attributes."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.links, self.hidden, self.attributes = "", set(), [], False, set()
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.add(tag)
        self.attributes |= set(found)
        self.hidden = "hidden" in found
        if tag == "li" and "value" in found:
            self.text += found["value"]
        if tag == "a":
            self.links.append(found["href"])

    def handle_endtag(self, tag):
        self.hidden = False

    def handle_data(self, data):
        self.text += "" if self.hidden else data


def letters(text):
    """What must show, whatever is markup: all but blanks and the marks of Markdown."""
    return re.sub(r"[\s*_`~#>|\\\-+=:\[\].)(]", "", text)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(markdown | st.text(max_size=60))
def test_a_reply_shows_every_character_and_makes_no_other_html(text):
    html = as_markdown(text)
    seen = ParsedHtml(html)
    assert letters(seen.text) == letters(visible(text))
    assert seen.tags <= MADE and seen.attributes <= ATTRIBUTES
    assert all(re.match("https?://|mailto:", link, re.I) for link in seen.links)
    assert original(html) == text


@settings(max_examples=200, deadline=None, derandomize=True)
@given(markdown | st.text(max_size=60))
def test_what_a_person_typed_shows_as_typed(text):
    html = as_typed(text)
    seen = ParsedHtml(html)
    assert seen.text == visible(text) and seen.tags <= {"div", "span"}
    assert original(html) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a ` b\n\n<u>x</u> <foo>y</foo>\n\nc ` d", ["a ` b", "<u>x</u> <foo>y</foo>", "c ` d"]),
        ("- `a\n- <img src=x onerror=alert(1)>` b", ["<img src=x onerror=alert(1)>` b"]),
        ("![](http://elsewhere/x.png)", ["![](http://elsewhere/x.png)"]),
        ("[![a](http://elsewhere/x.png)](http://b.c)", ["![a](http://elsewhere/x.png)", "(http://b.c)"]),
        ("![a][1]\n\n[1]: http://elsewhere/x.png", ["![a][1]", "[1]: http://elsewhere/x.png"]),
        ("<http://elsewhere/x>", ["<http://elsewhere/x>"]),
        ("a <!-- b --> c", ["a <!-- b --> c"]),
        ("&amp; &lt; &#60;", ["&amp; &lt; &#60;"]),
        ("$$x^2$$ and \\(y\\)", ["$$x^2$$ and \\(y\\)"]),
        ("```mermaid\ngraph TD\n```", ["mermaid", "graph TD"]),
        ("a[^1]\n\n[^1]: note", ["a[^1]", "[^1]: note"]),
        ("---\ntitle: x\n---\nb", ["title: x"]),
        ("<think>a</think>", ["<think>a</think>"]),
        ("the end\\", ["the end\\"]),
        ("C:\\new\\", ["C:\\new\\"]),
        ("| a | b |\n|---|---|\n| 1 | 2 | and this |", ["| 1 | 2 | and this |"]),
        ("[x](javascript:alert(1))", ["[x](javascript:alert(1))"]),
        ('[x](http://e/y "a title")', ["x", '(http://e/y "a title")']),
        ("3. a\n7. b", ["3a", "7b"]),
    ],
)
def test_nothing_of_a_reply_vanishes(text, shown):
    """A regular expression decided what is code: tags between two lone backticks, definitions of links and images
    fetched from elsewhere were not shown.
    """
    seen = ParsedHtml(as_markdown(text))
    assert all(part in seen.text for part in shown), seen.text
    assert "img" not in seen.tags


def test_a_reply_is_markdown():
    seen = ParsedHtml(
        as_markdown(
            "# Head\n\n**bold** `<code>` ~~s~~\n\n- one\n  1. two\n\n> quote\n\n```python\nx = 1\n```\n\n| a "
            "|\n|---|\n| b |\n\nline\nbreak"
        )
    )
    assert {"h1", "strong", "code", "s", "ul", "ol", "blockquote", "pre", "table", "br"} <= seen.tags


@pytest.mark.parametrize(
    "text", ["2*3*4", "__init__.py", "    indented\n\n\n  twice", "# not a heading", "1. a", "a  b\tc"]
)
def test_a_message_is_no_markdown(text):
    assert ParsedHtml(as_typed(text)).text == text


def test_a_sign_that_turns_the_page_is_named():
    assert visible("a\u202eb\x07\u2067") == "a⟨U+202E⟩b⟨U+0007⟩⟨U+2067⟩"
    assert one_line("a\n\n  b\u202e\tc") == "a b⟨U+202E⟩ c"
    assert visible("שלום 👩‍👩‍👧 e\u0301\n\tx") == "שלום 👩‍👩‍👧 e\u0301\n\tx"


def test_an_edited_text_is_no_html_and_stays():
    assert original("<b>mine</b>") == "<b>mine</b>"


@pytest.mark.parametrize(
    "text", ["![" * 4000, "[a](" * 2000, "*a " * 3000, ">" * 8000, "`x``y```z" * 900, "x" * (MAX_PARSED_CHARS + 1)]
)
def test_no_text_takes_the_parser_long(text):
    assert original(as_markdown(text)) == text


@pytest.mark.parametrize(
    "text",
    ["|a" * 31 + "|\n" + "|-" * 31 + "|\n" + "|\n" * 1900, "[" * 4000, "![" * 4000, "`" * 4001 + "x", "*a" * 4000],
    ids=["table", "[", "![", "`", "*"],
)
def test_a_text_that_would_take_long_is_shown_as_typed(text):
    """A table of 4,000 characters came out as 700,000 and took seconds, on everybody's time."""
    began = time.process_time()
    shown = as_markdown(text)
    assert time.process_time() - began < 1 and len(shown) < 12 * len(text) and original(shown) == text
