"""What an admin does with rounds: start, pause, resume, stop, automatic or not, settings of the next ones; and the
sign-in.

Whether somebody may is asked in each handler, not of the page: a button that is not shown can still be pressed by hand.
"""

from typing import Literal, get_args, get_origin

import gradio as gr

from playground.people import visitor
from playground.people.admins import NAME_CHARS, PASSWORD_CHARS, WrongSignIn
from playground.settings import SPACE_SIGN_IN, Settings, SettingsError, accepted, overridden, sections
from playground.store import StoreError
from playground.ui import inputs, words
from playground.ui.notice import GESTURE

TITLES = {
    "When a round runs": words.mark("When a round runs"),
    "Preferences": words.mark("Preferences"),
    "Where a round starts": words.mark("Where a round starts"),
    "SFT": words.mark("SFT"),
    "Reward model": words.mark("Reward model"),
    "PPO": words.mark("PPO"),
    "Gate": words.mark("Gate"),
}


class Control:
    """Made inside the current Blocks, in two parts: the buttons here, `more()` where the folds shall stand."""

    def __init__(self, settings, store, admins, strip, notice):
        self.settings, self.store, self.admins, self.strip, self.notice = settings, store, admins, strip, notice
        self.painted = gr.State(None)
        with gr.Row(elem_id="control"):
            self.start = self._button(words.label("Train now"), "train-now", variant="primary")
            self.pause = self._button(words.label("Pause"), "pause")
            self.resume = self._button(words.label("Resume"), "resume", variant="primary")
            self.stop = self._button(words.label("Stop the round"), "stop-round", variant="stop")
            self.auto = gr.Checkbox(
                label=words.label("Start rounds by themselves"),
                elem_id="auto-train",
                visible=False,
                container=False,
                min_width=200,
            )
        self.rounds = [self.start, self.pause, self.resume, self.stop, self.auto]

    @staticmethod
    def _button(text, elem_id, **style):
        return gr.Button(text, elem_id=elem_id, size="sm", scale=0, min_width=110, visible=False, **style)

    def more(self):
        """The folds: settings of the next rounds, and the sign-in."""
        with gr.Accordion(
            words.label("Settings of the next rounds"), open=False, visible=False, elem_id="round-settings"
        ) as self.fold:
            self.fields = {}
            for section, names in sections().items():
                with gr.Accordion(words.label(TITLES[section]), open=False, elem_classes="section"), gr.Row():
                    self.fields |= {name: field(name) for name in names if name != "auto_train"}
            with gr.Row():
                self.save = gr.Button(
                    words.label("Save for the next rounds"), variant="primary", size="sm", elem_id="save-settings"
                )
                self.reset = gr.Button(words.label("Back to the app's settings"), size="sm", elem_id="reset-settings")
        with (
            gr.Accordion(words.label("Admins sign in here"), open=False, visible=False, elem_id="sign-in") as self.door,
            gr.Row(),
        ):
            self.who = gr.Textbox(label=words.label("Name"), max_lines=1, max_length=NAME_CHARS, elem_id="admin-name")
            self.password = gr.Textbox(
                label=words.label("Password"),
                type="password",
                max_lines=1,
                max_length=PASSWORD_CHARS,
                elem_id="admin-password",
            )
            self.enter = gr.Button(words.label("Sign in"), elem_id="admin-enter", scale=0, min_width=110)
        if SPACE_SIGN_IN:
            gr.LoginButton(words.label("Sign in with Hugging Face"), elem_id="hf-sign-in", size="sm")
        self.leave = self._button(words.label("Sign out"), "sign-out")

    @property
    def outputs(self):
        return [*self.rounds, self.fold, self.door, self.leave, self.painted, self.notice.html]

    def wire(self, page, moments):
        gr.on([page.load, *moments], self.on_tick, [self.painted], self.outputs, **GESTURE)
        page.load(self.on_load, None, list(self.fields.values()), **GESTURE)
        self.start.click(self.on_start, None, self.outputs, **GESTURE)
        for button, wish in ((self.pause, "pause"), (self.resume, None), (self.stop, "stop")):
            button.click(self.wisher(wish), None, self.outputs, **GESTURE)
        self.auto.input(self.on_auto, [self.auto], self.outputs, **GESTURE)
        self.save.click(self.on_save, set(self.fields.values()), [*self.fields.values(), self.notice.html], **GESTURE)
        self.reset.click(self.on_reset, None, list(self.fields.values()), **GESTURE)
        gr.on(
            [self.enter.click, self.password.submit],
            self.on_enter,
            [self.who, self.password],
            [self.password, *self.outputs],
            **GESTURE,
        )
        self.leave.click(self.on_leave, None, self.outputs, **GESTURE)

    # -- handlers

    def on_tick(self, painted, request: gr.Request):
        """The buttons, where what they depend on has changed."""
        now, annotator = self.strip.now(), self.annotator(request)
        admin = annotator is not None and self.admins.allowed(request, annotator)
        name = self.admins.name(request, annotator) if annotator is not None else None
        state = (
            now.state,
            now.paused,
            bool(now.round and now.round["wish"] == "stop" and now.active),
            now.settings.auto_train,
            admin,
            name,
        )
        if state == painted:
            return gr.skip()
        updates = self.paint(*state)
        if painted and painted[-2:] == state[-2:]:
            updates = self.of_rounds(updates)
        return {**updates, self.painted: state}

    def on_load(self, request: gr.Request):
        return self.shown() if self.is_admin(request) else gr.skip()

    def on_start(self, request: gr.Request):
        self.check(request)
        self.store.request_round()
        return self.again(request)

    def wisher(self, wish):
        """The handler of pause, resume and stop."""

        def on_wish(request: gr.Request):
            self.check(request)
            last, said = self.store.last_round(), {}
            try:
                self.store.wish(last["id"] if last else 0, wish)
            except StoreError as error:
                said = self.notice.warn(words.of(request).message(error.message))
            return {**self.again(request), **said}

        return on_wish

    def on_auto(self, auto, request: gr.Request):
        annotator = self.check(request)
        self.store.override({"auto_train": bool(auto) if bool(auto) != self.settings.auto_train else None}, annotator)
        return self.again(request)

    def on_save(self, values, request: gr.Request):
        """Keep what differs from the app's own settings; where a value does not fit, say so and keep nothing."""
        annotator, w = self.check(request), words.of(request)
        wanted = {name: values[component] for name, component in self.fields.items()}
        try:
            checked = overridden(self.settings, {name: value for name, value in wanted.items() if value is not None})
        except SettingsError as error:
            return self.notice.warn(w.message(error.message), w("Nothing was saved"))
        self.store.override(
            {name: new if (new := getattr(checked, name)) != getattr(self.settings, name) else None for name in wanted},
            annotator,
        )
        return {**self.shown(), **self.notice.say(w("The next round takes these settings."))}

    def on_reset(self, request: gr.Request):
        self.store.override(dict.fromkeys(self.fields), self.check(request))
        return self.shown()

    def on_enter(self, name, password, request: gr.Request):
        w, annotator = words.of(request), self.annotator(request)
        if annotator is None:
            raise gr.Error(
                w("Your browser keeps no cookie for this page."), title=w("Not signed in"), print_exception=False
            )
        try:
            self.admins.sign_in(request, annotator, name, password)
        except WrongSignIn as error:
            return {self.password: "", **self.notice.warn(w.message(error.message), w("Not signed in"))}
        said = (
            {}
            if self.is_admin(request)
            else self.notice.warn(w("You are signed in, but you are no admin of this app."))
        )
        return {self.password: "", **self.again(request, who=True), **said}

    def on_leave(self, request: gr.Request):
        if (annotator := self.annotator(request)) is not None:
            self.admins.sign_out(annotator)
        return self.again(request, who=True)

    # -- who asks, and what is shown

    def annotator(self, request):
        try:
            return self.store.annotator(visitor.token(request.cookies))
        except visitor.NoCookie:
            return None

    def is_admin(self, request):
        annotator = self.annotator(request)
        return annotator is not None and self.admins.allowed(request, annotator)

    def check(self, request):
        """The annotator's id; gr.Error for everybody but admins."""
        if not self.is_admin(request):
            w = words.of(request)
            raise gr.Error(w("Only admins can do this."), title=w("Not allowed"), print_exception=False)
        return self.annotator(request)

    def again(self, request, who=False):
        """The buttons after a gesture, whatever the page showed; all that depends on `who` asks after a sign-in or
        -out.
        """
        self.strip.changed()
        updates = self.on_tick(None, request)
        return updates if who else self.of_rounds(updates)

    def of_rounds(self, updates):
        """Those of `updates` that are for the same person: a fold that is painted again forgets what was
        typed in it.
        """
        return {part: update for part, update in updates.items() if part in (*self.rounds, self.painted)}

    def shown(self):
        """The fields as the next round will have them."""
        settings = overridden(self.settings, self.store.overrides())
        return {component: getattr(settings, name) for name, component in self.fields.items()}

    def paint(self, state, paused, stopping, auto, admin, name):
        running, active = state == "running", state in ("requested", "running")
        return {
            self.start: gr.Button(visible=admin and not active),
            self.pause: gr.Button(visible=admin and running and not paused and not stopping),
            self.resume: gr.Button(visible=admin and paused),
            self.stop: gr.Button(visible=admin and active, interactive=not stopping),
            self.auto: gr.Checkbox(auto, visible=admin),
            self.fold: gr.Accordion(visible=admin),
            self.door: gr.Accordion(visible=not admin and self.admins.takes_passwords()),
            self.leave: gr.Button(visible=name is not None),
        }


def field(name):
    """The component of one setting, with its meaning below."""
    info = Settings.model_fields[name]
    common = {
        "label": name,
        "info": words.label(" ".join(info.description.split())),
        "elem_id": f"set-{name.replace('_', '-')}",
        "min_width": 260,
    }
    kind = info.annotation
    if get_origin(kind) is Literal:
        return inputs.Dropdown(list(get_args(kind)), **common)
    if kind is bool:
        return gr.Checkbox(**common)
    return inputs.Number(placeholder=str(accepted(info)), **common)
