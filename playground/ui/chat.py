"""The chat tab: the handlers of a turn and of the conversation. They show a `views.View` and hand each gesture to
`session.Chat`.

Nothing about a conversation is read back from the page: the cookie says who asks, and a PageSnapshot on the server what
the page shows. The components are in `chat_panel.py`, thumbs and edits in `reply_gestures.py`.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

import gradio as gr
from gradio.events import Dependency

from playground.chat.refusals import Refused
from playground.chat.session import Chat
from playground.chat.views import View
from playground.models.prompts import BadMessage
from playground.people import visitor
from playground.serving.engine import Engine
from playground.store import Store, StoreError
from playground.system import log_ids
from playground.ui import words
from playground.ui.chat_panel import STARTERS, ChatPanel, hint_html, is_writing
from playground.ui.handlers import GESTURE, STREAM, Trigger, Updates, visibility
from playground.ui.notice import Notice
from playground.ui.reply_gestures import ReplyGestures
from playground.ui.snapshot import PageSnapshot
from playground.ui.words import Words
from playground.web.stream_threads import EXTRA_STREAMS, StreamThreads

UpdateStream = Generator[Updates, None, None]


class ChatTab:
    """Builds the tab's components inside the current Blocks; `wire` attaches the handlers."""

    def __init__(self, store: Store, engine: Engine, chat: Chat, notice: Notice) -> None:
        self.store = store
        self.chat = chat
        self.notice = notice
        self.threads = StreamThreads(chat.settings.limits.waiting_messages + EXTRA_STREAMS)
        self.panel = ChatPanel(store, engine, chat, notice)
        self.replies = ReplyGestures(chat, self.panel, self.annotator, self.check_current)

    def wire(
        self,
        page: gr.Blocks,
        refresh_events: Sequence[Trigger],
        queue_progress: Callable[[], Mapping[str, int] | None] = lambda: None,
    ) -> Dependency:
        """Attach every handler. None is part of a public API, and each checks who calls it. Returns the event
        of a finished turn. `queue_progress`: how far the prompt queue is.
        """
        panel = self.panel
        outputs = panel.outputs
        snapshot = panel.snapshot
        page.load(self.restore, None, outputs, **GESTURE)
        gr.on([panel.poll.tick, panel.catch_up.click], self.on_poll, [snapshot], outputs, **GESTURE)
        gr.on(refresh_events, self.on_tick, [snapshot], [panel.swap_note, panel.reasons.fate], **GESTURE)
        finished_turn = gr.on(
            [panel.message.submit, panel.send.click], self.on_send, [panel.message, snapshot], outputs, **STREAM
        )
        if panel.queue:
            panel.queue.wire(page, refresh_events, self.annotator, queue_progress)
            panel.queue.next.click(self.on_next_prompt, [snapshot], outputs, **STREAM)
            for reason, button in panel.queue.skips.items():
                button.click(self.skip_handler(reason), [snapshot], outputs, **GESTURE)
        panel.regenerate.click(self.on_regenerate, [snapshot], outputs, **STREAM)
        panel.reopen_stream.click(no_change, None, None, **STREAM)
        panel.stop.click(self.on_stop, None, None, **GESTURE)
        self.undone = panel.undo.click(self.on_undo, [panel.message, snapshot], outputs, **GESTURE)
        panel.earlier_pair.click(self.on_earlier_pair, [snapshot], outputs, **GESTURE)
        panel.later_pair.click(self.on_later_pair, [snapshot], outputs, **GESTURE)
        for choice, button in panel.votes.items():
            button.click(self.vote_handler(choice), [snapshot], outputs, **GESTURE)
        for button, text in zip(panel.starters, STARTERS, strict=True):
            button.click(starter_handler(text), None, [panel.message], **GESTURE)
        self.replies.wire()
        panel.reasons.wire(snapshot, self.annotator)
        return finished_turn

    # -- a turn

    def restore(self, request: gr.Request) -> Updates:
        """The chat that this visitor left, or the one that a share link leads to."""
        translate = words.of(request)
        notice: Updates = {}
        if token := request.query_params.get("shared"):
            shared = self.chat.shared(token)
            if shared:
                return self.panel.updates(replace(shared, phase="shared"), translate)
            notice = self.notice.warn(translate("This link leads to no chat any more."), translate("Not shared"))
        view = self.chat.view(self.annotator(request))
        return {**self.panel.updates(view, translate), **self._poll_update(view), **notice}

    def on_poll(self, snapshot: PageSnapshot | None, request: gr.Request) -> Updates:
        """Replies that this page did not start, or started before it was reloaded, as they grow."""
        view = self.chat.view(self.annotator(request))
        updates = self.panel.changed_updates(view, words.of(request), snapshot)
        for component in self.panel.reasons.outputs:  # somebody may be typing there
            if snapshot and snapshot.painted.get(component._id) == updates[component]:
                del updates[component]
        return {**updates, **self._poll_update(view)}

    def _poll_update(self, view: View) -> Updates:
        return {self.panel.poll: gr.update(active=is_writing(view))}

    async def on_send(self, text: str, snapshot: PageSnapshot | None, request: gr.Request) -> AsyncIterator[Updates]:
        """Send a message and stream both candidates. A message that cannot be sent stays in the box. An empty one asks
        for the next prompt, where there is a queue.
        """
        if self.chat.has_queue and not (text or "").strip():
            async with aclosing(self.on_next_prompt(snapshot, request)) as stream:
                async for update in stream:
                    yield update
            return

        def start(annotator: int) -> Generator[View, None, None]:
            return self.chat.send(annotator, text, client_address(request))

        updates = self._stream(start, text, snapshot, request)
        async with aclosing(self.threads.run(updates)) as stream:
            async for update in stream:
                yield update

    async def on_next_prompt(self, snapshot: PageSnapshot | None, request: gr.Request) -> AsyncGenerator[Updates]:
        """The next prompt of the queue; what is written in the box stays there."""

        def start(annotator: int) -> Generator[View, None, None]:
            return self.chat.next_prompt(annotator, client_address(request))

        updates = self._stream(start, None, snapshot, request)
        async with aclosing(self.threads.run(updates)) as stream:
            async for update in stream:
                yield update

    def skip_handler(self, reason: str) -> Callable[[PageSnapshot | None, gr.Request], Updates]:
        """The handler of one button that skips the queue's prompt."""

        def on_skip(snapshot: PageSnapshot | None, request: gr.Request) -> Updates:
            annotator = self.annotator(request)
            translate = words.of(request)
            try:
                self.check_current(annotator, snapshot)
                updates = self.panel.updates(self.chat.skip_prompt(annotator, reason), translate)
                return {
                    **updates,
                    **self.notice.confirm(translate("Skipped. The next prompt comes when you ask for it.")),
                }
            except Refused as error:
                updates = self.panel.updates(self.chat.view(annotator), translate)
                return {**updates, **self.notice.warn(translate.message(error.message), translate("Not skipped"))}

        return on_skip

    async def on_regenerate(self, snapshot: PageSnapshot | None, request: gr.Request) -> AsyncIterator[Updates]:
        """Two new replies to the same message."""

        def start(annotator: int) -> Generator[View, None, None]:
            return self.chat.regenerate(annotator, client_address(request))

        updates = self._stream(start, None, snapshot, request)
        async with aclosing(self.threads.run(updates)) as stream:
            async for update in stream:
                yield update

    def _stream(
        self,
        start: Callable[[int], Generator[View, None, None]],
        text: str | None,
        snapshot: PageSnapshot | None,
        request: gr.Request,
    ) -> UpdateStream:
        """The updates of a turn: `start` begins it for an annotator. `text` is the message in the box, which is emptied
        once the turn has begun; None leaves the box as it is.
        """
        log_ids.begin(request_id(request))
        annotator = self.annotator(request)
        translate = words.of(request)
        turn = start(annotator)
        previous: View | None = None
        try:
            self.check_current(annotator, snapshot)
            for view in turn:
                if previous is None:
                    updates = self.panel.updates(view, translate)
                    if text is not None:
                        updates[self.panel.message] = ""
                    yield updates
                else:
                    yield self._turn_updates(view, previous, translate)
                previous = view
        except (BadMessage, Refused, StoreError) as error:
            if previous is None and self.chat.is_answering(annotator, text):
                # it was pressed twice; a stream without any update empties the page
                yield {self.panel.hint: gr.update()}
                return
            updates = self._after_failure(annotator, translate)
            if previous is not None and text is not None:
                updates[self.panel.message] = text
            if (shown := updates.get(self.panel.snapshot)) is not None:
                updates[self.panel.snapshot] = replace(shown, refused=text)
            yield {**updates, **self.notice.warn(translate.message(error.message), translate("Not sent"))}
        except GeneratorExit:  # the browser has gone
            self.chat.finish_in_background(annotator, turn)
            raise

    def _turn_updates(self, view: View, previous: View, translate: Words) -> Updates:
        """What changes from one View of a turn to the next, without sending what stays as it is."""
        if view.progress and replace(view, progress=previous.progress) == previous:
            return {self.panel.hint: hint_html(view, translate)}  # the place in the line has changed
        if _stage(view) == _stage(previous):
            return self.panel.pane_updates(view, translate)
        return self.panel.updates_while_streaming(view, previous, translate)

    def _after_failure(self, annotator: int, translate: Words) -> Updates:
        """The chat after a turn that failed. Where the store cannot tell it, the page stays as it is and a message can
        be sent again.
        """
        try:
            return self.panel.updates(self.chat.view(annotator), translate)
        except StoreError:
            return {
                self.panel.send: gr.update(visible=visibility(True)),
                self.panel.stop: gr.update(visible=visibility(False)),
            }

    def on_stop(self, request: gr.Request) -> None:
        self.chat.stop(self.annotator(request))

    def vote_handler(self, choice: str) -> Callable[[PageSnapshot | None, gr.Request], Updates]:
        """The handler of one vote button."""

        def on_vote(snapshot: PageSnapshot | None, request: gr.Request) -> Updates:
            annotator = self.annotator(request)
            translate = words.of(request)
            try:
                if snapshot is None or snapshot.duel is None:
                    raise Refused("There is no pair of replies to vote on here. Reload the page.")
                self.check_current(annotator, snapshot)
                view = self.chat.vote(annotator, snapshot.duel, choice, snapshot.shown_at, snapshot.dwell_ms())
            except Refused as error:
                updates = self.panel.updates(self.chat.view(annotator), translate, snapshot)
                return {**updates, **self.notice.warn(translate.message(error.message), translate("Vote not recorded"))}
            updates = self.panel.changed_updates(view, translate, snapshot)
            # the reply may end, and the stream say so, before the browser has this answer, which would then stay
            return {**updates, **self._poll_update(view)} if is_writing(view) else updates

        return on_vote

    # -- the conversation

    def on_undo(self, draft: str | None, snapshot: PageSnapshot | None, request: gr.Request) -> Updates:
        """Take the last turn back: its message returns to the box, above what is written there already."""
        annotator = self.annotator(request)
        translate = words.of(request)
        notice: Updates = {}
        try:
            before = self.check_current(annotator, snapshot)
            view, text = self.chat.undo(annotator)
        except Refused as error:
            updates = self.panel.updates(self.chat.view(annotator), translate)
            return {**updates, **self.notice.warn(translate.message(error.message))}
        if any(self._trains(duel, annotator) for duel in before.pairs):
            sentence = translate(
                "The turn was taken back; your vote on its replies still counts and trains. "
                "To take it back too: tab Data."
            )
            notice = self.notice.confirm(sentence)
        message = f"{text}\n\n{draft}" if (draft or "").strip() else text
        return {**self.panel.updates(view, translate), self.panel.message: message, **notice}

    def _trains(self, duel: int, annotator: int) -> bool:
        """Whether this person has a vote on a pair that training may use."""
        vote = self.store.current_vote(duel, annotator)
        fate = self.store.vote_fate(vote["id"]) if vote else None
        return fate is not None and bool(fate["counts"])

    def on_earlier_pair(self, snapshot: PageSnapshot | None, request: gr.Request) -> Updates:
        return self._turn_over(-1, snapshot, request)

    def on_later_pair(self, snapshot: PageSnapshot | None, request: gr.Request) -> Updates:
        return self._turn_over(1, snapshot, request)

    def _turn_over(self, offset: int, snapshot: PageSnapshot | None, request: gr.Request) -> Updates:
        """Show another pair of replies to the same message."""
        annotator = self.annotator(request)
        translate = words.of(request)
        notice: Updates = {}
        view = self.chat.view(annotator)
        index = view.pairs.index(view.duel) + offset if view.duel in view.pairs else -1
        try:
            self.check_current(annotator, snapshot)
            if 0 <= index < len(view.pairs):
                view = self.chat.show_pair(annotator, view.pairs[index])
        except Refused as error:
            notice = self.notice.warn(translate.message(error.message))
        return {**self.panel.updates(view, translate), **notice}

    def on_tick(self, snapshot: PageSnapshot | None, request: gr.Request) -> Updates:
        """What became of the vote, and whether another version answers now."""
        if snapshot is None:
            return gr.skip()
        translate = words.of(request)
        return {
            **self.panel.swap_update(snapshot, translate),
            **self.panel.reasons.fate_update(snapshot, self.annotator(request), translate),
        }

    # -- who asks, and from which page

    def annotator(self, request: gr.Request) -> int:
        """The annotator that the request's cookie stands for; gr.Error where the browser keeps no cookie."""
        try:
            return self.store.annotator(visitor.token(request.cookies))
        except visitor.NoCookie as error:
            message = words.of(request).message(error.message)
            raise gr.Error(message, title=words.of(request)("No cookie"), print_exception=False) from None

    def check_current(self, annotator: int, snapshot: PageSnapshot | None) -> View:
        """The View as it is now. Refused where the page shows another one; `snapshot` is None where nobody knows what
        it shows.
        """
        view = self.chat.view(annotator)
        if snapshot is not None and snapshot.is_behind(view):
            raise Refused(
                "This chat changed in another tab or window. Here it is as it is now; nothing else was done. "
                "Please try again."
            )
        return view


def _stage(view: View) -> tuple[str, str | None, bool]:
    """Two Views of one turn with the same stage differ in their panes alone."""
    return view.phase, view.writing, bool(view.progress)


def client_address(request: gr.Request) -> str:
    """The network address that a request came from."""
    return request.client.host if request.client else ""


def request_id(request: gr.Request) -> str:
    """The name of a request, as in its answer's `X-Request-ID`."""
    return str(request.request.scope.get("request_id", "")) if request.request else ""


def no_change() -> None:
    """The handler of an event that only keeps the page's stream of results open."""


def starter_handler(text: str) -> Callable[[gr.Request], str]:
    """The handler of one starter: it puts its text, in the reader's language, into the message box."""

    def on_starter(request: gr.Request) -> str:
        return words.of(request)(text)

    return on_starter
