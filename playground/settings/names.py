"""Names of settings: dotted (`ppo.kl_target`) in code, in the database and on the page, `--ppo.kl-target` as a flag,
`NUDGE_PPO_KL_TARGET` as a variable.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

PREFIX = "NUDGE_"  # of every variable


def flag(name: str) -> str:
    """The flag of a setting: `--ppo.kl-target`."""
    return f"--{name.replace('_', '-')}"


def variable(name: str) -> str:
    """The environment variable of a setting: `NUDGE_PPO_KL_TARGET`."""
    return PREFIX + name.replace(".", "_").upper()


def fields(kind: type[BaseModel]) -> dict[str, FieldInfo]:
    """The settings of a class by dotted name, in the order in which they are written down."""
    by_name: dict[str, FieldInfo] = {}
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            by_name |= {f"{name}.{inner}": info for inner, info in field.annotation.model_fields.items()}
        else:
            by_name[name] = field
    return by_name


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"seed": 0, "ppo": {"lr": 1}}` as `{"seed": 0, "ppo.lr": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": inner_value for inner, inner_value in value.items()}
        else:
            flat[name] = value
    return flat


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"seed": 0, "ppo.lr": 1}` as `{"seed": 0, "ppo": {"lr": 1}}`."""
    groups: dict[str, Any] = {}
    for name, value in values.items():
        group, dot, inner = name.partition(".")
        if dot:
            groups.setdefault(group, {})[inner] = value
        else:
            groups[name] = value
    return groups


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested `values` with nested `changes`; what a group's changes do not name stays."""
    return nested({**flattened(values), **flattened(changes)})
