"""Whom a provider has signed in, by the claims of its ID token: who that is, what they are called, and what they may.

A person is the issuer's word with the subject's, never an email: those change hands. How the claims come here, and that
they are the provider's, is `provider.py`'s.
"""

import hashlib
import json
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from playground.people import organisations
from playground.people.passwords import NAME_CHARS
from playground.people.users_file import ROLES, Role
from playground.settings import hugging_face
from playground.settings.operating import OIDCSettings
from playground.system.messages import Message
from playground.system.safe_logging import Loggable

PREFIX = "oidc:"  # of the ids of people whom a provider signs in; those of the users file are hexadecimal
EVERYBODY = "*"
GROUP = "group:"
USER = "user:"
MOST_VALUES = 1000  # of one claim that are read
SUBJECT_CHARS = 255  # longest subject (OpenID Connect Core, section 2)

Claims = Mapping[str, Any]


@dataclass(frozen=True)
class ProviderPerson:
    """Somebody whom the provider has signed in: the id here, and the role, None for whom `oidc.allowed` lets not in;
    and then why.
    """

    account: str
    name: str
    role: Role | None
    why_not: Message


def person_of(claims: Claims, oidc: OIDCSettings) -> ProviderPerson:
    """Who somebody is, by verified claims."""
    account = account_of(oidc.issuer, claims["sub"])
    return ProviderPerson(account, name_of(claims, oidc), role_of(claims, oidc), why_not(claims, oidc))


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
    if has_organisations(oidc) and oidc.role_claim == oidc.groups_claim:
        said = organisations.roles_of(claims.get(oidc.groups_claim), groups_in(oidc.allowed))
    else:
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
    if groups_of(claims, oidc) & groups_in(listed):
        return True
    for entry in entries(listed):
        if entry == EVERYBODY:
            return True
        if entry.startswith(GROUP):
            continue
        if entry.startswith(USER):
            user = entry.removeprefix(USER)
            if user and user == claims.get("preferred_username") and has_organisations(oidc):
                return True
        elif email and entry.lower() in (email, f"@{domain}", domain):
            return True
    return False


def why_not(claims: Claims, oidc: OIDCSettings) -> Message:
    """Why somebody may not come in: what the provider has not said, that they are on no list, or have no role."""
    name = name_of(claims, oidc)
    is_listed = matches(claims, oidc.allowed, oidc)
    gives_nothing = is_listed and oidc.role_claim != oidc.groups_claim  # what `allowed` names, to who is in already
    groups = groups_in(oidc.admins if gives_nothing else f"{oidc.allowed},{oidc.admins}")
    by_organisation = bool(groups) and has_organisations(oidc)
    if by_organisation and (missing := organisations.why_not(claims.get(oidc.groups_claim), groups, oidc.name)):
        return missing
    if is_listed:
        return Message(
            "{person} has been given no role here. Ask an admin for one, or sign in with another account.", person=name
        )
    if by_organisation:
        return Message(
            "{person} is in no organisation that may come in here. Ask an admin to be added, or sign in with another "
            "account.",
            person=name,
        )
    return Message(
        "{person} may not come in here. Ask an admin to be added, or sign in with another account.", person=name
    )


def unnamed(why: Message) -> Loggable:
    """What `why_not` says, for the log: without the name of the person."""
    named = {**why.values, "person": "somebody"} if "person" in why.values else why.values
    return Loggable(Message(why.template, **named))


def entries(listed: str) -> list[str]:
    """What a setting lists, with commas between."""
    return [entry.strip() for entry in listed.split(",") if entry.strip()]


def deciding_claims(oidc: OIDCSettings) -> set[str]:
    """The claims that say whether somebody may come in, and as what."""
    listed = entries(f"{oidc.allowed},{oidc.admins}")
    found = {oidc.role_claim.split(".")[0]}
    for entry in listed:
        if entry.startswith(GROUP):
            found.add(oidc.groups_claim.split(".")[0])
        elif entry.startswith(USER):
            found.add("preferred_username")
        elif entry != EVERYBODY:
            found |= {"email", "email_verified"}
    return found - {""}


def groups_in(listed: str) -> set[str]:
    """The groups that a setting lists."""
    return {entry.removeprefix(GROUP) for entry in entries(listed) if entry.startswith(GROUP)} - {""}


def groups_of(claims: Claims, oidc: OIDCSettings) -> set[str]:
    """The groups of somebody."""
    if has_organisations(oidc):
        return organisations.groups_of(claims.get(oidc.groups_claim))
    return set(values_of(claims, oidc.groups_claim))


def has_organisations(oidc: OIDCSettings) -> bool:
    """Whether the provider is Hugging Face, whose groups are organisations and whose user names are one person's."""
    return hugging_face.is_issuer(oidc.issuer, os.environ)


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
