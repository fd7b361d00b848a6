"""What Gradio keeps of one open page between gestures: the values of its `gr.State`s, and of components that a handler
has changed.

For deep links, Gradio 6.31 also keeps a second copy of the page's whole config (half a megabyte a page), and computes a
component's JSON schema each time that the component changes, on the event loop that all visitors share. This page has
no deep links.
"""

from copy import copy
from datetime import datetime
from typing import Any

from gradio import Blocks, state_holder
from gradio.components import State


class PageState(state_holder.SessionState):
    """Gradio's state of a session, without what is kept for deep links."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks_config = copy(blocks.default_config)
        self.config_values = {}
        self.state_data = {}
        self._state_ttl = {}
        self.is_closed = False
        self.STATE_TTL_WHEN_CLOSED = 3600  # seconds

    def __getitem__(self, key: int) -> Any:
        """The value of a State, or a component as this page has it. A State is dated at each use: Gradio dates those
        alone that a handler returns, and others, which handlers change in place, would never end.
        """
        value = super().__getitem__(key)
        block = self.blocks_config.blocks[key]
        if isinstance(block, State):
            self._state_ttl[key] = (block.time_to_live, datetime.now())
        return value

    def __setitem__(self, key: int, value: Any) -> None:
        block = self.blocks_config.blocks.get(key)
        if isinstance(block, State):
            self._state_ttl[key] = (block.time_to_live, datetime.now())
            self.state_data[key] = value
        else:
            self.blocks_config.blocks[key] = value

    def _update_config(self, key: int) -> None:
        """For deep links."""

    def _update_value_in_config(self, key: int, value: Any) -> None:
        """For deep links."""


def use() -> None:
    """Let Gradio create PageStates from now on."""
    state_holder.SessionState = PageState  # type: ignore[misc]  # Gradio has no setting for it
