"""Untrusted text as Markdown that shows every character: markup in a message is something to read, never something that runs or vanishes."""

import re

# code fences (the last may still be open while it streams) and code spans stay as they are: there Markdown shows markup as it is
_CODE = re.compile(r"(^ {0,3}(?P<fence>`{3,}|~{3,}).*?(?:^ {0,3}(?P=fence)[`~]*[ \t]*$|\Z)|(?P<ticks>(?<!`)`+(?!`)).+?(?<!`)(?P=ticks)(?!`))", re.S | re.M)


def literal(text):
    """`text` for a Markdown component: emphasis, lists and code still render; tags and entities are shown as typed."""
    return _outside_code(text, lambda part: part.replace("&", "&amp;").replace("<", "&lt;"))


def typed(text):
    """What a person meant by a text that they edited as `literal` shows it: its inverse."""
    return _outside_code(text, lambda part: part.replace("&lt;", "<").replace("&amp;", "&"))


def _outside_code(text, change):
    parts, end = [], 0
    for code in _CODE.finditer(text):
        parts += [change(text[end:code.start()]), code.group()]
        end = code.end()
    return "".join([*parts, change(text[end:])])
