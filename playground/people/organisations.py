"""What Hugging Face says of somebody's organisations, as groups that `oidc.allowed` and `oidc.admins` may name.

An organisation is `NAME`, as in its address, and `NAME/ROLE` with the person's role in it, or by its id, which outlives
a change of name, `id=ID` and `id=ID/ROLE`. Its title is nobody's word but its owner's and counts for nothing. Which
claim they are in, and who may come in, is `provider_people.py`'s.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from playground.system.messages import Message, joined

MOST = 1000  # organisations of one person that are read
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ROLES = {"read": "viewer", "contributor": "annotator", "write": "annotator", "admin": "admin"}  # there: here
GROUP_FORM = re.compile(rf"(id=)?{NAME.pattern}(/({'|'.join(ROLES)}))?")
STEPS = {"mfa": Message("a second factor"), "sso": Message("single sign-on")}


@dataclass(frozen=True)
class Organisation:
    """`role`: the person's in it, "" where it is not said. `steps`: what it asks of the person first, of STEPS."""

    name: str
    id: str
    role: str
    steps: tuple[str, ...]

    @property
    def names(self) -> set[str]:
        """By which the settings may name it, whatever the role."""
        return {name for name in (self.name, f"id={self.id}" if self.id else "") if name}

    @property
    def groups(self) -> set[str]:
        """What the settings may call the person; nothing while a step is missing."""
        if self.steps:
            return set()
        return self.names | {f"{name}/{self.role}" for name in self.names if self.role}


def can_be_said(group: str) -> bool:
    """Whether the hub could ever say this group of somebody."""
    return GROUP_FORM.fullmatch(group) is not None


def are_said(claim: Any) -> bool:
    """Whether this is a list of organisations at all."""
    return isinstance(claim, list)


def read(claim: Any) -> list[Organisation]:
    """The organisations of a claim; what is none is left out."""
    listed = claim[:MOST] if are_said(claim) else []
    return [organisation for entry in listed if (organisation := _read(entry)).names]


def groups_of(claim: Any) -> set[str]:
    return {group for organisation in read(claim) for group in organisation.groups}


def roles_of(claim: Any, named: set[str]) -> set[str]:
    """The roles here of somebody, by those in the organisations that are `named`; anybody may make another one and be
    its admin.
    """
    found = [organisation for organisation in read(claim) if named & organisation.groups]
    return {ROLES[organisation.role] for organisation in found if organisation.role in ROLES}


def why_not(claim: Any, named: set[str], provider: str) -> Message | None:
    """What is missing where none of the groups that are `named` is somebody's; None: nothing but a membership."""
    if not are_said(claim):
        return Message(
            "{name} does not say which organisations you are in, so nobody can come in by one. "
            "Tell the owner of this app.",
            name=provider,
        )
    wanted = {group.partition("/")[0] for group in named}
    for organisation in read(claim):
        if not wanted & organisation.names:
            continue
        called = organisation.name or organisation.id
        if organisation.steps:
            return Message(
                "{organisation} asks for more at {name} before you count as a member: {steps}. "
                "Do that there, then sign in again.",
                organisation=called,
                name=provider,
                steps=joined(STEPS[step] for step in organisation.steps),
            )
        if not organisation.role:
            return Message(
                "{name} does not say what your role in {organisation} is. "
                "Sign in again and let this app see it, or tell the owner of this app.",
                name=provider,
                organisation=called,
            )
        return Message(
            "Your role in {organisation}, {role}, does not let you in here. Ask an admin to be added, or sign in with "
            "another account.",
            organisation=called,
            role=organisation.role,
        )
    return None


def _read(entry: Any) -> Organisation:
    said = entry if isinstance(entry, Mapping) else {}
    return Organisation(
        _word(said.get("preferred_username")), _word(said.get("sub")), _word(said.get("roleInOrg")), tuple(_steps(said))
    )


def _word(value: Any) -> str:
    """A name without any sign that means something in a group's; "" for all else."""
    return value if isinstance(value, str) and NAME.fullmatch(value) else ""


def _steps(said: Mapping[str, Any]) -> Iterator[str]:
    """What the organisation asks of the person, and has not. That the request comes from another network than it wants,
    or by a token, is no matter of the person's.
    """
    listed = said.get("securityRestrictions")
    missing = listed if isinstance(listed, list) else []
    if "mfa" in missing or said.get("missingMFA") is True:
        yield "mfa"
    if "sso" in missing or said.get("pendingSSO") is True:
        yield "sso"
