"""What people take back: a chat, everything of theirs, or only the leave to train on it. Texts go, skeletons stay.

A request blanks the rows at once and leaves a row of `erasure`; whoever owns the files (the worker) clears those too
and then marks it done, so that nothing is forgotten when a process dies in between. Ids, choices and dates stay:
counts, and which version learned from which vote, stay true.
"""

import json

from playground.store.errors import StoreError
from playground.store.file import now
from playground.store.reasons import without_words
from playground.system.messages import Message, loads

NOT_YOURS = Message("This chat is not yours, or it was deleted.")
# of an annotator a and a conversation c: rounds may learn from it
ALLOWED = "a.allow_training and not a.banned and c.deleted is null"
UNFINISHED = """in (select c.id from conversation c join erasure e on c.id = e.conversation
                 or (e.conversation is null and c.annotator = e.annotator)
                    where e.done is null and c.deleted is not null)"""  # deleted chats of which something may be left
# the round r has read a chat that it may not learn from (any more)
WITHDRAWN = f"""exists (select 1 from round_conversation k join conversation c on c.id = k.conversation
                join annotator a on a.id = c.annotator
                        where k.round = r.id and not ({ALLOWED}))"""


class Erasures:
    """Part of `Store`."""

    # -- what a person takes back

    def delete_conversation(self, conversation: int, annotator: int) -> None:
        """Its texts are gone, it is shown no more, and no later round reads it. StoreError where it is not the
        annotator's.
        """
        with self.writing() as db:
            found = db.execute(
                "select 1 from conversation where id = ? and annotator = ? and deleted is null",
                [conversation, annotator],
            ).fetchone()
            if not found:
                raise StoreError(NOT_YOURS)
            db.execute("update conversation set deleted = ? where id = ?", [now(), conversation])
            self._blank(db, "= ?", conversation)
            self._request(db, annotator, conversation)
        self.scrub(patience=0.2)

    def forget(self, annotator: int) -> None:
        """Delete all chats of this person, and who they are: the cookie leads to nobody any more, and a
        sign-in ends.
        """
        with self.writing() as db:
            db.execute(
                "update conversation set deleted = ? where annotator = ? and deleted is null", [now(), annotator]
            )
            self._blank(db, "in (select id from conversation where annotator = ?)", annotator)
            db.execute(
                """update annotator set token_hash = null, name = null, signed_in_until = null, role = 'annotator',
                     allow_training = 0 where id = ?""",
                [annotator],
            )
            self._request(db, annotator)
        self.scrub(patience=0.2)

    def allow_training(self, annotator: int, allowed: bool) -> None:
        """Whether rounds may learn from this person's chats: those that begin from now on, and the running one, which
        begins again without them.
        """
        with self.writing() as db:
            db.execute("update annotator set allow_training = ? where id = ?", [int(allowed), annotator])
            if not allowed:
                self._request(db, annotator)

    @staticmethod
    def _request(db, annotator, conversation=None):
        db["erasure"].insert({"annotator": annotator, "conversation": conversation, "requested": now()})

    @staticmethod
    def _blank(db, which, *values):
        """Blank every text, and the tokens that spell it, of the conversations `which`. A prompt stays while another
        chat's reply was made from it.
        """

        def execute(sql):
            db.execute(sql, list(values))

        messages = f"select id from message where conversation {which}"
        execute(f"update demonstration set before = '', after = '' where message in ({messages})")
        execute(
            "update vote set tags = null, comment = null where duel in (select id from duel where conversation "
            f"{which})"
        )
        execute(f"""update prompt set token_ids = '', sha256 = 'erased ' || id
                    where id in (select prompt from generation where message in ({messages}))
                      and not exists (select 1 from generation g join message m on m.id = g.message
                      join conversation c on c.id = m.conversation
                                      where g.prompt = prompt.id and c.deleted is null)""")
        execute(f"update generation set token_ids = null, logprobs = null where message in ({messages})")
        execute(f"update message set text = '' where conversation {which}")
        execute(f"""update conversation set system_prompt = null, sampling = null, share_token = null, shown_duel =
                    null, tail = null
                    where id {which}""")

    # -- what is left to do of it

    def unfinished_erasures(self) -> list:
        """Ids of the erasures whose files may still be there."""
        return [row["id"] for row in self.rows("select id from erasure where done is null order by id")]

    def last_erasure(self) -> int:
        """The newest erasure's id; 0 where nobody has asked for one."""
        return self.row("select coalesce(max(id), 0) as id from erasure")["id"]

    def blank_deleted(self) -> None:
        """Blank what a deleted chat still has: one that was deleted before chats were erased, or a reply that came in
        behind its deletion; and what the error of a round that had read it may have quoted."""
        with self.writing() as db:
            self._blank(db, UNFINISHED)
            for round_id, stored in db.execute(
                f"select r.id, r.reason from round r where r.state = 'failed' and r.reason > '' and {WITHDRAWN}"
            ).fetchall():
                reason = loads(stored)
                if without_words(reason) != reason:
                    db["round"].update(round_id, {"reason": without_words(reason).dumps()})

    def rounds_to_clear(self) -> list:
        """Ids of the rounds that have read a chat that a round may not learn from (any more)."""
        return [row["id"] for row in self.rows(f"select r.id from round r where {WITHDRAWN} order by r.id")]

    def finish_erasures(self, erasures: list) -> None:
        """Nothing of these is left anywhere."""
        with self.writing() as db:
            for erasure in erasures:
                db.execute("update erasure set done = ? where id = ?", [now(), erasure])

    def replies_for_training(self) -> list:
        """(prompt ids, completion ids) of every reply that a round may learn from."""
        rows = self.rows(
            f"""select p.token_ids as prompt, g.token_ids as completion from generation g
                join prompt p on p.id = g.prompt
                join message m on m.id = g.message join conversation c on c.id = m.conversation
                join annotator a on a.id = c.annotator
                where g.token_ids is not null and {ALLOWED}"""
        )
        return [(json.loads(row["prompt"]), json.loads(row["completion"])) for row in rows]

    # -- rounds and versions

    def read_conversations(self, round_id: int) -> None:
        """Record which chats a round has read; what is taken back later is looked for here. Repeating it
        begins anew.
        """
        with self.writing() as db:
            db.execute("delete from round_conversation where round = ?", [round_id])
            db.execute(
                f"""insert into round_conversation (round, conversation)
                           select ?, c.id from conversation c join annotator a on a.id = c.annotator
                           where {ALLOWED} and (
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
        """Send a running round back to its first phase, as if it had read nothing. LeaseLost when `owner` no longer
        holds it.
        """
        with self.writing() as db:
            self._held(db, round_id, owner)
            for table in ("round_conversation", "vote_use", "metric"):
                db.execute(f"delete from {table} where round = ?", [round_id])
            db.execute(
                "update round set phase = 'collect', step = 0, steps = 0, metrics = '{}' where id = ?", [round_id]
            )

    def learned_versions(self, annotator: int, conversation: int | None = None) -> list:
        """Published versions whose round has read this person's chats, or the one: what they learned stays in them."""
        rows = self.rows(
            """select distinct p.version from round_conversation k join conversation c on c.id = k.conversation
               join round r on r.id = k.round join policy p on p.round = r.id
               where r.state = 'published' and c.annotator = ?1 and (?2 is null or c.id = ?2) order by p.version""",
            annotator,
            conversation,
        )
        return [row["version"] for row in rows]
