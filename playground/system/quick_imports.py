"""Imports transformers and peft without the parts of torch that they load and that are never used here.

Nudge compiles nothing and distributes nothing. Torch's compiler (Dynamo, Inductor), its distributed tensors and SciPy's
optimisers are imported all the same, and that took more than half of the start of the server and of the worker. Who
imports transformers or peft imports this module first; `tests/test_quick_imports.py` checks it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def _without_dynamo() -> Iterator[None]:
    """Inside, Dynamo is a package with no more than transformers takes from it while it is imported: marks on functions
    that tell the compiler how to treat them, and a context.
    """
    if DYNAMO in sys.modules:
        yield
        return
    dynamo: Any = ModuleType(DYNAMO)
    dynamo.__path__ = []
    dynamo.allow_in_graph = dynamo.assume_constant_result = dynamo.disable = _undecorated
    higher_order: Any = ModuleType(HIGHER_ORDER)
    higher_order.TransformGetItemToIndex = _transform_get_item_to_index
    sys.modules |= {DYNAMO: dynamo, HIGHER_ORDER: higher_order}
    try:
        yield
    finally:
        del sys.modules[DYNAMO], sys.modules[HIGHER_ORDER]


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
    _without_dynamo(),
    # bitsandbytes compiles some of its functions, which loads Inductor
    _replaced(torch, "compile", _undecorated),
    # transformers and peft ask once; from then on they take this for a torch that was built without distribution
    _replaced(torch.distributed, "is_available", lambda: False),
    # transformers needs SciPy for the losses of object detection alone
    _replaced(transformers.utils, "is_scipy_available", lambda: False),
):
    import peft  # noqa: F401
    import transformers.modeling_utils
