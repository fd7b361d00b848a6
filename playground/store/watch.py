"""What to watch a loop of votes and training by, as rows to plot, oldest first."""

import json

from playground.store.votes import COUNTED, VOTES


class Watch:
    """Part of `Store`."""

    def reply_lengths(self, last=400):
        """The newest finished duels: duel, created, policy, and the replies' mean tokens."""
        return self._oldest_first(
            """select d.id as duel, d.created, l.policy, (json_array_length(l.token_ids) +
                json_array_length(r.token_ids)) / 2.0 as tokens
               from duel d join generation l on l.id = d.left_generation join generation r on r.id = d.right_generation
               where l.finish_reason in ('end', 'length') and r.finish_reason in ('end', 'length')
               and l.token_ids is not null and r.token_ids is not null
               order by d.id desc limit ?""",
            last,
        )

    def round_kls(self):
        """Rounds whose gate measured a KL: round, version, kl, config."""
        rows = self.rows(
            "select r.id as round, p.version, r.metrics, r.config from round r left join policy p on p.round = r.id "
            "order by r.id"
        )
        rows = [
            {
                "round": r["round"],
                "version": r["version"],
                "kl": json.loads(r["metrics"]).get("kl"),
                "config": json.loads(r["config"] or "{}"),
            }
            for r in rows
        ]
        return [row for row in rows if row["kl"] is not None]

    def forecast_history(self, last=400):
        """Votes for A or B that the reward model had an opinion on before it learned from them: vote, created,
        probability, hit.
        """
        return self._oldest_first(
            """select f.vote, v.created, f.probability, f.hit from forecast f join vote v on v.id = f.vote
               where f.hit is not null order by f.vote desc limit ?""",
            last,
        )

    def position_votes(self, last=400):
        """Of the votes that count those for A or B: vote, created, choice."""
        return self._oldest_first(
            f"select v.id as vote, v.created, v.choice from {VOTES} where {COUNTED} and v.choice in ('a', 'b') order "
            "by v.id desc limit ?",
            last,
        )

    def _oldest_first(self, sql, last):
        return list(reversed(self.rows(sql, last)))
