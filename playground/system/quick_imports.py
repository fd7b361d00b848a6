"""Imports transformers and peft without the parts of torch that they load and that are never used here.

Nudge compiles nothing and distributes nothing. Torch's compiler (Dynamo, Inductor), its distributed tensors and SciPy's
optimisers are imported all the same, and that took 40 to 50 % of the start of both processes. Who
imports transformers or peft imports this module first; `tests/test_quick_imports.py` checks it.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import transformers.utils

DYNAMO = "torch._dynamo"
HIGHER_ORDER = "torch._dynamo._trace_wrapped_higher_order_op"


def _undecorated(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Callable[..., Any]:
    """A decorator, with options or without, that leaves the function as it is."""
    return function or _undecorated


def _transform_get_item_to_index() -> Any:
    """The context in which transformers makes some rare attention masks, imported when such a mask is made."""
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    return TransformGetItemToIndex()


class _Marks(ModuleType):
    """Stands for Dynamo where it is only asked to mark functions for the compiler; anything else is the real one's."""

    __path__: MutableSequence[str] = []  # makes it a package; `_Submodules` finds what is in it
    allow_in_graph = assume_constant_result = disable = staticmethod(_undecorated)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _remove_marks()
        return getattr(importlib.import_module(DYNAMO), name)


class _Submodules(Loader):
    """Finds a submodule of Dynamo that is imported while `_Marks` stands for it, as by torchvision: the real one."""

    def __init__(self) -> None:
        self._spec: ModuleSpec | None = None

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not name.startswith(DYNAMO + "."):
            return None
        _remove_marks()
        self._spec = importlib.import_module(name).__spec__
        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """The module has run already. Only its spec was replaced, by the import that asked for it here."""
        module.__spec__ = self._spec


def _remove_marks() -> None:
    """From now on `import torch._dynamo` imports it."""
    if isinstance(sys.modules.get(DYNAMO), _Marks):
        del sys.modules[DYNAMO], sys.modules[HIGHER_ORDER]
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Submodules)]


@contextmanager
def without_dynamo() -> Iterator[None]:
    """Inside, to import transformers and to load a model does not import Dynamo, of which they take no more than marks
    on functions that tell the compiler how to treat them, and a context.
    """
    if DYNAMO not in sys.modules:
        higher_order: Any = ModuleType(HIGHER_ORDER)
        higher_order.TransformGetItemToIndex = _transform_get_item_to_index
        sys.modules |= {DYNAMO: _Marks(DYNAMO), HIGHER_ORDER: higher_order}
        sys.meta_path.insert(0, _Submodules())
    try:
        yield
    finally:
        _remove_marks()


@contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """`owner.name` is `value` inside."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


with (
    without_dynamo(),
    # bitsandbytes compiles some of its functions, which loads Inductor
    _replaced(torch, "compile", _undecorated),
    # transformers and peft ask once; from then on they take this for a torch that was built without distribution
    _replaced(torch.distributed, "is_available", lambda: False),
    # transformers needs torchvision for images alone, and it imports Dynamo
    _replaced(transformers.utils, "is_torchvision_available", lambda: False),
    # transformers needs SciPy for the losses of object detection alone
    _replaced(transformers.utils, "is_scipy_available", lambda: False),
):
    import peft  # noqa: F401
    import transformers.modeling_utils
