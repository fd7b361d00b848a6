"""Keys for other programs: who has one, and how they end."""

from pathlib import Path

import pytest

from playground.people import keys
from playground.people.keys import KEY_FORM, NoSuchPerson, person_of, run
from tests.stores import cast, file_store, store  # noqa: F401 (fixtures)


def given_out(store, name):  # noqa: F811
    return run(store, "add", name).rsplit(" ", 1)[-1]


def person(store, key):  # noqa: F811
    return person_of(store, f"Bearer {key}")


def test_a_key_is_one_persons_and_only_its_hash_is_kept(file_store):  # noqa: F811
    ann, bob = given_out(file_store, "ann"), given_out(file_store, "bob")
    assert KEY_FORM.fullmatch(ann) and ann != bob
    assert person(file_store, ann) != person(file_store, bob) is not None
    with open(file_store.path, "rb") as file, open(f"{file_store.path}-wal", "rb") as log:
        assert ann.encode() not in file.read() + log.read()


def test_a_second_key_is_the_same_persons(store):  # noqa: F811
    first, second = given_out(store, "ann"), given_out(store, "ann")
    assert person(store, first) == person(store, second)
    assert run(store, "list").startswith("ann: 2 keys, the last of 2")


def test_revoked_keys_are_nobodys_and_the_person_can_have_another(store):  # noqa: F811
    first = given_out(store, "ann")
    who = person(store, first)
    cast(store, who=who)
    assert run(store, "revoke", "ann") == "Revoked: 1 key of ann."
    assert person(store, first) is None
    assert person(store, given_out(store, "ann")) == who
    assert store.vote_totals(who)["listed"] == 1


def test_who_is_forgotten_has_no_key_and_no_name(store):  # noqa: F811
    key = given_out(store, "ann")
    who = person(store, key)
    cast(store, who=who)
    run(store, "forget", "ann")
    assert person(store, key) is None and run(store, "list") == "No keys."
    assert store.conversations(who) == [] and len(store.unfinished_erasures()) == 1
    assert [row["name"] for row in store.rows("select name from api_key")] == [""]
    assert person(store, given_out(store, "ann")) != who, "a new person"


@pytest.mark.parametrize("name", [" ann", "a\nb", "a" * 65])
def test_a_name_that_cannot_be_used_is_refused(store, name):  # noqa: F811
    with pytest.raises(NoSuchPerson):
        run(store, "add", name)


def test_nobodys_keys_cannot_be_revoked(store):  # noqa: F811
    for what in ("revoke", "forget"):
        with pytest.raises(NoSuchPerson, match="ann"):
            run(store, what, "ann")


def test_a_header_without_a_key_is_nobodys(store):  # noqa: F811
    key = given_out(store, "ann")
    for header in ("", key, f"Basic {key}", "Bearer", f"Bearer {key}x", "Bearer " + "x" * 50):
        assert person_of(store, header) is None
    assert person_of(store, f"bearer  {key}") == person(store, key)


def test_the_command_makes_no_database(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert keys.main(["add", "ann", "--data-dir", str(tmp_path / "data")]) == 1
    assert "There is no database" in capsys.readouterr().err


def test_the_command_does_what_its_help_says(file_store, capsys):  # noqa: F811
    """Its help listed every setting of the app, and so did each error."""
    folder = ["--data-dir", str(Path(file_store.path).parent)]
    for command in ("add", "revoke"):
        assert keys.main([command, "ann", *folder]) == 0
    assert keys.main(["revoke", "bob", *folder]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("A key of ann") and "Revoked: 1 key of ann." in out
    assert err == "Nobody has a key under the name bob.\n"
    with pytest.raises(SystemExit):
        keys.main(["--help"])
    said = capsys.readouterr().out
    assert all(command in said for command in keys.COMMANDS) and "--ppo" not in said
