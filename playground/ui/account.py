"""Of an app with users: who is signed in, as a name at the top of the page, which leads to the form that signs out; and
for admins the invitations that nobody has taken yet, each to be taken back.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

import gradio as gr
from gradio.components import Component

from playground.people.refusals import UsersUnreadable, WrongSignIn
from playground.people.users_file import Content, Invitation
from playground.ui import unchecked, words
from playground.ui.control import Control
from playground.ui.handlers import GESTURE, Updates
from playground.ui.notice import Notice
from playground.ui.text import visible
from playground.ui.words import Words

ROLES = {"viewer": words.mark("viewer"), "annotator": words.mark("annotator"), "admin": words.mark("admin")}
SURE = "(picked, _) => [picked, picked ? window.nudge.sureToTakeBack() : true]"


class WhoIsSignedIn:
    """The name at the top, made inside the current Blocks."""

    def __init__(self) -> None:
        self.html = gr.HTML(elem_id="who", padding=False)

    def wire(self, page: gr.Blocks, control: Control) -> None:
        def on_load(request: gr.Request) -> str:
            annotator = control.annotator(request)
            user = control.admins.user(annotator) if annotator is not None else None
            return who_html(user.name, user.role, words.of(request)) if user else ""

        page.load(on_load, None, [self.html], **GESTURE)


def who_html(name: str, role: str, translate: Words) -> str:
    """A link to the form that signs out, with the user's name."""
    title = translate("You are signed in as {name} ({role}).", name=name, role=translate(ROLES[role]))
    text = f"<b>{escape(visible(name))}</b><span>{escape(translate('Sign out'))}</span>"
    return f'<a class="who" href="sign-out" title="{escape(visible(title))}">{text}</a>'


class Invitations:
    """The fold of open invitations, made inside the current Blocks; hidden from all but admins."""

    def __init__(self, control: Control, notice: Notice) -> None:
        self.control = control
        self.notice = notice
        # the answer to the browser's question; not a gr.State, whose value `js` cannot change
        self.confirmed = gr.Checkbox(visible=False)
        with gr.Accordion(
            words.label("Open invitations"), open=False, visible=False, elem_id="invitations"
        ) as self.fold:
            self.none = gr.Markdown(words.label("No invitation is open."), elem_id="no-invitations")
            self.list = unchecked.Radio(
                [], label=words.label("Open invitations"), elem_id="invitation-list", container=False, visible=False
            )
            self.take_back = gr.Button(
                words.label("Take it back"), size="sm", variant="stop", elem_id="take-back", visible=False
            )

    @property
    def outputs(self) -> list[Component]:
        return [self.none, self.list, self.take_back, self.notice.html]

    def wire(self, page: gr.Blocks) -> None:
        page.load(self.on_load, None, [self.fold], **GESTURE)
        self.fold.expand(self.on_open, None, self.outputs, **GESTURE)
        self.take_back.click(self.on_take_back, [self.list, self.confirmed], self.outputs, js=SURE, **GESTURE)

    # -- handlers

    def on_load(self, request: gr.Request) -> Updates:
        return {self.fold: gr.update(visible=self.control.is_admin(request))}

    def on_open(self, request: gr.Request) -> Updates:
        """The invitations that are open now."""
        return self._listed(request) if self.control.is_admin(request) else gr.skip()

    def on_take_back(self, picked: str | None, confirmed: bool, request: gr.Request) -> Updates:
        """Take the picked invitation back, where the admin is sure: its link works no more."""
        self.control.check(request)
        translate = words.of(request)
        if not confirmed:
            return gr.skip()
        if not picked:
            return self.notice.warn(translate("Pick an invitation first."))
        users = self.control.admins.users
        assert users is not None, "the fold is in apps with users alone"

        def without(content: Content) -> Content:
            return content.without_invitation(str(picked))

        try:
            users.change(without)
        except (WrongSignIn, UsersUnreadable) as error:
            return {**self._listed(request), **self.notice.warn(translate.message(error.message))}
        return {**self._listed(request), **self.notice.confirm(translate("Taken back: its link works no more."))}

    def _listed(self, request: gr.Request) -> Updates:
        users = self.control.admins.users
        translate = words.of(request)
        try:
            found: Sequence[Invitation] = users.content().open_invitations if users else ()
        except UsersUnreadable as error:
            return self.notice.warn(translate.message(error.message))
        choices = [(invitation_text(invitation, translate), invitation.short) for invitation in found]
        return {
            self.none: gr.update(visible=not found),
            self.list: gr.update(choices=choices, value=None, visible=bool(found)),
            self.take_back: gr.update(visible=bool(found)),
        }


def invitation_text(invitation: Invitation, translate: Words) -> str:
    """An invitation in a line: as what, by whom, until when."""
    until = datetime.fromtimestamp(invitation.until, UTC).strftime("%Y-%m-%d %H:%M UTC")
    role = translate(ROLES[invitation.role])
    if not invitation.by:
        return translate("{role}, until {time}", role=role, time=until)
    return translate("{role}, made by {name}, until {time}", role=role, name=visible(invitation.by), time=until)
