"""Files from elsewhere: which columns are known, what is refused and why, and that nothing is added twice."""

import csv
import functools
import json
import math

import pytest

from playground.data import export, files, importing, raw_rows
from playground.data.__main__ import main
from playground.data.columns import record_of
from playground.data.raw_rows import BadRow, CannotRead
from playground.data.records import JudgedPair
from playground.store import ImportedRow, Origin, Store
from tests.stores import store  # noqa: F401 (fixture)
from tests.test_data_export import HELLO, rows, said, say

HH = "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: And now?\n\nAssistant:"
CHAT = [*HELLO, *said("Hi."), {"role": "user", "content": "And now?"}]


def facts(row, kind=None):
    """What a row's pair says: messages, both replies and choice."""
    found, record = record_of(row, kind)
    assert found == "pair"
    return record.messages, record.left, record.right, record.choice


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param(
            {"prompt": "Hello", "chosen": "Hi.", "rejected": "No."}, (HELLO, "Hi.", "No.", "a"), id="trl, texts"
        ),
        pytest.param(
            {"prompt": HELLO, "chosen": said("Hi."), "rejected": said("No.")},
            (HELLO, "Hi.", "No.", "a"),
            id="trl, conversational",
        ),
        pytest.param(
            {"chosen": [*CHAT, *said("Go.")], "rejected": [*CHAT, *said("Stay.")]},
            (CHAT, "Go.", "Stay.", "a"),
            id="trl, implicit prompt",
        ),
        pytest.param({"chosen": f"{HH} Go.", "rejected": f"{HH} Stay."}, (CHAT, "Go.", "Stay.", "a"), id="hh-rlhf"),
        pytest.param(
            {"prompt": HH, "chosen": " Go.", "rejected": " Stay."}, (CHAT, "Go.", "Stay.", "a"), id="hh, explicit"
        ),
        pytest.param(
            {
                "prompt": "Hello",
                "prompt_id": "x",
                "chosen": [*HELLO, *said("Hi.")],
                "rejected": [*HELLO, *said("No.")],
                "messages": [*HELLO, *said("Hi.")],
                "score_chosen": 8.0,
                "score_rejected": 3.0,
            },
            (HELLO, "Hi.", "No.", "a"),
            id="ultrafeedback",
        ),
        pytest.param(
            {
                "chosen": [*HELLO, *said("Hi.")],
                "rejected": [*HELLO, *said("No.")],
                "score_chosen": 5,
                "score_rejected": 5,
            },
            (HELLO, "Hi.", "No.", "tie"),
            id="ultrafeedback, scores alike",
        ),
        pytest.param(
            {"instruction": "Add.", "input": "1, 2", "response1": "3", "response2": "12"}
            | {"annotator1": 1, "annotator2": 2, "annotator3": 1},
            ([{"role": "user", "content": "Add.\n\n1, 2"}], "3", "12", "a"),
            id="pandalm",
        ),
        pytest.param(
            {"instruction": "Hello", "input": float("nan"), "response1": "3", "response2": "12", "annotator1": 0},
            (HELLO, "3", "12", "tie"),
            id="pandalm, no input",
        ),
        pytest.param(
            {"instruction": "Hello", "response1": "3", "response2": "12"}
            | {"annotator1": 2.0, "annotator2": "2.0", "annotator3": float("nan"), "annotator4": ""},
            (HELLO, "3", "12", "b"),
            id="pandalm, as pandas writes it",
        ),
        pytest.param(
            {"prompt": "Hello", "chosen": "x", "rejected": "y", "choice": "both_bad", "decided": False},
            (HELLO, "x", "y", "both_bad"),
            id="our own preference, of earlier exports",
        ),
    ],
)
def test_the_columns_of_preference_data_are_known(row, expected):
    assert facts(row) == expected


@pytest.mark.parametrize(
    ("row", "kind", "messages", "reply"),
    [
        ({"prompt": "Hello", "completion": "Hi."}, "demonstration", HELLO, "Hi."),
        ({"prompt": HELLO, "completion": said("Hi.")}, "demonstration", HELLO, "Hi."),
        ({"messages": [*HELLO, *said("Hi.")]}, "demonstration", HELLO, "Hi."),
        ({"instruction": "Hello", "input": "", "output": "Hi."}, "demonstration", HELLO, "Hi."),
        ({"prompt": "Hello"}, "prompt", HELLO, None),
        ({"prompt": HH}, "prompt", CHAT, None),
        ({"messages": CHAT}, "prompt", CHAT, None),
    ],
)
def test_demonstrations_and_prompts_are_known(row, kind, messages, reply):
    found, record = record_of(row)
    assert (found, record.messages, getattr(record, "reply", None)) == (kind, messages, reply)


def test_of_a_row_a_part_can_be_taken():
    row = {"prompt": "Hello", "chosen": "Hi.", "rejected": "No."}
    assert record_of(row, "prompt")[1].messages == HELLO
    with pytest.raises(BadRow, match="needs the columns prompt and completion"):
        record_of(row, "demonstration")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "x", "answer": "y"}, "no known columns among: question, answer"),
        ({"prompt": "Hello", "chosen": "Hi.", "rejected": "Hi."}, "both replies are the same"),
        ({"prompt": "Hello", "chosen": "Hi.", "rejected": " "}, "a reply is empty"),
        ({"prompt": "", "chosen": "Hi.", "rejected": "No."}, "a message is empty"),
        ({"prompt": "Hello", "chosen": 3, "rejected": "No."}, "a dialogue is neither a text nor a list"),
        ({"chosen": "Hi.", "rejected": "No."}, "there is no prompt"),
        ({"chosen": f"{HH} Go.", "rejected": "\n\nHuman: x\n\nAssistant: y"}, "part before their last reply"),
        ({"prompt": said("Hi."), "chosen": "a", "rejected": "b"}, "do not take turns"),
        ({"prompt": [*HELLO, *HELLO], "chosen": "a", "rejected": "b"}, "do not take turns"),
        (
            {"prompt": [{"role": "tool", "content": "x"}], "chosen": "a", "rejected": "b"},
            "the role of message 1 is none of 'system'",
        ),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "the content of message 1 is missing"),
        (
            {"prompt": "x" * 200_001, "chosen": "a", "rejected": "b"},
            "the content of message 1 has more than 200,000 characters",
        ),
        ({"prompt": "Hello", "chosen": "\ud800", "rejected": "b"}, "half a character"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "messages is empty"),
        (
            {"messages": HELLO, "left": "a", "right": "b", "choice": "c"},
            "choice is none of 'a', 'b', 'tie' or 'both_bad'",
        ),
        ({"messages": HELLO, "left": "a", "right": "b", "choice": "a", "vote": -1}, "vote is below 0"),
        ({"messages": HELLO, "left": "a", "right": "b"}, "choice is missing"),
        ({"prompt": ["Hello"], "chosen": "a", "rejected": "b"}, "message 1 is not an object with a role and"),
        ({"prompt": "Hello", "completion": "a", "version": "new"}, "version is not a whole number"),
        ({"prompt": "Hello", "completion": 7}, "a dialogue is neither a text nor a list"),
        ({"messages": HELLO, "reply": 7}, "reply is not a text"),
        ({"messages": HELLO, "reply": functools.reduce(lambda x, _: [x], range(300))}, "too many others within"),
        ({"messages": HELLO, "left": "a", "right": "b", "choice": "a", "tags": [1]}, "entry 1 of tags is not a text"),
        ({"messages": HELLO, "left": "a", "right": "b", "choice": "a", "tags": ["x"] * 51}, "tags has more than 50"),
        ({"messages": HELLO, "left": "a", "right": "b", "choice": "a", "early": 3}, "early is neither true nor false"),
        ({"messages": HELLO, "left": "a", "right": "b", "choice": "a", "person": 2**63}, "person is above"),
        ({"messages": HELLO, "left": "a", "right": "b", "choice": "a", "probability": "x"}, "probability is not a num"),
        ({"instruction": "x", "response1": "a", "response2": "b", "annotator1": 1, "annotator2": 2}, "no majority"),
        ({"instruction": "x", "response1": "a", "response2": "b"}, "the votes are not 0, 1 or 2"),
        ({"instruction": "x", "response1": "a", "response2": "b", "annotator1": 1.5}, "the votes are not 0, 1 or 2"),
        ({"instruction": "x", "response1": "a", "response2": "b", "annotator1": True}, "the votes are not 0, 1 or 2"),
        (
            {"instruction": "x", "response1": "a", "response2": "b", "annotator1": float("nan")},
            "the votes are not 0, 1 or 2",
        ),
        ({"prompt": "Hello", "completion": "Hi.", "label": True}, "judged alone"),
        ({"prompt": None}, "a prompt is neither a text nor a list"),
        ({}, "no known columns"),
        ({"prompt": "Hello", "chosen": "Hi."}, "it needs the columns chosen and rejected"),
        ({"prompt": "Hello", "rejected": "No."}, "it needs the columns chosen and rejected"),
        ({"messages": [*HELLO, *said("Hi.")], "chosen": "Hi."}, "it needs the columns chosen and rejected"),
    ],
)
def test_a_bad_row_is_refused_with_the_reason(row, reason):
    with pytest.raises(BadRow, match=reason):
        record_of(row)


def test_half_a_pair_is_no_prompt_unless_prompts_are_asked_for(store, tmp_path):
    """It went in as a prompt, and nobody was told that the pairs were missing."""
    file = write(tmp_path / "half.jsonl", GOOD, {"prompt": "Hello", "chosen": "Hi."})
    bad = []
    report = importing.load(store, file, "test", on_bad=lambda number, reason: bad.append((number, reason)))
    assert bad == [(2, "no pair: it needs the columns chosen and rejected")] and report.added == {"pair": 1}
    assert importing.load(store, file, "test", kind="prompt").bad == 0


def test_a_reason_quotes_nothing_of_the_texts():
    with pytest.raises(BadRow) as refused:
        record_of({"messages": [{"role": "Ottokar's secret", "content": "Ottokar's secret"}], "left": 1, "right": 2})
    assert "secret" not in str(refused.value)


# -- what makes two rows the same


def test_the_same_judgement_is_the_same_whichever_side_is_better():
    one = JudgedPair(HELLO, "Hi.", "No.", "a")
    assert one.content_hash() == JudgedPair(HELLO, "No.", "Hi.", "b").content_hash()
    assert (
        JudgedPair(HELLO, "Hi.", "No.", "tie").content_hash() == JudgedPair(HELLO, "No.", "Hi.", "tie").content_hash()
    )
    others = [
        JudgedPair(HELLO, "Hi.", "No.", "b"),
        JudgedPair(HELLO, "Hi.", "No.", "tie"),
        JudgedPair(HELLO, "Hi.", "No.", "both_bad"),
        JudgedPair(CHAT, "Hi.", "No.", "a"),
        JudgedPair(HELLO, "Hi.", "No.", "a", created="2026-01-01T00:00:00.000Z"),
    ]
    assert len({record.content_hash() for record in [one, *others]}) == 6


# -- files


def write(path, *lines):
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return path


GOOD = {"prompt": "Hello", "chosen": "Hi.", "rejected": "No."}


def test_the_good_rows_go_in_and_bad_ones_are_named_by_number(store, tmp_path, monkeypatch):
    monkeypatch.setattr(raw_rows, "MOST_BYTES", 300)
    file = write(
        tmp_path / "pairs.jsonl",
        GOOD,
        b"{not json\n",
        b"\n",
        b'{"prompt": "\xff"}\n',
        {**GOOD, "prompt": "x" * 1000},
        b"[1, 2]\n",
        {**GOOD, "prompt": "Last"},
        GOOD,
        b"[" * 200 + b"\n",
    )
    bad = []
    report = importing.load(store, file, "test", on_bad=lambda number, reason: bad.append((number, reason)))
    assert bad == [
        (2, "the row is not JSON"),
        (4, "the row is not UTF-8"),
        (5, "the row has more than 0 MB"),
        (6, "the row is not a JSON object"),
        (9, "the row is not JSON"),
    ]
    assert (report.read, dict(report.added), report.known, report.bad) == (8, {"pair": 2}, 1, 5)
    assert [row["record"]["messages"][0]["content"] for row in store.imported("pair")] == ["Hello", "Last"]


def test_a_second_import_adds_nothing_even_under_another_name(store, tmp_path):
    file = write(tmp_path / "pairs.jsonl", GOOD, {**GOOD, "prompt": "Again"})
    assert importing.load(store, file, "one").added == {"pair": 2}
    again = importing.load(store, file, "two")
    assert (dict(again.added), again.known) == ({"pair": 0}, 2)
    assert [row["source"] for row in store.imported_sources()] == ["one"]


def test_csv_is_read_with_lists_of_messages_in_cells(store, tmp_path):
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "chosen", "rejected"])
        writer.writerow(['Hello,\n"you"', "Hi.", "No."])
        writer.writerow([json.dumps(CHAT), json.dumps(said("Go.")), json.dumps(said("Stay."))])
        writer.writerow(["too", "few"])
    bad = []
    importing.load(store, path, "test", on_bad=lambda number, reason: bad.append(number))
    assert [row["record"]["messages"] for row in store.imported("pair")] == [
        [{"role": "user", "content": 'Hello,\n"you"'}],
        CHAT,
    ]
    assert bad == [3]


def test_a_json_array_with_nan_as_pandalm_has_it(store, tmp_path):
    path = tmp_path / "testset.json"
    path.write_text('[{"instruction": "Hello", "input": NaN, "response1": "a", "response2": "b", "annotator1": 2}]')
    importing.load(store, path, "pandalm")
    assert next(store.imported("pair"))["record"]["choice"] == "b"


def test_rows_after_the_most_are_not_read_and_that_is_told(store, tmp_path):
    file = write(tmp_path / "pairs.jsonl", *({**GOOD, "prompt": f"Hello {n}"} for n in range(5)))
    report = importing.load(store, file, "test", most_rows=3)
    assert (report.read, report.left_over) == (3, True) and len(list(store.imported("pair"))) == 3


def reasons(path):
    """Of each row of a file the reason why it cannot be read, or None."""
    return [str(row) if isinstance(row, BadRow) else None for _, row in files.read(path)]


@pytest.mark.parametrize(("mark", "called"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_file_with_other_marks_than_commas_is_refused_as_one(tmp_path, mark, called):
    """As spreadsheets of many countries save it: each of its rows was left out, for unknown columns."""
    path = tmp_path / "pairs.csv"
    path.write_text(f"prompt{mark}chosen{mark}rejected\nHello{mark}Hi.{mark}No.\n")
    with pytest.raises(CannotRead, match=f"between the columns are {called}. Save the file with commas"):
        reasons(path)


def test_a_row_of_csv_has_a_bound_however_its_text_is_spread(tmp_path, monkeypatch):
    """Cells and lines had one, so a row of many cells could have any size."""
    monkeypatch.setattr(raw_rows, "MOST_BYTES", 300)
    long = ["a," + "b" * 400, ",".join(["x" * 30] * 20), '"' + "q\n" * 200 + '",b', "é" * 151 + ",b"]
    path = tmp_path / "pairs.csv"
    for row in long:
        path.write_text(f"prompt,completion\nHello,Hi.\n{row}\nBye,Good day.\n", encoding="utf-8")
        found = reasons(path)
        assert found == [None, "the row has more than 0 MB", None], row[:20]
    path.write_text("n" * 400 + "\n")
    with pytest.raises(CannotRead, match="no names of columns"):
        reasons(path)


def test_a_row_of_a_json_array_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_rows, "MOST_BYTES", 100)
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([{"prompt": "é" * 60}, {"prompt": "Hello"}, {"prompt": "\ud800"}]))
    assert reasons(path) == ["the row has more than 0 MB", None, None]


def parquet(path, *texts, **options):
    """A Parquet file with these prompts."""
    pa = pytest.importorskip("pyarrow", reason="Parquet needs `pip install pyarrow`")
    import pyarrow.parquet

    values = pa.array(list(texts), pa.large_string())
    column = values.dictionary_encode() if options.pop("dictionary", False) else values
    pyarrow.parquet.write_table(pa.table({"prompt": column}), path, **options)
    return path


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_row_of_parquet_has_a_bound(tmp_path, monkeypatch, dictionary):
    """A page of a few kilobytes unpacks to gigabytes."""
    texts = ["x" * 1000, *(f"Hello {n}" for n in range(100)), "y" * 1000, "é" * 200]
    path = parquet(tmp_path / "prompts.parquet", *texts, dictionary=dictionary, row_group_size=40)
    monkeypatch.setattr(raw_rows, "MOST_BYTES", 500)
    long = "the row has more than 0 MB"
    assert reasons(path) == [long, *[None] * 100, long, None]
    assert [number for number, _ in files.read(path)] == [*range(1, 104)]
    assert [row for _, row in files.read(path)][1] == {"prompt": "Hello 0"}


def test_a_text_that_many_rows_of_parquet_share_is_unpacked_once(tmp_path):
    """A file of 500 bytes, whose 900 rows share one text of 1 MB, took 1.4 GB of memory, and larger ones all of it."""
    pa = pytest.importorskip("pyarrow", reason="Parquet needs `pip install pyarrow`")
    text = "x" * (1 << 20)
    chats = pa.array([[{"role": "user", "content": text}] * 2] * 50)
    flat, nested = parquet(tmp_path / "flat.parquet", *[text] * 100), tmp_path / "nested.parquet"
    pa.parquet.write_table(pa.table({"messages": chats}), nested)
    before = pa.total_allocated_bytes()
    for path, content in ((flat, {"prompt": text}), (nested, {"messages": [{"role": "user", "content": text}] * 2})):
        most = 0
        for _, row in files.read(path):
            assert row == content
            most = max(most, pa.total_allocated_bytes() - before)
        assert most < 32 << 20, path.name


def test_a_row_that_repeats_a_text_has_a_bound_too(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="Parquet needs `pip install pyarrow`")
    import pyarrow.parquet

    path = tmp_path / "chats.parquet"
    chats = [[{"role": "user", "content": "x" * 100_000}] * 60, [{"role": "user", "content": "Hello"}]]
    pyarrow.parquet.write_table(pa.table({"messages": pa.array(chats)}), path)
    assert reasons(path) == ["the row has more than 4 MB", None]


def test_a_number_that_is_none_is_missing_and_one_without_end_is_refused(tmp_path):
    """They were kept, and written by the next export as what JSON does not have."""
    path = tmp_path / "pairs.jsonl"
    own = {"messages": [{"role": "user", "content": "Hello"}], "left": "a", "right": "b", "choice": "a"}
    numbers = (
        {"probability": math.nan, "left_version": math.nan},
        {"probability": math.inf},
        {"sampling": {"top_p": math.nan}},
    )
    path.write_text("".join(json.dumps({**own, **more}) + "\n" for more in numbers))
    (_, first), *others = files.read(path)
    _, record = record_of(first)
    assert (record.probability, record.left_version) == (None, None)
    for _, row in others:
        with pytest.raises(BadRow, match="a number is not finite"):
            record_of(row)


def test_a_csv_with_too_many_names_is_refused(tmp_path):
    """Each row of two cells below a million names took 45 ms."""
    path = tmp_path / "wide.csv"
    path.write_text("prompt" + "," * files.MOST_COLUMNS + "\nHello\n")
    with pytest.raises(CannotRead, match="more than 2,000 names of columns"):
        list(files.read(path))
    path.write_text("prompt" + "," * (files.MOST_COLUMNS - 1) + "\nHello\n")
    assert len(reasons(path)) == 1


def test_a_damaged_or_too_large_group_of_parquet_leaves_the_others(tmp_path, monkeypatch):
    """Arrow's error in the middle ended the import with a traceback."""
    options = {"row_group_size": 10, "compression": "gzip", "use_dictionary": False}
    path = parquet(tmp_path / "prompts.parquet", *(f"number {n}" for n in range(30)), **options)
    whole = path.read_bytes()
    middle = whole.index(b"\x1f\x8b", whole.index(b"\x1f\x8b") + 1)  # where the second group's page begins
    path.write_bytes(whole[: middle + 12] + b"\xff" * 20 + whole[middle + 32 :])
    found = dict(files.read(path))
    assert [*found] == [*range(1, 12), *range(21, 31)] and "damaged" in str(found[11])
    assert (found[10], found[21]) == ({"prompt": "number 9"}, {"prompt": "number 20"})
    path.write_bytes(whole)
    monkeypatch.setattr("playground.data.parquet.MOST_GROUP", 10)
    assert [number for number, row in files.read(path)] == [1, 11, 21] and "smaller groups" in reasons(path)[0]


@pytest.mark.parametrize("name", ["none.jsonl", "pairs.xlsx", "folder.jsonl"])
def test_a_file_that_cannot_be_read_ends_with_1(tmp_path, name, capsys):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "pairs.xlsx").write_text("x")
    assert main(["import", str(tmp_path / name), "--data-dir", str(tmp_path / "data")]) == 1
    assert name in capsys.readouterr().err


# -- there and back


def test_export_and_import_into_an_empty_store_gives_the_same_votes(tmp_path, capsys):
    first = Store(tmp_path / "one" / "nudge.db")
    ann, bob = first.annotator("ann"), first.annotator("bob")
    for number in range(12):
        who = ann if number % 3 else bob
        choice = ("a", "b", "tie", "both_bad")[number % 4]
        row, vote = say(first, who, f"Message {number} 👋", (f"left\n{number}", f"  right {number} "), choice=choice)
        first.explain(vote, who, ["clearer"], "since it is short")
        say(first, who, "Go on", conversation=row["conversation"], choice=choice)
    first.demonstrate(row["left"]["message"], who, "Better.")

    def command(*arguments, folder):
        assert main([*map(str, arguments), "--data-dir", str(tmp_path / folder)]) == 0

    command("export", "--out", tmp_path / "out", folder="one")
    pairs, edits = tmp_path / "out" / "pairs.jsonl", tmp_path / "out" / "edits.jsonl"
    command("import", pairs, edits, "--source", "first", "--weight", "0.5", folder="two")
    command("export", "--imported", "--out", tmp_path / "again", folder="two")
    beside = {"source": "first", "weight": 0.5, "url": None, "split": None, "license": None}
    for file, n in ((pairs, 24), (edits, 1)):
        again = rows(tmp_path / "again" / file.name)
        assert again == [{**row, "imported": beside} for row in rows(file)] and len(again) == n
    second = Store(tmp_path / "two" / "nudge.db")
    hashes = [JudgedPair.of(row).content_hash() for row in first.judged_pairs()]
    assert [JudgedPair.of(row["record"]).content_hash() for row in second.imported("pair")] == hashes
    assert len(set(hashes)) == 24
    assert second.new_votes() == 0 and list(second.judged_pairs()) == [], "they are nobody's votes here"
    # TRL's forms of the same votes are known too, with texts and with messages
    for flags in ([], ["--plain"], ["--implicit-prompt"], ["--plain", "--implicit-prompt"]):
        out = tmp_path / "_".join(["trl", *flags])
        command("export", "--format", "preference", "--out", out, *flags, folder="one")
        command("import", out / "preference.jsonl", out / "undecided.jsonl", folder="two")
    assert len(list(second.imported("pair"))) == 24
    command("sources", folder="two")
    assert "first: pairs 24, weight 0.5" in capsys.readouterr().out
    command("remove", "first", folder="two")
    assert list(second.imported("pair")) == [] == second.imported_sources()


@pytest.mark.parametrize("format", ["everything", "preference"])
@pytest.mark.parametrize("file_type", ["jsonl", "parquet"])
def test_imported_rows_keep_source_weight_and_origin_by_way_of_a_file(tmp_path, capsys, format, file_type):
    """They were lost: each came back with the weight 1, under the file's name, and nobody's licence."""
    if file_type == "parquet":
        pytest.importorskip("pyarrow")
    first, second = (Store(tmp_path / name / "nudge.db") for name in ("one", "two"))
    one = ImportedRow(*("0" * 64, "pair", 0.25), JudgedPair(HELLO, "Hi.", "No.", "a").as_dict())
    two = ImportedRow(*("1" * 64, "pair", 2.0), JudgedPair(CHAT, "Hi.", "No.", "b").as_dict())
    origin = Origin("hf://datasets/x/y@abc", "train", "mit")
    first.add_imported("x/y@abc", [one], origin)
    first.add_imported("mine", [two])
    out = tmp_path / "out"
    command = ["export", "--imported", "--format", format, "--file-type", file_type, "--out", str(out)]
    assert main([*command, "--data-dir", str(tmp_path / "one")]) == 0
    files = [str(file) for file in sorted(out.glob(f"*.{file_type}"))]
    command = ["import", *files, "--data-dir", str(tmp_path / "two")]
    for _ in range(2):  # nothing twice
        assert main(command) == 0
        kept = [
            (row["source"], row["weight"], row["url"], row["split"], row["license"]) for row in second.imported("pair")
        ]
        assert kept == [("x/y@abc", 0.25, *origin), ("mine", 2.0, None, None, None)]
    assert "imported" not in next(second.imported("pair"))["record"], "the texts are the same as before"
    third = ["import", *files, "--source", "theirs", "--weight", "0.5", "--data-dir", str(tmp_path / "three")]
    assert main(third) == 0
    kept = [
        (row["source"], row["weight"], row["url"]) for row in Store(tmp_path / "three" / "nudge.db").imported("pair")
    ]
    assert kept == [("theirs", 0.5, None)] * 2, "what the command says holds"


@pytest.mark.parametrize(
    ("imported", "expected"),
    [
        ({"source": "x", "weight": 0}, "imported is not above 0"),
        ({"source": "x", "weight": 1e9}, "imported is above"),
        ({"source": "a\nb", "weight": 1}, "cannot be printed"),
        ({"source": "x" * 101, "weight": 1}, "more than 100 characters"),
        (True, None),
        ("yes", None),
        ("{", None),
        ({"by": "somebody"}, None),
    ],
)
def test_what_an_import_keeps_is_bounded_and_other_columns_of_that_name_are_nothing(imported, expected):
    row = {**GOOD, "imported": imported}
    if expected is None:
        assert record_of(row)[1].imported is None
        return
    with pytest.raises(BadRow, match=expected):
        record_of(row)


@pytest.mark.parametrize("kind", [None, "pair", "demonstration", "prompt"])
def test_what_was_deleted_does_not_come_back_by_its_export(tmp_path, kind, capsys):
    """It came back as what a row is not by itself: a pair's prompt, a thumb's reply."""
    store = Store(tmp_path / "data" / "nudge.db")
    who = store.annotator("ann")
    row, _ = say(store, who, "Ottokar's secret")
    store.demonstrate(row["left"]["message"], who, "Ottokar's edit")
    store.rate(row["left"]["message"], who, 1)
    bad, _ = say(store, who, "Ottokar's other secret", choice="both_bad")
    data = ["--data-dir", str(tmp_path / "data")]
    exported = []
    for format in export.FORMATS:
        for flags in ([], ["--plain"]):
            out = tmp_path / "".join([format, *flags])
            assert main(["export", "--out", str(out), "--format", format, *flags, *data]) == 0
            exported += map(str, out.glob("*.jsonl"))
    assert len(exported) == 18
    for conversation in (row["conversation"], bad["conversation"]):
        store.delete_conversation(conversation, who)
    command = ["import", *exported, *(["--kind", kind] if kind else [])]
    elsewhere = ["--data-dir", str(tmp_path / "elsewhere")]
    assert main([*command, *data]) in (0, 3), "3: not every row is of each kind"
    assert store.imported_sources() == []
    main([*command, *elsewhere])
    assert Store(tmp_path / "elsewhere" / "nudge.db").imported_sources(), "another database did not delete it"
    # nor by way of another database
    assert main(["export", "--imported", "--out", str(tmp_path / "again"), *elsewhere]) == 0
    assert main(["import", *map(str, (tmp_path / "again").glob("*.jsonl")), *data]) in (0, 3)
    assert store.imported_sources() == []


def test_an_edit_that_was_edited_again_does_not_come_back_either(tmp_path):
    """The later edit was another row, so the file with the earlier one was not known any more."""
    store = Store(tmp_path / "data" / "nudge.db")
    who = store.annotator("ann")
    row, _ = say(store, who, "Hello")
    store.demonstrate(row["left"]["message"], who, "Ottokar's edit")
    data = ["--data-dir", str(tmp_path / "data")]
    assert main(["export", "--out", str(tmp_path / "out"), *data]) == 0
    store.demonstrate(row["left"]["message"], who, "Another edit")
    store.delete_conversation(row["conversation"], who)
    assert main(["import", str(tmp_path / "out" / "edits.jsonl"), *data]) == 0
    assert store.imported_sources() == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, 7), ("7", 7), (7.0, 7), ("7.0", 7)]
    + [(value, None) for value in (None, -1, True, 2**63, 7.5, float("nan"), "", "Hello", "7e3", [7])],
)
def test_an_id_is_known_as_other_programs_write_it(value, expected):
    _, record = record_of({**GOOD, "message": value, "created": 3}, "prompt")
    assert (record.message, record.created) == (expected, None)


def test_bad_rows_end_with_3_and_are_said(tmp_path, capsys):
    file = write(tmp_path / "pairs.jsonl", GOOD, *[{"prompt": ""}] * 25)
    assert main(["import", str(file), "--data-dir", str(tmp_path / "data")]) == 3
    captured = capsys.readouterr()
    assert captured.err.count("is left out: a message is empty") == 20 and "25 × a message is empty" in captured.err
    assert "row 2 is left out" in captured.err and "26 rows read; new: pairs 1" in captured.out
    assert main(["import", str(file), "--data-dir", str(tmp_path / "data"), "--source", "a\nb"]) == 1


def test_an_import_with_nothing_usable_ends_with_1_and_says_why(tmp_path, capsys):
    """It ended with 3, which means that the other rows are in."""
    bad, good = write(tmp_path / "bad.jsonl", {"prompt": ""}), write(tmp_path / "good.jsonl", GOOD)
    data = ["--data-dir", str(tmp_path / "data")]
    assert main(["import", str(bad), *data]) == 1
    captured = capsys.readouterr()
    assert "row 1 is left out: a message is empty" in captured.err
    assert captured.out.startswith(f"Database: {tmp_path / 'data' / 'nudge.db'}\n")
    assert main(["import", str(bad), str(good), *data]) == 3
    assert main(["import", str(good), *data]) == 0


def test_a_weight_is_given_to_pairs_that_are_there_already_and_that_is_said(tmp_path, capsys):
    """It was ignored in silence."""
    file = write(tmp_path / "pairs.jsonl", GOOD, {**GOOD, "prompt": "Again"}, {"prompt": "A prompt"})
    data = ["--data-dir", str(tmp_path / "data")]
    store = Store(tmp_path / "data" / "nudge.db")

    def weights():
        return [row["weight"] for row in store.imported("pair")]

    assert main(["import", str(file), *data, "--weight", "0.5"]) == 0 and weights() == [0.5, 0.5]
    assert "new weight" not in capsys.readouterr().out
    assert main(["import", str(file), *data]) == 0 and weights() == [0.5, 0.5], "none is asked for"
    assert main(["import", str(file), *data, "--weight", "2", "--source", "other"]) == 0 and weights() == [2, 2]
    assert "have the new weight: 2" in capsys.readouterr().out
    assert {row["source"] for row in store.imported("pair")} == {"pairs"}
