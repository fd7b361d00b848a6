"""The users file, its command, and what it takes to sign in."""

import getpass
import os
import stat
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from playground import settings as settings_module
from playground.people import passwords
from playground.people import users as command
from playground.people.delays import Delays
from playground.people.names import names_of, person_called
from playground.people.passwords import Cost, Hasher, checked_name, checked_password, encoded
from playground.people.refusals import TooMany, UsersUnreadable, WrongSignIn
from playground.people.sign_ins import SignIns
from playground.people.users_file import DAY, UsersFile, hand_over, new_invitation, parsed, text_of
from playground.settings import Settings
from playground.store import Store

CHEAP = Hasher(Cost(2, 1, 1))
PASSWORD = "correct horse battery"


class Clock:
    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "people" / "users"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def team(path, clock):
    """Sign-ins of ann, an annotator; a day without use ends them."""
    UsersFile(path).change(lambda content: content.with_user("ann", "annotator", CHEAP.hash(PASSWORD)))
    settings = Settings(_env_file=None).with_values(people={"users": str(path), "session_days": 1})
    return SignIns(Store(), settings, CHEAP, clock)


def run(path, *arguments, typed=None, monkeypatch=None):
    """What a command prints, or raises."""
    if typed is not None:
        monkeypatch.setattr("playground.people.users.asked_password", lambda name: checked_password(typed, name))
    parsed_arguments = command.parser().parse_args([*arguments, "--file", str(path)])
    return command.run(UsersFile(path), parsed_arguments, Settings(_env_file=None, port=7860), CHEAP)


# -- passwords


def test_a_hash_is_the_one_that_scrypt_gives():
    """The vector of RFC 7914, section 12."""
    digest = bytes.fromhex("7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2")  # its first half
    known = f"scrypt$16384$8$1${encoded(b'SodiumChloride')}${encoded(digest)}"
    assert Hasher(Cost(2, 1, 1)).matches(known, "pleaseletmein")
    assert not CHEAP.matches(known, "pleaseletmeinn")


def test_equal_passwords_have_different_hashes_and_both_match():
    one, two = CHEAP.hash(PASSWORD), CHEAP.hash(PASSWORD)
    assert one != two and CHEAP.matches(one, PASSWORD) and CHEAP.matches(two, PASSWORD)
    assert PASSWORD not in one


def test_an_accent_counts_the_same_however_it_is_typed():
    assert CHEAP.matches(CHEAP.hash("caf\u00e9 caf\u00e9 caf\u00e9"), "cafe\u0301 cafe\u0301 cafe\u0301")


@pytest.mark.parametrize(
    "hashed",
    [
        None,
        "",
        "plain text",
        "scrypt$3$8$1$c2FsdHNhbHQ$" + "A" * 43,
        "scrypt$0$8$1$c2FsdHNhbHQ$" + "A" * 43,
        "scrypt$9999999$99$99$c2FsdHNhbHQ$" + "A" * 43,
    ],
)
def test_what_is_no_hash_matches_nothing(hashed):
    assert not CHEAP.matches(hashed, PASSWORD) and not CHEAP.matches(hashed, "")


def test_a_hash_that_would_take_minutes_is_not_tried(monkeypatch):
    """Everybody else's sign-in would wait for it."""
    monkeypatch.setattr(passwords, "derived", lambda *_: pytest.fail("hashed"))
    assert not CHEAP.matches("scrypt$32768$8$99$c2FsdHNhbHQ$" + "A" * 43, PASSWORD)


@pytest.mark.parametrize("name", ["Cookie", "host", "X-Forwarded-For", "Sec-Fetch-Site", "Content-Length"])
def test_a_header_with_another_meaning_names_no_user(name):
    with pytest.raises(ValidationError, match="means something else"):
        Settings(_env_file=None, people={"proxy_header": name})
    assert Settings(_env_file=None, people={"proxy_header": "X-Auth-User"}).people.proxy_header == "X-Auth-User"


def test_the_usual_cost_is_32_mb():
    assert 32 << 20 <= Cost().memory < 33 << 20


@pytest.mark.parametrize("name", ["", " ", "a:b", "a\nb", "a\x00b", "x" * 65])
def test_names_that_cannot_be_used(name):
    with pytest.raises(WrongSignIn):
        checked_name(name)


@pytest.mark.parametrize("password", ["", "short", "x" * 257, "aaaaaaaaaaaa", "A.N.N.A.L.E.E"])
def test_passwords_that_cannot_be_used(password):
    with pytest.raises(WrongSignIn):
        checked_password(password, "a.n.n.a.l.e.e")


# -- the file


def test_the_file_is_for_its_owner_alone_and_has_no_password(path, team):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert PASSWORD not in path.read_text() and "user:ann:annotator:" in path.read_text()
    assert [found.name for found in path.parent.iterdir() if "partial" in found.name] == []


def test_what_is_written_is_read_again(path, team):
    _, invitation = new_invitation("viewer", 1, " a:\nb\u2028c" + "x" * 100)
    assert invitation.by == "abc" + "x" * 61
    UsersFile(path).change(lambda content: content.with_invitation(invitation))
    content = UsersFile(path).content()
    assert parsed(text_of(content)) == content and content.invitations == (invitation,)


@pytest.mark.parametrize("line", ["what", "user:ann:king:0123456789abcdef:x", "invitation:viewer:soon:00", "ann:x"])
def test_a_line_that_cannot_be_read_lets_nobody_in(path, team, line):
    good = path.read_text()
    token = team.sign_in("ann", PASSWORD, "1.1.1.1")
    path.write_text(good + line + "\n")
    with pytest.raises(UsersUnreadable):
        team.find(token)
    with pytest.raises(UsersUnreadable):
        team.sign_in("ann", PASSWORD, "1.1.1.1")
    assert not team.may_write(team.store.annotator(token))
    path.write_text(good)
    assert team.find(token).user.name == "ann"


def test_a_change_that_is_refused_or_fails_leaves_the_file(path, team, monkeypatch):
    before = path.read_text()
    with pytest.raises(WrongSignIn):
        UsersFile(path).change(lambda content: content.with_user("ANN", "admin", CHEAP.hash(PASSWORD)))
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(UsersUnreadable):
        UsersFile(path).change(lambda content: content.without_user("ann"))
    assert path.read_text() == before and {p.name for p in path.parent.iterdir()} <= {"users", "users.lock"}


def test_changes_at_once_are_all_kept(path):
    def add(i):
        UsersFile(path).change(lambda content: content.with_user(f"user {i}", "viewer", CHEAP.hash(PASSWORD)))

    threads = [threading.Thread(target=add, args=(i,)) for i in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(UsersFile(path).content().users) == 8


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_what_root_adds_belongs_to_whose_the_folder_is(path):
    path.parent.mkdir()
    os.chown(path.parent, 12345, 12346)
    for name in ("ann", "bob"):
        UsersFile(path).change(lambda content, n=name: content.with_user(n, "viewer", CHEAP.hash(PASSWORD)))
    found = {entry.name: (entry.stat().st_uid, entry.stat().st_gid) for entry in path.parent.iterdir()}
    assert found == {"users": (12345, 12346), "users.lock": (12345, 12346)}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_root_gives_no_file_away_that_a_link_leads_to(tmp_path):
    """The folder is the app's user's, who can put a link in the place of what root has just made there."""
    folder = tmp_path / "people"
    folder.mkdir()
    os.chown(folder, 12345, 12346)
    roots, link = tmp_path / "of root", folder / "users.lock"
    roots.touch()
    link.symlink_to(roots)
    hand_over(link, folder / "users")
    assert (roots.stat().st_uid, link.lstat().st_uid) == (0, 12345)


def test_a_file_that_was_edited_on_windows_is_read(path, team):
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert team.sign_in("ann", PASSWORD, "1.1.1.1")


def test_without_a_file_there_is_nobody(tmp_path):
    assert UsersFile(tmp_path / "none").content().users == ()


# -- the command


def test_the_command_keeps_users(path, monkeypatch):
    assert "can sign in, as admin" in run(
        path, "add", "Ann", "--role", "admin", typed=PASSWORD, monkeypatch=monkeypatch
    )
    first = UsersFile(path).content().named("ann")
    with pytest.raises(WrongSignIn, match="taken"):
        run(path, "add", "ann", typed=PASSWORD, monkeypatch=monkeypatch)
    run(path, "passwd", "ann", typed=PASSWORD + "!", monkeypatch=monkeypatch)
    second = UsersFile(path).content().named("ann")
    assert (second.id, second.role) == (first.id, "admin") and second.stamp != first.stamp
    assert CHEAP.matches(second.hashed, PASSWORD + "!") and not CHEAP.matches(second.hashed, PASSWORD)
    run(path, "role", "ann", "viewer")
    assert run(path, "list") == "Ann: viewer"
    run(path, "remove", "ANN")
    assert run(path, "list") == "No users."
    with pytest.raises(WrongSignIn, match="There is no user"):
        run(path, "remove", "ann")


def test_a_user_without_a_password_has_none_that_works(path, team):
    run(path, "add", "bob", "--no-password")
    for password in ("", "-", PASSWORD):
        with pytest.raises(WrongSignIn):
            team.sign_in("bob", password, "1.1.1.1")
    assert team.find(team.sign_in_by_proxy("BOB")).user.name == "bob"
    assert team.find(team.sign_in_by_proxy("bob"), "ann") is None


@pytest.mark.parametrize("said", ["\uff42\uff4f\uff42", "\u212aim", "bo\u1d47", "bob\u200b", "b\u043eb"])
def test_a_name_that_only_looks_like_anothers_is_nobody_by_a_proxy(path, team, said):
    """Whoever registers such a name where the proxy asks would have been the other one."""
    run(path, "add", "bob", "--no-password")
    run(path, "add", "kim", "--no-password")
    with pytest.raises(WrongSignIn):
        team.sign_in_by_proxy(said)
    assert team.find(team.sign_in_by_proxy("Kim"), "KIM").user.name == "kim"
    assert team.find(team.sign_in_by_proxy("bob"), said) is None


def test_the_command_prints_an_invitation(path):
    link = run(path, "invite", "--role", "viewer", "--address", "https://nudge.example/").split()[-1]
    assert link.startswith("https://nudge.example/invitation/")
    token = link.rsplit("/", 1)[-1]
    found = UsersFile(path).content().invitation(token)
    assert found.role == "viewer" and token not in path.read_text()
    short = found.short
    assert f"invitation {short} as viewer, until" in run(path, "list") and f"made by {found.by}" in run(path, "list")
    assert found.by == getpass.getuser() and token not in path.read_text()
    assert run(path, "take-back", short) == f"The invitation {short} is taken back."
    assert UsersFile(path).content().invitation(token) is None and run(path, "list") == "No users."
    with pytest.raises(WrongSignIn, match="no such invitation any more"):
        run(path, "take-back", short)
    for days in ("0", "-1", "1000", "nan"):
        with pytest.raises(command.CannotDo):
            run(path, "invite", "--days", days)


def test_the_command_by_its_name_reads_the_password_from_the_input(path, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", (tmp_path / "typed").open("w+"))
    Path(tmp_path / "typed").write_text("short\n")
    assert command.main(["add", "ann", "--file", str(path)]) == 1
    assert "at least 10" in capsys.readouterr().err and not path.exists()
    assert command.main(["list"]) == 1 and "--people.users" in capsys.readouterr().err
    monkeypatch.setenv("NUDGE_PEOPLE_USERS", str(path))
    assert settings_module.read([]).people.users == str(path)
    assert command.main(["list"]) == 0 and capsys.readouterr().out == "No users.\n"


# -- signing in


def test_a_sign_in_is_found_again_by_another_server(team, path, clock):
    token = team.sign_in("Ann ", PASSWORD, "1.1.1.1")
    again = SignIns(team.store, Settings(_env_file=None).with_values(people={"users": str(path)}), CHEAP, clock)
    assert again.find(token) == team.find(token) and team.find(token).annotator == team.store.annotator(token)
    assert team.find("x" * 43) is None and team.find(None) is None
    assert token not in str(team.store.rows("select * from sign_in"))


def test_a_sign_in_that_is_used_lasts_and_one_that_is_not_ends(team, clock):
    used, unused = (team.sign_in("ann", PASSWORD, "1.1.1.1") for _ in range(2))
    for _ in range(4):
        clock.now += 0.5 * DAY
        assert team.find(used)
    assert team.find(unused) is None
    clock.now += 1.01 * DAY
    assert team.find(used) is None
    team.sign_in("ann", PASSWORD, "1.1.1.1")
    assert len(team.store.rows("select * from sign_in")) == 1, "those that are over are removed"


def test_a_person_has_a_bounded_number_of_sign_ins(team, clock):
    tokens = []
    for _ in range(52):
        clock.now += 1
        tokens.append(team.sign_in("ann", PASSWORD, "1.1.1.1"))
    assert [team.find(token) is not None for token in tokens] == [False] * 2 + [True] * 50


def test_a_backup_takes_no_training_for_a_deletion(path, team, tmp_path):
    """A person without a cookie's hash would count as one who deleted everything, and be deleted by a restore."""
    store = Store(tmp_path / "nudge.db")
    who = store.begin_sign_in("an id", "x" * 43, "a stamp", 1.0)
    store.allow_training(who, False)
    assert [erasure.everything for erasure in store.copy_to(tmp_path / "one").erasures] == [False]
    store.forget(who)
    assert [erasure.everything for erasure in store.copy_to(tmp_path / "two").erasures][-1]
    assert store.rows("select * from sign_in") == [] and store.account(who) is None
    store.close()


def test_who_has_keys_alone_may_write(team):
    assert team.may_write(team.store.add_key("robot", "nudge-key"))


def wrong(team, name, address, times):
    """The answers to wrong passwords."""
    kinds = []
    for _ in range(times):
        with pytest.raises(WrongSignIn) as refused:
            team.sign_in(name, "guess", address)
        kinds.append(type(refused.value))
    return kinds


def test_guesses_from_one_address_wait_and_others_do_not(team):
    assert wrong(team, "ann", "1.1.1.1", 6) == [WrongSignIn] * 5 + [TooMany]
    with pytest.raises(TooMany):
        team.sign_in("ann", PASSWORD, "1.1.1.1")
    assert team.sign_in("ann", PASSWORD, "2.2.2.2")
    assert wrong(team, "nobody", "3.3.3.3", 6) == [WrongSignIn] * 5 + [TooMany], "as for a name that there is"


def test_an_address_that_tries_many_names_waits(team):
    kinds = [wrong(team, f"name {i}", "2001:db8::1", 1)[0] for i in range(21)]
    assert kinds == [WrongSignIn] * 20 + [TooMany]
    assert wrong(team, "another", "2001:db8::2", 1) == [TooMany], "of the same household"


def test_wrong_passwords_of_others_at_an_address_keep_nobody_out_who_was_here_before(team, path):
    """A team may share one address."""
    UsersFile(path).change(lambda content: content.with_user("new", "viewer", CHEAP.hash(PASSWORD)))
    team.sign_in("ann", PASSWORD, "1.1.1.1")
    for i in range(20):
        wrong(team, f"name {i}", "1.1.1.1", 1)
    assert team.sign_in("ann", PASSWORD, "1.1.1.1")
    with pytest.raises(TooMany):
        team.sign_in("new", PASSWORD, "1.1.1.1")
    assert wrong(team, "ann", "1.1.1.1", 6) == [WrongSignIn] * 5 + [TooMany], "ann's own are counted still"


def test_wrong_links_make_links_wait_and_no_password(team):
    """Any page can let its readers' browsers open links here."""
    kinds = []
    for i in range(21):
        with pytest.raises(WrongSignIn) as refused:
            team.invitation(f"wrong {i}", "1.1.1.1")
        kinds.append(type(refused.value))
    assert kinds == [WrongSignIn] * 20 + [TooMany]
    assert team.sign_in("ann", PASSWORD, "1.1.1.1")
    token, invitation = new_invitation("viewer", 1)
    team.users.change(lambda content: content.with_invitation(invitation))
    assert team.invitation(token, "1.1.1.1") == invitation, "the right one never waits"


def test_guesses_from_everywhere_keep_nobody_out_who_was_here_before(team):
    team.sign_in("ann", PASSWORD, "1.1.1.1")
    kinds = [wrong(team, "ann", f"10.0.{i}.1", 1)[0] for i in range(101)]
    assert kinds == [WrongSignIn] * 100 + [TooMany]
    assert team.sign_in("ann", PASSWORD, "1.1.1.1")


def test_delays_double_up_to_the_longest_and_are_forgotten_after_quiet(clock):
    delays = Delays(3, 60, most_keys=10, clock=clock)
    waits = []
    for _ in range(12):
        clock.now += delays.seconds_to_wait("ann")
        delays.failed("ann")
        waits.append(delays.seconds_to_wait("ann"))
    assert waits == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    clock.now += 3601
    delays.failed("ann")
    assert delays.seconds_to_wait("ann") == 0
    for i in range(1000):
        delays.failed("somebody", str(i))
    assert len(delays._failures) == 10


def test_only_so_many_wait_while_a_password_is_hashed():
    hasher = Hasher(Cost(2, 1, 1))
    for _ in range(5):
        hasher._waiting.acquire()
    with pytest.raises(TooMany), hasher.one_at_a_time():
        pass


# -- names


def test_people_have_the_names_of_the_users_file_for_as_long_as_they_are_users(team, path):
    team.sign_in("ann", PASSWORD, "192.0.2.1")
    store, users = team.store, team.users
    key, visitor = store.add_key("bot", "k"), store.annotator("x" * 43)
    assert names_of(store, users, [1, key, visitor, 99]) == {1: "ann", key: "bot"}
    assert person_called(store, users, " ANN ") == 1 and person_called(store, users, "bot") == key
    assert person_called(store, users, "zoe") is None is person_called(store, None, "ann")
    users.change(lambda content: content.without_user("ann"))
    assert names_of(store, users, [1]) == {} and person_called(store, users, "ann") is None
    path.write_text("nonsense")
    assert names_of(store, UsersFile(path), [1, key]) == {key: "bot"}, "who has no need of the file is named"


def test_whoever_came_last_is_meant_by_a_name_that_several_had():
    store = Store()
    first, last = store.annotator("first"), store.annotator("last")
    for person in (first, last):
        store.sign_in(person, "ada", 0)
    assert names_of(store, None, [first, last]) == {first: "ada", last: "ada"}
    assert person_called(store, None, "ada") == last
    store.forget(last)
    assert person_called(store, None, "ada") == first and names_of(store, None, [last]) == {}
