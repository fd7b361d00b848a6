"""Data that comes and goes: what people judged here, as files that other programs read, and files from elsewhere as
rows that rounds learn from. `python -m playground.data --help`.
"""
