"""What the page shows below the vote buttons after a vote: the reasons for it (tags and a comment), and what became of
it, live.
"""

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from playground.chat.refusals import Refused
from playground.chat.session import Chat
from playground.chat.views import View
from playground.chat.votes import REASONS
from playground.store import Store
from playground.ui import unchecked, words
from playground.ui.handlers import LATEST_GESTURE, Row, Updates, visibility
from playground.ui.notice import Notice
from playground.ui.snapshot import PageSnapshot
from playground.ui.status_bar import version_name
from playground.ui.words import Words

# all tags, in order; a vote shows those that fit it
TAGS = list(dict.fromkeys(tag for tags in REASONS.values() for tag in tags))
ENDED_EARLY = ("failed", "not_enough")  # states of rounds from which nothing has come
BEFORE_REWARD_MODEL = ("collect", "sft", "reward")  # phases of a round, the last of which makes it


class Reasons:
    """The row below the vote buttons, made inside the current Blocks. `fate` says what became of the vote, beside
    them.
    """

    def __init__(self, store: Store, chat: Chat, notice: Notice, fate: gr.HTML) -> None:
        self.store = store
        self.chat = chat
        self.notice = notice
        self.fate = fate
        with gr.Row(elem_id="reasons"):
            self.better = gr.Button(words.label("✎ Write a better one"), size="sm", elem_id="better", visible="hidden")
            self.tags = unchecked.CheckboxGroup(
                [(words.label(tag), tag) for tag in TAGS],
                label=words.label("Why? (optional)"),
                show_label=False,
                container=False,
                elem_id="tags",
                visible="hidden",
                min_width=100,
            )
            self.comment = gr.Textbox(
                placeholder=words.label("Add a comment"),
                label=words.label("Comment"),
                show_label=False,
                container=False,
                lines=1,
                max_lines=1,
                elem_id="comment",
                visible="hidden",
                min_width=100,
            )

    @property
    def outputs(self) -> list[gr.components.Component]:
        """Every component that `updates` updates."""
        return [self.better, self.tags, self.comment, self.fate]

    def wire(self, snapshot_state: gr.State, annotator: Callable[[gr.Request], int]) -> None:
        """Attach the handlers. `snapshot_state` holds the page's PageSnapshot; `annotator` gives the id of the person
        who sent a request.
        """

        self.better.click(
            None, None, None, js="() => window.nudge.better()", show_progress="hidden", api_visibility="private"
        )
        shown = [self.fate, self.notice.html]
        on_tags, on_comment = self.explain_handler("tags", annotator), self.explain_handler("comment", annotator)
        self.tags.input(on_tags, [snapshot_state, self.tags], shown, **LATEST_GESTURE)
        gr.on(
            [self.comment.submit, self.comment.blur],
            on_comment,
            [snapshot_state, self.comment],
            shown,
            **LATEST_GESTURE,
        )

    def explain_handler(self, reason: str, annotator: Callable[[gr.Request], int]) -> Callable[..., Updates]:
        """The handler of "tags" or "comment". Each records its own value only: a change of the other may be on its
        way.
        """

        def on_explain(snapshot: PageSnapshot | None, value: Any, request: gr.Request) -> Updates:
            person, translate = annotator(request), words.of(request)
            try:
                vote = None
                if snapshot and snapshot.duel:
                    vote = self.store.current_vote(snapshot.duel, person)
                if vote is None:
                    raise Refused("Vote first, then say why.")
                self.chat.explain(person, vote["id"], **{reason: value})
                if self.chat.view(person).vote != vote["id"]:  # the chat has gone on
                    return gr.skip()
                return {self.fate: self._fate_html(vote["id"], translate)}
            except Refused as error:
                return self.notice.warn(translate.message(error.message), translate("Not recorded"))

        return on_explain

    def updates(self, view: View, translate: Words) -> Updates:
        """The row as `view` has it: empty unless the person has voted."""
        voted = view.phase == "voted"
        tags = REASONS.get(view.choice or "", ()) if voted else ()
        return {
            self.better: gr.update(visible=visibility(voted and view.choice == "both_bad")),
            self.tags: gr.update(
                choices=[(translate(tag), tag) for tag in tags or TAGS],
                value=[tag for tag in view.tags if tag in tags],
                visible=visibility(bool(tags)),
            ),
            self.comment: gr.update(value=view.comment, visible=visibility(voted and view.choice != "skip")),
            self.fate: self._fate_html(view.vote, translate) if voted and view.vote else "",
        }

    def fate_update(self, snapshot: PageSnapshot, annotator: int, translate: Words) -> Updates:
        """What became of the person's vote on the pair that the page shows, alone; nothing where the page does not show
        a vote yet.
        """
        shown = snapshot.duel is not None and snapshot.vote is not None
        vote = self.store.current_vote(snapshot.duel, annotator) if snapshot.duel is not None and shown else None
        return {self.fate: self._fate_html(vote["id"], translate) if vote else ""}

    def _fate_html(self, vote: int, translate: Words) -> str:
        row = self.store.vote_fate(vote)
        if row is None:
            return ""
        counts = f"<b>{escape(translate('Your vote counts:'))}</b> " if row["counts"] else ""
        kept = f" {escape(translate('comment kept'))}" if row["commented"] else ""
        return f'<span class="fate">{counts}{fate_html(row, translate)}{kept}</span>'


def fate_html(row: Row, translate: Words) -> str:
    """What became of a vote (a row of `Store.my_votes`), as a chip."""
    css_class, text = _fate(row, translate)
    if row["early"]:
        text += f" · {translate('voted before the replies ended')}"
    return f'<i class="chip {css_class}">{escape(text)}</i>'


def _fate(row: Row, translate: Words) -> tuple[str, str]:
    """The CSS class and the text of a vote's chip."""
    if row["choice"] == "skip":
        return "skipped", translate("skipped, no round learns from it")
    if row["version"] is not None:
        name = version_name(row["version"], translate)
        if row["version_status"] == "rolled_back":
            return "learned", translate("in policy {version}, which was rolled back", version=name)
        return "used", translate("in policy {version}", version=name)
    if row["deleted"]:
        return "skipped", translate("deleted, no round learns from it")
    unlearned = row["round_state"] in (None, *ENDED_EARLY)
    if unlearned and not row["allowed"]:
        return "skipped", translate("you said no to training on your chats")
    if unlearned and not row["counts"]:
        return "skipped", translate("not counted")
    if row["round"] is None:
        return "pending", translate("waits for the next round")
    if unlearned:
        return "pending", translate("round {n} ended early, the next one learns from it", n=row["round"])
    if row["round_state"] == "running" and row["round_phase"] in BEFORE_REWARD_MODEL:
        return "pending", translate("round {n} learns from it", n=row["round"])
    if row["heldout"]:
        return "used", translate("round {n} is measured on it", n=row["round"])
    return "learned", translate("in the reward model of round {n}", n=row["round"])
