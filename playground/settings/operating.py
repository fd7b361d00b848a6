"""The groups of settings for whoever operates the server: what it tells other programs, its people, what they are
to judge, and the machines that rounds are sent to.
"""

import os
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from playground.settings import hugging_face
from playground.settings.groups import Fraction, Group

# headers that cannot say who has signed in, since browsers or proxies say something else with them
OTHER_HEADERS = frozenset(
    (
        *("accept", "authorization", "connection", "cookie", "host", "origin", "range", "referer", "user-agent", "via"),
        *("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-real-ip"),
        *("transfer-encoding", "x-request-id"),
    )
)


def networks(value: str) -> str:
    """Addresses or networks with commas between; ValueError names the part that is neither."""
    for part in value.split(","):
        if part.strip():
            ip_network(part.strip(), strict=False)
    return value


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
    """Who may come in, and guidelines for people who vote."""

    guidelines: str = ""
    """Markdown file that everybody can unfold above the chat, in UTF-8, up to 64 KB; empty: none. Read at the start."""
    users: str = ""
    """File of users with roles and hashed passwords, which `python -m playground.people.users` keeps: nobody sees the
    page without having signed in. `admins` and `users_file` do not count then. Empty: everybody may come in.
    """
    session_days: float = Field(14, ge=0.01, le=365)
    """Days after which a sign-in ends that is not used."""
    proxy_header: str = Field("", pattern=r"^([A-Za-z][A-Za-z0-9-]{2,60})?$")
    """Header in which a reverse proxy that signs people in names the user, such as X-Forwarded-User. The user must be
    in the file. Empty: none.
    """
    trusted_proxies: str = ""
    """Proxies whose `proxy_header` is believed: addresses or networks, with commas between; it is taken from everybody
    else's requests. Empty believes nobody.
    """

    @field_validator("proxy_header")
    @classmethod
    def _own_header(cls, value: str) -> str:
        if value.lower() in OTHER_HEADERS or value.lower().startswith(("sec-", "content-", "access-control-")):
            raise ValueError(f"{value} means something else; take a header of its own, such as X-Forwarded-User")
        return value

    _networks = field_validator("trusted_proxies")(networks)


class OIDCSettings(Group):
    """A provider by which people sign in, that speaks OpenID Connect: Keycloak, Google, Microsoft Entra and others."""

    issuer: str = Field(
        "", pattern=r"^(https://[^/\s?#@]+(/[^\s?#]*)?|http://(localhost|127\.0\.0\.1)(:\d+)?(/[^\s?#]*)?)?$"
    )
    """Address of the provider, letter by letter as it calls itself; https, but on this machine; or huggingface, which
    takes client, secret and scopes from the Space that this runs on. Nobody sees the page without having signed in.
    `admins` and `users_file` do not count then. Empty: none.
    """
    client_id: str = Field("", max_length=300)
    """What the provider calls this app."""
    client_secret: Annotated[str, Secret()] = ""
    """The app's secret at the provider; better in the environment than in a flag, which others on the machine can read.
    Empty, without a file of it: a public client.
    """
    client_secret_file: str = ""
    """File that holds that secret, and nothing else."""
    name: str = Field("", max_length=40)
    """What the button calls the provider, such as Keycloak; empty: its host."""
    address: str = Field("", pattern=r"^(https?://[^/\s?#@]+(/[^\s?#]*)?)?$")
    """Address of the page, such as https://nudge.example/nudge, to which the provider sends people back. Empty: as a
    browser asks for it, where its name is this machine's own or in `allowed_hosts`, or a trusted proxy says it in
    X-Forwarded-Host; on a Space, the Space's own.
    """
    scopes: str = "openid profile email"
    """What the provider is asked for, with blanks between; openid is one of it."""
    name_claim: str = "name"
    """Claim that says what somebody is called; where it is missing, preferred_username, then a verified email."""
    groups_claim: str = "groups"
    """Claim with the groups that `allowed` and `admins` may name; parts of its path with dots between. Of Hugging Face
    it has organisations.
    """
    role_claim: str = ""
    """Claim that says viewer, annotator or admin, with `nudge-` before it or without; of several the highest counts.
    Parts of its path with dots between, such as realm_access.roles. orgs, of Hugging Face: the role in an organisation
    of `allowed`. Empty: none.
    """
    role: Literal["viewer", "annotator", "none"] = "annotator"
    """Role of those of whom no claim says one; none: they do not come in."""
    allowed: str = ""
    """Who may come in, with commas between: emails and domains (@nudge.example), where the provider has verified the
    email; group:NAME; or * for everybody whom the provider signs in. Of Hugging Face also user:NAME, and for NAME of a
    group an organisation, or ORGANISATION/ROLE. Needed where there is an issuer.
    """
    admins: str = ""
    """Who is an admin, besides those of whom `role_claim` says so; written as in `allowed`."""
    session_days: float = Field(7, ge=0.01, le=365)
    """Days after which somebody signs in at the provider again, used or not; it says then who still may."""

    @model_validator(mode="before")
    @classmethod
    def _hugging_face(cls, values: Any) -> Any:
        return hugging_face.completed(values, os.environ) if isinstance(values, Mapping) else values


class QueueSettings(Group):
    """Prompts that people are asked to judge."""

    prompts: str = ""
    """File of prompts, which whoever may vote takes one by one beside the chat: .jsonl, .csv, .parquet or .json, as
    `python -m playground.data import` reads them, or .txt with one a line; hf://datasets/OWNER/NAME for a dataset of
    the hub; or import:NAME for what was imported under that name. Read at the start. Empty: no queue.
    """
    overlap: Fraction = 0.2
    """Share of these prompts that two people judge: the second one is shown the same two replies, sides swapped."""
    minutes: float = Field(30, ge=0.1, le=10080)
    """Minutes after which a prompt that was taken and not judged is free for others."""


class JobSettings(Group):
    """A round on a machine of Hugging Face, where `train_on` names one."""

    minutes: int = Field(120, ge=5, le=1440)
    """Minutes after which a job is cancelled and its round has failed; those in which it waits for a machine count."""
    image: str = Field("", pattern=r"^(\S{1,500})?$")
    """Docker image, or Space as hf.co/spaces/OWNER/NAME, whose working folder is this app with all it needs. Empty: an
    image with uv, which installs what the Space's own revision asks for.
    """
    namespace: str = Field("", pattern=r"^([A-Za-z0-9._-]{1,100})?$")
    """User or organisation that pays for the jobs; empty: the user of HF_TOKEN."""
