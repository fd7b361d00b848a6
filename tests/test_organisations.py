"""Hugging Face's organisations as groups, and the settings that one word takes from a Space."""

import re

import pytest

from playground.people.organisations import MOST, groups_of
from playground.people.provider_people import person_of
from playground.people.provider_setup import checked_secret
from playground.settings import Settings, SettingsError, read
from tests.hub_people import ACME, OTHER, PEOPLE, hub_claims, organisation, variables
from tests.oidc_provider import CLIENT, SECRET

ISSUER = "https://hub.example"


@pytest.fixture
def space(monkeypatch):
    """The settings of a Space, with further variables by name."""

    def settings(**changes):
        for name, value in {**variables(ISSUER), **changes}.items():
            monkeypatch.setenv(name, value)
        return Settings(_env_file=None)

    return settings


def test_one_word_takes_all_from_the_space(space):
    oidc = space().oidc
    assert (oidc.issuer, oidc.client_id, checked_secret(oidc)) == (ISSUER, CLIENT, SECRET)
    assert (oidc.name, oidc.scopes) == ("Hugging Face", "openid profile read-memberships")
    assert Settings(_env_file=None).with_values(seed=1).oidc == oidc == read(["--seed", "1"]).oidc
    by_flag = read(["--oidc.issuer", "huggingface", "--oidc.client-id", "own", "--oidc.client-secret", "s"]).oidc
    assert (by_flag.client_id, by_flag.client_secret) == ("own", "s"), "what is set by hand stays"
    own_app = read(["--oidc.client-id", "own"]).oidc
    assert own_app.client_secret == "", "the Space's secret is not another app's"
    assert read(["--oidc.issuer", "https://id.example"]).oidc.client_id == "", "and goes to no other provider"


def test_a_worker_reads_the_same_settings(space, monkeypatch):
    settings = space()
    for name, value in settings.environ().items():
        monkeypatch.setenv(name, value)
    assert Settings(_env_file=None).oidc == settings.oidc


def test_elsewhere_the_word_takes_nothing_from_a_spaces_variables(space, monkeypatch):
    space()
    monkeypatch.delenv("SPACE_ID")
    oidc = Settings(_env_file=None).oidc
    assert (oidc.issuer, oidc.groups_claim) == ("https://huggingface.co", "orgs")
    assert oidc.client_id == oidc.client_secret == ""
    with pytest.raises(SettingsError, match="--oidc.client-id: needed"):
        checked_secret(oidc)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"OAUTH_CLIENT_ID": ""}, "hf_oauth: true into its README's head"),
        ({"NUDGE_OIDC_ALLOWED": ""}, "--oidc.allowed: needed"),
        ({"NUDGE_OIDC_ALLOWED": "acme"}, "An organisation is group:acme, a person user:acme"),
        (
            {"NUDGE_OIDC_ISSUER": "https://id.example", "NUDGE_OIDC_CLIENT_ID": "x", "NUDGE_OIDC_ADMINS": "user:ann"},
            "user:ann is of Hugging Face alone",
        ),
    ],
)
def test_what_could_let_nobody_in_is_told_at_the_start(changes, said, space):
    with pytest.raises(SettingsError, match=said):
        checked_secret(space(**changes).oidc)


@pytest.mark.parametrize("name", ["NUDGE_OIDC_ALLOWED", "NUDGE_OIDC_ADMINS"])
@pytest.mark.parametrize(
    "entry",
    [
        *("group:", "group:acme/", "group:acme/writer", "group:acme/Admin", "group:/admin", "group:acme/admin/x"),
        *("group:Acme Inc", "group: acme", "group:acme:admin", "group:id=", "group:ID=5f0c", "group:" + 101 * "a"),
    ],
)
def test_a_group_that_the_hub_never_says_is_told_at_the_start(entry, name, space):
    with pytest.raises(SettingsError, match=rf"got '{entry}'; accepted .* group:id=ID .* /read, /contributor, /write,"):
        checked_secret(space(**{name: f"user:ann, {entry}"}).oidc)


@pytest.mark.parametrize("role", ["", "/read", "/contributor", "/write", "/admin"])
@pytest.mark.parametrize("group", ["acme", "Acme-2.x_y", f"id={ACME}"])
def test_each_form_of_a_group_is_accepted_and_lets_its_member_in(group, role, space):
    oidc = space(NUDGE_OIDC_ALLOWED=f"user:ann, group:{group}{role}", NUDGE_OIDC_ADMINS="*").oidc
    assert checked_secret(oidc) == SECRET
    name = "acme" if "=" in group else group
    assert f"{group}{role}" in groups_of([organisation(name, ACME, role.removeprefix("/") or "read")])


def test_groups_of_another_provider_have_any_name(space):
    allowed = "group:Acme Inc, group:/a/b"
    oidc = space(
        NUDGE_OIDC_ISSUER="https://id.example",
        NUDGE_OIDC_CLIENT_ID="x",
        NUDGE_OIDC_CLIENT_SECRET="own",
        NUDGE_OIDC_ALLOWED=allowed,
    ).oidc
    assert checked_secret(oidc) == "own"


@pytest.mark.parametrize(
    ("orgs", "said"),
    [
        (None, "Hugging Face does not say which organisations you are in"),
        ({"acme": {}}, "Hugging Face does not say which organisations you are in"),
        ([], "eve is in no organisation that may come in here"),
        ([5, None, {"preferred_username": ["acme"]}, {"name": "acme"}], "eve is in no organisation"),
        (PEOPLE["eve"], "eve is in no organisation"),
        ([organisation("acme", ACME, "read", pendingSSO=True)], "acme asks for more at Hugging Face .*single sign-on"),
        ([organisation("acme", ACME, securityRestrictions=["mfa", "ip"])], "before you count as a member: a second"),
    ],
)
def test_who_is_kept_out_is_told_what_is_missing(orgs, said, space):
    claims = {**hub_claims("eve"), "sub": "1", "orgs": orgs}
    if orgs is None:
        del claims["orgs"]
    person = person_of(claims, space().oidc)
    assert person.role is None
    assert re.search(said, str(person.why_not)), str(person.why_not)


def test_a_role_that_is_not_said_or_not_enough_is_told(space):
    oidc = space(NUDGE_OIDC_ALLOWED="group:other, group:acme/write").oidc

    def why_not(role):
        person = person_of({**hub_claims("cyd", organisation("acme", ACME, role)), "sub": "1"}, oidc)
        return None if person.role else str(person.why_not)

    assert "does not say what your role in acme is" in why_not(None)
    assert "Your role in acme, read, does not let you in here" in why_not("read")
    assert why_not("write") is None


NO_ROLE = "ann has been given no role here"


@pytest.mark.parametrize(
    ("changes", "orgs", "said"),
    [
        ({"ALLOWED": "*", "ADMINS": "group:acme"}, [], NO_ROLE),
        ({"ALLOWED": "*", "ADMINS": "group:acme"}, [organisation("other", OTHER, "admin")], NO_ROLE),
        ({"ALLOWED": "group:acme", "ADMINS": "group:other"}, [organisation("acme", ACME, "write")], NO_ROLE),
        ({"ALLOWED": "user:ann", "ROLE_CLAIM": "orgs"}, [organisation("acme", ACME, "admin")], NO_ROLE),
        ({"ALLOWED": "user:ann, group:acme", "ROLE_CLAIM": "orgs"}, [], NO_ROLE),
        ({"ALLOWED": "*, group:acme/write"}, [organisation("acme", ACME, "read")], NO_ROLE),
        ({"ALLOWED": "group:acme", "ROLE_CLAIM": "orgs"}, [organisation("acme", ACME)], "what your role in acme is"),
        ({"ALLOWED": "*", "ADMINS": "group:acme"}, [organisation("acme", ACME, pendingSSO=True)], "single sign-on"),
        ({"ALLOWED": "user:bob", "ADMINS": "group:acme"}, [], "ann is in no organisation that may come in here"),
        ({"ALLOWED": "user:bob"}, [], "ann may not come in here"),
    ],
)
def test_who_is_let_in_without_a_role_is_told_that_it_is_the_role(changes, orgs, said, space):
    oidc = space(NUDGE_OIDC_ROLE="none", **{f"NUDGE_OIDC_{name}": value for name, value in changes.items()}).oidc
    person = person_of({**hub_claims("ann", *orgs), "sub": "1"}, oidc)
    assert person.role is None and said in str(person.why_not)


def test_a_network_or_a_token_that_an_organisation_does_not_like_keeps_no_member_out():
    assert "acme" in groups_of([organisation("acme", ACME, securityRestrictions=["ip", "token-policy"])])
    many = [organisation(f"o{number}", OTHER) for number in range(MOST)]
    assert "acme" not in groups_of([*many, organisation("acme", ACME)]), "it is bounded"
