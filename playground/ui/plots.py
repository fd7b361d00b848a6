"""Small plots: a curve and the limits it is watched by, as Gradio's own LinePlots."""

import gradio as gr
import pandas as pd

from playground.ui import words

MOST = 60  # points of a curve: as many as can be told apart, and drawn at once
SHOWN, HIDDEN = (
    ["plot"],
    ["plot", "nothing"],
)  # by CSS: a plot that Gradio itself hides throws in the browser as it goes
HEIGHT, WITH_LEGEND = 210, 260
NAMES = {
    "curve": words.mark("value"),
    "limit": words.mark("limit"),
    "target": words.mark("target"),
    "low": words.mark("lowest"),
    "high": words.mark("highest"),
    "perfect": words.mark("perfect"),
}
COLOURS = {
    "curve": "#3b7bff",
    "limit": "#d64541",
    "target": "#17915a",
    "low": "#9aa3b2",
    "high": "#9aa3b2",
    "perfect": "#9aa3b2",
}


def plot(elem_id, title, limits=False):
    """An empty plot under its `title`; one with `limits` says in a legend which line is which."""
    legend = {"color": "line", "color_title": " "} if limits else {}
    return gr.LinePlot(
        x="x",
        y="y",
        x_title=" ",
        y_title=" ",
        label=words.label(title),
        show_label=True,
        height=WITH_LEGEND if limits else HEIGHT,
        elem_id=elem_id,
        elem_classes=HIDDEN,
        buttons=[],
        **legend,
    )


def frame(points, w, **limits):
    """Points [(x, y)] as the curve and each limit as a level line over the same stretch; {name: level or [(x, y)]}."""
    points = [(x, y) for x, y in points if y is not None]
    rows = [(x, y, w(NAMES["curve"])) for x, y in points]
    for name, level in limits.items():
        if level is not None and points:
            line = (
                level if isinstance(level, list) else [(x, level) for x in dict.fromkeys((points[0][0], points[-1][0]))]
            )
            rows += [(x, y, w(NAMES[name])) for x, y in line]
    return pd.DataFrame(rows, columns=["x", "y", "line"])


def update(data, w):
    """Show what there is; nothing where there is no line yet."""
    if data["x"].nunique() < 2:
        return gr.LinePlot(elem_classes=HIDDEN)
    names = (
        list(dict.fromkeys(data["x"])) if not pd.api.types.is_numeric_dtype(data["x"]) else None
    )  # in their own order, not the alphabet's
    return gr.LinePlot(
        data, elem_classes=SHOWN, sort=names, color_map={w(name): COLOURS[key] for key, name in NAMES.items()}
    )


def rolling(values, window):
    """[(place, mean of the last `window` values up to it)] from where there is a quarter of a window at least; of many,
    `MOST` evenly spread ones.
    """
    places = range(len(values), max(1, window // 4) - 1, -max(1, len(values) // MOST))
    return [
        (place, sum(part) / len(part)) for place in reversed(places) if (part := values[max(0, place - window) : place])
    ]
