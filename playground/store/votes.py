"""What people say of replies: votes and why, thumbs, demonstrations; and these as training reads them."""

import json

from playground.store.erasures import ALLOWED
from playground.store.file import StoreError, now

CHOICES = ("a", "b", "tie", "both_bad", "skip")
GONE_ON = "The conversation has gone on since; this vote can no longer be changed."
FATE = """select v.id as vote, v.created, v.choice, d.conversation, m.text, c.deleted, a.allow_training as allowed, u.round, u.heldout, r.state as round_state, r.phase as round_phase,
            (select max(p.version) from vote_use w join policy p on p.round = w.round join round q on q.id = w.round
             where w.vote = v.id and w.heldout = 0 and q.state = 'published') as version,
            f.probability, f.hit
          from vote v join duel d on d.id = v.duel join message m on m.id = d.user_message
            join conversation c on c.id = d.conversation join annotator a on a.id = v.annotator
            left join vote_use u on u.vote = v.id and u.round = (select max(round) from vote_use where vote = v.id)
            left join round r on r.id = u.round left join forecast f on f.vote = v.id"""


class Votes:
    """Part of `Store`."""

    def vote(self, duel, annotator, choice, continue_with, shown_at=None, dwell_ms=None):
        """Record a vote, superseding this person's earlier one on the same duel, and move the conversation on to `continue_with`.

        Returns the vote's id once it is on disk. StoreError when the conversation shows this duel no more.
        """
        if choice not in CHOICES:
            raise StoreError(f"A vote is one of {', '.join(CHOICES)}; got {choice!r}.")
        with self.writing() as db:
            if not db.execute("select 1 from conversation where shown_duel = ?", [duel]).fetchone():
                raise StoreError(GONE_ON)
            earlier = db.execute(
                "select id from vote where duel = ? and annotator = ? and superseded_by is null", [duel, annotator]).fetchone()
            new = db.execute("select coalesce(max(id), 0) + 1 from vote").fetchone()[0]
            if earlier:
                db.execute("update vote set superseded_by = ? where id = ?", [new, earlier[0]])
            db["vote"].insert({
                "id": new, "duel": duel, "annotator": annotator, "choice": choice, "continued_with": continue_with,
                "shown_at": shown_at, "dwell_ms": dwell_ms, "created": now()})
            db.execute("update conversation set tail = ? where id = (select conversation from duel where id = ?)", [continue_with, duel])
            return new

    def current_vote(self, duel, annotator):
        """This person's vote on a duel, its tags as a list; or None."""
        row = self.row("select * from vote where duel = ? and annotator = ? and superseded_by is null", duel, annotator)
        return row and {**row, "tags": json.loads(row["tags"] or "[]")}

    def explain(self, vote, annotator, tags=None, comment=None):
        """Why: tags or a comment, or both, on one's own current vote; what is None stays as it was."""
        columns = {} if tags is None else {"tags": json.dumps(list(tags))}
        columns |= {} if comment is None else {"comment": comment or None}
        with self.writing() as db:
            if not db.execute("""select 1 from vote v join duel d on d.id = v.duel join conversation c on c.id = d.conversation
                                 where v.id = ? and v.annotator = ? and v.superseded_by is null and c.deleted is null""", [vote, annotator]).fetchone():
                raise StoreError("This vote is not yours, or it was replaced. Reload the page.")
            db["vote"].update(vote, columns)

    def rate(self, message, annotator, thumb):
        """A thumb up (1) or down (-1) on one reply of one's own chats; it supersedes the earlier one. None withdraws it: it supersedes itself."""
        with self.writing() as db:
            self._own_reply(db, message, annotator)
            new = db["rating"].insert({"message": message, "annotator": annotator, "thumb": thumb, "created": now()}).last_pk if thumb else None
            db.execute("update rating set superseded_by = coalesce(?, id) where message = ? and annotator = ? and superseded_by is null and id is not ?",
                       [new, message, annotator, new])

    def demonstrate(self, message, annotator, after):
        """An edited reply of one's own chats: what the person would rather have read. Before and after are kept."""
        with self.writing() as db:
            before = self._own_reply(db, message, annotator)
            return db["demonstration"].insert(
                {"message": message, "annotator": annotator, "before": before, "after": after, "created": now()}).last_pk

    @staticmethod
    def _own_reply(db, message, annotator):
        """The text of a reply in a chat of the annotator."""
        row = db.execute("""select m.text from message m join conversation c on c.id = m.conversation
                            where m.id = ? and m.role = 'assistant' and c.annotator = ? and c.deleted is null""", [message, annotator]).fetchone()
        if row is None:
            raise StoreError("This message is not yours.")
        return row[0]

    # -- what became of them

    def my_votes(self, annotator, limit=50, offset=0):
        """The annotator's current votes, newest first: vote, created, choice, conversation, text, the newest round that used it (round, heldout,
        round_state, round_phase), the newest published version trained on it, and its forecast (probability, hit)."""
        return self.rows(f"{FATE} where v.annotator = ? and v.superseded_by is null order by v.id desc limit ? offset ?", annotator, limit, offset)

    def vote_totals(self, annotator):
        """How many current votes the annotator has, how many of them taught a version that was published, and how many no round has used yet."""
        return self.row(
            f"""select count(*) as votes,
                 coalesce(sum(exists (select 1 from vote_use u join round r on r.id = u.round where u.vote = v.id and u.heldout = 0 and r.state = 'published')), 0) as published,
                 coalesce(sum(v.choice != 'skip' and {self.USABLE} and not exists (select 1 from vote_use u where u.vote = v.id)), 0) as waiting
               from vote v join duel d on d.id = v.duel join conversation c on c.id = d.conversation join annotator a on a.id = v.annotator
               where v.annotator = ? and v.superseded_by is null""", annotator)

    def vote_fate(self, vote):
        """One vote as `my_votes` has it."""
        return self.row(f"{FATE} where v.id = ?", vote)

    # -- for training

    USABLE = ALLOWED

    def votes_for_training(self, base_hash):
        """Current votes of people who allow training on replies of this base model, oldest first: vote, annotator, conversation,
        choice, prompt and completion ids."""
        return self._decoded(self.rows(
            f"""select v.id as vote, v.annotator, d.conversation, d.id as duel, v.choice, p.token_ids as prompt,
                  l.token_ids as left_ids, r.token_ids as right_ids
                from vote v join duel d on d.id = v.duel join conversation c on c.id = d.conversation join annotator a on a.id = v.annotator
                join generation l on l.id = d.left_generation join generation r on r.id = d.right_generation join prompt p on p.id = l.prompt
                where v.superseded_by is null and v.choice != 'skip' and l.base_hash = ? and {self.USABLE}
                order by v.id""", base_hash))

    def ratings_for_training(self, base_hash):
        """Current thumbs, oldest first: annotator, conversation, thumb, prompt and completion ids."""
        return self._decoded(self.rows(
            f"""select t.annotator, m.conversation, t.thumb, p.token_ids as prompt, g.token_ids as completion
                from rating t join message m on m.id = t.message join conversation c on c.id = m.conversation
                join annotator a on a.id = t.annotator join generation g on g.message = m.id join prompt p on p.id = g.prompt
                where t.superseded_by is null and g.base_hash = ? and {self.USABLE} order by t.id""", base_hash))

    def demonstrations(self, base_hash):
        """Edited replies, oldest first: annotator, conversation, prompt ids, the completion ids before, and the text after."""
        return self._decoded(self.rows(
            f"""select x.annotator, m.conversation, x.after, p.token_ids as prompt, g.token_ids as completion
                from demonstration x join message m on m.id = x.message join conversation c on c.id = m.conversation
                join annotator a on a.id = x.annotator join generation g on g.message = m.id join prompt p on p.id = g.prompt
                where g.base_hash = ? and {self.USABLE} order by x.id""", base_hash))

    def last_base_hash(self):
        """The base model of the newest duel, or None."""
        row = self.row("select base_hash from generation order by id desc limit 1")
        return row and row["base_hash"]

    # -- forecasts: what the reward model said of a vote before it learned from it

    def votes_to_forecast(self, base_hash):
        """Ids of usable votes without a forecast."""
        done = {row["vote"] for row in self.rows("select vote from forecast")}
        return {v["vote"] for v in self.votes_for_training(base_hash)} - done

    def add_forecasts(self, forecasts):
        """Keep (vote, probability or None, hit or None) for each."""
        with self.writing() as db:
            db["forecast"].insert_all(({"vote": v, "probability": p, "hit": None if hit is None else int(hit), "created": now()} for v, p, hit in forecasts),
                                      ignore=True)

    def forecasts(self, last):
        """(hits, calls) among the newest `last` votes for A or B that had a forecast."""
        row = self.row("select coalesce(sum(hit), 0) as hits, count(*) as calls from "
                       "(select hit from forecast where hit is not null order by vote desc limit ?)", last)
        return row["hits"], row["calls"]

    @staticmethod
    def _decoded(rows):
        for row in rows:
            for key in ("prompt", "left_ids", "right_ids", "completion"):
                if key in row:
                    row[key] = json.loads(row[key] or "[]")
        return rows

    def new_votes(self):
        """Usable votes that no round has seen yet."""
        return self.row(
            f"""select count(*) as n from vote v join duel d on d.id = v.duel join conversation c on c.id = d.conversation
                join annotator a on a.id = v.annotator where v.superseded_by is null and v.choice != 'skip' and {self.USABLE}
                and v.id > coalesce((select max(last_vote) from round), 0)""")["n"]
