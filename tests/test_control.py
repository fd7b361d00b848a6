"""What admins change for the next rounds: what is kept, what is refused, and that nobody else can."""

from pathlib import Path

import pytest

from playground.people import visitor
from playground.people.admins import Admins
from playground.settings import Settings, SettingsError, flag, overridden, sections
from playground.store import STOPPED, Store
from playground.ui import unchecked
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


def values(control, changes):
    """What a page with the form just filled in sends after these changes."""
    return changed_in(control.on_open_settings(Request()), control, changes)


def changed_in(filled, control, changes):
    """What the page sends that had its form `filled`, after these changes."""
    sent = {component: value for component, value in filled.items() if component is not control.settings_form}
    return {**sent, **{control.fields[name]: value for name, value in changes.items()}}


def test_what_differs_from_the_apps_settings_is_kept_and_shown_again(control):
    control.on_save(values(control, {"ppo.kl_target": 4, "ppo.iterations": 6.0, "round.start_from": "base"}), Request())
    assert control.store.overrides() == {"ppo.kl_target": 4.0, "ppo.iterations": 6, "round.start_from": "base"}
    assert control.on_open_settings(Request())[control.fields["ppo.kl_target"]] == 4.0
    own = control.settings.flat()
    control.on_save(values(control, {name: own[name] for name in control.store.overrides()}), Request())
    assert control.store.overrides() == {}, "what is as the app has it is no change"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ppo.kl_target", -1),
        ("ppo.iterations", 2.5),
        ("round.start_from", "nowhere"),
        ("preferences.heldout_fraction", 1),
        ("ppo.lora_rank", 10_000),
    ],
)
def test_a_value_that_does_not_fit_saves_nothing(control, name, value):
    control.on_save(values(control, {"ppo.epochs": 3, name: value}), Request())
    assert control.store.overrides() == {}
    with pytest.raises(SettingsError, match=flag(name)):
        overridden(control.settings, {name: value})


def test_the_form_takes_no_input_until_it_has_its_values(control):
    """What was typed before they came was replaced by them; what was saved before replaced another admin's settings."""
    form = control.settings_form
    assert form.visible is False and control.save.parent.parent is form
    assert all(is_inside(field, form) for field in control.fields.values())
    filled = control.on_open_settings(Request())
    assert filled[form]["visible"] is True and set(control.fields.values()) < set(filled)
    assert control.on_open_settings(Request(STRANGER)) == gr.skip()


def is_inside(component, block):
    return component is not None and (component.parent is block or is_inside(component.parent, block))


def test_an_emptied_field_takes_the_change_back(control):
    control.on_save(values(control, {"ppo.kl_target": 4}), Request())
    control.on_save(values(control, {"ppo.kl_target": None}), Request())
    assert control.store.overrides() == {}


def test_what_another_admin_saved_meanwhile_stays(control):
    """Save wrote the whole form, as it was when it was filled in."""
    forms = [control.on_open_settings(Request()) for _ in range(3)]
    control.on_save(changed_in(forms[0], control, {"ppo.epochs": 3, "ppo.kl_step": 4.0}), Request())
    saved = control.on_save(changed_in(forms[1], control, {"ppo.iterations": 9, "ppo.kl_step": 5.0}), Request())
    assert control.store.overrides() == {"ppo.epochs": 3, "ppo.iterations": 9, "ppo.kl_step": 5.0}
    assert saved[control.fields["ppo.epochs"]] == 3, "and the form shows it"
    control.on_save(changed_in(forms[2], control, {"ppo.epochs": None}), Request())
    assert control.store.overrides() == {"ppo.iterations": 9, "ppo.kl_step": 5.0}
    control.on_save(changed_in(forms[2], control, {}), Request())
    assert control.store.overrides() == {"ppo.iterations": 9, "ppo.kl_step": 5.0}


def test_a_form_whose_first_values_are_forgotten_is_filled_in_anew(control):
    """All fields would count as changed."""
    sent = {**values(control, {"ppo.kl_step": 4.0}), control.filled_in: {}}
    control.store.override({"ppo.epochs": 3}, control.store.annotator("another admin"))
    answer = control.on_save(sent, Request())
    assert control.store.overrides() == {"ppo.epochs": 3} and answer[control.fields["ppo.epochs"]] == 3
    assert "Nothing was saved" in answer[control.notice.html] and answer[control.filled_in]["ppo.epochs"] == 3


@pytest.mark.parametrize("earlier", [{"ppo.kl_target": -1.0}, {"ppo.gone": 1}])
def test_what_was_saved_takes_effect_also_where_an_earlier_value_fits_no_more(control, earlier):
    """One value that does not fit leaves all of them without effect."""
    control.store.override({**earlier, "ppo.iterations": 9}, control.store.annotator("another admin"))
    saved = control.on_save(values(control, {"ppo.epochs": 3}), Request())
    assert saved[control.fields["ppo.epochs"]] == 3 and control.store.overrides() == {"ppo.epochs": 3}


def test_automatic_or_not_is_kept(control):
    control.on_auto(False, Request())
    assert control.store.overrides() == {"round.auto": False}
    control.on_auto(True, Request())
    assert control.store.overrides() == {}


@pytest.mark.parametrize("request_", [Request(STRANGER), Request("forged")])
def test_nobody_else_changes_anything_or_sees_the_buttons(control, request_):
    wanted = values(control, {"ppo.kl_target": 4})
    for handler, data in (
        (control.on_save, [wanted]),
        (control.on_reset, []),
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
    assert not any(seen[button].visible for button in [*control.buttons, control.settings_fold])


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
    assert pressed.value == "Stopping after this step…" and not pressed.interactive
    assert "Stopping after this step…" in strip.on_tick(None, Request())[0]
    assert "这一步结束后停止…" in strip.on_tick(None, Request(language="zh-CN"))[0]
    control.store.end_round(row["id"], "w", "failed", STOPPED)
    strip.invalidate()
    again = control.on_tick(None, Request())[control.stop]
    assert again.value == "Stop the round" and "Stopping" not in strip.on_tick(None, Request())[0]


def test_what_is_typed_in_the_fold_outlives_a_round_that_begins(control):
    """The fold was painted with the buttons at every change of the round's state, and a painted fold starts over."""
    seen = control.on_tick(None, Request())
    assert control.settings_fold in seen
    assert control.settings_fold not in control.on_start(Request())
    later = control.on_tick(seen[control.painted], Request())
    assert control.start in later and control.settings_fold not in later
    assert control.settings_fold in control.on_sign_out(Request())


def test_a_refusal_is_in_the_readers_language(control):
    with pytest.raises(gr.Error) as refused:
        control.on_start(Request(STRANGER, language="zh-CN,zh"))
    assert refused.value.title == "不允许"


def test_only_settings_of_training_can_be_changed():
    names = {name for names in sections().values() for name in names}
    assert {"ppo.kl_target", "round.votes", "gate.prompts", "reward.quantisation"} <= names
    assert not names & {
        "host",
        "port",
        "data_dir",
        "model",
        "admins",
        "users_file",
        "threads",
        "device",
        "seed",
        "round.lease_seconds",
        "chat.temperature",
        "limits.sessions",
    }
    with pytest.raises(SettingsError, match="data_dir"):
        overridden(Settings(_env_file=None), {"data_dir": "/"})


def test_gradio_writes_no_stub_beside_our_components():
    """It did when the app started, and mypy then read the stub in place of the module."""
    assert not Path(unchecked.__file__).with_suffix(".pyi").exists()
    assert unchecked.Radio(["a"]).preprocess("b") == "b", "a value that Gradio's own Radio refuses"
