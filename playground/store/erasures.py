"""What people take back: a chat, everything of theirs, or only the permission to train on it.

A request removes the texts from the rows at once and adds a row to `erasure`. The worker owns the other files: it
clears those too and then marks the erasure as done, so that nothing is forgotten when a process dies in between. Ids,
choices and dates stay, so counts, and which version learned from which vote, remain true.
"""

import json
from collections.abc import Iterable
from typing import Any

import sqlite_utils

from playground.store.checks import check_lease, check_owner
from playground.store.database import Database, now
from playground.store.queue_tasks import forget_tasks
from playground.store.reasons import without_words
from playground.system.messages import loads

SCRUB_PATIENCE = 0.2  # seconds; the worker scrubs again later

# SQL condition on an annotator a and a conversation c: rounds may learn from it
ALLOWED = "a.allow_training and not a.banned and c.deleted is null"

# SQL condition on the id of a conversation: it was deleted, and something of it may be left
UNFINISHED = """in (
    select c.id from conversation c
    join erasure e on c.id = e.conversation or (e.conversation is null and c.annotator = e.annotator)
    where e.done is null and c.deleted is not null)"""

# SQL condition on a round r: it has read a chat that it may not learn from, or not any more
WITHDRAWN = f"""exists (
    select 1 from round_conversation k join conversation c on c.id = k.conversation
    join annotator a on a.id = c.annotator
    where k.round = r.id and not ({ALLOWED}))"""


class Erasures(Database):
    """Part of `Store`."""

    # -- what a person takes back

    def delete_conversation(self, conversation: int, annotator: int) -> None:
        """Delete a chat: its texts are removed, no page shows it, and no later round reads it.

        StoreError where it is not the annotator's.
        """
        with self.writing() as db:
            check_owner(db, conversation, annotator)
            db.execute("update conversation set deleted = ? where id = ?", [now(), conversation])
            blank(db, "= ?", conversation)
            _request(db, annotator, conversation)
        self.scrub(SCRUB_PATIENCE)

    def forget(self, annotator: int) -> None:
        """Delete all chats of this person and their identity: the cookie and the keys are unknown from now on, and
        sign-ins end.
        """
        with self.writing() as db:
            db.execute(
                "update conversation set deleted = ? where annotator = ? and deleted is null", [now(), annotator]
            )
            blank(db, "in (select id from conversation where annotator = ?)", annotator)
            db.execute(
                """update annotator set token_hash = null, name = null, signed_in_until = null, role = 'annotator',
                     allow_training = 0, account = null, provider_role = null where id = ?""",
                [annotator],
            )
            db.execute("delete from sign_in where annotator = ?", [annotator])
            db.execute(
                """update api_key set key_hash = null, name = '', revoked = coalesce(revoked, ?)
                   where annotator = ?""",
                [now(), annotator],
            )
            _request(db, annotator)
        self.scrub(SCRUB_PATIENCE)

    def allow_training(self, annotator: int, allowed: bool) -> None:
        """Set whether rounds may learn from this person's chats.

        This holds for rounds that begin from now on. A running round that has read the chats begins again without
        them.
        """
        with self.writing() as db:
            db.execute("update annotator set allow_training = ? where id = ?", [int(allowed), annotator])
            if not allowed:
                _request(db, annotator)

    def learned_versions(self, annotator: int, conversation: int | None = None) -> list[int]:
        """The published versions whose round has read this person's chats, or the one chat.

        What they learned cannot be taken out of them.
        """
        rows = self.rows(
            """select distinct p.version from round_conversation k join conversation c on c.id = k.conversation
               join round r on r.id = k.round join policy p on p.round = r.id
               where r.state = 'published' and c.annotator = ?1 and (?2 is null or c.id = ?2) order by p.version""",
            annotator,
            conversation,
        )
        return [row["version"] for row in rows]

    # -- what is left to do of it

    def unfinished_erasures(self) -> list[int]:
        """The ids of the erasures whose texts may still be in files."""
        return [row["id"] for row in self.rows("select id from erasure where done is null order by id")]

    def last_erasure(self) -> int:
        """The newest erasure's id; 0 where nobody has asked for one."""
        return self.one("select coalesce(max(id), 0) as id from erasure")["id"]

    def blank_deleted(self) -> None:
        """Remove the texts that a deleted chat still has, and what a failed round's reason may have quoted of it.

        A chat has some where it was deleted before erasures existed, or where a reply came in after the deletion.
        """
        with self.writing() as db:
            blank(db, UNFINISHED)
            for round_id, stored in db.execute(
                f"select r.id, r.reason from round r where r.state = 'failed' and r.reason > '' and {WITHDRAWN}"
            ).fetchall():
                reason = loads(stored)
                if without_words(reason) != reason:
                    db.table("round").update(round_id, {"reason": without_words(reason).dumps()})

    def rounds_to_clear(self) -> list[int]:
        """The ids of the rounds that have read a chat which a round may not learn from, or not any more."""
        return [row["id"] for row in self.rows(f"select r.id from round r where {WITHDRAWN} order by r.id")]

    def finish_erasures(self, erasures: Iterable[int]) -> None:
        """Mark these erasures as done: nothing of them is left in any file."""
        with self.writing() as db:
            for erasure in erasures:
                db.execute("update erasure set done = ? where id = ?", [now(), erasure])

    # -- rounds

    def replies_for_training(self) -> list[tuple[list[int], list[int]]]:
        """(prompt ids, completion ids) of every reply that a round may learn from."""
        rows = self.rows(
            f"""select p.token_ids as prompt, g.token_ids as completion from generation g
                join prompt p on p.id = g.prompt
                join message m on m.id = g.message join conversation c on c.id = m.conversation
                join annotator a on a.id = c.annotator
                where g.token_ids is not null and {ALLOWED}"""
        )
        return [(json.loads(row["prompt"]), json.loads(row["completion"])) for row in rows]

    def record_read_conversations(self, round_id: int) -> None:
        """Record which chats a round reads, so that a later erasure finds the round. Repeating it starts over."""
        with self.writing() as db:
            db.execute("delete from round_conversation where round = ?", [round_id])
            db.execute(
                f"""insert into round_conversation (round, conversation)
                    select ?, c.id from conversation c join annotator a on a.id = c.annotator
                    where {ALLOWED} and a.left_out is null and (
                      exists (select 1 from duel d join vote v on v.duel = d.id where d.conversation = c.id)
                      or exists (select 1 from message m join rating t on t.message = m.id
                                 where m.conversation = c.id)
                      or exists (select 1 from message m join demonstration x on x.message = m.id
                                 where m.conversation = c.id))""",
                [round_id],
            )

    def must_begin_again(self, round_id: int) -> bool:
        """Whether somebody took back a chat that this round has read."""
        return self.row(f"select 1 from round r where r.id = ? and {WITHDRAWN}", round_id) is not None

    def begin_again(self, round_id: int, owner: str) -> None:
        """Send a running round back to its first phase, as if it had read nothing. Its job, if it has one elsewhere, is
        still known.

        LeaseLost when `owner` no longer holds it.
        """
        with self.writing() as db:
            check_lease(db, round_id, owner)
            for table in ("round_conversation", "vote_use", "metric"):
                db.execute(f"delete from {table} where round = ?", [round_id])
            db.execute(
                """update round set phase = 'collect', step = 0, steps = 0,
                     metrics = json_patch('{}', json_object('job', json_extract(metrics, '$.job'),
                       'jobs_sent', json_extract(metrics, '$.jobs_sent')))
                   where id = ?""",
                [round_id],
            )


def _request(db: sqlite_utils.Database, annotator: int, conversation: int | None = None) -> None:
    db.table("erasure").insert({"annotator": annotator, "conversation": conversation, "requested": now()})


def blank(db: sqlite_utils.Database, which: str, *values: Any) -> None:
    """Remove every text, and the tokens that spell it, from the conversations whose id fulfils the condition `which`.

    A prompt stays while a reply in another chat was made from it.
    """

    def execute(sql: str) -> None:
        db.execute(sql, list(values))

    forget_tasks(db, which, *values)
    messages = f"select id from message where conversation {which}"
    duels = f"select id from duel where conversation {which}"
    execute(f"update demonstration set before = '', after = '' where message in ({messages})")
    execute(f"update vote set tags = null, comment = null where duel in ({duels})")
    execute(
        f"""update prompt set token_ids = '', sha256 = 'erased ' || id
            where id in (select prompt from generation where message in ({messages}))
              and not exists (
                select 1 from generation g join message m on m.id = g.message
                join conversation c on c.id = m.conversation
                where g.prompt = prompt.id and c.deleted is null)"""
    )
    execute(f"update generation set token_ids = null, logprobs = null where message in ({messages})")
    execute(f"update message set text = '' where conversation {which}")
    execute(
        f"""update conversation
            set system_prompt = null, sampling = null, share_token = null, shown_duel = null, tail = null
            where id {which}"""
    )
