"""The form with the settings of the next rounds: an admin's, who may change what the app was started with.

Each handler asks whether the person may do it: a button that the page does not show can still be pressed by hand.
"""

from collections.abc import Callable, Mapping
from html import escape
from typing import Any, Literal, get_args, get_origin

import gradio as gr
from gradio.components import Component

from playground.settings import Settings, SettingsError, accepted, fields, overridden, sections
from playground.store import Store
from playground.ui import unchecked, words
from playground.ui.handlers import GESTURE, Updates
from playground.ui.loop_status import with_overrides
from playground.ui.notice import Notice
from playground.ui.text import one_line
from playground.ui.words import Words

TITLES = {  # of the groups that have settings for an admin
    "round": words.mark("When and where a round starts"),
    "preferences": words.mark("Preferences"),
    "sft": words.mark("SFT"),
    "reward": words.mark("Reward model"),
    "ppo": words.mark("PPO"),
    "gate": words.mark("Gate"),
}
MIN_WIDTH = 260  # pixels of a setting's input
VALUE_CHARS = 60  # of a refused value that are shown
REFUSED = "refused"  # the CSS class of a field whose value was refused
CHANGED = "changed"  # that of a field which differs from what the app was started with
HIDE = '() => [{__type__: "update", visible: false}]'


class RoundSettings:
    """A fold with the form, made inside the current Blocks. `is_admin` and `check` are `Control`'s.

    It takes no input until it has its values, which would replace what was typed.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        notice: Notice,
        is_admin: Callable[[gr.Request], bool],
        check: Callable[[gr.Request], int],
    ) -> None:
        self.settings = settings
        self.store = store
        self.notice = notice
        self.is_admin = is_admin
        self.check = check
        self.fields: dict[str, Component] = {}
        self.groups: dict[str, gr.Accordion] = {}  # by the name of each field in it
        with gr.Accordion(
            words.label("Settings of the next rounds"), open=False, visible=False, elem_id="round-settings"
        ) as self.fold:
            self.filled_in = gr.State({})  # the values that the form was given, by name
            with gr.Column(visible=False, elem_id="settings-form") as self.form:
                self.changes = gr.HTML(elem_id="changed-settings", padding=False)
                self._build_form()

    def _build_form(self) -> None:
        for group, names in sections().items():
            with gr.Accordion(words.label(TITLES[group]), open=False, elem_classes="section") as fold, gr.Row():
                self.fields |= {name: setting_input(name) for name in names if name != "round.auto"}
            self.groups |= dict.fromkeys(names, fold)
        with gr.Row():
            self.save = gr.Button(
                words.label("Save for the next rounds"), variant="primary", size="sm", elem_id="save-settings"
            )
            self.reset = gr.Button(words.label("Back to the app's settings"), size="sm", elem_id="reset-settings")

    def wire(self) -> None:
        values = [*self.fields.values(), self.filled_in]
        filled = [*values, self.changes]
        # not when the page loads: forty components take a browser half a second
        self.fold.expand(self.on_open, None, [*filled, self.form], **GESTURE)
        folds = list(dict.fromkeys(self.groups.values()))
        self.fold.collapse(None, None, [self.form], js=HIDE, **GESTURE)
        self.save.click(self.on_save, set(values), [*filled, *folds, self.notice.html], **GESTURE)
        self.reset.click(self.on_reset, None, [*filled, self.notice.html], **GESTURE)

    def on_open(self, request: gr.Request) -> Updates:
        """Fill the form, and only then show it."""
        if not self.is_admin(request):
            return gr.skip()
        return {**self._field_values(words.of(request)), self.form: gr.update(visible=True)}

    def on_save(self, values: Mapping[Component, Any], request: gr.Request) -> Updates:
        """Keep the values that were changed in the form; the others may have been changed by somebody else since it was
        filled in. An emptied field gets the app's own value. Where a value does not fit, nothing is kept.
        """
        annotator = self.check(request)
        translate = words.of(request)
        filled_in = values[self.filled_in]
        if not filled_in:  # Gradio has forgotten it, as it does for a page that was away for an hour
            sentence = translate(
                "The page was away for too long, and the form has its values anew. Change it once more."
            )
            return {**self._field_values(translate), **self.notice.warn(sentence, translate("Nothing was saved"))}
        in_form = {name: values[component] for name, component in self.fields.items()}
        changed = {name: value for name, value in in_form.items() if value != filled_in[name]}
        own = self.settings.flat()
        wanted = {name: own[name] if value is None else value for name, value in changed.items()}
        in_force = with_overrides(self.settings, self.store)
        try:
            checked = overridden(in_force, wanted).flat()
        except SettingsError as error:
            return {
                **self._marked(error),
                **self.notice.warn(refusal(error, translate), translate("Nothing was saved")),
            }
        # what was kept earlier and does not fit any more leaves the rest without effect
        without_effect = dict.fromkeys(self.store.overrides()) if in_force is self.settings else {}
        overrides = {name: checked[name] if checked[name] != own[name] else None for name in changed}
        self.store.override(without_effect | overrides, annotator)
        return {**self._field_values(translate), **self.notice.confirm(confirmation(filled_in, checked, translate))}

    def on_reset(self, request: gr.Request) -> Updates:
        """Back to the app's own settings."""
        annotator = self.check(request)
        self.store.override(dict.fromkeys(self.fields), annotator)
        translate = words.of(request)
        confirmed = translate("The next round takes the settings that the app was started with.")
        return {**self._field_values(translate), **self.notice.confirm(confirmed)}

    def _field_values(self, translate: Words) -> Updates:
        """The fields as the next round will have them."""
        settings = with_overrides(self.settings, self.store).flat()
        values = {name: settings[name] for name in self.fields}
        changed = self._changed(values)
        updates: Updates = {
            component: gr.update(value=values[name], elem_classes=[CHANGED] if name in changed else [])
            for name, component in self.fields.items()
        }
        return {self.filled_in: values, self.changes: changes_html(changed, translate), **updates}

    def _changed(self, values: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """{name: (what the app was started with, what the next round takes)} where the two differ."""
        own = self.settings.flat()
        return {name: (own[name], value) for name, value in values.items() if value != own[name]}

    def _marked(self, error: SettingsError) -> Updates:
        """The fields whose values were refused are marked, in open folds, and no others as refused."""
        names = {refused.name for refused in error.refused}
        changed = self._changed(with_overrides(self.settings, self.store).flat())
        updates: Updates = {
            component: gr.update(elem_classes=[REFUSED] if name in names else [CHANGED] if name in changed else [])
            for name, component in self.fields.items()
        }
        return {**updates, **{self.groups[name]: gr.update(open=True) for name in names & self.groups.keys()}}


def changes_html(changed: Mapping[str, tuple[Any, Any]], translate: Words) -> str:
    """Which settings of the next rounds differ from what the app was started with: {name: (before, now)}."""
    if not changed:
        return f"<p>{escape(translate('Every setting is as the app was started.'))}</p>"
    items = ", ".join(f"<b>{name}</b> {escape(f'{own} → {value}')}" for name, (own, value) in changed.items())
    return f"<p>{escape(translate('Differs from what the app was started with:'))} {items}</p>"


def refusal(error: SettingsError, translate: Words) -> str:
    """What is said of values that do not fit: the command line's sentence names options, which the page has not."""
    if not error.refused:
        return translate.message(error.message)
    return " ".join(
        translate(
            "{name} cannot be {value}: it takes {accepted}.",
            name=refused.name,
            value=one_line(refused.value)[:VALUE_CHARS],
            accepted=translate.message(refused.accepted),
        )
        for refused in error.refused
    )


def confirmation(before: Mapping[str, Any], after: Mapping[str, Any], translate: Words) -> str:
    """What has changed for the next rounds, from the form's first values to these settings."""
    said = [f"{name} {value} → {after[name]}" for name, value in before.items() if after[name] != value]
    if not said:
        return translate("Nothing was changed.")
    return translate("The next round takes {changes}.", changes=", ".join(said))


def setting_input(name: str) -> Component:
    """The input component of one setting, with its description below."""
    field = fields(Settings)[name]
    info = words.label(" ".join((field.description or "").split()))
    elem_id = f"set-{name.replace('.', '-').replace('_', '-')}"
    if get_origin(field.annotation) is Literal:
        choices = list(get_args(field.annotation))
        return unchecked.Dropdown(choices, label=name, info=info, elem_id=elem_id, min_width=MIN_WIDTH)
    if field.annotation is bool:
        return gr.Checkbox(label=name, info=info, elem_id=elem_id, min_width=MIN_WIDTH)
    return unchecked.Number(
        placeholder=str(accepted(field)), label=name, info=info, elem_id=elem_id, min_width=MIN_WIDTH
    )
