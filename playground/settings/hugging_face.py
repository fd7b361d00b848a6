"""Sign-in with Hugging Face as a provider, by one word: what the other settings of `oidc` are then.

On a Space with `hf_oauth: true` the Space's own variables say client, secret and scopes. What is set by hand stays.
"""

from collections.abc import Mapping
from typing import Any

from playground.settings import space

WORD = "huggingface"  # in place of the issuer's address
ISSUER = "https://huggingface.co"
SCOPES = "openid profile"


def issuer_of(environ: Mapping[str, str]) -> str:
    """Hugging Face's address, as it calls itself."""
    said = environ.get("OPENID_PROVIDER_URL", "") if space.kind_of(environ) != "none" else ""
    return said.strip().rstrip("/") or ISSUER


def is_issuer(issuer: str, environ: Mapping[str, str]) -> bool:
    return issuer in (ISSUER, issuer_of(environ))


def completed(values: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """The given settings of `oidc` with what they leave open, where their issuer is Hugging Face."""
    given = dict(values)
    if given.get("issuer") == WORD:
        given["issuer"] = issuer_of(environ)
    elif not is_issuer(given.get("issuer", ""), environ):
        return given
    own = environ if space.kind_of(environ) != "none" else {}
    usual = {
        "name_claim": "preferred_username",  # a full name may be anybody's
        "groups_claim": "orgs",
        "scopes": " ".join(own.get("OAUTH_SCOPES", "").split()) or SCOPES,
    }
    given = {**usual, **given}
    if not given.get("name"):
        given["name"] = "Hugging Face"
    if not given.get("client_id"):
        given["client_id"] = own.get("OAUTH_CLIENT_ID", "")
        if not (given.get("client_secret") or given.get("client_secret_file")):
            given["client_secret"] = own.get("OAUTH_CLIENT_SECRET", "")
    return given
