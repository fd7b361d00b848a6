"""The worker's half: votes in, a published adapter version out. It meets `playground` at the store and the adapter
folder.
"""
