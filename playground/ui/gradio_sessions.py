"""What the allowlist needs to know of the Gradio app: which handlers it has, and how a session of it ends."""

import inspect

import gradio as gr

from playground.web.payload import Handler

# what handlers read of an event, by the class of their argument
EVENT_KEYS = {
    gr.LikeData: {"index", "value", "liked"},
    gr.EditData: {"index", "value", "previous_value"},
    gr.SelectData: {"index", "value"},
}


class GradioSessions:
    """What the allowlist needs of a Gradio app: which handlers it has, and how a session of it ends."""

    def __init__(self, blocks: gr.Blocks) -> None:
        self.blocks = blocks

    def handlers(self) -> dict[int, Handler]:
        """The handlers that run on the server, by their number. Those that run in the browser only cannot be called."""
        handlers = {}
        for number, block_fn in self.blocks.fns.items():
            if block_fn.fn is None:
                continue
            inputs = [type(component).__name__ for component in block_fn.inputs]
            event_keys: set[str] = set()
            for parameter in inspect.signature(block_fn.fn).parameters.values():
                event_keys |= EVENT_KEYS.get(parameter.annotation, set())
            triggers = [target for target, _ in block_fn.targets if target is not None]
            handlers[number] = Handler.of(block_fn.queue, triggers, inputs, frozenset(event_keys))
        return handlers

    def pending(self, session: str) -> bool:
        """Whether a session has asked for something that streams."""
        return session in self.blocks._queue.pending_messages_per_session

    def forget(self, session: str) -> None:
        """Drop everything that is kept for a session."""
        self.blocks.state_holder.session_data.pop(session, None)
        self.blocks.state_holder.time_last_used.pop(session, None)
        queue = self.blocks._queue
        queue.pending_messages_per_session.pop(session, None)
        queue.pending_event_ids_session.pop(session, None)

    async def stop(self, session: str) -> None:
        """End what a session has asked for, and drop the part that nobody has read."""
        queue = self.blocks._queue
        await queue.clean_events(session_hash=session)
        queue.pending_messages_per_session.pop(session, None)
        queue.pending_event_ids_session.pop(session, None)
