"""The controls of an app whose owner has opened the admin link, and requests to them as Gradio hands them on."""

import pytest

from playground.people import visitor
from playground.people.admins import Admins
from playground.settings import Settings
from playground.store import Store
from playground.ui.control import Control
from playground.ui.notice import Notice
from playground.ui.quick_gradio import gradio as gr
from playground.ui.status_bar import StatusBar

OWNER, STRANGER = "x" * 43, "y" * 43  # cookies


class Request:
    """A request as Gradio hands it on."""

    def __init__(self, token=OWNER, language="en"):
        self.headers, self.cookies = {"host": "127.0.0.1:7860", "accept-language": language}, {visitor.COOKIE: token}
        self.client, self.scope = type("Client", (), {"host": "127.0.0.1"}), {}


class Engine:
    live = type("Policy", (), {"version": 0})
    slowness = None
    identity = {"hash": "base hash"}  # noqa: RUF012 (nobody writes to it)


@pytest.fixture
def control():
    """The controls of an app whose owner has opened the admin link."""
    settings, store = Settings(_env_file=None), Store()
    admins = Admins(settings, store)
    admins.sign_in_owner(store.annotator("any"), OWNER)
    with gr.Blocks():
        control = Control(settings, store, admins, StatusBar(settings, store, Engine), Notice())
        control.build_folds()
    return control
