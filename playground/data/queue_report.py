"""How far the prompt queue is, as lines for a terminal."""

from collections import Counter
from collections.abc import Iterator

from playground.store import Store

MOST_SKIPPED = 50  # prompts that are named


def lines(store: Store) -> Iterator[str]:
    progress = store.queue_progress()
    if not progress["total"]:
        yield "There is no prompt in the queue. The app fills it at its start: --queue.prompts FILE."
        return
    yield f"Judged: {progress['judged']:,} of {progress['total']:,}"
    yield f"Judged by a second person: {progress['judged_twice']:,} of {progress['twice']:,}"
    yield f"Set aside, since too many have skipped them: {progress['aside']:,}"
    for row in store.skipped_prompts(MOST_SKIPPED):
        counts: Counter[str] = Counter(row["reasons"])
        reasons = ", ".join(f"{reason} ({n})" for reason, n in counts.most_common())
        yield f"  prompt {row['place']:,}: {reasons}{'; set aside' if row['state'] == 'aside' else ''}"
