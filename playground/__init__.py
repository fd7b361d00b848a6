"""What a person touches: the page, the chat, and the leaves that training shares."""

import logging
import warnings

# notes of libraries to their own developers, which a person at the terminal can do nothing about
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(
    logging.ERROR
)  # a faster kernel that would have to be fetched from a hub
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
