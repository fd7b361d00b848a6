"""What people judged, as files: which rows are in them, in which form, and the card beside them."""

import json
import os

import pytest

from playground.data import export, formats
from playground.data.__main__ import main
from playground.data.export import Export
from playground.data.raw_rows import CannotRead
from playground.data.records import JudgedPair
from playground.store import Filters, Store, StoreError
from playground.store import judged as judged_module
from tests.stores import candidate, cast, duel, outcome, store  # noqa: F401 (fixtures)


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def exported(store, tmp_path, format="everything", file=None, **more):
    """The rows of a file of an export."""
    export.write(store, Export(format, **more), tmp_path / "out")
    return rows(tmp_path / "out" / f"{file or format}.jsonl")


def say(store, who, text, replies=("left", "right"), conversation=None, choice="a", versions=(0, 0)):
    """One turn of a chat with a vote; returns the duel's row and the vote's id."""
    conversation = conversation or store.new_conversation(who)
    sides = [candidate(1, versions[0]), candidate(2, versions[1])]
    number = store.start_duel(conversation, text, [1, 2, 3], sides)
    store.finish_duel(number, [outcome(reply, [4, i]) for i, reply in enumerate(replies)])
    row = store.duel(number)
    vote = store.vote(number, who, choice, row["right" if choice == "b" else "left"]["message"])
    return row, vote


# -- which rows


def test_a_pair_has_its_chat_with_the_system_prompt_and_edits_as_they_were_sent(store, tmp_path):
    who = store.annotator("ann")
    conversation = store.new_conversation(who, "Be brief.")
    first, _ = say(store, who, "Hello", ("Hi.", "Good day."), conversation)
    store.demonstrate(first["left"]["message"], who, "Hi there!")
    say(store, who, "And now?", ("Go.", "Stay."), conversation, "b")
    second = exported(store, tmp_path, file="pairs")[1]
    assert second["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi there!"},
        {"role": "user", "content": "And now?"},
    ]
    assert (second["left"], second["right"], second["choice"]) == ("Go.", "Stay.", "b")


def test_what_does_not_count_is_not_exported(store, tmp_path):
    """Replaced votes, skips, deleted chats, people who said no, and votes that an admin left out."""
    ann, bob = store.annotator("ann"), store.annotator("bob")
    row, _ = say(store, ann, "kept", choice="a")
    store.vote(row["id"], ann, "tie", row["left"]["message"])
    say(store, ann, "skipped", choice="skip")
    deleted, _ = say(store, ann, "deleted")
    store.delete_conversation(deleted["conversation"], ann)
    refused, _ = say(store, bob, "refused")
    store.rate(refused["left"]["message"], bob, 1)
    store.demonstrate(refused["left"]["message"], bob, "better")
    store.allow_training(bob, False)
    _, left_out = say(store, ann, "left out")
    store.exclude_vote(left_out, True)
    export.write(store, Export("everything"), tmp_path / "out")
    pairs = rows(tmp_path / "out" / "pairs.jsonl")
    assert [(pair["messages"][0]["content"], pair["choice"]) for pair in pairs] == [("kept", "tie")]
    assert rows(tmp_path / "out" / "thumbs.jsonl") == [] == rows(tmp_path / "out" / "edits.jsonl")
    assert store.new_votes() == 1, "the same votes as the page counts"
    prompts = [row["prompt"][0]["content"] for row in rows(tmp_path / "out" / "prompts.jsonl")]
    assert prompts == ["kept", "skipped", "left out"], "a prompt says nothing about a reply"


def test_a_vote_that_an_admin_left_out_comes_back_and_a_changed_one_stays_out(store):
    who = store.annotator("ann")
    row, vote = say(store, who, "Hello")
    store.exclude_vote(vote, True)
    assert store.new_votes() == 0 and list(store.judged_pairs()) == []
    changed = store.vote(row["id"], who, "b", row["right"]["message"])
    assert store.new_votes() == 0, "otherwise a person could undo it"
    with pytest.raises(StoreError):
        store.exclude_vote(vote, False)
    store.exclude_vote(changed, False)
    assert store.new_votes() == 1 and len(list(store.judged_pairs())) == 1


def test_rows_come_in_pages_and_none_is_lost(store, monkeypatch):
    monkeypatch.setattr(judged_module, "PAGE", 2)
    for number in range(5):
        say(store, store.annotator(f"person {number % 2}"), f"message {number}")
    assert [row["messages"][0]["content"] for row in store.judged_pairs()] == [f"message {n}" for n in range(5)]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"version": 1}, ["two"]),
        ({"version": 0}, ["one", "three"]),
        ({"choice": "b"}, ["two"]),
        ({"tag": "clearer"}, ["three"]),
        ({"person": 2}, ["two"]),
        ({"text": "ONE"}, ["one"]),
        ({"text": "50%"}, ["three"]),
        ({"text": "%"}, ["three"]),
        ({"since": "9999"}, []),
        ({"until": "9999"}, ["one", "two", "three"]),
        ({"person": 1, "choice": "a"}, ["one", "three"]),
    ],
)
def test_filters_narrow_the_votes(store, filters, expected):
    ann, bob = store.annotator("ann"), store.annotator("bob")
    store.request_round()
    taken = store.take_round("w", lease_seconds=9)
    store.add_policy(taken["id"], "w", parent=0)
    say(store, ann, "one")
    say(store, bob, "two", choice="b", versions=(1, 1))
    _, vote = say(store, ann, "three", ("50% more", "half"))
    store.explain(vote, ann, ["clearer"])
    found = list(store.judged_pairs(Filters(**filters)))
    assert [row["messages"][0]["content"] for row in found] == expected


def test_thumbs_and_edits_have_no_choice_and_no_tag(store):
    who = store.annotator("ann")
    row, _ = say(store, who, "Hello")
    store.rate(row["left"]["message"], who, -1)
    store.demonstrate(row["right"]["message"], who, "Better.")
    assert [thumb["thumb"] for thumb in store.thumbs()] == [-1]
    assert [(edit["before"], edit["reply"]) for edit in store.edits(Filters(text="better"))] == [("right", "Better.")]
    assert list(store.thumbs(Filters(choice="a"))) == [] == list(store.edits(Filters(tag="clearer")))


# -- TRL's forms

HELLO = [{"role": "user", "content": "Hello"}]


def said(text):
    return [{"role": "assistant", "content": text}]


def pair(choice="b", **more):
    return JudgedPair(HELLO, "Hi.", "Good day.", choice, **more)


def columns(row, *names):
    return {name: row[name] for name in names}


def test_preference_explicit_and_conversational():
    (row,) = formats.preference(pair(left_version=3, right_version=4))
    assert columns(row, "prompt", "chosen", "rejected", "chosen_version", "rejected_version") == {
        "prompt": HELLO,
        "chosen": said("Good day."),
        "rejected": said("Hi."),
        "chosen_version": 4,
        "rejected_version": 3,
    }


def test_preference_implicit():
    (row,) = formats.preference(pair("a"), explicit=False)
    assert "prompt" not in row and row["chosen"] == [*HELLO, *said("Hi.")]
    assert row["rejected"] == [*HELLO, *said("Good day.")]


def test_preference_as_texts_is_that_of_hh_rlhf():
    (row,) = formats.preference(pair("a"), formats.plain)
    assert columns(row, "prompt", "chosen", "rejected") == {
        "prompt": "\n\nHuman: Hello\n\nAssistant:",
        "chosen": " Hi.",
        "rejected": " Good day.",
    }
    (row,) = formats.preference(pair("a"), formats.plain, explicit=False)
    assert row["chosen"] == "\n\nHuman: Hello\n\nAssistant: Hi."


@pytest.mark.parametrize("choice", ["tie", "both_bad"])
@pytest.mark.parametrize("flags", [{}, {"plain": True}, {"implicit": True}])
def test_ties_and_both_bad_are_in_a_file_of_their_own(store, tmp_path, choice, flags):
    """They were rows with the left reply as chosen, which TRL's trainers take for better."""
    who = store.annotator("ann")
    say(store, who, "Hello", ("Hi.", "Good day."), choice="b")
    say(store, who, "Go on", ("x", "y"), choice=choice)
    (row,) = exported(store, tmp_path, "preference", **flags)
    assert row["vote"] == 1
    (row,) = rows(tmp_path / "out" / "undecided.jsonl")
    assert columns(row, "vote", "left", "right", "choice") == {"vote": 2, "left": "x", "right": "y", "choice": choice}
    assert "chosen" not in row and "rejected" not in row


def test_undecided_pairs_are_in_the_order_of_their_votes_and_narrowed(store, tmp_path):
    who = store.annotator("ann")
    for choice in ("both_bad", "tie", "a", "both_bad", "tie"):
        say(store, who, "Hello", choice=choice)
    for name, choice, expected in (("all", None, [1, 2, 4, 5]), ("ties", "tie", [2, 5]), ("better", "a", [])):
        export.write(store, Export("preference", filters=Filters(choice=choice)), tmp_path / name)
        assert [row["vote"] for row in rows(tmp_path / name / "undecided.jsonl")] == expected


def test_kto_has_thumbs_and_both_bad(store, tmp_path):
    who = store.annotator("ann")
    row, _ = say(store, who, "Hello", ("Hi.", "No."))
    store.rate(row["left"]["message"], who, 1)
    store.rate(row["right"]["message"], who, -1)
    say(store, who, "Go on", ("x", "y"), choice="both_bad")
    found = exported(store, tmp_path, "kto")
    assert [(row["completion"][0]["content"], row["label"], row["said_by"]) for row in found] == [
        ("Hi.", True, "thumb"),
        ("No.", False, "thumb"),
        ("x", False, "both_bad"),
        ("y", False, "both_bad"),
    ]
    assert found[0]["prompt"] == HELLO


def test_an_early_both_bad_says_nothing_about_an_end_that_nobody_had_seen(tmp_path, capsys):
    """Both replies were rows, with all that they became, and unmarked."""
    store = Store(tmp_path / "data" / "nudge.db")
    who = store.annotator("ann")
    number = store.start_duel(store.new_conversation(who), "Hello", [1, 2, 3], [candidate(1), candidate(2)])
    early = [{**outcome("Hi", [4]), "finish_reason": None}, {**outcome("Good", [5, 6]), "finish_reason": None}]
    store.vote(number, who, "both_bad", store.duel(number)["left"]["message"], early=early)
    grown = outcome("Hi there, and so on.", [4, *range(40)])
    store.finish_duel(number, [grown, outcome("Good", [5, 6, 7], "stopped")])
    for choice in ("a", "tie", "tie", "both_bad"):
        say(store, who, "Hello", choice=choice)
    command = ["export", "--data-dir", str(tmp_path / "data"), "--format"]
    assert main([*command, "kto", "--out", str(tmp_path / "kto")]) == 0
    found = [(row["completion"][0]["content"], row["early"]) for row in rows(tmp_path / "kto" / "kto.jsonl")]
    assert found == [("Good", True), ("left", False), ("right", False)]
    said = capsys.readouterr().out
    assert '1 replies that went on after an early "both bad"' in said and "2 ties" in said and "1 votes for one" in said
    assert "Left out of kto.jsonl: " in (tmp_path / "kto" / "README.md").read_text()
    assert main([*command, "sft", "--out", str(tmp_path / "sft")]) == 0
    said = capsys.readouterr().out
    assert 'Left out of sft.jsonl: 2 pairs of which both replies are "both bad", 2 ties.' in said
    assert main([*command, "everything", "--out", str(tmp_path / "all")]) == 0
    assert "Left out" not in capsys.readouterr().out
    pair = rows(tmp_path / "all" / "pairs.jsonl")[0]
    assert (pair["left_grew"], pair["right_grew"]) == (True, False)
    assert store.forms_of_votes() == {"picks": 1, "ties": 2, "both_bad": 2, "grew": 1}, "what the page says"
    assert store.forms_of_votes().keys() == Store().forms_of_votes().keys()


def test_sft_has_edits_and_picked_replies(store, tmp_path):
    who = store.annotator("ann")
    row, _ = say(store, who, "Hello", ("Hi.", "Good day."), choice="b")
    store.demonstrate(row["right"]["message"], who, "Good day to you.")
    say(store, who, "Neither", choice="tie")
    found = exported(store, tmp_path, "sft")
    assert [(row["completion"][0]["content"], row["said_by"]) for row in found] == [
        ("Good day to you.", "edit"),
        ("Good day.", "pick"),
    ]


# -- the folder


@pytest.mark.parametrize("file_type", ["jsonl", "parquet"])
def test_nobody_else_on_the_machine_can_read_an_export(store, tmp_path, file_type):
    """What the database keeps private was readable by everybody once it was exported."""
    if file_type == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs `pip install pyarrow`")
    say(store, store.annotator("ann"), "Hello")
    before = os.umask(0o022)
    try:
        export.write(store, Export("everything", file_type), tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "out").iterdir()}
    assert oct((tmp_path / "out").stat().st_mode & 0o777) == "0o700"
    assert set(modes.values()) == {"0o600"} and f"pairs.{file_type}" in modes and "README.md" in modes


def test_the_card_counts_what_is_in_the_files_and_leaves_the_licence_open(store, tmp_path):
    who = store.annotator("ann")
    for choice in ("a", "a", "tie"):
        say(store, who, "Hello", choice=choice)
    export.write(store, Export("preference", filters=Filters(person=who)), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    front = card.split("---")[1]
    assert "# license: yours" in front and "data_files: preference.jsonl" in front
    assert "| `preference.jsonl` | 2 |" in card and "2 for the left reply, 1 for a tie" in card
    assert "| `undecided.jsonl` | 1 |" in card and "(a tie, or both bad): 1. They are left out of `preference`" in card
    assert "data_files: preference.jsonl\n  default: true" in front and "data_files: undecided.jsonl\n" in front
    assert "base 6" in card and "only rows with person = 1" in card
    for file in ("preference", "undecided"):
        for column in rows(tmp_path / "out" / f"{file}.jsonl")[0]:
            assert f"| `{column}` | " in card.split(f"## {file}.jsonl")[1].split("## ")[0]


def test_a_folder_that_holds_something_is_left_alone(store, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(CannotRead, match="not an empty folder"):
        export.write(store, Export("sft"), tmp_path / "out")


def test_an_export_that_fails_leaves_no_half_file(store, tmp_path, monkeypatch):
    say(store, store.annotator("ann"), "Hello")

    def broken(record, shape):
        yield {"prompt": "one"}
        raise ZeroDivisionError

    monkeypatch.setattr(formats, "prompt_completion", broken)
    with pytest.raises(ZeroDivisionError):
        export.write(store, Export("sft"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_parquet_without_pyarrow_says_what_to_install(store, tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(CannotRead, match="pip install pyarrow"):
        export.write(store, Export("sft", "parquet"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- the command line


def test_the_command_exports(tmp_path, capsys):
    store = Store(tmp_path / "data" / "nudge.db")
    cast(store, "a")
    out = tmp_path / "out"
    command = ["export", "--data-dir", str(tmp_path / "data"), "--out", str(out), "--format", "preference"]
    assert main([*command, "--since", "2020-01-01"]) == 0
    assert capsys.readouterr().out == f"{out / 'preference.jsonl'}: 1 row\n"
    assert len(rows(out / "preference.jsonl")) == 1
    cast(store, "tie")
    assert main([*command[:-3], str(tmp_path / "more"), *command[-2:]]) == 0
    said = capsys.readouterr().out
    assert "more/undecided.jsonl: 1 row\n" in said and "(a tie, or both bad) in 1 pair, left out" in said
    assert main(command) == 1, "the folder is not empty any more"
    assert "not an empty folder" in capsys.readouterr().err


def test_without_a_database_the_command_says_so(tmp_path, capsys):
    assert main(["export", "--data-dir", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    assert "There is no database" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [["--since", "yesterday"], ["--choice", "skip"], ["--person", "-1"], []])
def test_a_wrong_command_line_ends_with_2(flags, tmp_path):
    out = ["--out", str(tmp_path / "out")] if flags else []
    with pytest.raises(SystemExit) as ended:
        main(["export", *out, *flags])
    assert ended.value.code == 2


def test_times_are_read_with_and_without_a_zone(tmp_path):
    from playground.data.__main__ import _time

    assert _time("2026-11-27") == "2026-11-27T00:00:00.000Z"
    assert _time("2026-11-27T10:00+02:00") == "2026-11-27T08:00:00.000Z"


def test_an_early_pick_is_marked_with_how_much_was_there(store):
    who = store.annotator("ann")
    conversation = store.new_conversation(who)
    number = store.start_duel(conversation, "Hello", [1, 2, 3], [candidate(1), candidate(2)])
    early = [{**outcome("Hi", [4]), "finish_reason": None}, {**outcome("Good", [5, 6]), "finish_reason": None}]
    store.vote(number, who, "a", store.duel(number)["left"]["message"], early=early)
    store.finish_duel(number, [outcome("Hi there.", [4, 7, 8]), outcome("Good", [5, 6], "stopped")])
    (row,) = store.judged_pairs()
    assert (row["early"], row["left_tokens"], row["right_tokens"]) == (True, 1, 2)
    assert (row["left"], row["right_ended"]) == ("Hi there.", "stopped")


def test_a_pair_of_another_base_model_is_exported_with_its_name(store):
    who = store.annotator("ann")
    cast(store, "a", who, base_hash="an earlier base")
    cast(store, "b", who)
    assert [row["choice"] for row in store.judged_pairs()] == ["a", "b"] and store.new_votes() == 1
    assert duel(store, who) is not None


def test_votes_on_the_replies_of_another_model_do_not_count_from_its_start_on(store):
    """Until the new model's first reply, the votes on the earlier one's counted as new: "8 of 16"."""
    who = store.annotator("ann")
    store.use_base("base hash", "tiny")
    cast(store, "a", who)
    assert (store.new_votes(), store.vote_totals(who)["waiting"]) == (1, 1)
    for _ in range(2):
        store.use_base("another", "larger")
    assert (store.new_votes(), store.vote_totals(who)["waiting"]) == (0, 0) and store.last_base_hash() == "another"
    assert [row["model"] for row in store.rows("select model from base order by id")] == ["tiny", "larger"]
    store.use_base("base hash", "tiny")
    assert store.new_votes() == 1


def test_every_format_says_which_base_model_wrote_the_replies_and_takes_one_alone(tmp_path, capsys):
    """Replies of a model that was tried before were among them, unmarked."""
    store = Store(tmp_path / "data" / "nudge.db")
    who = store.annotator("ann")
    for model in ("tiny", "larger"):
        for choice in ("a", "both_bad"):
            sides = [{**candidate(seed), "base_model": model} for seed in (1, 2)]
            number = store.start_duel(store.new_conversation(who), f"Hello, {model}", [1, 2, 3], sides)
            store.finish_duel(number, [outcome(reply, [4, i]) for i, reply in enumerate(("left", "right"))])
            message = store.duel(number)["left"]["message"]
            store.vote(number, who, choice, message)
            store.rate(message, who, 1)
            store.demonstrate(message, who, "Better.")
    for format, file in (("preference", "preference"), ("kto", "kto"), ("sft", "sft"), ("everything", "thumbs")):
        command = ["export", "--data-dir", str(tmp_path / "data"), "--format", format, "--out"]
        assert main([*command, str(tmp_path / format)]) == 0
        assert "several base models: larger (" in capsys.readouterr().out
        found = [row["base_model"] for row in rows(tmp_path / format / f"{file}.jsonl")]
        assert set(found) == {"tiny", "larger"}
        assert main([*command, str(tmp_path / f"{format}-one"), "--model", "tiny"]) == 0
        assert "several" not in capsys.readouterr().out
        one = rows(tmp_path / f"{format}-one" / f"{file}.jsonl")
        assert [row["base_model"] for row in one] == [name for name in found if name == "tiny"] != []
    prompts = exported(store, tmp_path, "prompts", filters=Filters(model="tiny"))
    assert [row["prompt"][0]["content"] for row in prompts] == ["Hello, tiny"] * 2
