"""Inputs whose values our handlers check and refuse in words, where Gradio would raise and print a traceback.

The type of a value has been checked before (`payload.py`); what it may be is known to `session.py` and `settings.py`.
"""

import gradio as gr


class Radio(gr.Radio):
    """A choice of one; whoever handles it knows whether it is there."""

    is_template = True  # the browser draws it as its base

    def preprocess(self, payload):
        return payload


class CheckboxGroup(gr.CheckboxGroup):
    """A choice of several."""

    is_template = True

    def preprocess(self, payload):
        return payload


class Dropdown(gr.Dropdown):
    """A choice of one from a long list."""

    is_template = True

    def preprocess(self, payload):
        return payload


class Slider(gr.Slider):
    """A number."""

    is_template = True

    def preprocess(self, payload):
        return payload


class Number(gr.Number):
    """A number, typed."""

    is_template = True

    def preprocess(self, payload):
        return payload
