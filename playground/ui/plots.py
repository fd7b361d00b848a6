"""Small plots: a curve and the limits that it is compared with, as SVG in HTML.

Gradio's own LinePlot draws every plot of the page anew whenever a tab is opened, which is most of what a click on a tab
takes (`python -m benchmarks.pages`). Lines are stretched to the plot's box; dots and texts are placed in percent of it
and keep their size. Colours are in `assets/training.css`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from playground.ui import words
from playground.ui.words import Words

X = float | str  # where a point stands along the plot: a number, or a name such as a round's
Point = tuple[X, float | None]  # (x, y); points without a y are left out
Limit = float | None | Sequence[tuple[X, float]]  # a level, no line, or a line of its own

MAX_POINTS = 60  # of a curve: more could not be distinguished, and they are drawn at once
MAX_DOTS = 24  # of a curve whose points are marked; more would hide the line
MAX_DECIMALS = 4  # at an axis
SMALLEST = 1e-12  # step of an axis, as a share of its values: less than floats can tell
ROUNDING = 1e-9  # of a step, by which a mark at an axis' end may miss it
LARGEST = 1e30  # value that is drawn: the difference of two that are larger may be infinite
X_TICKS, Y_TICKS = 5, 4  # at most, about
FAR = 4.0  # a limit that is more than this many times as high as all else is told, not drawn
NAMES = {
    "curve": words.mark("value"),
    "mean": words.mark("rolling mean"),
    "kl": words.mark("KL"),
    "seen": words.mark("this round"),
    "limit": words.mark("limit"),
    "guessing": words.mark("guessing"),
    "target": words.mark("target"),
    "low": words.mark("least accepted"),
    "high": words.mark("most accepted"),
    "chance_low": words.mark("chance, from"),
    "chance_high": words.mark("chance, to"),
    "even": words.mark("even"),
    "perfect": words.mark("perfect"),
    "training": words.mark("training"),
    "heldout": words.mark("held out"),
}


@dataclass(frozen=True)
class Curve:
    """What a plot shows: points, and the lines in `NAMES` that they are compared with; `name` of these is that of the
    points.
    """

    points: Sequence[Point] = ()
    limits: Mapping[str, Limit] = field(default_factory=dict)
    name: str = "curve"
    across: str = ""  # what the places are, such as "by iteration": a key of the catalogue


@dataclass(frozen=True)
class Axis:
    """One side of a plot: the values at its ends, and the marks along it."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]  # (value, text)

    def percent(self, value: float) -> float:
        """How far along the side a value stands."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


def figure_html(curve: Curve, title: str, translate: Words, elem_id: str) -> str:
    """A curve below its title, and above a legend if it is compared with anything. Empty where no point can be drawn.
    `title` is a key of the catalogue.
    """
    lines = {curve.name: _known(curve.points)}
    lines |= {name: _known(limit) for name, limit in curve.limits.items() if isinstance(limit, Sequence)}
    lines = {name: line for name, line in lines.items() if line}
    if curve.name not in lines:
        return ""
    levels = {name: limit for name, limit in curve.limits.items() if isinstance(limit, int | float) and _drawn(limit)}
    values = [y for line in lines.values() for _, y in line]
    near = _near(levels, values)
    numbers = _numbers([x for line in lines.values() for x, _ in line])
    across, up = _x_axis(numbers), _y_axis([*values, *near.values()])
    placed = {
        name: [(across.percent(numbers[x]), 100 - up.percent(y)) for x, y in line] for name, line in lines.items()
    }
    drawn = {name: [(0, 100 - up.percent(y)), (100, 100 - up.percent(y))] for name, y in near.items()} | placed
    dots = "".join(_dots_html(name, line, placed[name]) for name, line in lines.items())
    points = lines[curve.name]
    label = translate(
        "{title}: {first} at first, {last} at last",
        title=translate(title),
        first=_rounded(points[0][1]),
        last=_rounded(points[-1][1]),
    )
    return (
        f'<figure class="plot" id="{elem_id}"><figcaption>{escape(translate(title))}</figcaption>'
        f'<svg class="field" role="img" aria-label="{escape(label)}">{_ticks_html(across, up)}'
        f'<svg aria-hidden="true" viewBox="0 0 100 100" preserveAspectRatio="none">{_lines_html(drawn)}</svg>'
        f"{dots}</svg>{_legend_html(curve, lines, levels, near, translate)}</figure>"
    )


def _known(points: Iterable[Point]) -> list[tuple[X, float]]:
    """The points that can be drawn."""
    return [(x, y) for x, y in points if y is not None and _drawn(y) and (isinstance(x, str) or _drawn(x))]


def _drawn(value: float) -> bool:
    """Whether a value can be drawn: NaN and infinities cannot."""
    return abs(value) <= LARGEST


def _near(levels: Mapping[str, float], values: Sequence[float]) -> dict[str, float]:
    """The levels without a limit that stands so high that a plot with it would show nothing of all else."""
    others = [*values, *(level for name, level in levels.items() if name != "limit")]
    highest = FAR * max(abs(value) for value in others)
    return {name: level for name, level in levels.items() if name != "limit" or level <= highest}


def _numbers(places: Sequence[X]) -> dict[X, float]:
    """The number of each place: itself, or where places have names, how many names come before it."""
    if any(isinstance(x, str) for x in places):
        return {x: float(number) for number, x in enumerate(dict.fromkeys(places))}
    return {x: float(x) for x in places}


def _x_axis(numbers: Mapping[X, float]) -> Axis:
    """The side that has these places."""
    low, high = min(numbers.values()), max(numbers.values())
    if low == high:
        room = max(0.5, 1e-6 * abs(low))
        low, high = low - room, high + room
    if any(isinstance(x, str) for x in numbers):
        step = -(-len(numbers) // X_TICKS)
        ticks = [(number, str(x)) for x, number in list(numbers.items())[::step]]
    else:
        ticks = round_ticks(low, high, X_TICKS, whole=all(number.is_integer() for number in numbers.values()))
    return Axis(low, high, ticks)


def _y_axis(values: Sequence[float]) -> Axis:
    """The side that has these values, with some room around them; below 0 only where a value is, or next to it."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    top = high + room
    bottom = low - room if low < 0 else max(low - room, -0.06 * top)
    return Axis(bottom, top, round_ticks(bottom, top, Y_TICKS))


def round_ticks(low: float, high: float, most: int, whole: bool = False) -> list[tuple[float, str]]:
    """[(value, text)] of the round numbers between two: multiples of 1, 2 or 5 times a power of ten, about `most` of
    them; `whole` numbers alone where only these mean anything. None where the two differ by too little to tell.
    """
    rough = (high - low) / most
    if rough < SMALLEST * max(1.0, abs(low), abs(high)):
        return []
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.85 * rough)
    if whole:
        step = max(step, 1.0)
    first, last = math.ceil(low / step - ROUNDING), math.floor(high / step + ROUNDING)
    values = [step * place for place in range(first, last + 1)]
    return [(value, _tick_text(value, step)) for value in values]


def _tick_text(value: float, step: float) -> str:
    """A number at an axis whose marks are `step` apart, in as few characters as tell it from the next one."""
    decimals = max(0, -math.floor(math.log10(step)))
    if decimals <= MAX_DECIMALS and abs(value) < 1e6:
        return f"{value + 0.0:,.{decimals}f}"  # -0.0 is 0
    texts = (f"{value + 0.0:.{digits}g}" for digits in range(1, 17))
    return next((text for text in texts if abs(float(text) - value) <= step / 100), f"{value:g}")


def _rounded(value: float) -> str:
    """A value in three digits, or all of a whole number's."""
    return f"{value:,.0f}" if 999.5 <= abs(value) < 999_999.5 else f"{value:.3g}"


def _ticks_html(across: Axis, up: Axis) -> str:
    """Thin lines at the y axis' marks, and the texts at both axes."""
    parts = []
    for value, text in up.ticks:
        y = f"{100 - up.percent(value):g}%"
        parts.append(f'<line x1="0" x2="100%" y1="{y}" y2="{y}"/><text class="y" x="-6" y="{y}">{text}</text>')
    for value, text in across.ticks:
        parts.append(f'<text class="x" x="{across.percent(value):g}%" y="100%">{escape(text)}</text>')
    return f'<g class="ticks">{"".join(parts)}</g>'


def _lines_html(lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines through points that are given in percent."""
    return "".join(
        f'<polyline class="{name}" points="{" ".join(f"{x:g},{y:g}" for x, y in line)}"/>'
        for name, line in lines.items()
    )


def _dots_html(name: str, line: Sequence[tuple[X, float]], placed: Sequence[tuple[float, float]]) -> str:
    """A dot at each point of a line, which says its values when pointed at. The dots of many points show only then."""
    css_class = name if len(line) <= MAX_DOTS else f"{name} many"
    dots = "".join(
        f'<circle cx="{left:g}%" cy="{top:g}%" r="3"><title>{_place_text(x)}: {_rounded(y)}</title></circle>'
        for (x, y), (left, top) in zip(line, placed, strict=True)
    )
    return f'<g class="dots {css_class}">{dots}</g>'


def _place_text(x: X) -> str:
    return escape(x) if isinstance(x, str) else _rounded(x)


def _legend_html(
    curve: Curve, lines: Iterable[str], levels: Mapping[str, float], near: Iterable[str], translate: Words
) -> str:
    """What each line is, unless there is but one, and how high a level is, with an arrow where it is not among those
    `near` enough to be drawn; and what the places are.
    """
    entries = {name: translate(NAMES[name]) for name in lines}
    for name, level in levels.items():
        entries[name] = f"{translate(NAMES[name])} {_rounded(level)}" + ("" if name in near else " ↕")
    if len(entries) == 1:
        entries = {}
    if curve.across:
        entries["across"] = translate(curve.across)
    items = "".join(f'<li class="{name}">{escape(text)}</li>' for name, text in entries.items())
    return f'<ul class="legend">{items}</ul>' if items else ""


def thinned(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points: the mean of each part of a long curve, at the part's end."""
    known = [(x, y) for x, y in points if y is not None and _drawn(y)]
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
