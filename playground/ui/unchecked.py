"""Input components whose values Gradio passes on without checking them. Gradio would raise and print a traceback; the
handlers refuse a wrong value with a sentence.

`web/payload.py` has checked the type of a value before. Which values are valid is known to `chat/session.py` and
`settings/`.
"""

from abc import ABCMeta
from typing import Any

import gradio as gr
from gradio.component_meta import ComponentMeta

Choice = str | int | float


class _WithoutStub(ComponentMeta):
    """Creates a component class as Python does. Gradio's metaclass also writes a `.pyi` file beside the module, which
    type checkers read in place of the module, whether it is up to date or not.
    """

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
        return ABCMeta.__new__(mcs, name, bases, namespace)


class Radio(gr.Radio, metaclass=_WithoutStub):
    """A choice of one."""

    is_template = True  # the browser draws it as its base class

    def preprocess(self, payload: Choice | None) -> Choice | None:
        return payload


class CheckboxGroup(gr.CheckboxGroup, metaclass=_WithoutStub):
    """A choice of several."""

    is_template = True

    def preprocess(self, payload: list[Choice]) -> list[Choice]:
        return payload


class Dropdown(gr.Dropdown, metaclass=_WithoutStub):
    """A choice of one from a long list."""

    is_template = True

    def preprocess(self, payload: Choice | list[Choice] | None) -> Choice | list[Choice] | None:
        return payload


class Slider(gr.Slider, metaclass=_WithoutStub):
    """A number within bounds."""

    is_template = True

    def preprocess(self, payload: float) -> float:
        return payload


class Number(gr.Number, metaclass=_WithoutStub):
    """A number that is typed."""

    is_template = True

    def preprocess(self, payload: float | None) -> float | None:
        return payload
