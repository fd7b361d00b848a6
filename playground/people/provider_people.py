"""Whom a provider has signed in, by the claims of its ID token: who that is, what they are called, and what they may.

A person is the issuer's word with the subject's, never an email: those change hands. How the claims come here, and that
they are the provider's, is `provider.py`'s.
"""

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from playground.people.passwords import NAME_CHARS
from playground.people.users_file import ROLES, Role
from playground.settings.operating import OIDCSettings

PREFIX = "oidc:"  # of the ids of people whom a provider signs in; those of the users file are hexadecimal
EVERYBODY = "*"
GROUP = "group:"
MOST_VALUES = 1000  # of one claim that are read
SUBJECT_CHARS = 255  # longest subject (OpenID Connect Core, section 2)

Claims = Mapping[str, Any]


@dataclass(frozen=True)
class ProviderPerson:
    """Somebody whom the provider has signed in: the id here, and the role, None for whom `oidc.allowed` lets not in."""

    account: str
    name: str
    role: Role | None


def person_of(claims: Claims, oidc: OIDCSettings) -> ProviderPerson:
    """Who somebody is, by verified claims."""
    return ProviderPerson(account_of(oidc.issuer, claims["sub"]), name_of(claims, oidc), role_of(claims, oidc))


def account_of(issuer: str, subject: str) -> str:
    """The id of a person; the same for as long as issuer and subject are."""
    return PREFIX + hashlib.sha256(f"{issuer}\0{subject}".encode(errors="replace")).hexdigest()[:32]


def is_by_provider(account: str) -> bool:
    """Whether the user with this id is one whom a provider signs in."""
    return account.startswith(PREFIX)


def stamp_of(oidc: OIDCSettings) -> str:
    """Changes with the provider, and with whom the settings let in as what: sign-ins of before end. "" without one."""
    if not oidc.issuer:
        return ""
    counted = [
        *(oidc.issuer, oidc.client_id, oidc.allowed, oidc.admins),
        *(oidc.role, oidc.role_claim, oidc.groups_claim),
    ]
    return hashlib.sha256(json.dumps(counted).encode()).hexdigest()


# -- what claims say


def name_of(claims: Claims, oidc: OIDCSettings) -> str:
    """What somebody is called."""
    for value in (claims.get(oidc.name_claim), claims.get("preferred_username"), verified_email(claims)):
        name = unicodedata.normalize("NFC", value) if isinstance(value, str) else ""
        name = "".join(char for char in name if char.isprintable()).strip()[:NAME_CHARS].strip()
        if name:
            return name
    return account_of(oidc.issuer, claims["sub"])[: len(PREFIX) + 8]


def role_of(claims: Claims, oidc: OIDCSettings) -> Role | None:
    """What somebody may; None: they may not come in."""
    is_admin = matches(claims, oidc.admins, oidc)
    if not is_admin and not matches(claims, oidc.allowed, oidc):
        return None
    said = {value.lower().removeprefix("nudge-") for value in values_of(claims, oidc.role_claim)}
    if is_admin:
        said.add("admin")
    for role in reversed(ROLES):  # the highest one first
        if role in said:
            return role
    return None if oidc.role == "none" else oidc.role


def matches(claims: Claims, listed: str, oidc: OIDCSettings) -> bool:
    """Whether somebody is one of those that a setting lists, as `oidc.allowed` says."""
    email = verified_email(claims)
    domain = email.rpartition("@")[2]
    groups = set(values_of(claims, oidc.groups_claim))
    for entry in listed.split(","):
        entry = entry.strip()
        if entry == EVERYBODY:
            return True
        if entry.startswith(GROUP):
            if entry.removeprefix(GROUP) in groups:
                return True
        elif entry and email and entry.lower() in (email, f"@{domain}", domain):
            return True
    return False


def verified_email(claims: Claims) -> str:
    """The email in lower case; "" where there is none, or where the provider does not say that it has verified it."""
    email = claims.get("email")
    if claims.get("email_verified") not in (True, "true") or not isinstance(email, str):
        return ""
    is_plain = email.isascii() and email.isprintable() and email.count("@") == 1 and " " not in email
    return email.lower() if is_plain else ""


def values_of(claims: Claims, path: str) -> list[str]:
    """The texts of a claim: itself, or those in its list. A claim's name may have dots; else they lead inwards."""
    found: Any = claims
    if path in claims:
        found = claims[path]
    else:
        for part in path.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    values = found if isinstance(found, list) else [found]
    return [value for value in values[:MOST_VALUES] if isinstance(value, str)]
