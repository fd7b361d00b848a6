"""Every word that a person reads on the page, in the reader's language. The English text is the key; the catalogue is
in `playground/system/languages.py`.

`label` is for what a component shows when the page is built (Gradio translates it in the browser). `of(request)` gives
a reader's `Words` for what a handler forms: `Words(…)` is for texts of the page itself, `Words.message` for Messages
that other modules made: refusals, and the reasons why rounds ended.
"""

from typing import Any

import gradio as gr
from starlette.requests import Request

from playground.system.languages import ALIASES, CATALOGUES, CHINESE, Words, language


def of(request: gr.Request | Request | None) -> Words:
    """The words of the person who sent a request, in the first of the browser's languages that has a catalogue."""
    return Words(language(request.headers.get("accept-language", "") if request else ""))


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
