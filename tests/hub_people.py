"""What the hub says of people and their organisations, and the variables of a Space with a sign-in."""

from tests.oidc_provider import CLIENT, SECRET

HOST = "ann-nudge.hf.space"
ACME, OTHER = "5f0c746619cb630495b814fd", "5e67bd5b1009063689407478"


def organisation(name, ident, role=None, **more):
    """An entry of `orgs`, with the fields that huggingface_hub and huggingface.js read."""
    said = {"sub": ident, "name": name.title(), "preferred_username": name, "picture": "https://hub.example/p.png"}
    return {**said, "isEnterprise": False, **({"roleInOrg": role} if role else {}), **more}


def hub_claims(login, *organisations):
    """What the hub's userinfo says of somebody; an ID token has all but the organisations."""
    claims = {"preferred_username": login, "name": login.title(), "picture": "", "isPro": False}
    return {**claims, "orgs": list(organisations)}


PEOPLE = {
    "ann": [organisation("acme", ACME, "admin")],
    "bob": [organisation("other", OTHER, "admin"), organisation("acme", ACME, "read")],
    "cyd": [organisation("acme", ACME, "write")],
    "eve": [organisation("Acme", OTHER, "admin"), organisation(f"id={ACME}", OTHER, "admin")],
}


def variables(issuer):
    """Of a Space with `hf_oauth: true`, and its owner's."""
    return {
        "SPACE_ID": "acme/nudge",
        "SPACE_HOST": HOST,
        "OAUTH_CLIENT_ID": CLIENT,
        "OAUTH_CLIENT_SECRET": SECRET,
        "OAUTH_SCOPES": "openid profile read-memberships",
        "OPENID_PROVIDER_URL": issuer,
        "NUDGE_OIDC_ISSUER": "huggingface",
        "NUDGE_OIDC_ALLOWED": "group:acme",
    }
