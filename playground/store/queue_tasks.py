"""Steps of a transaction on the tasks of the prompt queue, for all parts of the store that end one: a vote, a deletion,
the queue itself (`queue.py`).

What a prompt waits for (its `state`) follows from its tasks, by `settle`, in the same transaction.
"""

from typing import Any

import sqlite_utils

MOST_SKIPS = 3  # of different people, after which a prompt is set aside
TRIES = 10  # prompts whose first pair is gone, until the search for one ends
LEFT = "left"  # the state of a task that was given up, by time or since its chat was deleted

# SQL condition on a prompt p: this person may take it; what they have skipped or judged is not theirs a second time
OFFERED = """p.place is not null and not exists (
    select 1 from queue_task t where t.prompt = p.id and t.annotator = ? and t.state in ('skipped', 'done'))"""

# what a person may take, by the prompt's state
FREE = f"select p.id from queued_prompt p where p.state = ? and {OFFERED} order by p.place limit 1"

# what a person may take although somebody has it, who took it before a time
OVERDUE = f"""
    select p.id from queued_prompt p join queue_task k on k.prompt = p.id
    where p.state = 'taken' and k.state = 'taken' and k.taken < ? and {OFFERED} limit 1"""

# SQL condition on a duel d and a task t: a vote on the duel is what the task asks for
ASKED_FOR = "d.user_message = t.message and (t.repeats is null or d.repeats = t.repeats)"

# SQL condition on a prompt p: two people have judged one pair
JUDGED_TWICE = """exists (
    select 1 from queue_task t join duel d on d.id = t.repeats join queue_task o on o.message = d.user_message
    where t.prompt = p.id and t.state = 'done' and o.state = 'done')"""

# the newest pair of a prompt's first judge that is still there, was voted on, and was written to what the message was
# first answered to: its chat may have been edited since
JUDGED_ONCE = f"""
    select d.id from queue_task t join duel d on {ASKED_FOR}
    join conversation c on c.id = d.conversation
    join generation g on g.id = d.left_generation
    join vote v on v.duel = d.id and v.annotator = t.annotator
    where t.prompt = ? and t.state = 'done' and c.deleted is null and not d.same
      and v.superseded_by is null and v.choice != 'skip' and g.prompt = (
        select f.prompt from duel e join generation f on f.id = e.left_generation
        where e.user_message = t.message order by e.id limit 1)
    order by v.id desc limit 1"""


def begin_task(db: sqlite_utils.Database, task: int, conversation: int, message: int) -> None:
    """The prompt of a task was sent as this message: votes on replies to it finish the task."""
    db.table("queue_task").update(task, {"conversation": conversation, "message": message})


def note_vote(db: sqlite_utils.Database, duel: int, annotator: int, choice: str) -> None:
    """A person has voted on a duel: where that is what a task asked for, the task is done, or skipped. A skip in the
    place of the only vote skips a prompt that was judged.
    """
    row = db.execute(
        f"select t.id, t.state from queue_task t join duel d on {ASKED_FOR} where d.id = ? and t.annotator = ?",
        [duel, annotator],
    ).fetchone()
    if row is None:
        return
    task, state = row
    if choice != "skip":
        if state != "done":
            end_task(db, task, "done", None)
    elif state == "taken" or (state == "done" and not _has_vote(db, task)):
        end_task(db, task, "skipped", "skip")


def note_withdrawal(db: sqlite_utils.Database, duel: int, annotator: int) -> None:
    """A person has taken their vote on a duel back: where nothing else of theirs does what a task asked for, they have
    skipped it, and somebody else is to judge its prompt.
    """
    row = db.execute(
        f"select t.id, t.state from queue_task t join duel d on {ASKED_FOR} where d.id = ? and t.annotator = ?",
        [duel, annotator],
    ).fetchone()
    if row is not None and row[1] == "done" and not _has_vote(db, row[0]):
        end_task(db, row[0], "skipped", "deleted")


def _has_vote(db: sqlite_utils.Database, task: int) -> bool:
    """Whether a vote of its person judges what a task asks for."""
    row = db.execute(
        f"""select 1 from queue_task t join duel d on {ASKED_FOR}
            join vote v on v.duel = d.id and v.annotator = t.annotator
            where t.id = ? and v.superseded_by is null and v.choice != 'skip'""",
        [task],
    ).fetchone()
    return row is not None


def forget_tasks(db: sqlite_utils.Database, which: str, *values: Any) -> None:
    """The conversations whose id fulfils the condition `which` are deleted: their prompts are as if nobody had judged
    them there. Whoever deletes a pair that was shown again has skipped it: to show it costs no reply, so nothing else
    would bound how often it is copied.
    """
    rows = db.execute(
        f"select id, repeats from queue_task where conversation {which} and state in ('taken', 'done')", list(values)
    ).fetchall()
    for task, repeats in rows:
        if repeats is None:
            end_task(db, task, LEFT, None)
        else:
            end_task(db, task, "skipped", "deleted")


def settle(db: sqlite_utils.Database, prompt: int) -> None:
    """Set what a prompt waits for, by its tasks."""
    taken, done, skipped = db.execute(
        """select coalesce(sum(state = 'taken'), 0), coalesce(sum(state = 'done'), 0),
             count(distinct case when state = 'skipped' then annotator end)
           from queue_task where prompt = ?""",
        [prompt],
    ).fetchone()
    twice, both = db.execute(f"select p.twice, {JUDGED_TWICE} from queued_prompt p where p.id = ?", [prompt]).fetchone()
    if taken:
        state = "taken"
    elif both or (done and (not twice or skipped >= MOST_SKIPS)):
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
