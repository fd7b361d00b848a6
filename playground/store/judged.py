"""What people judged, with its texts: votes, thumbs and edits that training may learn from, in pages.

A page follows the id of the last row of the page before it, so that each costs the same and none keeps a transaction
open. Which votes count is `votes.py`'s.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from playground.store.checks import MOST, is_key
from playground.store.conversations import SHOWN
from playground.store.database import Database, Row, now
from playground.store.erasures import ALLOWED
from playground.store.errors import StoreError
from playground.store.filters import ALL, Conditions, Filters, holds
from playground.store.votes import COUNTS, COUNTS_BUT_FOR_ADMINS, VOTES

LISTED_MESSAGES = 21  # of a listed pair's chat: the one that was answered, and those before it
LOOKED_AT = 20_000  # votes, for one page of a search; about a fifth of a second
PAGE = 200  # rows; a chat has at most some hundred thousand characters, so a page stays within a few dozen MB

VOTE_CONDITIONS: Conditions = {
    "version": "? in (l.policy, r.policy)",
    "choice": "v.choice = ?",
    "tag": "exists (select 1 from json_each(v.tags) where value = ?)",
    "person": "v.annotator = ?",
    "since": "v.created >= ?",
    "until": "v.created < ?",
    "text": holds("um.text", "lm.text", "rm.text"),
    "model": "l.base_model = ?",
    "excluded": "(v.excluded is not null) = ?",
}

# `cross join` keeps the order: votes are read by id, and what belongs to each is looked up
VOTES_BY_ID = f"""
    {VOTES.replace(" join ", " cross join ")} cross join generation r on r.id = d.right_generation
    cross join message um on um.id = d.user_message cross join message lm on lm.id = l.message
    cross join message rm on rm.id = r.message"""

# tokens that a reply may get between an early vote and its end, where the vote ends it: one or two of a step that runs
STEP_TOKENS = 4
GREW = {
    side: f"case when d.{side}_cut is not null then json_array_length({r}.token_ids) > d.{side}_cut + {STEP_TOKENS} end"
    for side, r in (("left", "l"), ("right", "r"))
}  # by side: SQL for whether the reply went on after an early vote

JUDGED = f"""
    select v.id as vote, v.created, v.choice, v.tags, v.comment, v.annotator as person,
      d.conversation, d.user_message as last, d.left_cut is not null as early,
      d.left_cut as left_tokens, d.right_cut as right_tokens, d.pairing, d.probability,
      {GREW["left"]} as left_grew, {GREW["right"]} as right_grew,
      l.policy as left_version, r.policy as right_version, l.base_model, l.sampling,
      l.finish_reason as left_ended, r.finish_reason as right_ended,
      lm.text as left, rm.text as right, c.system_prompt
    from {VOTES_BY_ID}"""

LISTED = f"""
    select v.id as vote, v.created, v.choice, v.tags, v.comment, v.annotator as person,
      v.excluded is not null as excluded, a.left_out is not null as person_out, d.left_cut is not null as early,
      l.policy as left_version, r.policy as right_version, d.user_message as last, lm.text as left, rm.text as right,
      c.system_prompt
    from {VOTES_BY_ID}"""

THUMBS = f"""
    select t.id as rating, t.created, t.thumb, t.annotator as person, m.conversation, m.parent as last,
      g.policy as version, g.base_model, m.text as reply, c.system_prompt
    from rating t cross join message m on m.id = t.message cross join conversation c on c.id = m.conversation
      cross join annotator a on a.id = t.annotator cross join generation g on g.message = m.id
    where t.superseded_by is null and {ALLOWED} and a.left_out is null"""
THUMB_CONDITIONS: Conditions = {
    "version": "g.policy = ?",
    "person": "t.annotator = ?",
    "since": "t.created >= ?",
    "until": "t.created < ?",
    "text": holds("m.text", "(select text from message where id = m.parent)"),
    "model": "g.base_model = ?",
}

EDITS = f"""
    select x.id as demonstration, x.created, x.annotator as person, m.conversation, m.parent as last,
      g.policy as version, g.base_model, x.before, x.after as reply, c.system_prompt
    from demonstration x cross join message m on m.id = x.message cross join conversation c on c.id = m.conversation
      cross join annotator a on a.id = x.annotator cross join generation g on g.message = m.id
    where {ALLOWED} and a.left_out is null"""
EDIT_CONDITIONS: Conditions = {
    "version": "g.policy = ?",
    "person": "x.annotator = ?",
    "since": "x.created >= ?",
    "until": "x.created < ?",
    "text": holds("x.after", "x.before", "(select text from message where id = m.parent)"),
    "model": "g.base_model = ?",
}

PROMPTS = f"""
    select m.id as message, m.created, c.annotator as person, m.conversation, m.id as last, c.system_prompt
    from message m cross join conversation c on c.id = m.conversation cross join annotator a on a.id = c.annotator
    where m.role = 'user' and {ALLOWED} and a.left_out is null
      and exists (select 1 from duel d where d.user_message = m.id)"""
PROMPT_CONDITIONS: Conditions = {
    "person": "c.annotator = ?",
    "since": "m.created >= ?",
    "until": "m.created < ?",
    "text": holds("m.text"),
    "model": """exists (select 1 from duel d join generation g on g.id = d.left_generation
                  where d.user_message = m.id and g.base_model = ?)""",
}

# the messages from the first of its chat to each of those that are asked for, as the chat's owner left them; at most so
# many of them, the last ones
HISTORIES = f"""
    with recursive path(last, id, parent, depth) as (
      select m.id, m.id, m.parent, 0 from message m where m.id in (select value from json_each(?))
      union all
      select path.last, m.id, m.parent, depth + 1 from path cross join message m on m.id = path.parent
      where depth + 1 < ?)
    select path.last, path.parent, m.role, {SHOWN} as content from path cross join message m on m.id = path.id
    order by path.last, depth desc"""


class Judged(Database):
    """Part of `Store`."""

    def judged_pairs(self, filters: Filters = ALL) -> Iterator[Row]:
        """Votes that count, on any base model, oldest first.

        Keys: vote, created, choice, tags (a list), comment, person, conversation, messages (role and content, with the
        system prompt, up to the message that was answered), left, right, left_version, right_version, left_ended,
        right_ended (why a reply ended), early (a bool), left_tokens and right_tokens (their numbers when an early vote
        came, else None), left_grew and right_grew (whether the reply went on after an early vote, else None), pairing,
        probability, base_model, sampling (a dict).
        """
        where, values = filters.as_sql(VOTE_CONDITIONS)
        sql = f"{JUDGED} where {COUNTS}{where} and v.id > ? order by v.id limit {PAGE}"
        return self._pages(sql, values, "vote", _judged)

    def thumbs(self, filters: Filters = ALL) -> Iterator[Row]:
        """Thumbs that rounds may learn from, oldest first; none where a choice or a tag is asked for.

        Keys: rating (its id), created, thumb (1 or -1), person, conversation, messages, reply, version, base_model.
        """
        where, values = filters.as_sql(THUMB_CONDITIONS)
        return self._pages(f"{THUMBS}{where} and t.id > ? order by t.id limit {PAGE}", values, "rating", dict)

    def edits(self, filters: Filters = ALL) -> Iterator[Row]:
        """Edited replies that rounds may learn from, oldest first; none where a choice or a tag is asked for.

        Keys: demonstration (its id), created, person, conversation, messages, before (the reply as it was), reply (as
        the person left it), version, base_model.
        """
        where, values = filters.as_sql(EDIT_CONDITIONS)
        return self._pages(f"{EDITS}{where} and x.id > ? order by x.id limit {PAGE}", values, "demonstration", dict)

    def prompts(self, filters: Filters = ALL) -> Iterator[Row]:
        """Messages that people sent and that rounds may learn from, each once, oldest first; none where a choice, a tag
        or a version is asked for.

        Keys: message (its id), created, person, conversation, messages.
        """
        where, values = filters.as_sql(PROMPT_CONDITIONS)
        return self._pages(f"{PROMPTS}{where} and m.id > ? order by m.id limit {PAGE}", values, "message", dict)

    def count_judged(self) -> int:
        """About how many votes there are to export, for a progress line. It costs no scan."""
        return self.one("select coalesce(max(id), 0) as n from vote")["n"]

    def forms_of_votes(self) -> Row:
        """How many of the votes that `judged_pairs` returns say what; it reads all of them.

        Keys: picks, ties, both_bad; grew: replies that went on after an early "both bad".
        """
        grew = " + ".join(f"coalesce({sql}, 0)" for sql in GREW.values())
        return self.one(
            f"""select count(*) filter (where v.choice in ('a', 'b')) as picks,
                  count(*) filter (where v.choice = 'tie') as ties,
                  count(*) filter (where v.choice = 'both_bad') as both_bad,
                  coalesce(sum({grew}) filter (where v.choice = 'both_bad'), 0) as grew
                from {VOTES} join generation r on r.id = d.right_generation where {COUNTS}"""
        )

    def judged_page(self, filters: Filters, before: int | None, limit: int) -> tuple[list[Row], int | None]:
        """A page of at most `limit` votes, newest first, of those whose id is below `before`; and what `before` is for
        the next page, None where there is none. It looks at no more than LOOKED_AT votes, so a page may hold fewer than
        there are further back.

        These are the votes that count, on any base model, and those that an admin left out. Keys: vote, created,
        choice, tags (a list), comment, person, excluded, person_out (an admin left the person out) and early (bools),
        left_version, right_version, messages (role and content; the last LISTED_MESSAGES up to the one that was
        answered, below the system prompt), cut (whether the chat has earlier ones), left, right.
        """
        top = self.count_judged() + 1 if before is None else before
        first = 0
        if filters.person is None:  # else an index leads from the person to the votes
            top, first = self._between(filters, top)
        bottom = max(first, top - LOOKED_AT) if filters.person is None else 0
        where, values = filters.as_sql(VOTE_CONDITIONS)
        rows = self.rows(
            f"{LISTED} where {COUNTS_BUT_FOR_ADMINS}{where} and v.id < ? and v.id >= ? order by v.id desc limit ?",
            *values,
            top,
            bottom,
            limit,
        )
        following = rows[-1]["vote"] if len(rows) == limit else bottom
        bools = ("excluded", "person_out", "early")
        page = [
            {**row, "tags": json.loads(row["tags"] or "[]"), **{name: bool(row[name]) for name in bools}}
            for row in rows
        ]
        return self._with_messages(page, LISTED_MESSAGES), following if following > max(first, 1) else None

    def _between(self, filters: Filters, top: int) -> tuple[int, int]:
        """(top, first) for `judged_page`: no vote at `top` or above, or below `first`, was given in the time that is
        asked for. So the votes after it are passed over at once, and not LOOKED_AT with each page.

        Together both look at the times of no more votes than there are; a million take an eighth of a second.
        """
        first = 0
        if filters.until is not None:
            newest = self.row(
                "select id from vote where id < ? and created < ? order by id desc limit 1", top, filters.until
            )
            top = newest["id"] + 1 if newest else 0
        if filters.since is not None:
            oldest = self.row("select id from vote where created >= ? order by id limit 1", filters.since)
            first = oldest["id"] if oldest else top
        return top, min(first, top)

    # -- what an admin leaves out

    def exclude_vote(self, vote: int, excluded: bool) -> None:
        """Leave a vote out of training, or take it in again. It holds for rounds that begin from now on.

        StoreError where there is no such vote, or where it was replaced.
        """
        gone = StoreError("This vote is not there any more.")
        if not is_key(vote):
            raise gone
        with self.writing() as db:
            changed = db.execute(
                "update vote set excluded = ? where id = ? and superseded_by is null",
                [now() if excluded else None, vote],
            ).rowcount
            if not changed:
                raise gone

    def exclude_votes(self, filters: Filters, excluded: bool) -> int:
        """As `exclude_vote`, for all votes that `judged_page` lists for these filters; returns how many have changed.

        It changes LOOKED_AT votes at a time, so that nobody's vote waits for it.
        """
        where, values = filters.as_sql(VOTE_CONDITIONS)
        fitting = f"""select v.id from {VOTES_BY_ID}
            where {COUNTS_BUT_FOR_ADMINS}{where} and v.id < ? and v.id >= ? and (v.excluded is null) = ?"""
        moment = now() if excluded else None
        changed = 0
        top = self.count_judged() + 1
        while top > 1:
            bottom = max(0, top - LOOKED_AT)
            with self.writing() as db:
                changed += db.execute(
                    f"update vote set excluded = ? where id in ({fitting})", [moment, *values, top, bottom, excluded]
                ).rowcount
            top = bottom
        return changed

    # -- pages

    def _pages(self, sql: str, values: list[Any], key: str, decode: Callable[[Row], Row]) -> Iterator[Row]:
        """The rows of a query whose last place takes the key of the row before; each with its messages."""
        after = 0
        while page := self.rows(sql, *values, after):
            after = page[-1][key]
            yield from self._with_messages([decode(row) for row in page])

    def _with_messages(self, rows: list[Row], most: int = MOST) -> list[Row]:
        """Rows with `messages` in place of `last` and `system_prompt`: of each chat the last `most`. A row that may
        lack earlier ones has `cut`, whether it does.
        """
        asked = json.dumps(sorted({row["last"] for row in rows}))
        history: dict[int, list[dict[str, str]]] = {}
        cut: set[int] = set()
        for message in self.rows(HISTORIES, asked, most):
            if message["last"] not in history and message["parent"] is not None:  # the first that was read
                cut.add(message["last"])
            history.setdefault(message["last"], []).append({"role": message["role"], "content": message["content"]})
        for row in rows:
            system_prompt = row.pop("system_prompt")
            system = [{"role": "system", "content": system_prompt}] if system_prompt else []
            last = row.pop("last")
            row["messages"] = system + history[last]
            if most < MOST:
                row["cut"] = last in cut
        return rows


def _judged(row: Row) -> Row:
    """A row of JUDGED with its columns decoded."""
    tags, sampling = json.loads(row["tags"] or "[]"), json.loads(row["sampling"])
    grew = {name: None if row[name] is None else bool(row[name]) for name in ("left_grew", "right_grew")}
    return {**row, "tags": tags, "sampling": sampling, "early": bool(row["early"]), **grew}
