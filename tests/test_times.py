"""Times as people write them."""

import pytest

from playground.data.times import spoken, stored


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-07", "2026-11-07T00:00:00.000Z"),
        (" 2026/11/7 ", "2026-11-07T00:00:00.000Z"),
        ("7.11.2026", "2026-11-07T00:00:00.000Z"),
        ("2026年11月7日", "2026-11-07T00:00:00.000Z"),
        ("20261107", "2026-11-07T00:00:00.000Z"),
        ("2026-11-07 8:30", "2026-11-07T08:30:00.000Z"),
        ("07.11.2026 08:30", "2026-11-07T08:30:00.000Z"),
        ("2026-11-07T10:30:05+02:00", "2026-11-07T08:30:05.000Z"),
        ("2026-11-07T08:30Z", "2026-11-07T08:30:00.000Z"),
    ],
)
def test_a_time_is_read_as_people_write_it(text, expected):
    assert stored(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "11/27/2026", "27/11/2026", "2026-13-01", "2026-02-30", "2026-11", "2026-11/27", "0001-01-01"]
    + ["9999-12-31", "x" * 100_000, "2026-11-27" + " " * 40 + "08:00", "２０２６-11-27"]
    + ["2026-11-27+02:00", "2026-11-27-02:00", "20261127+0200", "2026-11-27Z", "2026-W48", "2026W48", "2026-W48-5"]
    + ["2026-11-27T+02:00", "2026-11-27 +02:00", "2026-W48-5T08:00", "2026-331"],
)
def test_what_is_no_time_is_refused(text):
    for end in (False, True):
        with pytest.raises(ValueError):
            stored(text, end)


def test_a_day_that_something_goes_on_to_is_in_it():
    assert stored("2026-12-31", end=True) == "2027-01-01T00:00:00.000Z"
    for text in ("2026-12-31 08:00", "2026-12-31t08:00", "2026-12-31_08:00", "20261231T08"):
        assert stored(text, end=True) == "2026-12-31T08:00:00.000Z"
    for text in ("2026/12/31", "31.12.2026", "2026年12月31日", "20261231"):
        assert stored(text, end=True) == "2027-01-01T00:00:00.000Z"


def test_a_time_is_told_as_the_day_where_it_is_one():
    assert spoken("2026-11-27T00:00:00.000Z") == "2026-11-27" == spoken("2026-11-28T00:00:00.000Z", end=True)
    assert spoken("2026-11-27T08:30:00.000Z") == "2026-11-27 08:30" == spoken("2026-11-27T08:30:00.000Z", end=True)
