"""How an admin starts, pauses, resumes and stops rounds, and that nobody else can."""

import pytest

from playground.store import STOPPED
from playground.ui.quick_gradio import gradio as gr
from tests.controls import STRANGER, Request, control  # noqa: F401


def test_automatic_or_not_is_kept(control):
    control.on_auto(False, Request())
    assert control.store.overrides() == {"round.auto": False}
    control.on_auto(True, Request())
    assert control.store.overrides() == {}


@pytest.mark.parametrize("request_", [Request(STRANGER), Request("forged")])
def test_nobody_else_changes_anything_or_sees_the_buttons(control, request_):
    for handler, data in (
        (control.on_auto, [False]),
        (control.on_start, []),
        (control.command_handler("pause"), []),
        (control.on_stop, [True]),
    ):
        with pytest.raises(gr.Error) as refused:
            handler(*data, request_)
        assert refused.value.title == "Not allowed"
    assert control.store.overrides() == {} and control.store.last_round() is None
    seen = control.on_tick(None, request_)
    assert not any(seen[button].visible for button in [*control.buttons, control.round_settings.fold])


def test_the_buttons_are_those_that_do_something_now(control):
    def shown():
        control.status_bar.invalidate()
        seen = control.on_tick(None, Request())
        return {button.elem_id for button in control.buttons if seen[button].visible}

    assert shown() == {"train-now", "auto-train"}
    control.on_start(Request())
    assert shown() == {"stop-round", "auto-train"}
    row = control.store.take_round("w", lease_seconds=30)
    assert shown() == {"pause", "stop-round", "auto-train"}
    control.store.set_round_command(row["id"], "pause")
    assert shown() == {"resume", "stop-round", "auto-train"}
    control.store.set_round_command(row["id"], "stop")
    assert shown() == {"stop-round", "auto-train"}


def test_a_round_is_stopped_after_a_question_and_the_page_says_at_once_that_it_will(control):
    """A press stopped it unasked, and nothing was to be seen until the worker had stopped, half a minute later."""
    control.on_start(Request())
    row = control.store.take_round("w", lease_seconds=30)
    control.store.update_round(row["id"], "w", phase="ppo", step=2, steps=6)
    strip = control.status_bar
    assert control.on_stop(False, Request()) == gr.skip() and control.store.round_command(row["id"]) is None
    pressed = control.on_stop(True, Request())[control.stop]
    assert pressed.value == "Stopping as soon as it can…" and not pressed.interactive
    assert "Stopping as soon as it can…" in strip.on_tick(None, Request())[0]
    assert "尽快停止…" in strip.on_tick(None, Request(language="zh-CN"))[0]
    control.store.end_round(row["id"], "w", "failed", STOPPED)
    strip.invalidate()
    again = control.on_tick(None, Request())[control.stop]
    assert again.value == "Stop the round" and "Stopping" not in strip.on_tick(None, Request())[0]


def test_what_is_typed_in_the_fold_outlives_a_round_that_begins(control):
    """The fold was painted with the buttons at every change of the round's state, and a painted fold starts over."""
    seen = control.on_tick(None, Request())
    assert control.round_settings.fold in seen
    assert control.round_settings.fold not in control.on_start(Request())
    later = control.on_tick(seen[control.painted], Request())
    assert control.start in later and control.round_settings.fold not in later
    assert control.round_settings.fold in control.on_sign_out(Request())


def test_a_refusal_is_in_the_readers_language(control):
    with pytest.raises(gr.Error) as refused:
        control.on_start(Request(STRANGER, language="zh-CN,zh"))
    assert refused.value.title == "不允许"
