"""Duels: the pairs of replies in conversations, from before their first token to after an undo.

Nothing is overwritten: a pair that was undone or replaced by another one stays. Which pair a conversation shows
(`shown_duel`) and where its history ends (`tail`) changes here and with a vote (`votes.py`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlite_utils

from playground.store.checks import NOT_YOURS
from playground.store.conversations import CUT, EDITED, PATH, SHOWN, STOPPED, THUMB
from playground.store.database import Database, Row, insert, now
from playground.store.erasures import ALLOWED
from playground.store.errors import StoreError
from playground.store.queue_tasks import begin_task

VOTED_REPLIES = """
    select g.message from vote v join duel d on d.id = v.duel
    join generation g on g.id in (d.left_generation, d.right_generation)
    where v.superseded_by is null"""

# SQL condition on a duel d: both of its replies have a text
WHOLE = """2 = (
    select count(*) from generation g join message m on m.id = g.message
    where g.id in (d.left_generation, d.right_generation) and m.status != 'error')"""

STATUS_OF_FINISH = {"stopped": "stopped", "error": "error"}  # a message's status by its finish_reason; else complete


class Duels(Database):
    """Part of `Store`."""

    # -- from the first token to the last

    def start_duel(
        self,
        conversation: int,
        text: str,
        prompt_ids: Sequence[int],
        sides: Sequence[Mapping[str, Any]],
        user_message: int | None = None,
        task: int | None = None,
    ) -> int:
        """Record a turn before its first token: the user's message and two streaming candidates. Returns the duel's id.

        `sides`: the left and the right candidate's generation columns (policy, base_model, base_hash, template_hash,
        sampling, seed). With `user_message` the pair is another answer to that message. `task`: of the prompt queue,
        whose prompt the message is.
        """
        with self.writing() as db:
            row = db.table("conversation").get(conversation)
            if row["deleted"]:  # in another window, a moment ago
                raise StoreError(NOT_YOURS)
            if user_message is None:
                user_message = add_message(db, conversation, row["tail"], "user", text, "complete")
            else:
                parent = db.table("message").get(user_message)["parent"]
                db.table("conversation").update(conversation, {"tail": parent})
            generations = []
            for side in sides:
                message = add_message(db, conversation, user_message, "assistant", "", "streaming")
                generation = {
                    **side,
                    "sampling": json.dumps(side["sampling"]),
                    "message": message,
                    "prompt": _prompt_id(db, prompt_ids),
                }
                generations.append(insert(db, "generation", generation))
            duel = {
                "conversation": conversation,
                "user_message": user_message,
                "left_generation": generations[0],
                "right_generation": generations[1],
                "pairing": "same_policy",
                "probability": 1.0,
                "created": now(),
            }
            duel_id = insert(db, "duel", duel)
            db.table("conversation").update(conversation, {"shown_duel": duel_id})
            if task is not None:
                begin_task(db, task, conversation, user_message)
            return duel_id

    def finish_duel(
        self,
        duel: int,
        sides: Sequence[Mapping[str, Any]],
        *,
        pairing: str = "same_policy",
        probability: float = 1.0,
    ) -> None:
        """Record what both candidates became, and how this pair was picked where there were more than two candidates.

        `sides`: the left and the right reply, with text, seed, token_ids, logprobs, finish_reason, first_token_ms and
        total_ms. A pair that has no text is not shown any more. Where both replies are the same text, the history goes
        on with the left one.
        """
        left, right = sides
        failed = any(side["finish_reason"] == "error" for side in sides)
        same = left["text"] == right["text"] and left["text"] != "" and not failed
        with self.writing() as db:
            row = db.table("duel").get(duel)
            conversation = row["conversation"]
            db.table("duel").update(duel, {"pairing": pairing, "probability": probability, "same": int(same)})
            if db.table("conversation").get(conversation)["deleted"]:
                # deleted while the replies were being written: nothing of them is kept
                nothing = {"text": "", "token_ids": [], "logprobs": [], "finish_reason": "error"}
                sides = [{**side, **nothing} for side in sides]
            for generation, side in zip((row["left_generation"], row["right_generation"]), sides, strict=True):
                _finish_generation(db, generation, side)
            if same and db.table("conversation").get(conversation)["shown_duel"] == duel:
                show(db, conversation, duel)
            _show_whole_pairs(db, conversation)

    def fail_streaming(self) -> int:
        """After a restart: mark the candidates that were still streaming as errors; returns how many there were.

        Those that somebody had voted on keep what they had said by then, as stopped.
        """
        with self.writing() as db:
            voted = f"status = 'streaming' and text != '' and id in ({VOTED_REPLIES})"
            db.execute(
                f"""update generation set finish_reason = 'stopped'
                    where message in (select id from message where {voted})"""
            )
            db.execute(f"update message set status = 'stopped' where {voted}")
            failed = db.execute("update message set status = 'error' where status = 'streaming'").rowcount
            _show_whole_pairs(db)
            return failed

    # -- prompts

    def messages_of_prompt(self, token_ids: Sequence[int]) -> tuple[str | None, list[Row]] | None:
        """The system prompt and the messages that these token ids were encoded from, as they are now, oldest first;
        None where no chat that rounds may learn from has them. Keys of a message: role, content.
        """
        _, digest = _prompt_text(token_ids)
        row = self.row(
            f"""select c.system_prompt, m.parent as last from prompt p join generation g on g.prompt = p.id
                join message m on m.id = g.message join conversation c on c.id = m.conversation
                join annotator a on a.id = c.annotator where p.sha256 = ? and {ALLOWED} order by g.id desc limit 1""",
            digest,
        )
        if row is None:
            return None
        messages = self.rows(
            f"""{PATH.format(start="select id, parent, 0 from message where id = ?")}
                select m.role, {SHOWN} as content from path join message m on m.id = path.id order by depth desc""",
            row["last"],
        )
        return row["system_prompt"], messages

    # -- which pair is shown

    def show_duel(self, duel: int, annotator: int) -> None:
        """Show another pair that answers the same message as the pair that is shown."""
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
            show(db, row[0], duel)

    def undo(self, conversation: int) -> str:
        """Take the last turn back and return the text of its message. Its votes are kept."""
        with self.writing() as db:
            row = db.execute(
                """select u.id, u.text, u.parent from conversation c join duel d on d.id = c.shown_duel
                   join message u on u.id = d.user_message where c.id = ?""",
                [conversation],
            ).fetchone()
            if row is None:
                raise StoreError("There is nothing to undo.")
            user_message, text, parent = row
            db.table("conversation").update(conversation, {"tail": parent})
            _show_before(db, conversation, user_message)
            return text

    # -- reading

    def duel(self, duel: int) -> Row | None:
        """A duel, or None if unknown.

        Keys: the table's columns, among them `same` (both replies are one text), `left_cut` and `right_cut` (tokens
        that were there when the pair was picked early); annotator, tail, user_text and parent of its conversation and
        message; `pairs`: ids of the duels that answer the same message; `left` and `right`: a dict each with id,
        message, text, shown, edited (a bool), thumb, status, policy, first_token_ms, total_ms, finish_reason, tokens,
        cut and stopped (as in `history`).
        """
        row = self.row(
            """select d.*, c.annotator, c.tail, m.text as user_text, m.parent from duel d
               join conversation c on c.id = d.conversation join message m on m.id = d.user_message where d.id = ?""",
            duel,
        )
        if row is None:
            return None
        pairs = self.rows(
            f"select d.id from duel d where d.user_message = ? and {WHOLE} order by d.id", row["user_message"]
        )
        row["pairs"] = [pair["id"] for pair in pairs]
        row["left"] = self._side(row["left_generation"])
        row["right"] = self._side(row["right_generation"])
        return row

    def prompt_tokens(self, duel: int) -> int:
        """How many tokens the prompt of a duel has; 0 once it is erased."""
        row = self.one(
            """select case when p.token_ids = '' then 0 else json_array_length(p.token_ids) end as n from duel d
               join generation g on g.id = d.left_generation join prompt p on p.id = g.prompt where d.id = ?""",
            duel,
        )
        return row["n"]

    def reply_tokens(self, generation: int) -> list[int]:
        """The token ids of a reply; none once it is erased."""
        row = self.row("select token_ids from generation where id = ?", generation)
        ids: list[int] = json.loads(row["token_ids"] or "[]") if row else []
        return ids

    def _side(self, generation: int) -> Row:
        """One reply of a duel, as `duel` returns it."""
        row = self.one(
            f"""select g.id, g.message, m.text, {SHOWN} as shown, {EDITED} as edited, {THUMB} as thumb, m.status,
                  g.policy, g.first_token_ms, g.total_ms, g.finish_reason, {CUT} as cut, {STOPPED} as stopped,
                  coalesce(json_array_length(g.token_ids), 0) as tokens
                from generation g join message m on m.id = g.message where g.id = ?""",
            generation,
        )
        return {**row, "edited": bool(row["edited"]), "stopped": bool(row["stopped"])}

    def shown_duel(self, conversation: int) -> Row | None:
        """The pair that a conversation shows, as `duel` returns it, or None."""
        row = self.row("select shown_duel from conversation where id = ?", conversation)
        if row is None or row["shown_duel"] is None:
            return None
        return self.duel(row["shown_duel"])


# -- steps of a transaction


def add_message(
    db: sqlite_utils.Database, conversation: int, parent: int | None, role: str, text: str, status: str
) -> int:
    columns = {
        "conversation": conversation,
        "parent": parent,
        "role": role,
        "text": text,
        "status": status,
        "created": now(),
    }
    return insert(db, "message", columns)


def _prompt_id(db: sqlite_utils.Database, token_ids: Sequence[int]) -> int:
    """The id of the prompt with these token ids, made where there is none."""
    text, digest = _prompt_text(token_ids)
    db.execute("insert or ignore into prompt (sha256, token_ids) values (?, ?)", [digest, text])
    return db.execute("select id from prompt where sha256 = ?", [digest]).fetchone()[0]


def _prompt_text(token_ids: Sequence[int]) -> tuple[str, str]:
    """A prompt's token ids as text, and the hash of that."""
    text = json.dumps(list(token_ids), separators=(",", ":"))
    return text, hashlib.sha256(text.encode()).hexdigest()


def _finish_generation(db: sqlite_utils.Database, generation: int, side: Mapping[str, Any]) -> None:
    columns = {
        "seed": side["seed"],
        "token_ids": json.dumps(side["token_ids"]),
        "logprobs": json.dumps([round(logprob, 5) for logprob in side["logprobs"]]),
        "finish_reason": side["finish_reason"],
        "first_token_ms": side["first_token_ms"],
        "total_ms": side["total_ms"],
    }
    db.table("generation").update(generation, columns)
    message = db.table("generation").get(generation)["message"]
    status = STATUS_OF_FINISH.get(side["finish_reason"], "complete")
    db.table("message").update(message, {"text": side["text"], "status": status})


def _show_whole_pairs(db: sqlite_utils.Database, conversation: int | None = None) -> None:
    """Where the pair that is shown lacks a text, show another one; in one conversation or in all.

    That is the newest other answer to its message, or else the pair that the message followed.
    """
    broken = db.execute(
        f"""select c.id, d.user_message from conversation c join duel d on d.id = c.shown_duel
            where not {WHOLE} and {"true" if conversation is None else "c.id = ?"}""",
        [] if conversation is None else [conversation],
    ).fetchall()
    for conversation_id, user_message in broken:
        other = db.execute(
            f"select d.id from duel d where d.user_message = ? and {WHOLE} order by d.id desc", [user_message]
        ).fetchone()
        if other:
            show(db, conversation_id, other[0])
        else:
            _show_before(db, conversation_id, user_message)


def _show_before(db: sqlite_utils.Database, conversation: int, user_message: int) -> None:
    """Show the pair whose reply a user's message follows, or none where it follows none. The vote on that pair may have
    been changed since.
    """
    row = db.execute(
        """select d.id from message u join generation g on g.message = u.parent
           join duel d on g.id in (d.left_generation, d.right_generation) where u.id = ?""",
        [user_message],
    ).fetchone()
    if row:
        show(db, conversation, row[0])
    else:
        db.table("conversation").update(conversation, {"shown_duel": None})


def show(db: sqlite_utils.Database, conversation: int, duel: int) -> None:
    """Show this pair, and let the history end with the reply that the vote is for, or that a tie went on with.

    Without a vote it ends with the left reply where both are the same text, and otherwise before the message.
    """
    tail = db.execute(
        """select coalesce(
             (select case v.choice when 'a' then l.message when 'b' then r.message else v.continued_with end from vote v
              join conversation c on c.annotator = v.annotator and c.id = d.conversation
              where v.duel = d.id and v.superseded_by is null),
             case when d.same then l.message end,
             m.parent)
           from duel d join message m on m.id = d.user_message join generation l on l.id = d.left_generation
           join generation r on r.id = d.right_generation where d.id = ?""",
        [duel],
    ).fetchone()[0]
    db.table("conversation").update(conversation, {"shown_duel": duel, "tail": tail})
