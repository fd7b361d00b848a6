"""The owner's guidelines for people who vote, in a fold above the chat: a Markdown file, as safe HTML."""

from pathlib import Path

import gradio as gr

from playground.settings import SettingsError
from playground.ui import words
from playground.ui.text import as_markdown

LONGEST = 64 << 10  # bytes


def read(path: str) -> str:
    """The text of the file; "" where none is named. SettingsError where it cannot be used."""
    if not path:
        return ""
    try:
        with open(Path(path).expanduser(), "rb") as file:
            content = file.read(LONGEST + 1)
        if len(content) > LONGEST:
            raise SettingsError(f"--people.guidelines: {path} is longer than {LONGEST >> 10} KB.")
        return content.decode("utf-8-sig").strip()
    except OSError as error:
        raise SettingsError(f"--people.guidelines: {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"--people.guidelines: {path} is not in UTF-8.") from None


def build(path: str) -> None:
    """Add the fold inside the current Blocks, where there is a file. Read once: a change needs a restart."""
    text = read(path)
    if text:
        with gr.Accordion(words.label("Guidelines"), open=False, elem_id="guidelines"):
            gr.HTML(as_markdown(text), elem_id="guidelines-text", padding=False)
