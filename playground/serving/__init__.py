"""The engine: one thread that decodes for everybody, and the versions that can answer."""

from playground.system import quick_imports as quick_imports  # before any import of transformers
