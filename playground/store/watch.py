"""Figures that show how the loop of votes and training goes, as rows to plot, oldest first."""

import json

from playground.store.database import Database, Row
from playground.store.votes import COUNTED, VOTES


class Watch(Database):
    """Part of `Store`."""

    def reply_lengths(self, last: int = 400) -> list[Row]:
        """The newest finished duels. Keys: duel, created, policy, tokens (mean of both replies)."""
        return self._oldest_first(
            """select d.id as duel, d.created, l.policy,
                 (json_array_length(l.token_ids) + json_array_length(r.token_ids)) / 2.0 as tokens
               from duel d join generation l on l.id = d.left_generation join generation r on r.id = d.right_generation
               where l.finish_reason in ('end', 'length') and r.finish_reason in ('end', 'length')
                 and l.token_ids is not null and r.token_ids is not null
               order by d.id desc limit ?""",
            last,
        )

    def round_kls(self) -> list[Row]:
        """The rounds whose gate measured a KL. Keys: round, version, kl, target (the KL target, or None)."""
        rows = self.rows(
            """select r.id as round, p.version, r.metrics, r.config from round r
               left join policy p on p.round = r.id order by r.id"""
        )
        measured = []
        for row in rows:
            metrics = json.loads(row["metrics"])
            if metrics.get("kl") is not None:
                config = json.loads(row["config"] or "{}")
                target = metrics.get("kl_target", config.get("ppo.kl_target"))
                measured.append(
                    {"round": row["round"], "version": row["version"], "kl": metrics["kl"], "target": target}
                )
        return measured

    def forecast_history(self, last: int = 400) -> list[Row]:
        """The newest current votes for A or B that the reward model forecast before it learned from them.

        Keys: vote, created, probability, hit.
        """
        return self._oldest_first(
            """select f.vote, v.created, f.probability, f.hit from forecast f join vote v on v.id = f.vote
               where f.hit is not null and v.superseded_by is null order by f.vote desc limit ?""",
            last,
        )

    def position_votes(self, last: int = 400) -> list[Row]:
        """The newest votes for A or B among those that count. Keys: vote, created, choice."""
        return self._oldest_first(
            f"""select v.id as vote, v.created, v.choice from {VOTES}
                where {COUNTED} and v.choice in ('a', 'b') order by v.id desc limit ?""",
            last,
        )

    def _oldest_first(self, sql: str, last: int) -> list[Row]:
        return list(reversed(self.rows(sql, last)))
