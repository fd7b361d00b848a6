"""Small plots: a curve and the limits that it is compared with, as Gradio's own LinePlots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import gradio as gr
import pandas as pd

from playground.ui import words
from playground.ui.words import Words

Point = tuple[float | str, float | None]  # (x, y); points without a y are left out
Limit = float | None | Sequence[tuple[float | str, float]]  # a level, no line, or a line of its own

MAX_POINTS = 60  # of a curve: more could not be distinguished, and they are drawn at once
SHOWN = ["plot"]
HIDDEN = ["plot", "nothing"]  # hidden by CSS: a plot that Gradio itself hides raises an error in the browser
HEIGHT = 210
HEIGHT_WITH_LEGEND = 260
NAMES = {
    "curve": words.mark("value"),
    "limit": words.mark("limit"),
    "guessing": words.mark("guessing"),
    "target": words.mark("target"),
    "low": words.mark("lowest"),
    "high": words.mark("highest"),
    "perfect": words.mark("perfect"),
    "training": words.mark("training"),
    "heldout": words.mark("held out"),
}
COLOURS = {
    "curve": "#3b7bff",
    "limit": "#d64541",
    "guessing": "#d64541",
    "target": "#17915a",
    "low": "#9aa3b2",
    "high": "#9aa3b2",
    "perfect": "#9aa3b2",
    "training": "#3b7bff",
    "heldout": "#8b3fd9",
}


@dataclass(frozen=True)
class Curve:
    """What a plot shows: points, and the lines in `NAMES` that they are compared with; `name` of these is that of the
    points.
    """

    points: Sequence[Point] = ()
    limits: Mapping[str, Limit] = field(default_factory=dict)
    name: str = "curve"


def empty_plot(elem_id: str, title: str, legend: bool = False) -> gr.LinePlot:
    """An empty plot below its title; the legend names the curve and its limits."""
    return gr.LinePlot(
        x="x",
        y="y",
        x_title=" ",
        y_title=" ",
        color="line" if legend else None,
        color_title=" " if legend else None,
        label=words.label(title),
        show_label=True,
        height=HEIGHT_WITH_LEGEND if legend else HEIGHT,
        elem_id=elem_id,
        elem_classes=HIDDEN,
        buttons=[],
    )


def plot_update(curve: Curve, translate: Words) -> gr.LinePlot:
    """The update that shows a curve; a plot of fewer than two places is hidden."""
    data = data_frame(curve, translate)
    if data["x"].nunique() < 2:
        return gr.LinePlot(elem_classes=HIDDEN)
    is_numeric = pd.api.types.is_numeric_dtype(data["x"])
    return gr.LinePlot(
        data,
        elem_classes=SHOWN,
        sort=None if is_numeric else list(dict.fromkeys(data["x"])),  # names in their own order, not the alphabet's
        color_map={translate(name): COLOURS[key] for key, name in NAMES.items()},
    )


def data_frame(curve: Curve, translate: Words) -> pd.DataFrame:
    """Columns x, y and line: the points, then each limit over the x of the points."""
    points = [(x, y) for x, y in curve.points if y is not None]
    rows = [(x, y, translate(NAMES[curve.name])) for x, y in points]
    for name, limit in curve.limits.items():
        rows += [(x, y, translate(NAMES[name])) for x, y in _limit_line(limit, points)]
    return pd.DataFrame(rows, columns=["x", "y", "line"])


def _limit_line(limit: Limit, points: Sequence[tuple[float | str, float]]) -> Sequence[tuple[float | str, float]]:
    if limit is None or not points:
        return []
    if isinstance(limit, Sequence):
        return limit
    ends = dict.fromkeys((points[0][0], points[-1][0]))  # one end where there is one point
    return [(x, limit) for x in ends]


def thinned(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points: the mean of each part of a long curve, at the part's end."""
    known = [(x, y) for x, y in points if y is not None]
    size = -(-len(known) // MAX_POINTS) or 1
    parts = [known[start : start + size] for start in range(0, len(known), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def rolling_mean(values: Sequence[float], window: int) -> list[tuple[int, float]]:
    """[(place, mean of the last `window` values up to it)], from the place where a quarter of the window is filled; of
    many places `MAX_POINTS` evenly spread ones, the last among them.
    """
    first = max(1, window // 4)
    step = max(1, len(values) // MAX_POINTS)
    means = []
    for place in range(len(values), first - 1, -step):
        latest = values[max(0, place - window) : place]
        if latest:
            means.append((place, sum(latest) / len(latest)))
    return means[::-1]
