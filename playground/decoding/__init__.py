"""How replies are written, token by token: the decoder, its two forwards, the key/value caches, the choice of a number
format.
"""
