"""Who is an admin, and who is not: the owner by the admin link, names that have signed in, and nobody else."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from playground import settings as settings_module
from playground.people import admins
from playground.people.admins import AdminLink, Admins, TooMany, WrongSignIn, read_users, write_user
from playground.settings import Settings
from playground.store import Store
from tests.waits import until

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)  # a real hash takes a second on a busy machine
PASSWORD = "correct horse battery"


class Request:
    """What a handler knows of a request."""

    def __init__(self, host="nudge.example", client="10.0.0.7", session=None):
        self.headers, self.client = {"host": host}, type("Client", (), {"host": client})
        self.scope = {"session": session} if session else {}


@pytest.fixture
def users(tmp_path):
    """A file of ada, who is an admin, and eve, who is none."""
    path = tmp_path / "users"
    write_user(path, "ada", PASSWORD, CHEAP)
    write_user(path, "eve", PASSWORD + " eve", CHEAP)
    return path


def admins_of(users, window=admins.WINDOW, **changes):
    return Admins(
        Settings(host="0.0.0.0", admins="ada, bob", users_file=str(users), _env_file=None).with_values(**changes),
        Store(),
        window,
        CHEAP,
    )


@pytest.fixture
def team(users):
    """An app that everybody can reach, with the admin ada: (Admins, an annotator)."""
    team_admins = admins_of(users)
    return team_admins, team_admins.store.annotator("somebody")


def guess(team_admins, who, name="ada", client="10.0.0.7", times=1):
    """Wrong passwords; the last answer."""
    for _ in range(times):
        with pytest.raises(WrongSignIn) as refused:
            team_admins.sign_in(Request(client=client), who, name, "guess")
    return refused.value


# -- the owner


@pytest.mark.parametrize(
    "request_",
    [Request("127.0.0.1:7860", "127.0.0.1"), Request("localhost", "::1"), Request("nudge.example", "127.0.0.1")],
)
def test_nobody_is_an_admin_by_where_they_sit(request_):
    """Behind a proxy on the same machine everybody came from 127.0.0.1, and was the owner."""
    local = Admins(Settings(host="127.0.0.1", _env_file=None), Store())
    assert not local.allowed(request_, local.store.annotator("somebody"))


def test_the_owner_is_an_admin_for_thirty_days_and_after_a_restart(users):
    team_admins = admins_of(users)
    who = team_admins.store.annotator("the cookie before")
    team_admins.sign_in_owner(who, "the new cookie")
    again = Admins(team_admins.settings, team_admins.store)
    assert team_admins.store.annotator("the new cookie") == who and again.allowed(Request(), who)
    assert again.store.person(who)["signed_in_until"] == pytest.approx(time.time() + 30 * 24 * 3600, abs=60)
    assert not again.allowed(Request(), team_admins.store.annotator("the cookie before"))
    again.sign_out(who)
    assert not again.allowed(Request(), who)


def test_an_admin_link_works_once():
    link, opened = AdminLink(), []
    first = link.issue()
    token = link.issue()
    for wrong in (first, "", token[:-1], token + "x", "\udc80"):
        with pytest.raises(WrongSignIn, match="used before"):
            link.open(wrong, "10.0.0.7", lambda: opened.append("wrong"))
    link.open(token, "10.0.0.7", lambda: opened.append("right"))
    with pytest.raises(WrongSignIn, match="used before"):
        link.open(token, "10.0.0.7", lambda: opened.append("again"))
    assert opened == ["right"]


def test_an_admin_link_that_the_store_could_not_keep_works_again():
    link, opened = AdminLink(), []
    token = link.issue()
    with pytest.raises(OSError):
        link.open(token, "", Path("/nowhere/at/all").read_text)
    link.open(token, "", lambda: opened.append(1))
    assert opened == [1]


def test_two_browsers_that_open_one_link_at_once_are_not_both_the_owner():
    link, opened, refused = AdminLink(), [], []
    token, together = link.issue(), threading.Barrier(8)

    def browser():
        together.wait()
        try:
            link.open(token, "", lambda: (time.sleep(0.01), opened.append(1)))
        except WrongSignIn:
            refused.append(1)

    threads = [threading.Thread(target=browser) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(opened), len(refused)) == (1, 7)


@pytest.mark.parametrize("name", ["owner", "Owner", "OWNER"])
def test_the_owners_name_is_nobody_elses(users, name, monkeypatch):
    with pytest.raises(WrongSignIn, match="admin link"):
        write_user(users, name, PASSWORD)
    users.write_text(users.read_text().replace("ada:", f"{name}:"))
    team_admins = admins_of(users)
    who = team_admins.store.annotator("somebody")
    if name == "owner":
        with pytest.raises(WrongSignIn):
            team_admins.sign_in(Request(), who, name, PASSWORD)
    monkeypatch.setattr(settings_module, "ON_SPACE", True)
    assert not team_admins.allowed(Request(session={"oauth_info": {"userinfo": {"preferred_username": name}}}), who)


# -- names and passwords


def test_over_the_network_nobody_is_an_admin_before_signing_in(team):
    team_admins, who = team
    assert not team_admins.allowed(Request("127.0.0.1:7860", "127.0.0.1"), who)
    team_admins.sign_in(Request(), who, "ada", PASSWORD)
    assert team_admins.allowed(Request(), who) and team_admins.name(Request(), who) == "ada"
    assert not team_admins.allowed(Request(), team_admins.store.annotator("another visitor"))
    team_admins.sign_out(who)
    assert not team_admins.allowed(Request(), who)


def test_a_known_user_who_is_not_in_the_list_of_admins_is_none(team):
    team_admins, who = team
    team_admins.sign_in(Request(), who, "eve", PASSWORD + " eve")
    assert team_admins.name(Request(), who) == "eve" and not team_admins.allowed(Request(), who)


@pytest.mark.parametrize(
    ("name", "password"),
    [("ada", "wrong"), ("ada", ""), ("ada", None), ("bob", PASSWORD), ("", ""), (None, None), ("ada:", PASSWORD)],
)
def test_a_wrong_name_or_password_is_no_sign_in(team, name, password):
    team_admins, who = team
    with pytest.raises(WrongSignIn, match="wrong"):
        team_admins.sign_in(Request(), who, name, password)
    assert team_admins.name(Request(), who) is None


# -- what strangers may try


def test_after_five_wrong_passwords_even_the_right_one_waits_and_elsewhere_it_does_not(team):
    team_admins, who = team
    assert "is wrong" in str(guess(team_admins, who, times=5))
    with pytest.raises(TooMany, match=r"^Too many wrong passwords\. Try again in \d{3} seconds\.$"):
        team_admins.sign_in(Request(), who, "ada", PASSWORD)
    team_admins.sign_in(Request(client="10.0.0.8"), who, "ada", PASSWORD)


def test_the_wait_ends(users, monkeypatch):
    team_admins, now, passed = admins_of(users), time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: now() + passed[0])
    who = team_admins.store.annotator("somebody")
    guess(team_admins, who, times=5)
    assert isinstance(guess(team_admins, who), TooMany)
    passed[0] = admins.WINDOW + 1
    team_admins.sign_in(Request(), who, "ada", PASSWORD)


def test_the_right_password_is_not_counted(users):
    team_admins = admins_of(users, limits={"sign_in_tries": 1})
    for _ in range(3):
        team_admins.sign_in(Request(), team_admins.store.annotator("somebody"), "ada", PASSWORD)


def test_one_address_cannot_go_through_all_names(users):
    team_admins = admins_of(users, limits={"sign_in_tries": 1})
    team_admins._salt = bytes(16)  # with a random one, two of these names count as one now and then
    who = team_admins.store.annotator("somebody")
    answers = [guess(team_admins, who, name) for name in ("bob", "cleo", "dan", "eve", "fay")]
    assert [isinstance(answer, TooMany) for answer in answers] == [False] * 4 + [True]


def test_one_household_is_one_address(users):
    """Everybody with IPv6 has 2 to the power of 64 addresses."""
    team_admins = admins_of(users, limits={"sign_in_tries": 1})
    who = team_admins.store.annotator("somebody")
    guess(team_admins, who, client="2001:db8::1")
    assert isinstance(guess(team_admins, who, client="2001:db8::ffff:2"), TooMany)
    assert not isinstance(guess(team_admins, who, client="2001:db8:0:1::1"), TooMany)


def test_a_name_under_attack_from_everywhere_is_not_locked_for_who_was_here_before(users):
    team_admins = admins_of(users, limits={"sign_in_tries": 1})
    who = team_admins.store.annotator("somebody")
    team_admins.sign_in(Request(client="10.9.9.9"), who, "ada", PASSWORD)
    answers = [guess(team_admins, who, client=f"10.1.0.{n}") for n in range(21)]
    assert [isinstance(answer, TooMany) for answer in answers] == [False] * 20 + [True]
    team_admins.sign_in(Request(client="10.9.9.9"), who, "ada", PASSWORD)
    with pytest.raises(TooMany):
        team_admins.sign_in(Request(client="10.8.8.8"), who, "ada", PASSWORD)
    guess(team_admins, who, "eve", client="10.8.8.8")  # another name is not concerned


@pytest.mark.parametrize("changes", [{"admins": ""}, {"users_file": ""}])
def test_where_nobody_can_sign_in_nothing_is_hashed_or_kept(users, changes, monkeypatch):
    """40 sign-ins at once took 2.3 GB, even with no admins set."""
    monkeypatch.setattr(Admins, "_matches", lambda *_: pytest.fail("a password was hashed"))
    team_admins = admins_of(users, **changes)
    with pytest.raises(WrongSignIn, match="Nobody can sign in with a password here"):
        team_admins.sign_in(Request(), team_admins.store.annotator("somebody"), "x" * 100_000_000, PASSWORD)


def test_a_name_or_password_that_is_too_long_is_neither_hashed_nor_kept(team, monkeypatch):
    """A name of 100 MB was kept in memory."""
    monkeypatch.setattr(Admins, "_matches", lambda *_: pytest.fail("a password was hashed"))
    team_admins, who = team
    for name, password in (
        ("x" * 65, PASSWORD),
        ("x" * 100_000_000, PASSWORD),
        ("ada", "x" * 257),
        ("ada" + " " * 100 + "x", PASSWORD),
    ):
        with pytest.raises(WrongSignIn, match="at most 64 characters and a password at most 256"):
            team_admins.sign_in(Request(), who, name, password)
    assert not team_admins._by_both.storage.events


def test_one_password_is_hashed_at_a_time_and_few_wait(users, monkeypatch):
    """Each hash takes 64 MB, and 40 at once were possible."""
    hashing, most, outcomes, few = [], [], [], admins.MOST_WAITING

    def slow(admins, hashed, password):
        hashing.append(1)
        most.append(len(hashing))
        until(lambda: len(outcomes) >= 40 - few)  # the others have been refused
        hashing.pop()
        return False

    monkeypatch.setattr(Admins, "_matches", slow)
    team_admins, together = admins_of(users, limits={"sign_in_tries": 1000}), threading.Barrier(40)

    def stranger(number):
        together.wait()
        outcomes.append(str(guess(team_admins, 1, f"name {number}", f"10.0.0.{number}")))

    threads = [threading.Thread(target=stranger, args=(n,)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert outcomes.count("Other people are signing in. Try again in a few seconds.") == 40 - few
    assert outcomes.count("The name or the password is wrong.") == few


def test_guesses_at_the_same_moment_count_like_any(users):
    """Where tries were counted after the hash, forty at once were one."""
    team_admins, outcomes, together = admins_of(users), [], threading.Barrier(admins.MOST_WAITING)

    def stranger():
        together.wait()
        outcomes.extend(type(guess(team_admins, 1)) for _ in range(3))

    threads = [threading.Thread(target=stranger) for _ in range(admins.MOST_WAITING)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(WrongSignIn) == 5


def test_a_users_file_that_cannot_be_read_is_no_traceback_for_who_signs_in(users, caplog):
    users.write_bytes("ada:ü".encode("utf-16"))
    team_admins = admins_of(users)
    with pytest.raises(WrongSignIn, match="Its owner finds the reason in the log"):
        team_admins.sign_in(Request(), team_admins.store.annotator("somebody"), "ada", PASSWORD)
    assert str(users) in caplog.text


# -- Hugging Face, and the file


def test_off_a_space_a_hugging_face_sign_in_is_a_mock_and_counts_for_nothing(team, monkeypatch):
    team_admins, who = team
    request = Request(session={"oauth_info": {"userinfo": {"preferred_username": "bob"}}})
    assert not team_admins.allowed(request, who) and team_admins.name(request, who) is None
    monkeypatch.setattr(settings_module, "ON_SPACE", True)
    assert team_admins.allowed(request, who) and team_admins.name(request, who) == "bob"
    assert not team_admins.allowed(
        Request(session={"oauth_info": {"userinfo": {"preferred_username": "mallory"}}}), who
    )
    assert not team_admins.allowed(Request(session={"other": 1}), who) and not team_admins.allowed(Request(), who)


def test_an_empty_list_of_admins_lets_nobody_in():
    team_admins = Admins(Settings(host="0.0.0.0", _env_file=None), Store())
    assert not team_admins.allowed(Request(), team_admins.store.annotator("x")) and not team_admins.takes_passwords()


def test_the_users_file_has_hashes_only_and_is_for_its_owner_alone(tmp_path):
    users = tmp_path / "deep" / "users"
    write_user(users, "ada", PASSWORD, CHEAP)
    write_user(users, "ada", PASSWORD + "2", CHEAP)
    assert list(read_users(users)) == ["ada"]
    assert PASSWORD not in users.read_text() and "$argon2id$" in users.read_text()
    assert users.stat().st_mode & 0o077 == 0
    for name, password in (
        ("a:b", PASSWORD),
        ("", PASSWORD),
        (" ada", PASSWORD),
        ("#x", PASSWORD),
        ("a\nb", PASSWORD),
        ("ada", "short"),
        ("x" * 65, PASSWORD),
        ("ada", "x" * 257),
    ):
        with pytest.raises(WrongSignIn):
            write_user(users, name, password)


def test_the_command_writes_a_password(tmp_path):
    users = tmp_path / "users"
    command = [sys.executable, "-m", "playground.people.admins", "--name", "ada", "--users-file", str(users)]
    done = subprocess.run(
        command, input=PASSWORD + "\n", text=True, capture_output=True, cwd=Path(__file__).parent.parent
    )
    assert done.returncode == 0, done.stderr
    assert PasswordHasher().verify(read_users(users)["ada"], PASSWORD)
    done = subprocess.run(command[:5], text=True, capture_output=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 1 and "--users-file" in done.stderr
