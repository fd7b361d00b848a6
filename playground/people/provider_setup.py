"""What a provider and the settings of it must have before anybody signs in by it."""

import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2

from playground.people import organisations
from playground.people.provider_people import EVERYBODY, GROUP, USER, entries, has_organisations
from playground.settings import SettingsError, space
from playground.settings.operating import OIDCSettings

# of these the provider alone has the key; `none` has none, and of HMAC the key would be what others know
ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint", "end_session_endpoint")
NEEDED = ENDPOINTS[:3]
LONGEST_SECRET = 4096  # bytes of its file
LONGEST_ANSWER = 1 << 20  # bytes of the provider's that are read


def known_metadata(said: Mapping[str, Any], issuer: str) -> dict[str, Any]:
    """What is used of the provider's description of itself. ValueError where it cannot be."""
    if said.get("issuer") != issuer:
        raise ValueError(
            f"it calls itself {str(said.get('issuer'))[:200]!r}; set --oidc.issuer to that, if it is right"
        )
    found = {name: said[name] for name in ENDPOINTS if is_endpoint(said.get(name), issuer)}
    if missing := [name for name in NEEDED if name not in found]:
        raise ValueError(f"it has no {missing[0]} that can be used")
    offered = said.get("id_token_signing_alg_values_supported") or ["RS256"]
    algorithms = [name for name in ASYMMETRIC if name in offered]
    if not algorithms:
        raise ValueError("it signs by no algorithm with a public key")
    names_itself = said.get("authorization_response_iss_parameter_supported") is True
    return {
        **found,
        "issuer": issuer,
        "id_token_signing_alg_values_supported": algorithms,
        "authorization_response_iss_parameter_supported": names_itself,
        "_loaded_at": said["_loaded_at"],
    }


def is_endpoint(url: object, issuer: str) -> bool:
    """Whether this is an address that may be used: https, but where the provider itself is on this machine."""
    if not isinstance(url, str):
        return False
    return url.startswith("https://") or (issuer.startswith("http://") and url.startswith("http://"))


class BoundedStream(httpx2.AsyncByteStream):
    """The body of an answer; ValueError once it is longer than LONGEST_ANSWER."""

    def __init__(self, body: httpx2.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        length = 0
        async for part in self._body:
            length += len(part)
            if length > LONGEST_ANSWER:
                raise ValueError("its answer is too long")
            yield part

    async def aclose(self) -> None:
        await self._body.aclose()


async def bound(answer: httpx2.Response) -> None:
    """A hook of the client, before it reads an answer. What is packed could be much longer than it looks; the client
    asks for none.
    """
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise ValueError("its answer is packed")
    if isinstance(answer.stream, httpx2.AsyncByteStream):
        answer.stream = BoundedStream(answer.stream)


def checked_secret(oidc: OIDCSettings) -> str:
    """The app's secret at the provider, "" of a public client. SettingsError where the settings do not suffice."""
    if not oidc.client_id:
        if space.kind_of(os.environ) != "none" and has_organisations(oidc):
            raise SettingsError("--oidc.client-id: the Space has none; write hf_oauth: true into its README's head.")
        raise SettingsError("--oidc.client-id: needed with --oidc.issuer; it is what the provider calls this app.")
    check_entries(oidc)
    if "openid" not in oidc.scopes.split():
        raise SettingsError(f"--oidc.scopes: got {oidc.scopes!r}; accepted: names with blanks between, one is openid.")
    path = oidc.client_secret_file
    if not path:
        return oidc.client_secret
    if oidc.client_secret:
        raise SettingsError("--oidc.client-secret and --oidc.client-secret-file: give one of them.")
    try:
        with open(Path(path).expanduser(), "rb") as file:
            secret = file.read(LONGEST_SECRET).decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--oidc.client-secret-file: {path} cannot be read: {error}.") from None
    if not secret:
        raise SettingsError(f"--oidc.client-secret-file: {path} is empty.")
    return secret


def check_entries(oidc: OIDCSettings) -> None:
    """SettingsError where nobody is listed who may come in, or somebody in a way that the provider never says."""
    listed = entries(f"{oidc.allowed},{oidc.admins}")
    if not listed:
        raise SettingsError(
            "--oidc.allowed: needed with --oidc.issuer; it says who may come in: emails, domains such as "
            "@nudge.example, group:NAME, or * for everybody whom the provider signs in."
        )
    for entry in listed:
        if entry.startswith(USER) and not has_organisations(oidc):
            raise SettingsError(f"--oidc.allowed, --oidc.admins: {entry} is of Hugging Face alone; give an email.")
        if entry.startswith(GROUP) and has_organisations(oidc):
            _check_organisation(entry)
        is_email = entry != EVERYBODY and not entry.startswith((GROUP, USER))
        if is_email and has_organisations(oidc) and "email" not in oidc.scopes.split():
            raise SettingsError(
                f"--oidc.allowed, --oidc.admins: {entry} would be an email, which Hugging Face says with the scope "
                f"email alone. An organisation is group:{entry}, a person user:{entry}."
            )


def _check_organisation(entry: str) -> None:
    """SettingsError for a group that is none of Hugging Face's: it would keep everybody out."""
    if not organisations.can_be_said(entry.removeprefix(GROUP)):
        raise SettingsError(
            f"--oidc.allowed, --oidc.admins: got {entry!r}; accepted of Hugging Face: group:NAME or group:id=ID of an "
            f"organisation, NAME as in its address and not its title, and after it nothing or one of "
            f"{', '.join(f'/{role}' for role in organisations.ROLES)}."
        )
