"""Conversations: whose they are, their own settings, their share links, and the messages of their history.

A conversation's `tail` is the last message that counts as history; its `shown_duel` is the pair that the page shows
after it. Pairs of replies are in `duels.py`; deletion is in `erasures.py`.
"""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import sqlite_utils

from playground.store.checks import check_owner
from playground.store.database import Database, Row, insert, now

# SQL expressions about a conversation c
TITLE = """coalesce((
    select m.text from message m where m.conversation = c.id and m.parent is null and m.role = 'user'
      and m.id <= coalesce((select d.user_message from duel d where d.id = c.shown_duel), c.tail)
    order by m.id desc limit 1), (select '' from message m where m.conversation = c.id limit 1))"""

# SQL expressions about a message m, as the owner of its conversation left it
SHOWN = """coalesce((
    select x.after from demonstration x join conversation o on o.id = m.conversation and o.annotator = x.annotator
    where x.message = m.id order by x.id desc limit 1), m.text)"""
EDITED = """exists (
    select 1 from demonstration x join conversation o on o.id = m.conversation and o.annotator = x.annotator
    where x.message = m.id)"""
THUMB = """(
    select t.thumb from rating t join conversation o on o.id = m.conversation and o.annotator = t.annotator
    where t.message = m.id and t.superseded_by is null)"""
# the tokens after which a reply was cut, since it had reached the limit; its owner may have written its end since
CUT = f"case when g.finish_reason = 'length' and not {EDITED} then json_array_length(g.token_ids) end"
STOPPED = (
    f"coalesce(g.finish_reason = 'stopped' and not {EDITED}, 0)"  # whether a reply has no end, since it was stopped
)

# SQL of the messages from one that `start` selects back to the first of its chat
PATH = """with recursive path(id, parent, depth) as (
    {start} union all select m.id, m.parent, depth + 1 from message m join path on m.id = path.parent)"""
TAIL = "select m.id, m.parent, 0 from message m join conversation c on c.tail = m.id where c.id = ?"

LOOKED_AT = 200  # chats of one person, for the one that a dialogue began with
STRIPPED = "trim({}, char(32, 9, 10, 13))"  # a stream's outer blanks are not sent

# A counter rather than a time: with a clock that is set back, a new chat would come after an old one.
NEXT_OPENED_AS = "(select max(opened_as) + 1 from conversation)"


class Conversations(Database):
    """Part of `Store`."""

    def new_conversation(
        self, annotator: int, system_prompt: str | None = None, sampling: Mapping[str, Any] | None = None
    ) -> int:
        """Make a conversation, which becomes the annotator's open one; returns its id."""
        with self.writing() as db:
            return add_conversation(db, annotator, system_prompt, sampling)

    def begin_with(
        self,
        annotator: int,
        messages: Iterable[tuple[str, str]],
        system_prompt: str | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> Row:
        """As `new_conversation`, with `messages` (role and text) that were said elsewhere as its history; returns its
        row, as `conversation` does. It belongs to the dialogue of the chat in which this history began, where it is one
        of the person's last LOOKED_AT.
        """
        said = list(messages)
        dialogue = self._dialogue_of(annotator, system_prompt, said)  # before others wait for the write lock
        with self.writing() as db:
            conversation = add_conversation(db, annotator, system_prompt, sampling)
            db.table("conversation").update(conversation, {"dialogue": dialogue})
            tail: int | None = None
            for role, text in said:
                columns = {"conversation": conversation, "parent": tail, "role": role, "text": text}
                tail = insert(db, "message", {**columns, "status": "complete", "created": now()})
            db.table("conversation").update(conversation, {"tail": tail})
        return cast(Row, self._conversation("id = ?", conversation))

    def conversation(self, annotator: int) -> Row | None:
        """The conversation that this annotator opened last and did not delete, or None.

        The columns of the table, with `sampling` decoded.
        """
        return self._conversation("annotator = ? and deleted is null order by opened_as desc", annotator)

    def _dialogue_of(self, annotator: int, system_prompt: str | None, said: Sequence[tuple[str, str]]) -> int | None:
        """The first chat of the dialogue that begins with the first two of these messages, a person's and a reply."""
        if len(said) < 2:
            return None
        row = self.row(
            f"""select coalesce(c.dialogue, c.id) as dialogue from (
                  select * from conversation where annotator = ? and deleted is null order by id desc limit {LOOKED_AT}
                ) c
                join message m on m.conversation = c.id and m.parent is null and m.role = 'user' and m.text = ?
                join message r on r.conversation = c.id and r.parent = m.id and {STRIPPED.format("r.text")} = ?
                where c.system_prompt is ? order by c.id desc limit 1""",
            annotator,
            said[0][1],
            said[1][1].strip(" \t\r\n"),
            system_prompt,
        )
        return row["dialogue"] if row else None

    def conversations(self, annotator: int, limit: int = 50) -> list[Row]:
        """The annotator's conversations that have a message, the one opened last first.

        Keys: id, title (its first message, "" where all of its turns were undone), created, opened, turns, shared (a
        bool).
        """
        rows = self.rows(
            f"""select c.id, {TITLE} as title, c.created, c.opened, c.share_token is not null as shared,
                  (select count(distinct d.user_message) from duel d where d.conversation = c.id) as turns
                from conversation c where c.annotator = ? and c.deleted is null and title is not null
                order by c.opened_as desc limit ?""",
            annotator,
            limit,
        )
        return [{**row, "shared": bool(row["shared"])} for row in rows]

    def open_conversation(self, conversation: int, annotator: int) -> None:
        """Make this the annotator's open conversation."""
        with self.writing() as db:
            check_owner(db, conversation, annotator)
            db.execute(
                f"update conversation set opened = ?, opened_as = {NEXT_OPENED_AS} where id = ?", [now(), conversation]
            )

    def configure(self, conversation: int, system_prompt: str | None, sampling: Mapping[str, Any] | None) -> None:
        """Set the conversation's own system prompt and sampling from the next turn on; None means the app's."""
        columns = {"system_prompt": system_prompt, "sampling": json.dumps(sampling) if sampling else None}
        with self.writing() as db:
            if not db.table("conversation").get(conversation)["deleted"]:
                db.table("conversation").update(conversation, columns)

    # -- share links

    def share(self, conversation: int, annotator: int) -> str:
        """The token by which anybody may read this conversation; the same each time."""
        with self.writing() as db:
            check_owner(db, conversation, annotator)
            db.execute(
                "update conversation set share_token = coalesce(share_token, ?) where id = ?",
                [secrets.token_urlsafe(16), conversation],
            )
        return self.one("select share_token from conversation where id = ?", conversation)["share_token"]

    def unshare(self, conversation: int, annotator: int) -> None:
        """Make the share link invalid."""
        with self.writing() as db:
            check_owner(db, conversation, annotator)
            db.table("conversation").update(conversation, {"share_token": None})

    def shared(self, token: str) -> Row | None:
        """The conversation that a share token leads to, as `conversation` returns it, or None."""
        return self._conversation("share_token = ? and deleted is null", token)

    def _conversation(self, where: str, value: int | str) -> Row | None:
        row = self.row(f"select * from conversation where {where} limit 1", value)
        if row is None:
            return None
        return {**row, "sampling": _json_or_none(row["sampling"])}

    # -- messages

    def history(self, conversation: int) -> list[Row]:
        """The messages from the first to the conversation's tail.

        Keys: id, role, text (as last edited), edited (a bool), thumb, policy, cut (the tokens after which a reply
        reached the limit, or None), stopped (a bool: a reply that has no end).
        """
        rows = self.rows(
            f"""{PATH.format(start=TAIL)}
               select m.id, m.role, {SHOWN} as text, {EDITED} as edited, {THUMB} as thumb, g.policy, {CUT} as cut,
                 {STOPPED} as stopped
               from path join message m on m.id = path.id left join generation g on g.message = m.id
               order by depth desc""",
            conversation,
        )
        return [{**row, "edited": bool(row["edited"]), "stopped": bool(row["stopped"])} for row in rows]


def add_conversation(
    db: sqlite_utils.Database, annotator: int, system_prompt: str | None, sampling: Mapping[str, Any] | None
) -> int:
    """In a transaction: a new conversation, which becomes the annotator's open one; returns its id."""
    created = now()
    columns = {
        "annotator": annotator,
        "system_prompt": system_prompt,
        "sampling": json.dumps(sampling) if sampling else None,
        "created": created,
        "opened": created,
    }
    conversation = insert(db, "conversation", columns)
    db.execute(f"update conversation set opened_as = {NEXT_OPENED_AS} where id = ?", [conversation])
    return conversation


def _json_or_none(text: str | None) -> Any:
    """The value of a JSON column; None where it is empty or cannot be read."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None
