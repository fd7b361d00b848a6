"""Every word that a person reads, in the reader's language. English is the key; `assets/words/zh-CN.json` has the
Chinese.

`label` is for what stands on a component when the page is built (Gradio translates it in the browser); `of(request)`
gives a reader's `Words` for what a handler forms; `Words.said` is for sentences that other modules formed in English:
refusals, reasons that a round ended with.
"""

import json
import re
from functools import cache
from pathlib import Path

import gradio as gr

CHINESE = "zh-CN"
ALIASES = (CHINESE, "zh", "zh-SG", "zh-Hans")
CATALOGUES = {
    CHINESE: json.loads((Path(__file__).resolve().parents[2] / "assets" / "words" / f"{CHINESE}.json").read_text())
}
TEXTUAL = {
    "name",
    "reason",
    "phase",
    "setting",
    "what",
    "model",
    "path",
    "error",
    "accepted",
    "version",
    "hits",
}  # other places take figures alone
LONGEST, MOST_PARTS = (
    500,
    20,
)  # of a sentence that is looked up, since a pattern with several places takes time that grows with the cube
_FIGURE = r"[+\-−]?\d[\d.,:/]*\s?(?:%|ms|s|MB|GB)?"
_PLACE = re.compile(r"\{(\w+)\}")


class Words:
    """The words of one reader; `language` is "en" or a catalogue's code."""

    def __init__(self, language="en"):
        self.language = language
        self.catalogue = CATALOGUES.get(language, {})

    def __call__(self, english, **values):
        """`english` in this language with its {places} filled."""
        return self.catalogue.get(english, english).format(**values)

    def said(self, text):
        """A sentence that was formed in English elsewhere, in this language where the catalogue has it or its pattern;
        part by part where it was joined.
        """
        if not text or self.language == "en":
            return text
        if text in self.catalogue:
            return self.catalogue[text]
        for pattern, template in _patterns(self.language) if len(text) <= LONGEST else ():
            if found := pattern.fullmatch(text):
                return template.format(**{k: self.said(v) if k in TEXTUAL else v for k, v in found.groupdict().items()})
        if 0 < text.count("; ") <= MOST_PARTS:
            return "；".join(self.said(part) for part in text.split("; "))
        return text


@cache
def _patterns(language):
    """(pattern, translation) of every template with places, the one with most literal text first, so that a general one
    never takes a special one's text.
    """
    templates = [(key, value) for key, value in CATALOGUES[language].items() if _PLACE.search(key)]
    templates.sort(key=lambda pair: -len(_PLACE.sub("", pair[0])))
    return [(_pattern(key), value) for key, value in templates]


def _pattern(template):
    parts = _PLACE.split(template)  # literal, name, literal, name, …
    places = {name: f"(?P<{name}>{'.+?' if name in TEXTUAL else _FIGURE})" for name in parts[1::2]}
    seen, regex = set(), ""
    for i, part in enumerate(parts):
        regex += re.escape(part) if i % 2 == 0 else f"(?P={part})" if part in seen else places[part]
        seen |= {part} if i % 2 else set()
    return re.compile(regex, re.S)


def of(request):
    """The words of the person who sent a request: the first language of the browser that there is."""
    return Words(language(request.headers.get("accept-language", "") if request else ""))


def language(accepted):
    """The language for an Accept-Language header: Chinese where it comes before English."""
    for part in accepted.split(","):
        code = part.split(";")[0].strip()
        if code in ALIASES:
            return CHINESE
        if code.split("-")[0] == "en":
            return "en"
    return "en"


def label(english):
    """A component's text, translated in the browser; reads as `english` until then."""
    return TRANSLATIONS(english)


def mark(english):
    """Says that `english` is shown to people, where it stands in a table and not in the call that shows it."""
    return english


def translations():
    """What `launch` or `mount_gradio_app` takes as `i18n`."""
    return TRANSLATIONS


TRANSLATIONS = gr.I18n(en={key: key for key in CATALOGUES[CHINESE]}, **dict.fromkeys(ALIASES, CATALOGUES[CHINESE]))
