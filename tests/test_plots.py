"""The page's small plots: what is drawn where, and that nothing in the store can break one."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playground.ui import plots
from playground.ui.plots import Curve, figure_html, round_ticks
from playground.ui.words import Words

W = Words("en")


def drawn(curve, title="KL to the base, nats", translate=W):
    """The figure as XML."""
    return ElementTree.fromstring(figure_html(curve, title, translate, "it"))


def lines(figure):
    """{name: [(x, y)] in percent} of the lines of a figure."""
    return {
        line.get("class"): [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in figure.iter("polyline")
    }


def ticks(figure, side):
    return ["".join(text.itertext()) for text in figure.iter("text") if text.get("class") == side]


def test_a_curve_stands_between_its_limits():
    figure = drawn(Curve([(1, 0.0), (2, None), (5, 10.0)], {"limit": 20.0, "low": None}))
    by_name = lines(figure)
    assert list(by_name) == ["limit", "curve"]
    assert [x for x, _ in by_name["curve"]] == [0, 100] and [x for x, _ in by_name["limit"]] == [0, 100]
    (low, high), (level, same) = ([y for _, y in by_name[name]] for name in ("curve", "limit"))
    assert level == same and level < high < low, "y is from the top"
    assert math.isclose(low - high, high - level, abs_tol=0.02), "0, 10 and 20 stand at equal distances"
    assert [item.text for item in figure.iter("li")] == ["value", "limit 20"]
    assert figure.find("svg").get("aria-label") == "KL to the base, nats: 0 at first, 10 at last"


def test_steps_are_marked_by_whole_numbers_and_dots_say_their_values():
    figure = drawn(Curve([(step, step / 7) for step in range(1, 4)]))
    assert ticks(figure, "x") == ["1", "2", "3"], "a round of three steps had marks at 1.5 and 2.5"
    assert [title.text for title in figure.iter("title")] == ["1: 0.143", "2: 0.286", "3: 0.429"]
    assert list(figure.iter("li")) == [], "one line needs no legend"


def test_a_value_is_told_in_three_digits_or_as_a_whole_number():
    figure = drawn(Curve([(1, 0.123456), (2, 12.3456), (3, 999.6), (4, 123_456.7), (5, 2e9)]))
    said = [title.text for title in figure.iter("title")]
    assert said == ["1: 0.123", "2: 12.3", "3: 1,000", "4: 123,457", "5: 2e+09"]
    assert ">0.487: 1<" in figure_html(Curve([(0.486719, 1.0), (0.7, 0.0)]), "Entropy, nats a token", W, "it")


def test_rounds_are_named_in_their_own_order_and_a_line_may_begin_later():
    points = [("base", 0.0), *((str(n), float(n)) for n in range(1, 13))]
    figure = drawn(Curve(points, {"target": [("11", 5.0), ("12", 6.0)]}))
    assert ticks(figure, "x") == ["base", "3", "6", "9", "12"]
    assert [x for x, _ in lines(figure)["target"]] == [91.67, 100.0]


def test_a_level_far_from_the_values_is_told_and_not_drawn():
    """The KL was a flat line at the bottom of a plot that reached up to its limit."""
    figure = drawn(Curve([(1, 0.5), (2, 6.0)], {"target": 8.0, "limit": 60.0}, "kl"))
    assert list(lines(figure)) == ["target", "kl"] and ticks(figure, "y") == ["2", "4", "6", "8"]
    assert [item.text for item in figure.iter("li")] == ["KL", "target 8", "limit 60 ↕"]
    near = drawn(Curve([(1, 0.5), (2, 23.0)], {"limit": 60.0}, "kl"))
    assert list(lines(near)) == ["limit", "kl"]
    first = drawn(Curve([(1, 0.0)], {"target": 8.0, "limit": 60.0}, "kl"))
    assert list(lines(first)) == ["target", "kl"], "how far it is to go is seen from the first iteration on"


def test_the_first_value_is_a_dot():
    figure = drawn(Curve([(1, 2.0)], across="by iteration"))
    assert [title.text for title in figure.iter("title")] == ["1: 2"] and ticks(figure, "x") == ["1"]
    assert [item.text for item in figure.iter("li")] == ["by iteration"]


def test_what_cannot_be_negative_has_no_negative_marks():
    assert ticks(drawn(Curve([(1, 0.0), (2, 0.0)])), "y") == ["0.0", "0.5", "1.0"]
    assert "-1" in ticks(drawn(Curve([(1, -1.0), (2, 0.0)])), "y")[0]


def test_of_many_points_the_dots_show_only_when_pointed_at():
    few, many = (drawn(Curve([(x, 1.0) for x in range(n)])) for n in (plots.MAX_DOTS, plots.MAX_DOTS + 1))
    assert [g.get("class") for g in few.iter("g")][-1] == "dots curve"
    assert [g.get("class") for g in many.iter("g")][-1] == "dots curve many"


@pytest.mark.parametrize(
    "curve",
    [
        Curve(),
        Curve([(1, None), (2, None)]),
        Curve([(1, math.nan), (2, math.inf)]),
        Curve([(1, 1e300), (2, -1e300)]),
        Curve([(math.nan, 1.0), (-math.inf, 2.0)]),
        Curve([], {"perfect": [(0.0, 0.0), (1.0, 1.0)]}),
    ],
)
def test_without_a_point_there_is_nothing_to_see(curve):
    assert figure_html(curve, "Entropy, nats a token", W, "it") == ""


def test_texts_are_escaped_and_in_the_readers_language():
    figure = drawn(Curve([("<b>", 1.0), ("&", 2.0)], {"guessing": 0.5}), translate=Words("zh-CN"))
    assert ticks(figure, "x") == ["<b>", "&"]
    assert figure.find("figcaption").text == "与基础模型的 KL（奈特）"
    assert [item.text for item in figure.iter("li")] == ["数值", "随机猜测 0.5"]


@pytest.mark.parametrize(
    "low, high, whole, texts",
    [
        (0, 1, False, ["0.0", "0.5", "1.0"]),
        (-0.06, 1.06, False, ["0.0", "0.5", "1.0"]),
        (-3, 3, False, ["-2", "0", "2"]),
        (1, 2, True, ["1", "2"]),
        (0, 12_345, True, ["0", "5,000", "10,000"]),
        (0.4999, 0.5003, False, ["0.4999", "0.5000", "0.5001", "0.5002", "0.5003"]),
        (0.5 - 1e-7, 0.5 + 1e-7, False, ["0.4999999", "0.49999995", "0.5", "0.50000005", "0.5000001"]),
        (3.00001, 3.00004, False, ["3.00001", "3.00002", "3.00003", "3.00004"]),
        (1.64e-5, 1.655e-5, False, ["1.64e-05", "1.645e-05", "1.65e-05", "1.655e-05"]),
        (100_000, 100_002, True, ["100,000", "100,001", "100,002"]),
        (0, 3e7, False, ["0", "1e+07", "2e+07", "3e+07"]),
        (5e-324, 1e-323, False, []),
        (1.0, 1.0 + 2e-16, False, []),
    ],
)
def test_marks_are_round_numbers(low, high, whole, texts):
    assert [text for _, text in round_ticks(low, high, 4, whole)] == texts


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.none() | st.integers(-(2**63), 2**63)
whole_numbers = st.integers(0, 10**6)


@given(
    st.lists(st.tuples(whole_numbers, numbers), max_size=8)
    | st.lists(st.tuples(numbers.filter(lambda x: x is not None), numbers), max_size=8)
    | st.lists(st.tuples(st.text(max_size=3), numbers)),
    st.dictionaries(st.sampled_from(["limit", "low"]), numbers),
)
def test_whatever_is_in_the_store_there_is_a_plot_or_none(points, limits):
    html = figure_html(Curve(points, limits), "Reward of the replies, deviations", W, "it")
    for x, y in re.findall(r"(-?[\d.e+-]+),(-?[\d.e+-]+)[ \"]", "".join(re.findall(r'points="[^"]*"', html))):
        assert 0 <= float(x) <= 100 and 0 <= float(y) <= 100


def test_a_rolling_mean_begins_with_a_quarter_of_its_window():
    assert plots.rolling_mean([1, 0, 1, 1, 0, 0, 1, 1], 4) == [
        (1, 1),
        (2, 0.5),
        (3, 2 / 3),
        (4, 0.75),
        (5, 0.5),
        (6, 0.5),
        (7, 0.5),
        (8, 0.5),
    ]
    assert plots.rolling_mean([1], 40) == []
