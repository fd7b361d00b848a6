"""Models and what both halves share of them: loading, adapters, prompts, templates, the reward scorer, pair
selection.
"""

from playground.system import quick_imports as quick_imports  # before any import of transformers
