"""Who is an admin, and who is not: the owner of the machine, names that have signed in, and nobody else."""

import subprocess
import sys
from pathlib import Path

import pytest

from playground import admins
from playground import settings as settings_module
from playground.admins import Admins, WrongSignIn, read_users, write_user
from playground.settings import Settings
from playground.store import Store

PASSWORD = "correct horse battery"


class Request:
    """What a handler knows of a request."""

    def __init__(self, host="nudge.example", client="10.0.0.7", session=None):
        self.headers, self.client = {"host": host}, type("Client", (), {"host": client})
        self.scope = {"session": session} if session else {}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def team(tmp_path):
    """An app that everybody can reach, with the admin ada: (Admins, its clock, an annotator)."""
    users = tmp_path / "users"
    write_user(users, "ada", PASSWORD)
    write_user(users, "eve", PASSWORD + " eve")
    clock = Clock()
    found = Admins(Settings(host="0.0.0.0", admins="ada, bob", users_file=str(users), _env_file=None), Store(), clock)
    return found, clock, found.store.annotator("somebody")


def test_the_owner_of_the_machine_is_an_admin_without_signing_in():
    local = Admins(Settings(host="127.0.0.1", _env_file=None), Store())
    assert local.allowed(Request("127.0.0.1:7860", "127.0.0.1"), 1)
    assert not local.allowed(Request("rebound.example", "127.0.0.1"), 1)


def test_over_the_network_nobody_is_an_admin_before_signing_in(team):
    found, _, who = team
    assert not found.allowed(Request("127.0.0.1:7860", "127.0.0.1"), who)
    found.sign_in(Request(), who, "ada", PASSWORD)
    assert found.allowed(Request(), who) and found.name(Request(), who) == "ada"
    assert not found.allowed(Request(), found.store.annotator("another visitor"))
    found.sign_out(who)
    assert not found.allowed(Request(), who)


def test_a_known_user_who_is_not_in_the_list_of_admins_is_none(team):
    found, _, who = team
    found.sign_in(Request(), who, "eve", PASSWORD + " eve")
    assert found.name(Request(), who) == "eve" and not found.allowed(Request(), who)


@pytest.mark.parametrize(("name", "password"), [("ada", "wrong"), ("ada", ""), ("ada", None), ("bob", PASSWORD), ("", ""), (None, None), ("ada:", PASSWORD)])
def test_a_wrong_name_or_password_is_no_sign_in(team, name, password):
    found, _, who = team
    with pytest.raises(WrongSignIn, match="wrong"):
        found.sign_in(Request(), who, name, password)
    assert found.name(Request(), who) is None


def test_after_five_wrong_passwords_even_the_right_one_waits_and_the_wait_grows(team):
    found, clock, who = team
    for _ in range(admins.TRIES):
        with pytest.raises(WrongSignIn, match="is wrong"):
            found.sign_in(Request(), who, "ada", "guess")
    with pytest.raises(WrongSignIn, match="in 30 s"):
        found.sign_in(Request(), who, "ada", PASSWORD)
    clock.now += 31
    with pytest.raises(WrongSignIn, match="is wrong"):
        found.sign_in(Request(), who, "ada", "guess")
    with pytest.raises(WrongSignIn, match="in 60 s"):
        found.sign_in(Request(), who, "ada", PASSWORD)
    found.sign_in(Request(client="10.0.0.8"), who, "ada", PASSWORD)  # the real one, elsewhere, is not locked out
    clock.now += 61
    found.sign_in(Request(), who, "ada", PASSWORD)


def test_off_a_space_a_hugging_face_sign_in_is_a_mock_and_counts_for_nothing(team, monkeypatch):
    found, _, who = team
    request = Request(session={"oauth_info": {"userinfo": {"preferred_username": "bob"}}})
    assert not found.allowed(request, who) and found.name(request, who) is None
    monkeypatch.setattr(settings_module, "ON_SPACE", True)
    assert found.allowed(request, who) and found.name(request, who) == "bob"
    assert not found.allowed(Request(session={"oauth_info": {"userinfo": {"preferred_username": "mallory"}}}), who)
    assert not found.allowed(Request(session={"other": 1}), who) and not found.allowed(Request(), who)


def test_an_empty_list_of_admins_lets_nobody_in():
    found = Admins(Settings(host="0.0.0.0", _env_file=None), Store())
    assert not found.allowed(Request(), found.store.annotator("x")) and not found.takes_passwords()


def test_the_users_file_has_hashes_only_and_is_for_its_owner_alone(tmp_path):
    users = tmp_path / "deep" / "users"
    write_user(users, "ada", PASSWORD)
    write_user(users, "ada", PASSWORD + "2")
    assert list(read_users(users)) == ["ada"]
    assert PASSWORD not in users.read_text() and "$argon2id$" in users.read_text()
    assert users.stat().st_mode & 0o077 == 0
    for name, password in (("a:b", PASSWORD), ("", PASSWORD), (" ada", PASSWORD), ("#x", PASSWORD), ("ada", "short")):
        with pytest.raises(WrongSignIn):
            write_user(users, name, password)


def test_the_command_writes_a_password(tmp_path):
    users = tmp_path / "users"
    command = [sys.executable, "-m", "playground.admins", "--name", "ada", "--users-file", str(users)]
    done = subprocess.run(command, input=PASSWORD + "\n", text=True, capture_output=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    assert admins._right(read_users(users)["ada"], PASSWORD)
    done = subprocess.run(command[:5], text=True, capture_output=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 1 and "--users-file" in done.stderr
