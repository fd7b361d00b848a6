"""What values of Arrow take in memory once each of them is a Python value of its own. How files are read is left to
`parquet.py`.
"""

import importlib
from collections.abc import Iterator
from typing import Any

BYTES_OF_VALUE = 8  # what a value takes at least, be it null


class UnknownKind(Exception):
    """What values of this kind take is not known here; the message is the kind's name in Arrow."""


def unpacked_bytes(values: Any) -> int:
    """Bytes of an Arrow array once each of its values has a text of its own. UnknownKind where nobody knows."""
    types = importlib.import_module("pyarrow.types")
    kind = values.type
    if _is_extension(kind):
        return unpacked_bytes(values.storage)
    if types.is_dictionary(kind):
        return int(values.indices.nbytes) + _unpacked_entries(values)
    if types.is_struct(kind):
        return BYTES_OF_VALUE * len(values) + sum(map(unpacked_bytes, values.flatten()))
    if types.is_map(kind):
        return BYTES_OF_VALUE * len(values) + sum(map(unpacked_bytes, _keys_and_items(values)))
    if _is_list(kind):
        return BYTES_OF_VALUE * len(values) + unpacked_bytes(values.flatten())
    if types.is_null(kind):
        return BYTES_OF_VALUE * len(values)
    if _is_text(kind) or _has_fixed_width(kind):
        return int(values.nbytes)
    raise UnknownKind(_name(kind))


def _unpacked_entries(values: Any) -> int:
    """Bytes of a dictionary's entries, each as often as it is used."""
    compute = importlib.import_module("pyarrow.compute")
    kind = values.type.value_type
    if _has_fixed_width(kind):
        return len(values) * int(kind.bit_width) // 8
    if not _is_text(kind):
        raise UnknownKind(_name(kind))
    lengths = compute.binary_length(values.dictionary)
    return compute.sum(lengths.take(values.indices)).as_py() or 0


def _keys_and_items(values: Any) -> Iterator[Any]:
    """Of an array of maps, which `flatten` does not know where their texts are dictionaries."""
    offsets = values.offsets
    first, end = offsets[0].as_py(), offsets[len(values)].as_py()
    for part in (values.keys, values.items):
        yield part.slice(first, end - first)


def leaves(kind: Any) -> Iterator[Any]:
    """The kinds of the columns that Parquet has for values of this kind, in order."""
    if _is_extension(kind):
        yield from leaves(kind.storage_type)
    elif kind.num_fields:
        for i in range(kind.num_fields):
            yield from leaves(kind.field(i).type)
    else:
        yield kind


def _is_extension(kind: Any) -> bool:
    return isinstance(kind, importlib.import_module("pyarrow").BaseExtensionType)


def _is_list(kind: Any) -> bool:
    types = importlib.import_module("pyarrow.types")
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(is_kind(kind) for is_kind in lists)


def _is_text(kind: Any) -> bool:
    types = importlib.import_module("pyarrow.types")
    texts = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    views = (types.is_string_view, types.is_binary_view)
    return any(is_kind(kind) for is_kind in (*texts, *views))


def _has_fixed_width(kind: Any) -> bool:
    types = importlib.import_module("pyarrow.types")
    return any(is_kind(kind) for is_kind in (types.is_primitive, types.is_decimal, types.is_fixed_size_binary))


def _name(kind: Any) -> str:
    """The kind's name without the names of its fields, which are anybody's."""
    return str(kind).partition("<")[0][:40]
