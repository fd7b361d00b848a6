"""The history of the versions: what is known of each, and people's votes on pairs of two of them."""

import json

from playground.store.database import Database, Row
from playground.store.votes import BLIND, BLIND_VOTES, COUNTED
from playground.system.messages import loads, plain

# conditions on a vote on a pair of two versions
NEWER_WON = "(f.choice = 'a' and l.policy > r.policy or f.choice = 'b' and r.policy > l.policy)"
OLDER_WON = "(f.choice = 'a' and l.policy < r.policy or f.choice = 'b' and r.policy < l.policy)"


class History(Database):
    """Part of `Store`."""

    def version_history(self) -> list[Row]:
        """All complete versions, newest first.

        Keys: version, parent, round, status (of the table), withdrawn (whether); before: the version that it was
        compared with or made from, None for the base; votes: how many its round learnt from; report: figures of the
        gate, {} where there are none; live_since: when it last became live, or None; event: the last thing that
        happened to it (what, created, reason as a Message or None, annotator; instead_of: the version that was rolled
        back for it, or None), or None; rejected_by: "gate" or "server" where its status is rejected.
        """
        rows = self.rows(
            """select p.version, p.parent, p.round, p.status, p.withdrawn is not null as withdrawn, p.gate_report,
                 p.reason, case when p.version then coalesce(t.against, p.parent, 0) end as before,
                 (select count(*) from vote_use u where u.round = p.round) as votes,
                 (select max(created) from policy_event e where e.version = p.version and e.what = 'live')
                   as live_since,
                 case when r.state = 'refused' then 'gate' else 'server' end as rejected_by,
                 e.what, e.created as happened, e.reason as why, e.annotator,
                 (select o.version from policy_event o where o.id = e.id - 1 and o.what = 'rolled_back'
                    and e.what = 'live') as instead_of
               from policy p left join trial t on t.version = p.version left join round r on r.id = p.round
                 left join policy_event e on e.id = (select max(id) from policy_event where version = p.version)
               where p.status != 'candidate' order by p.version desc"""
        )
        return [_as_history(row) for row in rows]

    def version_duels(self) -> list[Row]:
        """People's votes that count on pairs of two versions, as they were given blind (`BLIND_VOTES`).

        One row for each pair of versions and person, with keys: version, against (the older one), annotator; wins,
        losses and ties of `version`, both bad among the ties.
        """
        return self.rows(
            f"""select max(l.policy, r.policy) as version, min(l.policy, r.policy) as against, v.annotator,
                  sum({NEWER_WON}) as wins, sum({OLDER_WON}) as losses,
                  sum(f.choice in ('tie', 'both_bad')) as ties
                from {BLIND_VOTES} join generation r on r.id = d.right_generation
                where {COUNTED} and {BLIND} and l.policy != r.policy group by 1, 2, 3 order by 1, 2, 3"""
        )


def _as_history(row: Row) -> Row:
    """A row of `version_history` from one of its query."""
    report = json.loads(row["gate_report"]) if row["gate_report"] else {}
    reason = loads(row["why"]) if row["why"] else plain(row["reason"]) if row["reason"] else None
    event = None
    if row["what"]:
        event = {
            "what": row["what"],
            "created": row["happened"],
            "reason": reason,
            "annotator": row["annotator"],
            "instead_of": row["instead_of"],
        }
    names = ("version", "parent", "round", "status", "before", "votes", "live_since")
    return {
        **{name: row[name] for name in names},
        "withdrawn": bool(row["withdrawn"]),
        "report": report,
        "event": event,
        "rejected_by": row["rejected_by"] if row["status"] == "rejected" else None,
    }
