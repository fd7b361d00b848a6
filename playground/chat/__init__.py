"""One conversation: the gestures it takes, its state machine, what a page shows of it, and which pair a person sees."""
