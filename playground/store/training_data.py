"""What people said as training reads it: the votes that count, thumbs and edited replies, as token ids; and the
forecasts of votes, which the reward model made before it learned from them.
"""

import json
from collections.abc import Iterable

from playground.store.database import Database, Row, now
from playground.store.erasures import ALLOWED
from playground.store.votes import COUNTS, VOTES

DIALOGUE = "coalesce(c.dialogue, c.id) as dialogue"  # see `Conversations.begin_with`
JSON_COLUMNS = ("prompt", "left_ids", "right_ids", "completion")


class TrainingData(Database):
    """Part of `Store`."""

    # -- what people said

    def votes_for_training(self, base_hash: str) -> list[Row]:
        """The votes that count on replies of this base model, oldest first.

        Keys: vote, annotator, conversation, dialogue (the first conversation of its dialogue), duel, choice, left_cut,
        right_cut; prompt, left_ids, right_ids: lists of token ids. Where the vote was early, a reply's ids are those
        that it had by then.
        """
        rows = _decoded(
            self.rows(
                f"""select v.id as vote, v.annotator, d.conversation, {DIALOGUE}, d.id as duel, v.choice,
                      p.token_ids as prompt, d.left_cut, d.right_cut, l.token_ids as left_ids, r.token_ids as right_ids
                    from {VOTES} join generation r on r.id = d.right_generation join prompt p on p.id = l.prompt
                    where {COUNTS} and l.base_hash = ? order by v.id""",
                base_hash,
            )
        )
        for row in rows:
            row["left_ids"] = row["left_ids"][: row["left_cut"]]
            row["right_ids"] = row["right_ids"][: row["right_cut"]]
        return rows

    def ratings_for_training(self, base_hash: str) -> list[Row]:
        """Current thumbs, oldest first. Keys: annotator, conversation, dialogue, thumb; prompt and completion
        (token ids).
        """
        return _decoded(
            self.rows(
                f"""select t.annotator, m.conversation, {DIALOGUE}, t.thumb, p.token_ids as prompt,
                      g.token_ids as completion
                    from rating t join message m on m.id = t.message join conversation c on c.id = m.conversation
                    join annotator a on a.id = t.annotator join generation g on g.message = m.id
                    join prompt p on p.id = g.prompt
                    where t.superseded_by is null and g.base_hash = ? and {ALLOWED} and a.left_out is null
                    order by t.id""",
                base_hash,
            )
        )

    def demonstrations(self, base_hash: str) -> list[Row]:
        """Edited replies, oldest first.

        Keys: annotator, conversation, dialogue, created (when it was edited last), after (the edited text), prompt and
        completion (token ids, before the edit).
        """
        return _decoded(
            self.rows(
                f"""select x.annotator, m.conversation, {DIALOGUE}, coalesce(x.edited, x.created) as created,
                      x.after, p.token_ids as prompt,
                      g.token_ids as completion
                    from demonstration x join message m on m.id = x.message join conversation c on c.id = m.conversation
                    join annotator a on a.id = x.annotator join generation g on g.message = m.id
                    join prompt p on p.id = g.prompt
                    where g.base_hash = ? and {ALLOWED} and a.left_out is null order by x.id""",
                base_hash,
            )
        )

    # -- forecasts: what the reward model said of a vote before it learned from it

    def votes_to_forecast(self, base_hash: str) -> set[int]:
        """The ids of votes for training that have no forecast."""
        done = {row["vote"] for row in self.rows("select vote from forecast")}
        return {row["vote"] for row in self.votes_for_training(base_hash)} - done

    def add_forecasts(self, forecasts: Iterable[tuple[int, float | None, bool | None]]) -> None:
        """Keep (vote, probability of its choice, whether that was the likelier one) for each; None where unknown."""
        with self.writing() as db:
            db.table("forecast").insert_all(
                (
                    {
                        "vote": vote,
                        "probability": probability,
                        "hit": None if hit is None else int(hit),
                        "created": now(),
                    }
                    for vote, probability, hit in forecasts
                ),
                ignore=True,
            )

    def forecasts(self, last: int) -> tuple[int, int]:
        """(hits, number of forecasts) of the newest `last` current votes for A or B that had a forecast."""
        row = self.one(
            """select coalesce(sum(hit), 0) as hits, count(*) as calls
               from (select f.hit from forecast f join vote v on v.id = f.vote
                     where f.hit is not null and v.superseded_by is null order by f.vote desc limit ?)""",
            last,
        )
        return row["hits"], row["calls"]


def _decoded(rows: list[Row]) -> list[Row]:
    """Rows with their columns of token ids decoded."""
    for row in rows:
        for column in JSON_COLUMNS:
            if column in row:
                row[column] = json.loads(row[column] or "[]")
    return rows
