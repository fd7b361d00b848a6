"""How an open page stays up to date: it asks every 1.5 seconds what has changed (`assets/page.js`), and clicks a hidden
button for each part of the page that has.

The question is a small request of its own. With Gradio's timers, every open page ran its handlers all the time: a fifth
of a core in the browser and 4 % of one in the server for a page on which nothing changed.
"""

import hashlib
import secrets

import gradio as gr
from gradio.blocks import Block

PREFIX = "refresh-"
SERVER = secrets.token_hex(8)  # of this process: what a page shows of another one may be gone


# What `/changes` answers: texts that change whenever what they stand for does; empty where the store cannot be read.
# `server`: the process. `strip`: the status bar. `loop`: the state of rounds and versions. `data`: anything in the
# database.
Changes = dict[str, str]


def button(part: str) -> gr.Button:
    """The hidden button of a part of the page, made inside the current Blocks."""
    return gr.Button(visible="hidden", elem_id=PREFIX + part)


def is_button(block: Block | None) -> bool:
    """Whether a component is one that the page clicks by itself."""
    return str(getattr(block, "elem_id", "")).startswith(PREFIX)


def digest(value: object) -> str:
    """A short text that differs for values whose `repr` differs, and says nothing else about them."""
    return hashlib.sha256(repr((SERVER, value)).encode()).hexdigest()[:16]
