"""Parquet files of other programs: which kinds of columns are read, and what a small file may take in memory."""

import pytest

from playground.data import files, parquet, raw_rows
from playground.data.raw_rows import BadRow

pa = pytest.importorskip("pyarrow", reason="Parquet needs `pip install pyarrow`")
pq = pytest.importorskip("pyarrow.parquet")
compute = pytest.importorskip("pyarrow.compute")

MB = 1 << 20
LONG = "the row has more than 4 MB"


@pytest.fixture
def written(tmp_path):
    """A function that writes a column `b` to a file, and gives the file's path."""

    def write(values, **options):
        pq.write_table(pa.table({"b": values}), tmp_path / "b.parquet", **options)
        return tmp_path / "b.parquet"

    return write


def values(path):
    """What each row has in column `b`, or why it is bad."""
    return [str(row) if isinstance(row, BadRow) else row["b"] for _, row in files.read(path)]


def most_megabytes(path):
    """What Arrow holds at most between two rows."""
    before = pa.total_allocated_bytes()
    return max((pa.total_allocated_bytes() - before) >> 20 for _ in files.read(path))


# -- valid files that were "damaged"


@pytest.mark.parametrize(
    ("items", "maps"),
    [
        (pa.string(), [[("k", "v")], None, [], [("a", "b"), ("c", None)]]),
        (pa.int64(), [[("k", 1)], None, [], [("a", 2), ("c", None)]]),
        (pa.list_(pa.string()), [[("k", ["v", "w"])], None, [], [("a", []), ("c", None)]]),
    ],
)
def test_maps_are_read(written, items, maps):
    """They were "damaged", since our count of bytes failed."""
    assert values(written(pa.array(maps, pa.map_(pa.string(), items)))) == maps


def test_a_map_whose_values_share_a_text_has_a_bound(written):
    maps = [[("a", "x")], [(str(n), "x" * MB) for n in range(5)], [("a", "x" * MB)]]
    assert values(written(pa.array(maps, pa.map_(pa.string(), pa.string())))) == [maps[0], LONG, maps[2]]


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_texts_of_a_delta_encoding_are_read(written, encoding):
    texts = [f"Hello {n}" for n in range(20)] + [None, ""]
    options = {"use_dictionary": False, "row_group_size": 10}
    assert values(written(pa.array(texts), column_encoding={"b": encoding}, **options)) == texts
    lists = [texts[:3], [], None]
    assert values(written(pa.array(lists), column_encoding={"b.list.element": encoding}, **options)) == lists


def test_our_own_mistake_is_not_called_a_damaged_file(written, monkeypatch):
    path = written(pa.array(["Hello"]))
    monkeypatch.setattr(raw_rows, "MOST_BYTES", 4)

    def mistaken():
        raise NotImplementedError("ours")

    monkeypatch.setattr(parquet, "too_long", mistaken)
    with pytest.raises(NotImplementedError, match="ours"):
        values(path)


# -- what a small file takes


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (pa.binary(5 * MB), {}),
        (pa.string(), {"use_dictionary": False, "column_encoding": {"b": "DELTA_BYTE_ARRAY"}}),
        (pa.json_(), {}),
    ],
    ids=["fixed length", "delta", "json"],
)
def test_rows_that_share_a_long_value_are_read_few_at_a_time(written, kind, options):
    """A file of 600 bytes with 390 rows of one fixed value of 5 MB took 2 GB."""
    path = written(pa.array([b"x" * 5 * MB if kind == pa.binary(5 * MB) else "x" * 5 * MB] * 16, kind), **options)
    assert values(path) == [LONG] * 16
    assert most_megabytes(path) < 64


def test_a_group_of_values_of_a_fixed_length_has_a_bound(written, monkeypatch):
    monkeypatch.setattr(parquet, "MOST_GROUP", 10 * MB)
    assert values(written(pa.array([None] * 11, pa.binary(MB)))) == [
        "its group of rows has more than 10 MB; write smaller groups"
    ]
    assert values(written(pa.array([None, b"x" * MB], pa.binary(MB)))) == [None, b"x" * MB]


def test_a_list_of_a_fixed_size_has_the_bound_of_a_row(written):
    """One row of 615 bytes became 600 MB of text."""
    kind = pa.list_(pa.string(), 5)
    assert values(written(pa.array([["x" * MB] * 5, ["x" * MB] * 3 + ["y"] * 2], kind)))[0] == LONG
    assert values(written(pa.array([["a", None, "b", "c", "d"]] * 2, kind))) == [["a", None, "b", "c", "d"]] * 2


@pytest.mark.parametrize("list_of", [pa.list_view, pa.large_list_view, pa.large_list])
def test_every_other_list_has_it_too(written, list_of):
    lists = [["x" * MB] * 5, ["Hello"], None]
    assert values(written(pa.array(lists, list_of(pa.string())))) == [LONG, ["Hello"], None]


def test_empty_lists_and_objects_count(written):
    """A million of them take no bytes in Arrow and 60 MB in Python."""
    nothing = pa.array([None] * MB, pa.null())
    objects = pa.StructArray.from_arrays([nothing], ["a"])
    assert values(written(pa.ListArray.from_arrays([0, MB], objects))) == [LONG]
    assert values(written(pa.array([[[]] * (MB // 2 + 1)], pa.list_(pa.list_(pa.int8()))))) == [LONG]


def test_texts_in_lists_that_may_unpack_to_more_than_memory_are_refused(written, monkeypatch):
    """Of a DELTA encoding a list is unpacked as a whole, before its size is known."""
    options = {"use_dictionary": False, "column_encoding": {"b.list.element": "DELTA_BYTE_ARRAY"}}
    path = written(pa.array([["x" * 1000] * 100]), **options)
    assert values(path) == [["x" * 1000] * 100]
    monkeypatch.setattr(parquet, "MOST_GROUP", 50_000)
    [reason] = values(path)
    assert "may unpack to more than 0 MB, since texts in lists are encoded as DELTA" in reason


def test_a_kind_whose_size_is_not_known_is_refused():
    batch = pa.RecordBatch.from_arrays([compute.run_end_encode(pa.array(["secret name"] * 2))], ["b"])
    reason = "the row has a column of the Arrow kind run_end_encoded, which is not read here"
    assert [str(row) for row in parquet._batch(batch)] == [reason] * 2
