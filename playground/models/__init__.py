"""Models and what both halves share of them: loading, adapters, prompts, templates, the reward scorer, pair
selection.
"""
