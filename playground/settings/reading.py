"""Where settings come from: flags, `NUDGE_…` variables and `.env`, in this order; and what an admin may change."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, overload

import pydantic_settings
from pydantic import ValidationError

from playground.settings import names
from playground.settings.explain import SettingsError, own_help, settings_error
from playground.settings.groups import AdminMayChange
from playground.settings.renamed import refuse_old_names
from playground.settings.root import Settings, encoding_of

SomeSettings = TypeVar("SomeSettings", bound=Settings)


# mypy cannot give the default of an argument a type variable's type, so this function has two signatures
@overload
def read(argv: Sequence[str] | None = None) -> Settings: ...
@overload
def read(argv: Sequence[str] | None, kind: type[SomeSettings], prog: str = ...) -> SomeSettings: ...
def read(argv: Sequence[str] | None = None, kind: type[Settings] = Settings, prog: str = "python app.py") -> Settings:
    """Settings of the class `kind`, built from flags, environment and `.env`.

    `argv`: the flags, by default those of this process. `prog`: the command that --help names. SettingsError names
    every value that is not accepted, or every name that has changed. Of a command with settings of its own, --help
    shows those, and --help-all all of them; both end the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if kind is not Settings and {"-h", "--help"} & set(argv):
        print(own_help(kind, Settings, prog))
        sys.exit(0)
    argv = ["--help" if word == "--help-all" else word for word in argv]
    refuse_old_names(kind, argv, encoding_of(".env"))
    try:
        return kind(_cli_parse_args=argv, _cli_prog_name=prog)
    except ValidationError as error:
        raise settings_error(kind, error) from None
    except pydantic_settings.SettingsError as error:  # a group's own name was given, such as NUDGE_PPO=1
        raise SettingsError(f"{error}: give its settings one by one, such as NUDGE_PPO_LR or --ppo.lr") from None


def sections() -> dict[str, list[str]]:
    """The dotted names of the settings that an admin may change, by group."""
    by_group: dict[str, list[str]] = {}
    for name, field in names.fields(Settings).items():
        if any(isinstance(mark, AdminMayChange) for mark in field.metadata):
            by_group.setdefault(name.split(".")[0], []).append(name)
    return by_group


def overridden(settings: SomeSettings, values: Mapping[str, Any]) -> SomeSettings:
    """`settings` with other `values`, by dotted name, for what an admin may change.

    SettingsError names every value that is not accepted, or every setting that an admin may not change.
    """
    unknown = values.keys() - {name for group in sections().values() for name in group}
    if unknown:
        raise SettingsError(f"{', '.join(sorted(unknown))}: no setting of the next rounds")
    return settings.with_values(**names.nested(values))
