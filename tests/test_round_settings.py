"""The settings that admins change for the next rounds: what is kept, what is refused, and that nobody else can."""

from pathlib import Path

import pytest

from playground.settings import Settings, SettingsError, flag, overridden, sections
from playground.ui import unchecked
from playground.ui.quick_gradio import gradio as gr
from tests.controls import STRANGER, Request, control  # noqa: F401


@pytest.fixture
def form(control):  # noqa: F811
    return control.round_settings


def values(form, changes):
    """What a page with the form just filled in sends after these changes."""
    return changed_in(form.on_open(Request()), form, changes)


def changed_in(filled, form, changes):
    """What the page sends that had its form `filled`, after these changes."""
    sent = {component: filled[component]["value"] for component in form.fields.values()}
    sent[form.filled_in] = filled[form.filled_in]
    return {**sent, **{form.fields[name]: value for name, value in changes.items()}}


def test_what_differs_from_the_apps_settings_is_kept_and_shown_again(form):
    form.on_save(values(form, {"ppo.kl_target": 4, "ppo.iterations": 6.0, "round.start_from": "base"}), Request())
    assert form.store.overrides() == {"ppo.kl_target": 4.0, "ppo.iterations": 6, "round.start_from": "base"}
    opened = form.on_open(Request())
    assert opened[form.fields["ppo.kl_target"]]["value"] == 4.0
    marked = {name for name, field in form.fields.items() if opened[field]["elem_classes"] == ["changed"]}
    assert marked == {"ppo.kl_target", "ppo.iterations", "round.start_from"}
    assert "<b>ppo.iterations</b> 8 → 6, <b>ppo.kl_target</b> 8.0 → 4.0</p>" in opened[form.changes]
    own = form.settings.flat()
    form.on_save(values(form, {name: own[name] for name in form.store.overrides()}), Request())
    assert form.store.overrides() == {}, "what is as the app has it is no change"
    assert "Every setting is as the app was started." in form.on_open(Request())[form.changes]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ppo.kl_target", -1),
        ("ppo.iterations", 2.5),
        ("round.start_from", "nowhere"),
        ("preferences.heldout_fraction", 1),
        ("ppo.lora_rank", 10_000),
        ("ppo.minibatch", 10**20),  # more than JSON holds for Gradio: no form opened any more
    ],
)
def test_a_value_that_does_not_fit_saves_nothing(form, name, value):
    form.on_save(values(form, {"ppo.epochs": 3, name: value}), Request())
    assert form.store.overrides() == {}
    with pytest.raises(SettingsError, match=flag(name)):
        overridden(form.settings, {name: value})


def test_the_page_names_the_field_that_it_refuses_and_marks_it(form):
    """It named an option of the command line."""
    sent = values(form, {"ppo.kl_target": -1, "gate.prompts": 2, "ppo.epochs": 3})
    answer = form.on_save(sent, Request())
    shown = answer[form.notice.html]
    assert "Nothing was saved" in shown and "--" not in shown and "NUDGE" not in shown
    assert "ppo.kl_target cannot be -1: it takes a number above 0." in shown
    assert "gate.prompts cannot be 2: it takes an integer at least 4 and at most 4096." in shown
    marked = [name for name, field in form.fields.items() if answer[field]["elem_classes"] == ["refused"]]
    assert sorted(marked) == ["gate.prompts", "ppo.kl_target"] and form.store.overrides() == {}
    assert not any("value" in answer[field] for field in form.fields.values()), "what was typed stays"
    assert {fold for fold in form.groups.values() if fold in answer} == {
        form.groups["ppo.lr"],
        form.groups["gate.better"],
    }
    assert "gate.prompts 不能是 2" in form.on_save(sent, Request(language="zh-CN"))[form.notice.html]
    better = form.on_save(values(form, {"ppo.kl_target": 4.0}), Request())
    assert not any("refused" in better[field]["elem_classes"] for field in form.fields.values())


def test_the_page_says_what_has_changed(form):
    """It said the same of a change, of an emptied field and of nothing."""
    own = form.settings.flat()["ppo.epochs"]
    said = lambda changes: form.on_save(values(form, changes), Request())[form.notice.html]
    assert f"The next round takes ppo.iterations 8 → 9, ppo.epochs {own} → 7." in said(
        {"ppo.epochs": 7, "ppo.iterations": 9}
    )
    assert f"The next round takes ppo.epochs 7 → {own}." in said({"ppo.epochs": None})
    assert "Nothing was changed." in said({"ppo.epochs": None}), "it has the app's own value"
    assert len(said({"round.start_from": "x" * 300_000})) < 500
    assert "Nothing was changed." in said({})
    assert "that the app was started with" in form.on_reset(Request())[form.notice.html]


def test_the_form_takes_no_input_until_it_has_its_values(form):
    """What was typed before they came was replaced by them; what was saved before replaced another admin's settings."""
    assert form.form.visible is False and form.save.parent.parent is form.form
    assert all(is_inside(field, form.form) for field in form.fields.values())
    filled = form.on_open(Request())
    assert filled[form.form]["visible"] is True and set(form.fields.values()) < set(filled)
    assert form.on_open(Request(STRANGER)) == gr.skip()


def is_inside(component, block):
    return component is not None and (component.parent is block or is_inside(component.parent, block))


def test_an_emptied_field_takes_the_change_back(form):
    form.on_save(values(form, {"ppo.kl_target": 4}), Request())
    form.on_save(values(form, {"ppo.kl_target": None}), Request())
    assert form.store.overrides() == {}


def test_what_another_admin_saved_meanwhile_stays(form):
    """Save wrote the whole form, as it was when it was filled in."""
    forms = [form.on_open(Request()) for _ in range(3)]
    form.on_save(changed_in(forms[0], form, {"ppo.epochs": 3, "ppo.kl_step": 4.0}), Request())
    saved = form.on_save(changed_in(forms[1], form, {"ppo.iterations": 9, "ppo.kl_step": 5.0}), Request())
    assert form.store.overrides() == {"ppo.epochs": 3, "ppo.iterations": 9, "ppo.kl_step": 5.0}
    assert saved[form.fields["ppo.epochs"]]["value"] == 3, "and the form shows it"
    form.on_save(changed_in(forms[2], form, {"ppo.epochs": None}), Request())
    assert form.store.overrides() == {"ppo.iterations": 9, "ppo.kl_step": 5.0}
    form.on_save(changed_in(forms[2], form, {}), Request())
    assert form.store.overrides() == {"ppo.iterations": 9, "ppo.kl_step": 5.0}


def test_a_form_whose_first_values_are_forgotten_is_filled_in_anew(form):
    """All fields would count as changed."""
    sent = {**values(form, {"ppo.kl_step": 4.0}), form.filled_in: {}}
    form.store.override({"ppo.epochs": 3}, form.store.annotator("another admin"))
    answer = form.on_save(sent, Request())
    assert form.store.overrides() == {"ppo.epochs": 3} and answer[form.fields["ppo.epochs"]]["value"] == 3
    assert "Nothing was saved" in answer[form.notice.html] and answer[form.filled_in]["ppo.epochs"] == 3


@pytest.mark.parametrize("earlier", [{"ppo.kl_target": -1.0}, {"ppo.gone": 1}])
def test_what_was_saved_takes_effect_also_where_an_earlier_value_fits_no_more(form, earlier):
    """One value that does not fit leaves all of them without effect."""
    form.store.override({**earlier, "ppo.iterations": 9}, form.store.annotator("another admin"))
    saved = form.on_save(values(form, {"ppo.epochs": 3}), Request())
    assert saved[form.fields["ppo.epochs"]]["value"] == 3 and form.store.overrides() == {"ppo.epochs": 3}


def test_nobody_else_saves_anything(form):
    wanted = values(form, {"ppo.kl_target": 4})
    for stranger in (Request(STRANGER), Request("forged")):
        for save in (lambda who: form.on_save(wanted, who), form.on_reset):
            with pytest.raises(gr.Error) as refused:
                save(stranger)
            assert refused.value.title == "Not allowed"
    assert form.store.overrides() == {}


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
