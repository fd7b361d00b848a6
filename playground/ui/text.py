"""Untrusted text as HTML that shows every character: markup in it can be read, but it never runs, loads anything or
disappears.

What a person typed is shown as typed. A reply is Markdown: the parser in this module decides what is code, a list or
plain text, and the page gets its HTML. The Chatbots do not parse Markdown themselves, so no second parser can read a
text differently; they still sanitise the HTML that they get. The only HTML that is ever made is written in this module:
no images, no raw tags, and links to http, https and mailto only, each followed by its visible target.
"""

import re
import string
import unicodedata
from collections.abc import MutableMapping, Sequence
from functools import lru_cache
from html import escape, unescape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_inline import StateInline, image, link
from markdown_it.token import Token
from markdown_it.utils import OptionsDict

# limits above which a text is shown as typed, since the parser's time grows with the square of some texts' length
MAX_PARSED_CHARS = 20_000
MAX_TABLE_CELLS = 2000
MAX_MARKS = 1000  # of one kind of bracket or mark
# a backslash before one of these is Markdown's and is not shown; before others (as in LaTeX, or in a path) it is text
ESCAPED_BY_BACKSLASH = frozenset("*_`~#|")
# characters that may be left out of the HTML, since Markdown may take them as markup; all others must be in it
MARKUP_CHARS = frozenset("*_`~#>|\\-+=:[]")
LINK_SCHEMES = re.compile(r"(?:https?://|mailto:)", re.I)
# characters that change the direction of what follows; text of either direction needs none of them, since each text has
# a block of its own
BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
SOURCE = re.compile(r'<div class="said"><span class="source" hidden>(.*?)</span>', re.S)


def visible(text: str) -> str:
    """`text` with a readable sign for each character that would have an effect of its own, or break the HTML or JSON
    around it: U+202E becomes ⟨U+202E⟩.
    """
    if text.isprintable():
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(f"⟨U+{ord(char):04X}⟩" if _is_control(char) else char for char in text)


def one_line(text: str) -> str:
    """`text` on one line, for a title or a cell."""
    return " ".join(visible(text).split())


def as_typed(text: str) -> str:
    """What a person typed, as HTML, with all its spaces and blank lines."""
    return _with_source(text, f'<div class="typed" dir="auto">{escape(visible(text))}</div>')


def is_costly(text: str) -> bool:
    """Whether the parser would take long for a text, or its HTML would be many times as long as the text."""
    bars = max((row.count("|") for row in text.splitlines()), default=0)
    cells = bars * text.count("\n") if bars > 1 else 0
    marks = max(text.count(mark) for mark in "[`*_~")
    return len(text) > MAX_PARSED_CHARS or cells > MAX_TABLE_CELLS or marks > MAX_MARKS


@lru_cache(maxsize=128)
def as_markdown(text: str) -> str:
    """A reply as HTML; as typed where Markdown would drop a part of it (a table row with too many cells)."""
    if is_costly(text):
        return as_typed(text)
    tokens = PARSER.parse(visible(text))
    if _content_chars(_text_of(tokens)) != _content_chars(visible(text)):
        return as_typed(text)
    html = PARSER.renderer.render(tokens, PARSER.options, {})
    return _with_source(text, f'<div class="prose" dir="auto">{html}</div>')


def original(value: str) -> str:
    """The text that `as_typed` or `as_markdown` made `value` of; any other value is a text already."""
    match = SOURCE.match(value)
    return unescape(match[1]) if match else value


def _with_source(text: str, html: str) -> str:
    """`html` together with the text that it shows: the page copies and edits that text."""
    source = escape(text).replace("\r", "&#13;")
    return f'<div class="said"><span class="source" hidden>{source}</span>{html}</div>'


def _is_control(char: str) -> bool:
    if char in "\n\t":
        return False
    return char in BIDI_CONTROLS or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


# -- whether the HTML shows all of the text


def _content_chars(text: str) -> list[str]:
    return [char for char in text if not char.isspace() and char not in MARKUP_CHARS]


def _text_of(tokens: Sequence[Token]) -> str:
    """What a reader sees of the parsed text, with the markers of lists and the names of languages."""
    parts = []
    for token in tokens:
        if token.type == "list_item_open" and token.info:
            parts.append(f"{int(token.info)}{token.markup}")
        if token.type == "fence":
            parts.append(token.info)
        if token.children is not None:
            parts.append(_text_of(token.children))
        elif token.content:
            parts.append(token.content)
    return "".join(parts)


# -- the parser


class _Parser(MarkdownIt):
    def validateLink(self, url: str) -> bool:
        return LINK_SCHEMES.match(url) is not None


def _backslash(state: StateInline, silent: bool) -> bool:
    """A backslash and the character that it escapes: neither is markup. The backslash is shown where Markdown has no
    use for it.
    """
    following = state.src[state.pos + 1 : state.pos + 2]
    if state.src[state.pos] != "\\" or not following or following not in string.punctuation:
        return False
    if not silent:
        state.pending += following if following in ESCAPED_BY_BACKSLASH else "\\" + following
    state.pos += 2
    return True


def _image_as_text(state: StateInline, silent: bool) -> bool:
    """An image is shown as its source: if it were loaded, another server would learn who reads."""
    start = state.pos
    if not image(state, True):
        return False
    if not silent:
        state.pending += state.src[start : state.pos]
    return True


def _link_and_target(state: StateInline, silent: bool) -> bool:
    """A link, followed by its target."""
    start = state.pos
    if not link(state, silent):
        return False
    if not silent:
        end = state.pos
        state.pos = start
        label_end = state.md.helpers.parseLinkLabel(state, start, True)
        state.pos = end
        token = state.push("link_target", "", 0)
        token.content = state.src[label_end + 1 : end]
    return True


Environment = MutableMapping[str, Any]


def _render_target(self: RendererHTML, tokens: Sequence[Token], i: int, options: OptionsDict, env: Environment) -> str:
    return f' <span class="target">{escape(tokens[i].content)}</span>'


def _render_code(self: RendererHTML, tokens: Sequence[Token], i: int, options: OptionsDict, env: Environment) -> str:
    """A block of code below the name of its language, with Gradio's button that copies it. It is never drawn as a
    diagram.
    """
    language = tokens[i].info.strip()
    caption = f'<div class="language">{escape(language)}</div>' if language else ""
    button = (
        '<button title="copy" class="copy_code_button">'
        '<span class="copy-text"></span><span class="check"></span></button>'
    )
    return f'{caption}<div class="code_wrap">{button}<pre><code>{escape(tokens[i].content)}</code></pre></div>\n'


def _render_item(self: RendererHTML, tokens: Sequence[Token], i: int, options: OptionsDict, env: Environment) -> str:
    number = tokens[i].info
    return f'<li value="{int(number)}">' if number else "<li>"


def _render_table(self: RendererHTML, tokens: Sequence[Token], i: int, options: OptionsDict, env: Environment) -> str:
    return '<div class="table"><table>' if tokens[i].nesting > 0 else "</table></div>"


def _parser() -> MarkdownIt:
    """Markdown without what hides text (link definitions, entities, raw HTML) or loads something (images)."""
    parser = _Parser("commonmark", {"html": False, "breaks": True})
    parser.enable(["table", "strikethrough"])
    parser.disable(["reference", "html_block", "html_inline", "entity", "autolink"])
    parser.inline.ruler.at("escape", _backslash)
    parser.inline.ruler.at("image", _image_as_text)
    parser.inline.ruler.at("link", _link_and_target)
    parser.add_render_rule("link_target", _render_target)
    parser.add_render_rule("fence", _render_code)
    parser.add_render_rule("code_block", _render_code)
    parser.add_render_rule("list_item_open", _render_item)
    parser.add_render_rule("table_open", _render_table)
    parser.add_render_rule("table_close", _render_table)
    return parser


PARSER = _parser()
