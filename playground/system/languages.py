"""Which language a reader has, and every sentence in it. The English text is the key; `assets/words/zh-CN.json` has the
Chinese.

It knows nothing about Gradio, so that what answers before the page is there speaks the reader's language too.
"""

import json
from pathlib import Path

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


def language(accepted: str) -> str:
    """The language for an Accept-Language header: Chinese where it comes before English."""
    for part in accepted.split(","):
        code = part.split(";")[0].strip()
        if code in ALIASES:
            return CHINESE
        if code.split("-")[0] == "en":
            return "en"
    return "en"
