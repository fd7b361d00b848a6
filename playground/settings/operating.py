"""The groups of settings for whoever operates the server: what it tells other programs, and its people."""

from typing import Annotated

from pydantic import Field

from playground.settings.groups import Group


class Secret:
    """The mark of a setting that is for the server alone: rounds do not keep it in the database."""


class MetricsSettings(Group):
    """Who reads `/metrics`, the figures for Prometheus."""

    token: Annotated[str, Secret()] = Field("", pattern=r"^(\S{16,256})?$")
    """Bearer token, of at least 16 characters, with which other machines may read `/metrics`. Empty: only this machine
    may, without a proxy between.
    """


class AlertSettings(Group):
    """Where events are posted for the operator."""

    url: Annotated[str, Secret()] = Field("", pattern=r"^(https?://[^/\s]\S{0,1000})?$")
    """Address to which the server posts a JSON object when a round was published or refused, a version was rolled back,
    or the worker ended by itself. Empty: nowhere.
    """


class PeopleSettings(Group):
    """Guidelines for people who vote."""

    guidelines: str = ""
    """Markdown file that everybody can unfold above the chat, in UTF-8, up to 64 KB; empty: none. Read at the start."""
