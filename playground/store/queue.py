"""The prompt queue: prompts that the owner wants judged, and who has which of them.

A task is one person's turn with one prompt; how tasks end is in `queue_tasks.py`, so that two people never have one
prompt at once. What is said of pairs that were judged twice is in `quality.py`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlite_utils

from playground.store.conversations import add_conversation
from playground.store.database import Database, Row, insert, now
from playground.store.duels import add_message
from playground.store.queue_tasks import FREE, JUDGED_TWICE, LEFT, OVERDUE, end_task, find_prompt, free_tasks, settle

OWN = """
    select t.id, t.prompt, t.conversation, t.message, t.repeats, p.messages
    from queue_task t join queued_prompt p on p.id = t.prompt where t.annotator = ? and t.state = 'taken'"""
ORIGINAL = """
    select d.*, coalesce(c.dialogue, c.id) as dialogue from duel d
    join conversation c on c.id = d.conversation where d.id = ? and c.deleted is null"""


class QueuedPrompt(NamedTuple):
    """A prompt of the owner's file. `messages`: role and content, the last one a user's. `twice`: whether two people
    are to judge it.
    """

    sha256: str
    messages: Sequence[Mapping[str, Any]]
    twice: bool


class Queue(Database):
    """Part of `Store`."""

    # -- what is in it

    def list_prompts(self, prompts: Iterable[QueuedPrompt]) -> None:
        """Let the queue hold these prompts, in this order. Those that it holds already keep what became of them; others
        are kept, but nobody gets them any more.
        """
        with self.writing() as db:
            db.execute("update queued_prompt set place = null where place is not null")
            for place, prompt in enumerate(prompts, 1):
                db.execute(
                    """insert into queued_prompt (sha256, place, twice, state, messages, created)
                       values (?, ?, ?, 'open', ?, ?)
                       on conflict (sha256) do update set place = excluded.place,
                         twice = case when state = 'open' then excluded.twice else twice end""",
                    [prompt.sha256, place, prompt.twice, json.dumps(prompt.messages, ensure_ascii=False), now()],
                )

    def reopen_prompts(self) -> int:
        """Offer prompts that too many have skipped once more; returns how many there are."""
        with self.writing() as db:
            aside = [row[0] for row in db.execute("select id from queued_prompt where state = 'aside'").fetchall()]
            for prompt in aside:
                db.execute("update queue_task set state = ? where prompt = ?", [LEFT, prompt])
                settle(db, prompt)
            return len(aside)

    def queue_progress(self) -> Row:
        """Keys, in prompts: total; judged by at least one person; twice: to be judged by two; judged_twice: of
        these, those of which two people have judged one pair; aside: skipped by too many.
        """
        return self.one(
            f"""select count(*) as total, coalesce(sum(twice), 0) as twice,
                 coalesce(sum(state in ('again', 'done')), 0) + (
                   select count(distinct t.prompt) from queued_prompt q join queue_task t on t.prompt = q.id
                   where q.state = 'taken' and q.place is not null and t.state = 'done') as judged,
                 coalesce(sum(twice and state in ('taken', 'done') and {JUDGED_TWICE}), 0) as judged_twice,
                 coalesce(sum(state = 'aside'), 0) as aside
               from queued_prompt p where place is not null"""
        )

    def skipped_prompts(self, limit: int) -> list[Row]:
        """Prompts that were skipped, those that most people skipped first. Keys: place, state, reasons (a list)."""
        rows = self.rows(
            """select p.place, p.state, json_group_array(t.reason) as reasons
               from queue_task t join queued_prompt p on p.id = t.prompt
               where t.state = 'skipped' and p.place is not null
               group by p.id order by count(*) desc, p.place limit ?""",
            limit,
        )
        return [{**row, "reasons": json.loads(row["reasons"])} for row in rows]

    # -- a person's turn

    def has_prompt_for(self, annotator: int, clock: float, seconds: float) -> bool:
        """Whether this person would get a prompt now; `clock` and `seconds` as of `take_prompt`."""
        if self.queue_task(annotator) is not None:
            return True
        if any(self.row(FREE, state, annotator) for state in ("again", "open")):
            return True
        return self.row(OVERDUE, clock - seconds, annotator) is not None

    def queue_task(self, annotator: int) -> Row | None:
        """The task that this person has, or None. Keys: id, prompt, conversation, message, repeats, messages."""
        row = self.row(OWN, annotator)
        return row and _task(row)

    def is_task(self, message: int, annotator: int) -> bool:
        """Whether a message is the prompt that this person has and has not judged."""
        sql = "select 1 from queue_task where message = ? and annotator = ? and state = 'taken'"
        return self.row(sql, message, annotator) is not None

    def is_queued(self, conversation: int) -> bool:
        """Whether a conversation was begun for a prompt of the queue."""
        return self.row("select 1 from queue_task where conversation = ?", conversation) is not None

    def take_prompt(self, annotator: int, clock: float, seconds: float) -> Row | None:
        """The task of this person, as `queue_task` returns it: the one that is not finished, or else a new one, or None
        where no prompt is free. Pairs to be judged a second time come first.

        `clock`: now, in unix seconds. A task that was taken `seconds` ago is free for others.
        """
        with self.writing() as db:
            own = db.execute(
                "select id from queue_task where annotator = ? and state = 'taken'", [annotator]
            ).fetchone()
            if own:
                db.execute("update queue_task set taken = ? where id = ?", [clock, own[0]])
            else:
                free_tasks(db, clock - seconds)
                found = find_prompt(db, annotator)
                if found is None:
                    return None
                prompt, repeats = found
                _add_task(db, prompt, annotator, repeats, clock)
                settle(db, prompt)
            return _task(next(db.query(OWN, [annotator])))

    def skip_prompt(self, annotator: int, reason: str) -> None:
        """Give up the task that this person has, for good. Nothing where there is none."""
        with self.writing() as db:
            row = db.execute(
                "select id from queue_task where annotator = ? and state = 'taken'", [annotator]
            ).fetchone()
            if row:
                end_task(db, row[0], "skipped", reason)

    def leave_prompt(self, annotator: int) -> None:
        """Give up the task that this person has, who may get the prompt again."""
        with self.writing() as db:
            row = db.execute(
                "select id from queue_task where annotator = ? and state = 'taken'", [annotator]
            ).fetchone()
            if row:
                end_task(db, row[0], LEFT, None)

    def show_again(self, task: Mapping[str, Any], replies: Sequence[tuple[str, Sequence[int]]]) -> bool:
        """Show the pair that a task repeats to its person, in a chat of their own, with sides swapped. `replies`: text
        and token ids of its left and right reply, as its first judge saw them. False where the pair is gone meanwhile.
        """
        system, said, last = parts(task["messages"])
        with self.writing() as db:
            original = next(db.query(ORIGINAL, [task["repeats"]]), None)
            if original is None:
                return False
            annotator = db.table("queue_task").get(task["id"])["annotator"]
            conversation, tail = _copy_chat(db, annotator, original["dialogue"], system, said)
            message = add_message(db, conversation, tail, "user", last, "complete")
            swapped = (original["right_generation"], original["left_generation"])
            left, right = (
                _copy_reply(db, generation, conversation, message, text, ids)
                for generation, (text, ids) in zip(swapped, reversed(replies), strict=True)
            )
            columns = {
                "conversation": conversation,
                "user_message": message,
                "left_generation": left,
                "right_generation": right,
                "pairing": original["pairing"],
                "probability": original["probability"],
                "repeats": original["id"],
                "created": now(),
            }
            duel = insert(db, "duel", columns)
            db.table("conversation").update(conversation, {"shown_duel": duel})
            db.table("queue_task").update(task["id"], {"conversation": conversation, "message": message})
            return True


def parts(messages: Sequence[Mapping[str, Any]]) -> tuple[str | None, Sequence[Mapping[str, Any]], str]:
    """Of a prompt's messages: the system prompt, None where there is none, those before the last one, and the last
    one's text.
    """
    *said, last = messages
    if said and said[0]["role"] == "system":
        return said[0]["content"], said[1:], last["content"]
    return None, said, last["content"]


# -- steps of a transaction


def _task(row: Row) -> Row:
    return {**row, "messages": json.loads(row["messages"])}


def _add_task(db: sqlite_utils.Database, prompt: int, annotator: int, repeats: int | None, clock: float) -> None:
    """A person takes a prompt. What is left of their own last turn with it, once its chat is deleted, is used again:
    rows do not grow with how often somebody deletes the chat and takes the prompt.
    """
    columns = {"prompt": prompt, "annotator": annotator, "state": "taken", "repeats": repeats, "taken": clock}
    old = db.execute(
        """select t.id from queue_task t left join conversation c on c.id = t.conversation
           where t.prompt = ? and t.annotator = ? and t.state = ? and (c.id is null or c.deleted is not null)""",
        [prompt, annotator, LEFT],
    ).fetchone()
    if old:
        db.table("queue_task").update(old[0], {**columns, "conversation": None, "message": None})
    else:
        insert(db, "queue_task", columns)


def _copy_chat(
    db: sqlite_utils.Database, annotator: int, dialogue: int, system: str | None, said: Sequence[Mapping[str, Any]]
) -> tuple[int, int | None]:
    """A chat of this person's with what the queue says before the prompt: its id, and its last message. It belongs to
    the dialogue of the first judge's chat: a round never learns from one of the two votes and is measured on the other.
    """
    conversation = add_conversation(db, annotator, system, None)
    tail = None
    for turn in said:
        tail = add_message(db, conversation, tail, turn["role"], turn["content"], "complete")
    db.table("conversation").update(conversation, {"tail": tail, "dialogue": dialogue})
    return conversation, tail


def _copy_reply(
    db: sqlite_utils.Database, generation: int, conversation: int, parent: int, text: str, ids: Sequence[int]
) -> int:
    """A reply once more, as far as its text goes; returns the id of its generation."""
    row = db.table("generation").get(generation)
    whole = json.loads(row["token_ids"] or "[]") == list(ids)
    logprobs = json.loads(row["logprobs"] or "[]")[: len(ids)]
    message = add_message(db, conversation, parent, "assistant", text, "complete" if whole else "stopped")
    copied = {name: value for name, value in row.items() if name != "id"}
    changed = {
        "message": message,
        "token_ids": json.dumps(list(ids)),
        "logprobs": json.dumps(logprobs),
        "finish_reason": row["finish_reason"] if whole else "stopped",
    }
    return insert(db, "generation", {**copied, **changed})
