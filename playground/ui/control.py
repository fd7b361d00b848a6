"""What an admin does with rounds: start, pause, resume and stop them, let them start by themselves; and how an admin
signs in. The form with the settings of the next rounds is `round_settings.py`'s.

Each handler asks whether the person may do it: a button that the page does not show can still be pressed by hand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from playground.people import visitor
from playground.people.admins import Admins
from playground.people.passwords import NAME_CHARS, PASSWORD_CHARS
from playground.people.refusals import WrongSignIn
from playground.serving.gpu_slices import GPUSlices
from playground.settings import SPACE_SIGN_IN, Settings
from playground.store import Store, StoreError
from playground.ui import words
from playground.ui.handlers import GESTURE, Trigger, Updates
from playground.ui.loop_status import with_overrides
from playground.ui.notice import Notice
from playground.ui.phases import STOPPING
from playground.ui.round_settings import RoundSettings
from playground.ui.status_bar import StatusBar
from playground.ui.words import Words

STOP = words.mark("Stop the round")


@dataclass(frozen=True)
class ControlState:
    """What the buttons depend on."""

    round_state: str
    pausing: bool  # asked to pause, or paused
    stopping: bool
    auto_train: bool
    is_admin: bool
    name: str | None  # under which the person has signed in


class Control:
    """Made inside the current Blocks, in two parts: the constructor makes the buttons, `build_folds` the rest."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        admins: Admins,
        status_bar: StatusBar,
        notice: Notice,
        slices: GPUSlices | None = None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.admins = admins
        self.status_bar = status_bar
        self.notice = notice
        self.slices = slices  # on a ZeroGPU Space: what trains the rounds that an admin starts
        self.painted = gr.State(None)  # the ControlState that the page shows
        # the answer to the browser's question; not a gr.State, whose value `js` cannot change
        self.confirmed = gr.Checkbox(visible=False)
        with gr.Row(elem_id="control"):
            self.start = _button(words.label("Train now"), "train-now", variant="primary")
            self.pause = _button(words.label("Pause"), "pause")
            self.resume = _button(words.label("Resume"), "resume", variant="primary")
            self.stop = _button(words.label(STOP), "stop-round", variant="stop")
            self.auto = gr.Checkbox(
                label=words.label("Start rounds by themselves"),
                elem_id="auto-train",
                visible=False,
                container=False,
                min_width=200,
            )
        self.buttons: list[Component] = [self.start, self.pause, self.resume, self.stop, self.auto]

    def build_folds(self) -> None:
        """The settings of the next rounds, and the sign-in."""
        self.round_settings = RoundSettings(self.settings, self.store, self.notice, self.is_admin, self.check)
        with (
            gr.Accordion(
                words.label("Admins sign in here"), open=False, visible=False, elem_id="sign-in"
            ) as self.sign_in_fold,
            gr.Row(),
        ):
            self.name = gr.Textbox(label=words.label("Name"), max_lines=1, max_length=NAME_CHARS, elem_id="admin-name")
            self.password = gr.Textbox(
                label=words.label("Password"),
                type="password",
                max_lines=1,
                max_length=PASSWORD_CHARS,
                elem_id="admin-password",
            )
            self.sign_in = gr.Button(words.label("Sign in"), elem_id="admin-enter", scale=0, min_width=110)
        if SPACE_SIGN_IN and not self.settings.everybody_signs_in:
            gr.LoginButton(words.label("Sign in with Hugging Face"), elem_id="hf-sign-in", size="sm")
        self.sign_out = _button(words.label("Sign out"), "sign-out")

    @property
    def outputs(self) -> list[Component | gr.Accordion]:
        """Every component that `updates` updates, and the notice."""
        return [
            *self.buttons,
            self.round_settings.fold,
            self.sign_in_fold,
            self.sign_out,
            self.painted,
            self.notice.html,
        ]

    def wire(self, page: gr.Blocks, refresh_events: Sequence[Trigger]) -> None:
        outputs = self.outputs
        gr.on([page.load, *refresh_events], self.on_tick, [self.painted], outputs, **GESTURE)
        self.start.click(self.on_start, None, outputs, **GESTURE)
        self.pause.click(self.command_handler("pause"), None, outputs, **GESTURE)
        self.resume.click(self.command_handler(None), None, outputs, **GESTURE)
        self.stop.click(self.on_stop, [self.confirmed], outputs, js="() => [window.nudge.sureToStop()]", **GESTURE)
        self.auto.input(self.on_auto, [self.auto], outputs, **GESTURE)
        self.round_settings.wire()
        gr.on(
            [self.sign_in.click, self.password.submit],
            self.on_sign_in,
            [self.name, self.password],
            [self.password, *outputs],
            **GESTURE,
        )
        self.sign_out.click(self.on_sign_out, None, outputs, **GESTURE)

    # -- handlers

    def on_tick(self, painted: ControlState | None, request: gr.Request) -> Updates:
        """The buttons, where what they depend on has changed."""
        state = self._state(request)
        if self.slices and (annotator := self.annotator(request)) is not None:
            self.slices.renew(annotator)
        if state == painted:
            return gr.skip()
        updates = self.updates(state, words.of(request))
        if painted and (painted.is_admin, painted.name) == (state.is_admin, state.name):
            updates = self._buttons_only(updates)
        return {**updates, self.painted: state}

    def on_start(self, request: gr.Request) -> Updates:
        annotator = self.check(request)
        if self.slices:
            self.slices.begin(with_overrides(self.settings, self.store), annotator)
        else:
            self.store.request_round()
        return self._after_gesture(request)

    def command_handler(self, command: Literal["pause"] | None) -> Callable[[gr.Request], Updates]:
        """The handler of pause, or (None) resume."""

        def on_command(request: gr.Request) -> Updates:
            return self._give_command(command, request)

        return on_command

    def on_stop(self, confirmed: bool, request: gr.Request) -> Updates:
        """Stop the round, where the admin is sure: it does not go on."""
        self.check(request)
        return self._give_command("stop", request) if confirmed else gr.skip()

    def _give_command(self, command: Literal["pause", "stop"] | None, request: gr.Request) -> Updates:
        self.check(request)
        newest = self.store.last_round()
        notice: Updates = {}
        try:
            self.store.set_round_command(newest["id"] if newest else 0, command)
        except StoreError as error:
            notice = self.notice.warn(words.of(request).message(error.message))
        return {**self._after_gesture(request), **notice}

    def on_auto(self, auto: bool, request: gr.Request) -> Updates:
        """Let rounds start by themselves, or not."""
        annotator = self.check(request)
        differs = bool(auto) != self.settings.round.auto
        self.store.override({"round.auto": bool(auto) if differs else None}, annotator)
        return self._after_gesture(request)

    def on_sign_in(self, name: str, password: str, request: gr.Request) -> Updates:
        annotator = self.annotator(request)
        translate = words.of(request)
        if annotator is None:
            message = translate("Your browser keeps no cookie for this page.")
            raise gr.Error(message, title=translate("Not signed in"), print_exception=False)
        try:
            self.admins.sign_in(request, annotator, name, password)
        except WrongSignIn as error:
            return {self.password: "", **self.notice.warn(translate.message(error.message), translate("Not signed in"))}
        notice: Updates = {}
        if not self.is_admin(request):
            notice = self.notice.warn(translate("You are signed in, but you are no admin of this app."))
        return {self.password: "", **self._after_sign_in_or_out(request), **notice}

    def on_sign_out(self, request: gr.Request) -> Updates:
        if (annotator := self.annotator(request)) is not None:
            self.admins.sign_out(annotator)
        return self._after_sign_in_or_out(request)

    # -- who asks

    def annotator(self, request: gr.Request) -> int | None:
        """The annotator that the request's cookie stands for; None where the browser keeps no cookie."""
        try:
            return self.store.annotator(visitor.token(request.cookies))
        except visitor.NoCookie:
            return None

    def is_admin(self, request: gr.Request) -> bool:
        annotator = self.annotator(request)
        return annotator is not None and self.admins.allowed(request, annotator)

    def check(self, request: gr.Request) -> int:
        """The annotator's id; gr.Error for everybody but admins."""
        annotator = self.annotator(request)
        if annotator is None or not self.admins.allowed(request, annotator):
            translate = words.of(request)
            message = translate("Only admins can do this.")
            raise gr.Error(message, title=translate("Not allowed"), print_exception=False)
        return annotator

    # -- what is shown

    def updates(self, state: ControlState, translate: Words) -> Updates:
        """The buttons and folds of the person who looks."""
        running = state.round_state == "running"
        active = state.round_state in ("requested", "running")
        can_pause = running and not state.pausing and not state.stopping
        return {
            self.start: gr.Button(visible=state.is_admin and not active),
            self.pause: gr.Button(visible=state.is_admin and can_pause),
            self.resume: gr.Button(visible=state.is_admin and state.pausing),
            self.stop: gr.Button(
                translate(STOPPING) if state.stopping else translate(STOP),
                visible=state.is_admin and active,
                interactive=not state.stopping,
            ),
            self.auto: gr.Checkbox(state.auto_train, visible=state.is_admin),
            self.round_settings.fold: gr.Accordion(visible=state.is_admin),
            self.sign_in_fold: gr.Accordion(visible=not state.is_admin and self.admins.takes_passwords()),
            self.sign_out: gr.Button(
                translate("Sign out ({name})", name=state.name or ""), visible=state.name is not None
            ),
        }

    def _state(self, request: gr.Request) -> ControlState:
        status = self.status_bar.status()
        annotator = self.annotator(request)
        return ControlState(
            round_state=status.state,
            pausing=status.pausing,
            stopping=status.stopping,
            auto_train=status.settings.round.auto,
            is_admin=annotator is not None and self.admins.allowed(request, annotator),
            name=self.admins.name(request, annotator) if annotator is not None else None,
        )

    def _after_gesture(self, request: gr.Request) -> Updates:
        """The buttons after an admin's gesture, whatever the page showed before."""
        self.status_bar.invalidate()
        return self._buttons_only(self.on_tick(None, request))

    def _after_sign_in_or_out(self, request: gr.Request) -> Updates:
        """The buttons and folds for somebody who has just signed in or out."""
        self.status_bar.invalidate()
        return self.on_tick(None, request)

    def _buttons_only(self, updates: Updates) -> Updates:
        """`updates` without the folds: a fold that is updated loses what was typed in it."""
        kept: tuple[Block, ...] = (*self.buttons, self.painted)
        return {component: update for component, update in updates.items() if component in kept}


def _button(text: str, elem_id: str, variant: Literal["primary", "secondary", "stop"] = "secondary") -> gr.Button:
    return gr.Button(text, elem_id=elem_id, size="sm", scale=0, min_width=110, visible=False, variant=variant)
