"""Conversations: the gestures they take, the turns in which replies are written, and what a page shows of them."""
