"""Steps of a transaction on the tasks of the prompt queue, for all parts of the store that end one: a vote, a deletion,
the queue itself (`queue.py`).

What a prompt waits for (its `state`) follows from its tasks, by `settle`, in the same transaction.
"""

from typing import Any

import sqlite_utils

MOST_SKIPS = 3  # of different people, after which a prompt is set aside
TRIES = 10  # prompts whose first pair is gone, until the search for one ends
LEFT = "left"  # the state of a task that was given up, by time or since its chat was deleted

# what a person may take, by the prompt's state: what they have skipped or judged is not theirs a second time
FREE = """
    select p.id from queued_prompt p
    where p.state = ? and p.place is not null and not exists (
      select 1 from queue_task t where t.prompt = p.id and t.annotator = ? and t.state in ('skipped', 'done'))
    order by p.place limit 1"""

# the newest pair of a prompt's first judge that is still there, and was voted on
JUDGED_ONCE = """
    select d.id from queue_task t join duel d on d.user_message = t.message
    join conversation c on c.id = d.conversation
    join vote v on v.duel = d.id and v.annotator = t.annotator
    where t.prompt = ? and t.state = 'done' and c.deleted is null and not d.same
      and v.superseded_by is null and v.choice != 'skip'
    order by v.id desc limit 1"""


def note_vote(db: sqlite_utils.Database, duel: int, annotator: int, choice: str) -> None:
    """A person has voted on a duel: where that is what a task asked for, the task is done, or skipped."""
    row = db.execute(
        """select t.id, t.state from queue_task t join duel d on d.user_message = t.message
           where d.id = ? and t.annotator = ?""",
        [duel, annotator],
    ).fetchone()
    if row is None or row[1] == "done":
        return
    if choice != "skip":
        end_task(db, row[0], "done", None)
    elif row[1] == "taken":
        end_task(db, row[0], "skipped", "skip")


def forget_tasks(db: sqlite_utils.Database, which: str, *values: Any) -> None:
    """The conversations whose id fulfils the condition `which` are deleted: their prompts are as if nobody had judged
    them there.
    """
    rows = db.execute(
        f"select id from queue_task where conversation {which} and state in ('taken', 'done')", list(values)
    ).fetchall()
    for (task,) in rows:
        end_task(db, task, LEFT, None)


def settle(db: sqlite_utils.Database, prompt: int) -> None:
    """Set what a prompt waits for, by its tasks."""
    taken, done, skipped = db.execute(
        """select coalesce(sum(state = 'taken'), 0), coalesce(sum(state = 'done'), 0),
             count(distinct case when state = 'skipped' then annotator end)
           from queue_task where prompt = ?""",
        [prompt],
    ).fetchone()
    twice = db.table("queued_prompt").get(prompt)["twice"]
    if taken:
        state = "taken"
    elif done > 1 or (done and (not twice or skipped >= MOST_SKIPS)):
        state = "done"
    elif skipped >= MOST_SKIPS:
        state = "aside"
    else:
        state = "again" if done else "open"
    db.table("queued_prompt").update(prompt, {"state": state})


def end_task(db: sqlite_utils.Database, task: int, state: str, reason: str | None) -> None:
    """Give a task another state than `taken`; `reason`: why it was skipped."""
    db.table("queue_task").update(task, {"state": state, "reason": reason})
    settle(db, db.table("queue_task").get(task)["prompt"])


def free_tasks(db: sqlite_utils.Database, before: float) -> None:
    """Free the prompts that were taken before this time and not judged."""
    rows = db.execute(
        """select t.id from queued_prompt p join queue_task t on t.prompt = p.id
           where p.state = 'taken' and t.state = 'taken' and t.taken < ?""",
        [before],
    ).fetchall()
    for (task,) in rows:
        end_task(db, task, LEFT, None)


def find_prompt(db: sqlite_utils.Database, annotator: int) -> tuple[int, int | None] | None:
    """A prompt that this person can take, and the pair that is shown again, None for new replies."""
    for _ in range(TRIES):
        again = db.execute(FREE, ["again", annotator]).fetchone()
        if again is None:
            break
        if pair := db.execute(JUDGED_ONCE, [again[0]]).fetchone():
            return again[0], pair[0]
        # the vote was taken back
        db.execute("update queue_task set state = ? where prompt = ? and state = 'done'", [LEFT, again[0]])
        settle(db, again[0])
    free = db.execute(FREE, ["open", annotator]).fetchone()
    return (free[0], None) if free else None
