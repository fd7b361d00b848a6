"""What all event handlers of the page have in common: how they are attached, what they read and what they return.

The handlers themselves are in the modules of the tabs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from gradio.blocks import Block
from gradio.components import Component
from gradio.events import Dependency

Updates = dict[Block, Any]  # what a handler returns: a new value, or a `gr.update(…)`, for each component that changes
Trigger = Callable[..., Dependency]  # an event to which a handler can be attached, as `button.click`
Row = Mapping[str, Any]  # one row of the store

# A handler that an open page calls again and again takes one input, a `gr.State` of what the page shows, since Gradio's
# page does work for each input that an event has ever had, at each update of a reply. The object in it is changed in
# place: a handler that wrote a whole new one would undo what another has changed meanwhile. What a click shows is
# painted once more at the next tick (`painted` is emptied), since the answer to an earlier tick may come after the
# click's.


class ListenerOptions(TypedDict, total=False):
    """Keyword arguments of Gradio's event listeners that this page uses."""

    api_visibility: Literal["public", "private", "undocumented"]
    show_progress: Literal["full", "minimal", "hidden"]
    show_progress_on: Sequence[Component]
    queue: bool
    concurrency_limit: int | None
    trigger_mode: Literal["once", "multiple", "always_last"]


# Every handler that returns once is attached with these; why not through the queue: see `notice.py`. Progress is shown
# on no component: Gradio's page would copy the state of all that any event has ever written to, tables and plots of
# all tabs, at each update of a reply.
GESTURE: ListenerOptions = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "show_progress_on": [],
    "queue": False,
}

# the same where a value changes while its handler still runs: the last value counts
LATEST_GESTURE: ListenerOptions = {**GESTURE, "trigger_mode": "always_last"}

# A handler that streams. All of them start at once, since `session.Chat` tells people that they have to wait. They also
# start while the page still ends an earlier one, whose replies are complete: "once" would drop the message unseen.
STREAM: ListenerOptions = {**GESTURE, "queue": True, "concurrency_limit": None, "trigger_mode": "multiple"}


def visibility(visible: bool) -> bool | Literal["hidden"]:
    """`visible` of a component that comes and goes at each turn: it stays in the page, since the browser takes longer
    to create it again than to show it.
    """
    return True if visible else "hidden"
