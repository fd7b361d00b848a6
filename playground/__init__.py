"""The chat playground: the page, the chat, and the modules that training shares."""

import logging
import warnings

# Libraries' notes to their own developers, about which a person at the terminal can do nothing. The first one is about
# a faster kernel that would have to be fetched from a hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
