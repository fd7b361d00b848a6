"""What people say of replies: votes and why, thumbs, demonstrations; and these as training reads them."""

import json

from playground.store.erasures import ALLOWED
from playground.store.errors import StoreError
from playground.store.file import now
from playground.system.messages import Message

CHOICES = ("a", "b", "tie", "both_bad", "skip")
GONE_ON = Message("The conversation has gone on since; this vote can no longer be changed.")

# The votes that count, for whoever tells a number of votes: one for each pair and person, no skips, on two replies that
# differ, in chats that are
# there, of people who let training have them, and on the base model that was used last. What counts less (votes for A
# or B, say) is named so.
COUNTS = f"v.superseded_by is null and v.choice != 'skip' and not d.same and {ALLOWED}"
VOTES = """vote v join duel d on d.id = v.duel join conversation c on c.id = d.conversation
            join annotator a on a.id = v.annotator
           join generation l on l.id = d.left_generation"""
LAST_BASE = "(select base_hash from generation order by id desc limit 1)"
COUNTED = f"{COUNTS} and l.base_hash = {LAST_BASE}"
NEW = "v.id > coalesce((select max(last_vote) from round), 0)"  # since the last round began

FATE = f"""select v.id as vote, v.created, v.choice, d.conversation, m.text, c.deleted, a.allow_training as allowed,
           d.left_cut is not null as early, {COUNTED} as counts, u.round, u.heldout, r.state as round_state, r.phase as
           round_phase,
            (select max(p.version) from vote_use w join policy p on p.round = w.round join round q on q.id = w.round
             where w.vote = v.id and w.heldout = 0 and q.state = 'published') as version,
            f.probability, f.hit
          from {VOTES} join message m on m.id = d.user_message
            left join vote_use u on u.vote = v.id and u.round = (select max(round) from vote_use where vote = v.id)
            left join round r on r.id = u.round left join forecast f on f.vote = v.id"""


class Votes:
    """Part of `Store`."""

    def vote(self, duel, annotator, choice, continue_with, shown_at=None, dwell_ms=None, early=None):
        """Record a vote, superseding this person's earlier one on the same duel, and move the conversation on to
        `continue_with`.

        `early` is what both replies had said by then where they were still being written: as `finish_duel` takes it,
        with None for the finish_reason of a reply that grows. Their token counts are what training compares, whatever
        the replies become. Returns the vote's id once it is on disk. StoreError when the conversation shows this duel
        no more.
        """
        if choice not in CHOICES:
            raise StoreError("A vote is one of {name}; got {what}.", name=", ".join(CHOICES), what=repr(choice))
        with self.writing() as db:
            if not db.execute("select 1 from conversation where shown_duel = ?", [duel]).fetchone():
                raise StoreError(GONE_ON)
            earlier = db.execute(
                "select id from vote where duel = ? and annotator = ? and superseded_by is null", [duel, annotator]
            ).fetchone()
            new = db.execute("select coalesce(max(id), 0) + 1 from vote").fetchone()[0]
            if earlier:
                db.execute("update vote set superseded_by = ? where id = ?", [new, earlier[0]])
            db["vote"].insert(
                {
                    "id": new,
                    "duel": duel,
                    "annotator": annotator,
                    "choice": choice,
                    "continued_with": continue_with,
                    "shown_at": shown_at,
                    "dwell_ms": dwell_ms,
                    "created": now(),
                }
            )
            db.execute(
                "update conversation set tail = ? where id = (select conversation from duel where id = ?)",
                [continue_with, duel],
            )
            if early:
                self._keep_early(db, duel, early)
            return new

    @staticmethod
    def _keep_early(db, duel, sides):
        """Keep what both replies had said, so that a crash takes neither the vote nor what it was about."""
        row = db["duel"].get(duel)
        if any(side["finish_reason"] is None for side in sides):
            db["duel"].update(duel, {"left_cut": len(sides[0]["token_ids"]), "right_cut": len(sides[1]["token_ids"])})
        for generation, side in zip((row["left_generation"], row["right_generation"]), sides, strict=True):
            message = db["generation"].get(generation)["message"]
            if db["message"].get(message)["status"] == "streaming":
                db["message"].update(message, {"text": side["text"]})
                db["generation"].update(
                    generation,
                    {
                        "token_ids": json.dumps(side["token_ids"]),
                        "logprobs": json.dumps([round(x, 5) for x in side["logprobs"]]),
                        "first_token_ms": side["first_token_ms"],
                    },
                )

    def current_vote(self, duel, annotator):
        """This person's vote on a duel, its tags as a list; or None."""
        row = self.row("select * from vote where duel = ? and annotator = ? and superseded_by is null", duel, annotator)
        return row and {**row, "tags": json.loads(row["tags"] or "[]")}

    def explain(self, vote, annotator, tags=None, comment=None):
        """Why: tags or a comment, or both, on one's own current vote; what is None stays as it was."""
        columns = {} if tags is None else {"tags": json.dumps(list(tags))}
        columns |= {} if comment is None else {"comment": comment or None}
        with self.writing() as db:
            if not db.execute(
                """select 1 from vote v join duel d on d.id = v.duel join conversation c on c.id = d.conversation
                                 where v.id = ? and v.annotator = ? and v.superseded_by is null
                                 and c.deleted is null""",
                [vote, annotator],
            ).fetchone():
                raise StoreError("This vote is not yours, or it was replaced. Reload the page.")
            db["vote"].update(vote, columns)

    def rate(self, message, annotator, thumb):
        """A thumb up (1) or down (-1) on one reply of one's own chats; it supersedes the earlier one. None withdraws
        it: it supersedes itself.
        """
        with self.writing() as db:
            self._own_reply(db, message, annotator)
            new = (
                db["rating"]
                .insert({"message": message, "annotator": annotator, "thumb": thumb, "created": now()})
                .last_pk
                if thumb
                else None
            )
            db.execute(
                "update rating set superseded_by = coalesce(?, id) where message = ? and annotator = ? and "
                "superseded_by is null and id is not ?",
                [new, message, annotator, new],
            )

    def demonstrate(self, message, annotator, after):
        """An edited reply of one's own chats: what the person would rather have read. Before and after are kept; a
        later edit of the same reply takes the place of the earlier one, or one person could fill the disk and the warm
        start with one reply.
        """
        with self.writing() as db:
            before = self._own_reply(db, message, annotator)
            db.execute("delete from demonstration where message = ? and annotator = ?", [message, annotator])
            return (
                db["demonstration"]
                .insert(
                    {"message": message, "annotator": annotator, "before": before, "after": after, "created": now()}
                )
                .last_pk
            )

    @staticmethod
    def _own_reply(db, message, annotator):
        """The text of a reply in a chat of the annotator."""
        row = db.execute(
            """select m.text from message m join conversation c on c.id = m.conversation
                            where m.id = ? and m.role = 'assistant' and c.annotator = ? and c.deleted is null""",
            [message, annotator],
        ).fetchone()
        if row is None:
            raise StoreError("This message is not yours.")
        return row[0]

    # -- what became of them

    def my_votes(self, annotator, limit=50, offset=0):
        """The annotator's current votes, newest first: vote, created, choice, conversation, text, the newest round that
        used it (round, heldout, round_state, round_phase), the newest published version trained on it, its forecast
        (probability, hit), whether it was an `early` pick, and whether it `counts`."""
        return self.rows(
            f"{FATE} where v.annotator = ? and v.superseded_by is null order by v.id desc limit ? offset ?",
            annotator,
            limit,
            offset,
        )

    def vote_totals(self, annotator):
        """How many of the annotator's votes count, how many of these taught a version that was published, and how many
        are new since the last round began; `listed` is how many current votes there are, those that do not count
        included.
        """
        return self.row(
            f"""select coalesce(sum({COUNTED}), 0) as votes,
                 coalesce(sum({COUNTED} and exists (
                   select 1 from vote_use u join round r on r.id = u.round where u.vote = v.id and u.heldout = 0
                   and r.state = 'published')), 0) as published,
                 coalesce(sum({COUNTED} and {NEW}), 0) as waiting, count(*) as listed
               from {VOTES} where v.annotator = ? and v.superseded_by is null""",
            annotator,
        )

    def vote_fate(self, vote):
        """One vote as `my_votes` has it."""
        return self.row(f"{FATE} where v.id = ?", vote)

    # -- for training

    def votes_for_training(self, base_hash):
        """The votes that count on replies of this base model, oldest first: vote, annotator, conversation, choice,
        prompt and completion ids. The completions of a pair that was picked early are what both had said by then."""
        rows = self._decoded(
            self.rows(
                f"""select v.id as vote, v.annotator, d.conversation, d.id as duel, v.choice, p.token_ids as prompt,
                    d.left_cut, d.right_cut,
                  l.token_ids as left_ids, r.token_ids as right_ids
                from {VOTES} join generation r on r.id = d.right_generation join prompt p on p.id = l.prompt
                where {COUNTS} and l.base_hash = ? order by v.id""",
                base_hash,
            )
        )
        for row in rows:
            row["left_ids"], row["right_ids"] = row["left_ids"][: row["left_cut"]], row["right_ids"][: row["right_cut"]]
        return rows

    def ratings_for_training(self, base_hash):
        """Current thumbs, oldest first: annotator, conversation, thumb, prompt and completion ids."""
        return self._decoded(
            self.rows(
                f"""select t.annotator, m.conversation, t.thumb, p.token_ids as prompt, g.token_ids as completion
                from rating t join message m on m.id = t.message join conversation c on c.id = m.conversation
                join annotator a on a.id = t.annotator join generation g on g.message = m.id
                join prompt p on p.id = g.prompt
                where t.superseded_by is null and g.base_hash = ? and {ALLOWED} order by t.id""",
                base_hash,
            )
        )

    def demonstrations(self, base_hash):
        """Edited replies, oldest first: annotator, conversation, prompt ids, the completion ids before, and the text
        after.
        """
        return self._decoded(
            self.rows(
                f"""select x.annotator, m.conversation, x.after, p.token_ids as prompt, g.token_ids as completion
                from demonstration x join message m on m.id = x.message join conversation c on c.id = m.conversation
                join annotator a on a.id = x.annotator join generation g on g.message = m.id
                join prompt p on p.id = g.prompt
                where g.base_hash = ? and {ALLOWED} order by x.id""",
                base_hash,
            )
        )

    def last_base_hash(self):
        """The base model of the newest duel, or None."""
        return self.row(f"select {LAST_BASE} as base_hash")["base_hash"]

    # -- forecasts: what the reward model said of a vote before it learned from it

    def votes_to_forecast(self, base_hash):
        """Ids of usable votes without a forecast."""
        done = {row["vote"] for row in self.rows("select vote from forecast")}
        return {v["vote"] for v in self.votes_for_training(base_hash)} - done

    def add_forecasts(self, forecasts):
        """Keep (vote, probability or None, hit or None) for each."""
        with self.writing() as db:
            db["forecast"].insert_all(
                (
                    {"vote": v, "probability": p, "hit": None if hit is None else int(hit), "created": now()}
                    for v, p, hit in forecasts
                ),
                ignore=True,
            )

    def forecasts(self, last):
        """(hits, calls) among the newest `last` votes for A or B that had a forecast."""
        row = self.row(
            "select coalesce(sum(hit), 0) as hits, count(*) as calls from "
            "(select hit from forecast where hit is not null order by vote desc limit ?)",
            last,
        )
        return row["hits"], row["calls"]

    @staticmethod
    def _decoded(rows):
        for row in rows:
            for key in ("prompt", "left_ids", "right_ids", "completion"):
                if key in row:
                    row[key] = json.loads(row[key] or "[]")
        return rows

    def new_votes(self):
        """How many votes that count are new since the last round began."""
        return self.row(f"select count(*) as n from {VOTES} where {COUNTED} and {NEW}")["n"]
