"""Conversations, their messages, and the pairs of replies in them. Nothing is overwritten: a pair that was undone or
written again stays.

A conversation's `tail` is the last message that counts as history; its `shown_duel` is the pair that the page shows
after it.
"""

import hashlib
import json
import secrets

from playground.store.erasures import NOT_YOURS
from playground.store.errors import StoreError
from playground.store.file import now

TITLE = "(select m.text from message m where m.conversation = c.id and m.role = 'user' order by m.id limit 1)"
# a message as its owner last edited it
SHOWN = (
    "coalesce((select x.after from demonstration x join conversation o on o.id = m.conversation and o.annotator = "
    "x.annotator "
    "where x.message = m.id order by x.id desc limit 1), m.text)"
)
EDITED = (
    "exists (select 1 from demonstration x join conversation o on o.id = m.conversation and o.annotator = x.annotator "
    "where x.message = m.id)"
)
THUMB = (
    "(select t.thumb from rating t join conversation o on o.id = m.conversation and o.annotator = t.annotator "
    "where t.message = m.id and t.superseded_by is null)"
)
# counted, since a clock that is set back would hide a new chat behind an old one
OPENED_LAST = "(select max(opened_as) + 1 from conversation)"
VOTED_REPLIES = (
    "select g.message from vote v join duel d on d.id = v.duel join generation g on g.id in (d.left_generation, "
    "d.right_generation) "
    "where v.superseded_by is null"
)
WHOLE = (
    "2 = (select count(*) from generation g join message m on m.id = g.message "
    "where g.id in (d.left_generation, d.right_generation) and m.status != 'error')"
)  # both replies of the duel d have a text


def _json_or_none(text):
    """What a JSON column holds; None where it holds nothing that can be read."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


class Chats:
    """Part of `Store`."""

    # -- conversations

    def new_conversation(self, annotator, system_prompt=None, sampling=None):
        with self.writing() as db:
            conversation = (
                db["conversation"]
                .insert(
                    {
                        "annotator": annotator,
                        "system_prompt": system_prompt,
                        "sampling": json.dumps(sampling) if sampling else None,
                        "created": now(),
                        "opened": now(),
                    }
                )
                .last_pk
            )
            db.execute(f"update conversation set opened_as = {OPENED_LAST} where id = ?", [conversation])
            return conversation

    def conversation(self, annotator):
        """The conversation that this annotator opened last and did not delete, or None."""
        return self._conversation("annotator = ? and deleted is null order by opened_as desc", annotator)

    def conversations(self, annotator, limit=50):
        """The annotator's conversations that have a message, the one opened last first: id, title, created, opened,
        turns, shared.
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

    def open_conversation(self, conversation, annotator):
        """The annotator goes on with this one."""
        with self.writing() as db:
            self._own_conversation(db, conversation, annotator)
            db.execute(
                f"update conversation set opened = ?, opened_as = {OPENED_LAST} where id = ?", [now(), conversation]
            )

    def configure(self, conversation, system_prompt, sampling):
        """What this conversation sets for itself from the next turn on; None is the app's own."""
        with self.writing() as db:
            if not db["conversation"].get(conversation)["deleted"]:
                db["conversation"].update(
                    conversation,
                    {"system_prompt": system_prompt, "sampling": json.dumps(sampling) if sampling else None},
                )

    def share(self, conversation, annotator):
        """The token by which anyone may read this conversation; the same each time."""
        self._change_conversation(conversation, annotator)
        with self.writing() as db:
            db.execute(
                "update conversation set share_token = coalesce(share_token, ?) where id = ?",
                [secrets.token_urlsafe(16), conversation],
            )
        return self.row("select share_token from conversation where id = ?", conversation)["share_token"]

    def unshare(self, conversation, annotator):
        self._change_conversation(conversation, annotator, share_token=None)

    def shared(self, token):
        """The conversation that a token leads to, or None."""
        return self._conversation("share_token = ? and deleted is null", token)

    def _conversation(self, where, value):
        row = self.row(f"select * from conversation where {where} limit 1", value)
        return row and {**row, "sampling": _json_or_none(row["sampling"])}

    def _change_conversation(self, conversation, annotator, **columns):
        with self.writing() as db:
            self._own_conversation(db, conversation, annotator)
            if columns:
                db["conversation"].update(conversation, columns)

    @staticmethod
    def _own_conversation(db, conversation, annotator):
        found = db.execute(
            "select 1 from conversation where id = ? and annotator = ? and deleted is null", [conversation, annotator]
        ).fetchone()
        if not found:
            raise StoreError(NOT_YOURS)

    def history(self, conversation):
        """Messages from the first to the conversation's tail: rows with id, role, text (as last edited), edited, thumb,
        policy.
        """
        rows = self.rows(
            f"""with recursive path(id, parent, depth) as (
                 select m.id, m.parent, 0 from message m join conversation c on c.tail = m.id where c.id = ?
                 union all select m.id, m.parent, depth + 1 from message m join path on m.id = path.parent)
               select m.id, m.role, {SHOWN} as text, {EDITED} as edited, {THUMB} as thumb, g.policy
               from path join message m on m.id = path.id left join generation g on g.message = m.id
               order by depth desc""",
            conversation,
        )
        return [{**row, "edited": bool(row["edited"])} for row in rows]

    # -- duels

    def start_duel(self, conversation, text, prompt_ids, sides, user_message=None):
        """Record a turn before its first token: the user's message and two streaming candidates.

        `sides` holds the left and the right candidate's generation columns (policy, base_model, base_hash,
        template_hash, sampling, seed). With `user_message` the pair is another answer to that message. Returns the
        duel's id.
        """
        with self.writing() as db:
            row = db["conversation"].get(conversation)
            if row["deleted"]:  # in another window, a moment ago
                raise StoreError(NOT_YOURS)
            if user_message is None:
                user_message = self._message(db, conversation, row["tail"], "user", text, "complete")
            else:
                db["conversation"].update(conversation, {"tail": db["message"].get(user_message)["parent"]})
            generations = []
            for side in sides:
                message = self._message(db, conversation, user_message, "assistant", "", "streaming")
                generation = {
                    **side,
                    "sampling": json.dumps(side["sampling"]),
                    "message": message,
                    "prompt": self._prompt(db, prompt_ids),
                }
                generations.append(db["generation"].insert(generation).last_pk)
            duel = (
                db["duel"]
                .insert(
                    {
                        "conversation": conversation,
                        "user_message": user_message,
                        "left_generation": generations[0],
                        "right_generation": generations[1],
                        "pairing": "same_policy",
                        "probability": 1.0,
                        "created": now(),
                    }
                )
                .last_pk
            )
            db["conversation"].update(conversation, {"shown_duel": duel})
            return duel

    def finish_duel(self, duel, sides, *, pairing="same_policy", probability=1.0):
        """Record what both candidates became: dicts with text, seed, token_ids, logprobs, finish_reason,
        first_token_ms, total_ms; and how this pair was picked where there were more than two. A pair that has no text
        is shown no more; of one that has twice the same, the history goes on with the left.
        """
        same = sides[0]["text"] == sides[1]["text"] != "" and not any(
            side["finish_reason"] == "error" for side in sides
        )
        with self.writing() as db:
            row = db["duel"].get(duel)
            db["duel"].update(duel, {"pairing": pairing, "probability": probability, "same": int(same)})
            if db["conversation"].get(row["conversation"])[
                "deleted"
            ]:  # while they were being written: nothing of them is kept
                sides = [
                    {**side, "text": "", "token_ids": [], "logprobs": [], "finish_reason": "error"} for side in sides
                ]
            for generation, side in zip((row["left_generation"], row["right_generation"]), sides, strict=True):
                status = {"stopped": "stopped", "error": "error"}.get(side["finish_reason"], "complete")
                db["generation"].update(
                    generation,
                    {
                        "seed": side["seed"],
                        "token_ids": json.dumps(side["token_ids"]),
                        "logprobs": json.dumps([round(x, 5) for x in side["logprobs"]]),
                        "finish_reason": side["finish_reason"],
                        "first_token_ms": side["first_token_ms"],
                        "total_ms": side["total_ms"],
                    },
                )
                db["message"].update(
                    db["generation"].get(generation)["message"], {"text": side["text"], "status": status}
                )
            if same and db["conversation"].get(row["conversation"])["shown_duel"] == duel:
                self._show(db, row["conversation"], duel)
            self._fall_back(db, "c.id = ?", [row["conversation"]])

    def fail_streaming(self):
        """After a restart: candidates that were still streaming are errors, but for those that somebody had voted on:
        they keep what they had said by then, as stopped. Returns how many errors there were."""
        with self.writing() as db:
            voted = f"status = 'streaming' and text != '' and id in ({VOTED_REPLIES})"
            db.execute(
                "update generation set finish_reason = 'stopped' where message in (select id from message where "
                f"{voted})"
            )
            db.execute(f"update message set status = 'stopped' where {voted}")
            failed = db.execute("update message set status = 'error' where status = 'streaming'").rowcount
            self._fall_back(db)
            return failed

    def _fall_back(self, db, where="true", values=()):
        """Where the pair shown (of the conversations c `where`) has no text, show the newest other answer to its
        message, else the pair that the message followed.
        """
        broken = db.execute(
            f"select c.id, d.user_message from conversation c join duel d on d.id = c.shown_duel where not {WHOLE} and "
            f"{where}",
            list(values),
        ).fetchall()
        for conversation, user_message in broken:
            other = db.execute(
                f"select d.id from duel d where d.user_message = ? and {WHOLE} order by d.id desc", [user_message]
            ).fetchone()
            if other:
                self._show(db, conversation, other[0])
            else:
                db["conversation"].update(conversation, {"shown_duel": self._duel_before(db, user_message)})

    @staticmethod
    def _duel_before(db, user_message):
        """The duel whose reply a user's message follows, or None."""
        row = db.execute(
            """select d.id from message u join generation g on g.message = u.parent
                join duel d on g.id in (d.left_generation, d.right_generation)
                            where u.id = ?""",
            [user_message],
        ).fetchone()
        return row and row[0]

    @staticmethod
    def _show(db, conversation, duel):
        """Show this pair; the history ends with what was picked of it, with the left reply where both are the same, or
        before its message.
        """
        tail = db.execute(
            """select coalesce((select v.continued_with from vote v
                join conversation c on c.annotator = v.annotator and c.id = d.conversation
                               where v.duel = d.id and v.superseded_by is null), case when d.same then l.message end,
                               m.parent)
                             from duel d join message m on m.id = d.user_message
                             join generation l on l.id = d.left_generation where d.id = ?""",
            [duel],
        ).fetchone()[0]
        db["conversation"].update(conversation, {"shown_duel": duel, "tail": tail})

    def show_duel(self, duel, annotator):
        """Show another pair that answers the same message as the one shown."""
        with self.writing() as db:
            row = db.execute(
                f"""select c.id from duel d join conversation c on c.id = d.conversation
                    join duel s on s.id = c.shown_duel
                                 where d.id = ? and c.annotator = ? and c.deleted is null
                                 and s.user_message = d.user_message and {WHOLE}""",
                [duel, annotator],
            ).fetchone()
            if row is None:
                raise StoreError("This pair of replies is not in your chat any more. Reload the page.")
            self._show(db, row[0], duel)

    def undo(self, conversation):
        """Take the last turn back, with its votes kept; returns its message's text."""
        with self.writing() as db:
            row = db.execute(
                """select u.id, u.text, u.parent from conversation c join duel d on d.id = c.shown_duel
                    join message u on u.id = d.user_message
                                where c.id = ?""",
                [conversation],
            ).fetchone()
            if row is None:
                raise StoreError("There is nothing to undo.")
            db["conversation"].update(conversation, {"tail": row[2], "shown_duel": self._duel_before(db, row[0])})
            return row[1]

    def duel(self, duel):
        """A duel as a dict with conversation, annotator, `same` (both replies are one text), `left_cut` and `right_cut`
        (tokens that were there when it was picked early), `pairs` (the duels that answer the same message), and `left`
        and `right` (message, text, shown, edited, thumb, status, policy, timings); None if unknown."""
        row = self.row(
            """select d.*, c.annotator, c.tail, m.text as user_text, m.parent from duel d
               join conversation c on c.id = d.conversation join message m on m.id = d.user_message where d.id = ?""",
            duel,
        )
        if row:
            row["pairs"] = [
                r["id"]
                for r in self.rows(
                    f"select d.id from duel d where d.user_message = ? and {WHOLE} order by d.id", row["user_message"]
                )
            ]
            for side in ("left", "right"):
                found = self.row(
                    f"""select g.id, g.message, m.text, {SHOWN} as shown, {EDITED} as edited, {THUMB} as thumb,
                        m.status, g.policy, g.first_token_ms,
                         g.total_ms, g.finish_reason, coalesce(json_array_length(g.token_ids), 0) as tokens
                       from generation g join message m on m.id = g.message where g.id = ?""",
                    row[f"{side}_generation"],
                )
                row[side] = {**found, "edited": bool(found["edited"])}
        return row

    def shown_duel(self, conversation):
        """The pair that a conversation shows (see `duel`), or None."""
        row = self.row("select shown_duel from conversation where id = ?", conversation)
        return row and row["shown_duel"] and self.duel(row["shown_duel"])

    @staticmethod
    def _message(db, conversation, parent, role, text, status):
        return (
            db["message"]
            .insert(
                {
                    "conversation": conversation,
                    "parent": parent,
                    "role": role,
                    "text": text,
                    "status": status,
                    "created": now(),
                }
            )
            .last_pk
        )

    @staticmethod
    def _prompt(db, token_ids):
        text = json.dumps(list(token_ids), separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
        db.execute("insert or ignore into prompt (sha256, token_ids) values (?, ?)", [digest, text])
        return db.execute("select id from prompt where sha256 = ?", [digest]).fetchone()[0]
