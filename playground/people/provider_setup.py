"""What a provider and the settings of it must have before anybody signs in by it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from playground.settings import SettingsError
from playground.settings.operating import OIDCSettings

# of these the provider alone has the key; `none` has none, and of HMAC the key would be what others know
ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint", "end_session_endpoint")
NEEDED = ENDPOINTS[:3]
LONGEST_SECRET = 4096  # bytes of its file


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


def checked_secret(oidc: OIDCSettings) -> str:
    """The app's secret at the provider, "" of a public client. SettingsError where the settings do not suffice."""
    if not oidc.client_id:
        raise SettingsError("--oidc.client-id: needed with --oidc.issuer; it is what the provider calls this app.")
    if not any(entry.strip() for entry in f"{oidc.allowed},{oidc.admins}".split(",")):
        raise SettingsError(
            "--oidc.allowed: needed with --oidc.issuer; it says who may come in: emails, domains such as "
            "@nudge.example, group:NAME, or * for everybody whom the provider signs in."
        )
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
