"""Every word that a person reads, in the reader's language. The English text is the key; `assets/words/zh-CN.json` has
the Chinese.

`label` is for what a component shows when the page is built (Gradio translates it in the browser). `of(request)` gives
a reader's `Words` for what a handler forms: `Words(…)` is for texts of the page itself, `Words.message` for Messages
that other modules made: refusals, and the reasons why rounds ended.
"""

import json
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.requests import Request

from playground.system.messages import Message, Value

CHINESE = "zh-CN"
ALIASES = (CHINESE, "zh", "zh-SG", "zh-Hans")
CATALOGUES: dict[str, dict[str, str]] = {
    CHINESE: json.loads((Path(__file__).resolve().parents[2] / "assets" / "words" / f"{CHINESE}.json").read_text())
}


class Words:
    """The words of one reader; `language` is "en" or a catalogue's code."""

    def __init__(self, language: str = "en") -> None:
        self.language = language
        self.catalogue = CATALOGUES.get(language, {})

    def __call__(self, english: str, /, **values: Value) -> str:
        """`english` in this language, with its {places} filled."""
        return self.message(Message(english, **values))

    def message(self, message: Message) -> str:
        """A sentence that another module made; in English where the catalogue has no translation."""
        return message.translated(lambda english: self.catalogue.get(english, english))


def of(request: gr.Request | Request | None) -> Words:
    """The words of the person who sent a request, in the first of the browser's languages that has a catalogue."""
    return Words(language(request.headers.get("accept-language", "") if request else ""))


def language(accepted: str) -> str:
    """The language for an Accept-Language header: Chinese where it comes before English."""
    for part in accepted.split(","):
        code = part.split(";")[0].strip()
        if code in ALIASES:
            return CHINESE
        if code.split("-")[0] == "en":
            return "en"
    return "en"


def label(english: str) -> Any:
    """A component's text, translated in the browser; reads as `english` until then. It is Gradio's I18nData, which
    every component takes as a text, though not all their annotations say so.
    """
    return TRANSLATIONS(english)


def mark(english: str) -> str:
    """Marks `english` as shown to people where it stands in a table; what shows it translates it."""
    return english


def translations() -> gr.I18n:
    """What `launch` or `mount_gradio_app` takes as `i18n`."""
    return TRANSLATIONS


TRANSLATIONS = gr.I18n(en={key: key for key in CATALOGUES[CHINESE]}, **dict.fromkeys(ALIASES, CATALOGUES[CHINESE]))
