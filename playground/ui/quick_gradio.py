"""Imports Gradio without the stubs that it makes for type checkers.

For each of its components, Gradio parses the module's source and writes a `.pyi` file beside it, each time that it is
imported: half of the seconds that its import takes, for files that its wheel has. Who imports Gradio imports this
module first.
"""

import inspect
from typing import Any

_getfile = inspect.getfile


def _no_file_of_gradio(thing: Any) -> str:
    """As `inspect.getfile`, but for what Gradio defines: of a class without a file it makes no stub."""
    if str(getattr(thing, "__module__", None)).startswith("gradio."):
        raise OSError("no stub is wanted")
    return _getfile(thing)


inspect.getfile = _no_file_of_gradio  # type: ignore[assignment]  # its own lists each kind of thing
try:
    import gradio as gradio
finally:
    inspect.getfile = _getfile
