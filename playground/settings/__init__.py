"""Every setting of the app in one frozen object: `settings.port`, `settings.ppo.lr`. What the values do is up to the
modules that read them.

A setting is a field with bounds and a docstring: the everyday ones in `root.py`, the others in the groups of
`groups.py`. It is a flag (`--ppo.lr`), a variable (`NUDGE_PPO_LR`) and a line of `.env` at once.
"""

from playground.settings.explain import SettingsError, accepted, meaning
from playground.settings.groups import Fraction, Positive, PPOSettings
from playground.settings.names import fields, flag, nested, variable
from playground.settings.reading import overridden, read, sections
from playground.settings.renamed import RENAMED
from playground.settings.root import ON_SPACE, SPACE_SIGN_IN, Settings

__all__ = [
    "ON_SPACE",
    "RENAMED",
    "SPACE_SIGN_IN",
    "Fraction",
    "PPOSettings",
    "Positive",
    "Settings",
    "SettingsError",
    "accepted",
    "fields",
    "flag",
    "meaning",
    "nested",
    "overridden",
    "read",
    "sections",
    "variable",
]
