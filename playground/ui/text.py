"""Untrusted text as HTML that shows every character: markup in it is something to read, never something that runs,
loads or vanishes.

What a person typed is shown as typed. A reply is Markdown: one parser, here, decides what is code, a list or plain
text, and the page gets its HTML (the Chatbots do not parse Markdown themselves, so that no second parser can read a
text in another way; they still sanitise what they get). Of HTML only what is written below is ever made: no images, no
raw tags, links to http, https and mailto alone, each with its target in sight.
"""

import re
import string
import unicodedata
from functools import lru_cache
from html import escape, unescape

from markdown_it import MarkdownIt
from markdown_it.rules_inline import image, link

MOST_CELLS, MOST_MARKS = 2000, 1000  # of a table, and of one kind of bracket or mark
# characters that are parsed; what is longer is shown as typed, since some texts take the parser time that grows with
# their square
LONGEST = 20_000
# a backslash before one of these is Markdown's and is not shown; before others (as in LaTeX, or in a path) it is text
ESCAPED_BY_BACKSLASH = frozenset("*_`~#|")
# characters that Markdown may take as markup, so that they need not show; all others must
MARKS = frozenset("*_`~#>|\\-+=:[]")
LINKED = re.compile(r"(?:https?://|mailto:)", re.I)
# characters that change the direction of what follows; text of either direction needs none of them here, since each
# text has a block of its own
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
SOURCE = re.compile(r'<div class="said"><span class="source" hidden>(.*?)</span>', re.S)


def visible(text: str) -> str:
    """`text` with each character that would act, or break what carries it, as a sign that can be read: U+202E as
    ⟨U+202E⟩.
    """
    if text.isprintable():
        return text
    return "".join(_sign(char) if _acts(char) else char for char in text.replace("\r\n", "\n").replace("\r", "\n"))


def line(text: str) -> str:
    """`text` on one line, for a title or a cell."""
    return " ".join(visible(text).split())


def as_typed(text: str) -> str:
    """What a person typed, as HTML: spaces, blank lines and all."""
    return _said(text, f'<div class="typed" dir="auto">{escape(visible(text))}</div>')


def is_costly(text: str) -> bool:
    """Whether a text would take the parser long, or come out many times as long as it went in."""
    bars = max((line.count("|") for line in text.splitlines()), default=0)
    cells = bars * text.count("\n") if bars > 1 else 0
    return len(text) > LONGEST or cells > MOST_CELLS or max(text.count(mark) for mark in "[`*_~") > MOST_MARKS


@lru_cache(maxsize=128)
def as_markdown(text: str) -> str:
    """A reply as HTML. Where Markdown would swallow a part of it (a table's row with too many cells), it is shown as
    typed.
    """
    if is_costly(text):
        return as_typed(text)
    tokens = PARSER.parse(visible(text))
    if _letters(_text_of(tokens)) != _letters(visible(text)):
        return as_typed(text)
    html = PARSER.renderer.render(tokens, PARSER.options, {})
    return _said(text, f'<div class="prose" dir="auto">{html}</div>')


def original(value: str) -> str:
    """The text that `as_typed` or `as_markdown` made `value` of; any other value is a text already."""
    found = SOURCE.match(value)
    return unescape(found[1]) if found else value


def _said(text, html):
    """`html` with the text that it shows, from which the page copies and edits."""
    source = escape(text).replace("\r", "&#13;")
    return f'<div class="said"><span class="source" hidden>{source}</span>{html}</div>'


def _acts(char):
    return char not in "\n\t" and (char in TURNING or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"))


def _sign(char):
    return f"⟨U+{ord(char):04X}⟩"


# -- does all of it show?


def _letters(text):
    return [char for char in text if not char.isspace() and char not in MARKS]


def _text_of(tokens):
    """What a reader sees of the parsed text, markers of lists and names of languages included."""
    seen = []
    for token in tokens:
        if token.type == "list_item_open" and token.info:
            seen.append(f"{int(token.info)}{token.markup}")
        if token.type == "fence":
            seen.append(token.info)
        if token.children is not None:
            seen.append(_text_of(token.children))
        elif token.content:
            seen.append(token.content)
    return "".join(seen)


# -- the parser


def _backslash(state, silent):
    """A backslash with what it escapes: neither is markup. It is shown itself, too, where Markdown has no use
    for it.
    """
    following = state.src[state.pos + 1 : state.pos + 2]
    if state.src[state.pos] != "\\" or not following or following not in string.punctuation:
        return False
    if not silent:
        state.pending += following if following in ESCAPED_BY_BACKSLASH else "\\" + following
    state.pos += 2
    return True


def _image_as_text(state, silent):
    """An image is its own source: showing it would tell another server who reads."""
    start = state.pos
    if not image(state, True):
        return False
    if not silent:
        state.pending += state.src[start : state.pos]
    return True


def _link_and_target(state, silent):
    """A link, and after it where it leads to."""
    start = state.pos
    if not link(state, silent):
        return False
    if not silent:
        end, state.pos = state.pos, start
        label_end = state.md.helpers.parseLinkLabel(state, start, True)
        state.pos = end
        token = state.push("link_target", "", 0)
        token.content = state.src[label_end + 1 : state.pos]
    return True


def _render_target(self, tokens, i, options, env):
    return f' <span class="target">{escape(tokens[i].content)}</span>'


def _render_code(self, tokens, i, options, env):
    """A block of code, never a drawing made of it, below the name of its language; with Gradio's button that
    copies it.
    """
    language = tokens[i].info.strip()
    caption = f'<div class="language">{escape(language)}</div>' if language else ""
    button = (
        '<button title="copy" class="copy_code_button">'
        '<span class="copy-text"></span><span class="check"></span></button>'
    )
    return f'{caption}<div class="code_wrap">{button}<pre><code>{escape(tokens[i].content)}</code></pre></div>\n'


def _render_item(self, tokens, i, options, env):
    number = tokens[i].info
    return f'<li value="{int(number)}">' if number else "<li>"


def _render_table(self, tokens, i, options, env):
    return '<div class="table"><table>' if tokens[i].nesting > 0 else "</table></div>"


def _parser():
    """Markdown without what hides text (definitions of links, entities, raw HTML) or loads something (images)."""
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    parser.disable(["reference", "html_block", "html_inline", "entity", "autolink"])
    parser.inline.ruler.at("escape", _backslash)
    parser.inline.ruler.at("image", _image_as_text)
    parser.inline.ruler.at("link", _link_and_target)
    parser.validateLink = lambda url: LINKED.match(url) is not None
    for kind, rule in (
        ("link_target", _render_target),
        ("fence", _render_code),
        ("code_block", _render_code),
        ("list_item_open", _render_item),
        ("table_open", _render_table),
        ("table_close", _render_table),
    ):
        parser.add_render_rule(kind, rule)
    return parser


PARSER = _parser()
