"""What is kept of an open page ends with the page."""

from datetime import timedelta

from playground.ui import states
from playground.ui.quick_gradio import gradio as gr


def test_a_state_that_is_changed_in_place_ends_with_its_page_too():
    """Gradio dates those alone that a handler returns: what each closed page had painted was kept for good."""
    with gr.Blocks() as blocks:
        kept = gr.State([])
    state = states.PageState(blocks)
    state[kept._id].append("painted")
    assert state[kept._id] == ["painted"] and kept._id in state._state_ttl
    holder = gr.state_holder.StateHolder()
    holder.set_blocks(blocks)
    holder.session_data["page"] = state
    state.is_closed = True
    lifetime, created = state._state_ttl[kept._id]
    state._state_ttl[kept._id] = (lifetime, created - timedelta(seconds=state.STATE_TTL_WHEN_CLOSED + 1))
    holder.delete_all_expired_state()
    assert kept._id not in state.state_data
