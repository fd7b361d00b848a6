"""How replies are written, token by token: the decoder, the forwards it runs on, key/value caches, the choice of a
number format.
"""

from playground.system import quick_imports as quick_imports  # before any import of transformers
